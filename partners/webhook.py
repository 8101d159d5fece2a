"""The one road out to partners: send bytes, and say what became of them.

How a stranger's server is kept from taking more time or memory than it was given, and from leading us to addresses of
our own, is in ``partners.connection``.
"""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Self

import requests

from partners import addresses
from partners.connection import FAULTS, Adapter, Limits, Reason, allow, name_fault, read_answer

DEADLINE = timedelta(seconds=15)
# The status has decided. A body may still say "received"; whoever takes longer to send it says so by API.
BODY_TIME = timedelta(seconds=1)
CONNECT_TIMEOUT = timedelta(seconds=5)
MAX_ANSWER_BYTES = 64 * 1024
EXCERPT_BYTES = 2 * 1024
LONGEST_RETRY_AFTER = timedelta(hours=24)
LONGEST_IDLE = timedelta(seconds=5)
CONNECTIONS_KEPT = 100  # the largest window that an endpoint may have

_USER_AGENT = "removal-notices/1"

# The client's own: they frame the message, name the host, or say how the answer may look.
_OURS = frozenset(
    {
        *["accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection"],
        *["te", "trailer", "transfer-encoding", "upgrade", "user-agent"],
    }
)
# Nor may what a partner asks for replace what we sign, or carry a credential in plain sight of whoever reads settings.
_NOT_CUSTOM = frozenset({"authorization", "content-type", "cookie", "proxy-authorization"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110 §5.6.2
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")


class HeaderRefused(ValueError):
    """This header may not be sent; the message says why."""


@dataclass(frozen=True)
class Delivered:
    """The partner answered with a 2xx status. Whatever happens in the body does not change that.

    ``answer`` is what was read of the body, undecoded, within ``BODY_TIME``. ``latency`` ends with that.
    """

    status: int
    answer: bytes
    latency: timedelta


@dataclass(frozen=True)
class Refused:
    """The partner answered with any other status, a redirect included.

    ``retry_after_ignored`` when there was a Retry-After that says nothing usable.
    """

    status: int
    answer: bytes
    latency: timedelta
    retry_after: timedelta | None = None
    retry_after_ignored: bool = False


@dataclass(frozen=True)
class Unreachable:
    """No status came back. The partner may have read the message all the same.

    ``detail`` is for the staff and may name addresses.
    """

    reason: Reason
    detail: str
    latency: timedelta


Outcome = Delivered | Refused | Unreachable


def excerpt(answer: bytes) -> str:
    """Turn a partner's answer into at most 2 KiB of text (in UTF-8) that is safe to store, log and show.

    Control and formatting characters are replaced: no NUL, which PostgreSQL refuses, and no bidirectional overrides.
    """
    text = answer[:EXCERPT_BYTES].decode("utf-8", errors="replace")
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.encode()[:EXCERPT_BYTES].decode("utf-8", errors="ignore")


def parse_retry_after(value: str, *, now: datetime) -> timedelta | None:
    """Read a Retry-After header (RFC 9110 §10.2.3: seconds or a date), at most 24 hours; ``None`` for anything else.

    A date that has passed is ``None``. Never raises: the value is whatever a stranger sent.
    """
    text = value.strip()
    if len(text) > 64:  # the longest date of RFC 9110 has 33 characters
        return None
    if text.isascii() and text.isdigit():
        seconds = min(int(text), int(LONGEST_RETRY_AFTER.total_seconds()))
        return timedelta(seconds=seconds)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    wait = date.replace(tzinfo=date.tzinfo or UTC) - now
    return min(wait, LONGEST_RETRY_AFTER) if wait > timedelta(0) else None


def check_custom_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers that a partner may not ask to be sent along. Raises ``HeaderRefused``."""
    _check_headers(headers)
    for name in headers:
        if name.lower() in _NOT_CUSTOM or name.lower().startswith("webhook-"):
            raise HeaderRefused(f"The header {name} is part of what is signed or of who is calling; choose another.")


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if name.lower() in _OURS:
            raise HeaderRefused(f"The header {name} is set by the client itself; leave it out.")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise HeaderRefused(f"The header {name!r} is not a name with a value of printable ASCII characters.")


_SAID_BY_STATUS = {
    400: "it does not accept what the message says",
    401: "it rejects our signature or credentials",
    402: "it wants to be paid",
    403: "it rejects our signature or credentials",
    404: "nothing is at this address",
    405: "this address takes no POST",
    408: "it waited too long for the message",
    410: "the endpoint is gone for good",
    411: "it does not take a message of this form",
    413: "the message is too large for it",
    414: "its address is too long for it",
    415: "it does not take JSON at this address",
    422: "it does not accept what the message says",
    425: "it asks to be tried again later",
    429: "it gets too many messages at once",
    431: "the message's headers are too large for it",
    451: "it refuses for legal reasons",
    500: "its server failed",
    501: "this address takes no POST",
    502: "the gateway in front of its server got no proper answer",
    503: "its server is not available now",
    504: "the gateway in front of its server got no answer in time",
    507: "its server has no space left",
}
_REDIRECTS = {301, 302, 303, 307, 308}


def explain(outcome: Outcome) -> str:
    """Say in one plain line of at most 200 characters what came of a message, for the staff.

    An ``Unreachable`` begins with its reason and a colon; any other with "answered" and the status.
    """
    if isinstance(outcome, Unreachable):
        text = f"{outcome.reason}: {outcome.detail}"
    elif isinstance(outcome, Delivered):
        text = f"answered {outcome.status}; delivered"
    else:
        text = f"answered {outcome.status}; {_said_by(outcome.status)}{_wait_asked_for(outcome)}"
    line = excerpt(text.encode(errors="replace"))
    return line if len(line) <= 200 else f"{line[:199]}…"


def _said_by(status: int) -> str:
    if status in _REDIRECTS:
        return "redirects are never followed"
    known = _SAID_BY_STATUS.get(status)
    if known:
        return known
    if 400 <= status < 500:
        return "it refuses the message"
    return "its server failed" if 500 <= status < 600 else "that is no answer to a message"


def _wait_asked_for(outcome: Refused) -> str:
    if outcome.retry_after_ignored:
        return "; its Retry-After says nothing usable"
    if outcome.retry_after is None:
        return ""
    return f"; it asks for {int(outcome.retry_after.total_seconds())} s of patience"


class Line:
    """A kept-alive line to one partner. May be used by several threads at once; keep it for a minute at most.

    ``connect_timeout`` covers the look-up and every address tried. ``in_flight`` is how many connections are kept; one
    that was idle for ``longest_idle`` is not used again. ``ca_file`` replaces the public certificate authorities;
    certificates and names are always verified. ``own_places`` are refused even inside an allowed network.
    ``custom_headers`` go with every message; raises ``HeaderRefused`` if one of them is not the partner's to choose.
    """

    def __init__(
        self,
        *,
        allow_http: bool = False,
        allowed_networks: Collection[addresses.Network] = (),
        own_places: addresses.OwnPlaces = addresses.NOTHING_OURS,
        custom_headers: Mapping[str, str] = MappingProxyType({}),
        connect_timeout: timedelta = CONNECT_TIMEOUT,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        in_flight: int = CONNECTIONS_KEPT,
        longest_idle: timedelta = LONGEST_IDLE,
        ca_file: Path | None = None,
        look_up: addresses.LookUp = addresses.look_up,
    ) -> None:
        check_custom_headers(custom_headers)
        self._allow_http = allow_http
        self._headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **custom_headers}
        self._ready: dict[str, str] = {}  # URLs that were checked, as requests writes them
        self._limits = Limits(
            allowed_networks=allowed_networks,
            own_places=own_places,
            connect_timeout=connect_timeout,
            answer_bytes=max_answer_bytes,
            longest_idle=longest_idle,
            look_up=look_up,
        )
        self._adapter = Adapter(ca_file=ca_file, in_flight=in_flight)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._adapter.close()

    def post(self, *, url: str, headers: Mapping[str, str], body: bytes, deadline: timedelta = DEADLINE) -> Outcome:
        """Send ``body`` once and return what came of it.

        Nothing that the partner or the network does raises, or takes longer than ``deadline``, which covers the look-up
        of the name, connecting, the TLS handshake, sending and reading. Raises ``HeaderRefused`` for a header of the
        caller's that the client sets itself or that could not be sent.
        """
        started_at = time.monotonic()
        _check_headers(headers)
        try:
            ready = self._ready.get(url) or self._make_ready(url)
        except (addresses.UrlRefused, requests.exceptions.InvalidURL) as error:
            return Unreachable("address_refused", str(error), _since(started_at))
        request = requests.PreparedRequest()
        request.method, request.url, request.body = "POST", ready, body
        # A plain dict is enough below a Session, and is read and copied in a fraction of the time.
        request.headers = {**self._headers, **headers, "Content-Length": str(len(body))}  # type: ignore[assignment]
        with allow(self._limits, ends_at=started_at + deadline.total_seconds()) as allowance:
            try:
                response = self._adapter.send(request)
                allowance.end_within(BODY_TIME)
                answer = read_answer(response.raw)
                latency = _since(started_at)
            except FAULTS as error:
                reason, detail = name_fault(error, doing=allowance.doing)
                return Unreachable(reason, excerpt(detail.encode(errors="replace")), _since(started_at))
        if 200 <= response.status_code < 300:
            return Delivered(response.status_code, answer, latency)
        said = response.raw.headers.get("Retry-After")  # several of them arrive as one, and as none that can be read
        retry_after = None if said is None else parse_retry_after(said, now=datetime.now(UTC))
        ignored = said is not None and retry_after is None
        return Refused(response.status_code, answer, latency, retry_after, ignored)

    def _make_ready(self, url: str) -> str:
        limits = self._limits
        addresses.check_url(
            url,
            allow_http=self._allow_http,
            allowed_networks=limits.allowed_networks,
            own_places=limits.own_places,
        )
        # requests reads addresses more strictly than we do, and may refuse this one.
        self._ready[url] = str(requests.Request("POST", url).prepare().url)
        return self._ready[url]


def post(
    *,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    deadline: timedelta = DEADLINE,
    allow_http: bool = False,
    allowed_networks: Collection[addresses.Network] = (),
    own_places: addresses.OwnPlaces = addresses.NOTHING_OURS,
    ca_file: Path | None = None,
) -> Outcome:
    """Send one message on a line of its own; see ``Line.post``."""
    with Line(allow_http=allow_http, allowed_networks=allowed_networks, own_places=own_places, ca_file=ca_file) as line:
        return line.post(url=url, headers=headers, body=body, deadline=deadline)


def _since(started_at: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - started_at)
