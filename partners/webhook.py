"""The one road out to partners: send bytes, and say what became of them.

How a stranger's server is kept from taking more time or memory than it was given, and from leading us to addresses of
our own, is in ``partners.connection``.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

import requests

from partners import addresses
from partners.connection import FAULTS, Adapter, Limits, Reason, allow, explain, read_answer

DEADLINE = timedelta(seconds=15)
CONNECT_TIMEOUT = timedelta(seconds=5)
MAX_ANSWER_BYTES = 64 * 1024
EXCERPT_BYTES = 2 * 1024
LONGEST_RETRY_AFTER = timedelta(hours=24)
LONGEST_IDLE = timedelta(seconds=5)

_USER_AGENT = "removal-notices/1"


@dataclass(frozen=True)
class Delivered:
    """The partner answered with a 2xx status. Whatever happens in the body does not change that.

    ``answer`` is what was read of the body, undecoded. ``latency`` ends with the headers.
    """

    status: int
    answer: bytes
    latency: timedelta


@dataclass(frozen=True)
class Refused:
    """The partner answered with any other status, a redirect included."""

    status: int
    answer: bytes
    latency: timedelta
    retry_after: timedelta | None = None


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


class Line:
    """A kept-alive line to one partner. May be used by several threads at once; keep it for a minute at most.

    ``connect_timeout`` covers the look-up and every address tried. ``in_flight`` is how many connections are kept; one
    that was idle for ``longest_idle`` is not used again. ``ca_file`` replaces the public certificate authorities;
    certificates and names are always verified.
    """

    def __init__(
        self,
        *,
        allow_http: bool = False,
        allowed_networks: Collection[addresses.Network] = (),
        connect_timeout: timedelta = CONNECT_TIMEOUT,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        in_flight: int = 10,
        longest_idle: timedelta = LONGEST_IDLE,
        ca_file: Path | None = None,
        look_up: addresses.LookUp = addresses.look_up,
    ) -> None:
        self._allow_http = allow_http
        self._limits = Limits(
            allowed_networks=allowed_networks,
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
        of the name, connecting, the TLS handshake, sending and reading.
        """
        started_at = time.monotonic()
        try:
            addresses.check_url(url, allow_http=self._allow_http, allowed_networks=self._limits.allowed_networks)
        except addresses.UrlRefused as error:
            return Unreachable("address_refused", str(error), _since(started_at))
        ours = {"User-Agent": _USER_AGENT, **headers, "Accept-Encoding": "identity"}
        try:
            request = requests.Request("POST", url, headers=ours, data=body).prepare()
        except requests.exceptions.InvalidURL as error:  # it reads addresses more strictly than we do
            return Unreachable("address_refused", str(error), _since(started_at))
        try:
            with allow(self._limits, ends_at=started_at + deadline.total_seconds()):
                response = self._adapter.send(request)
                latency = _since(started_at)
                answer = read_answer(response.raw)
        except FAULTS as error:
            reason, detail = explain(error)
            return Unreachable(reason, excerpt(detail.encode(errors="replace")), _since(started_at))
        if 200 <= response.status_code < 300:
            return Delivered(response.status_code, answer, latency)
        retry_after = parse_retry_after(response.headers.get("Retry-After", ""), now=datetime.now(UTC))
        return Refused(response.status_code, answer, latency, retry_after)


def post(
    *,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    deadline: timedelta = DEADLINE,
    allow_http: bool = False,
    allowed_networks: Collection[addresses.Network] = (),
    ca_file: Path | None = None,
) -> Outcome:
    """Send one message on a line of its own; see ``Line.post``."""
    with Line(allow_http=allow_http, allowed_networks=allowed_networks, ca_file=ca_file) as line:
        return line.post(url=url, headers=headers, body=body, deadline=deadline)


def _since(started_at: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - started_at)
