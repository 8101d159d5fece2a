"""The one road out to partners: send bytes, and say what became of them.

This is requests' transport adapter on a subclass of urllib3's connection. It sits below requests' Session, and so there
is nothing to switch off: no redirects are followed, no cookies kept, no proxies, ``.netrc`` or other environment read,
and no request is repeated. What urllib3 lacks is added here: one deadline for the whole post, a budget of bytes, and
addresses that are checked before they are dialled. ``requests(timeout=…)`` is no deadline; a peer that sends one byte
now and then holds such a call for ever.
"""

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from partners import addresses

DEADLINE = timedelta(seconds=15)
CONNECT_TIMEOUT = timedelta(seconds=5)
MAX_ANSWER_BYTES = 64 * 1024
EXCERPT_BYTES = 2 * 1024
LONGEST_RETRY_AFTER = timedelta(hours=24)
LONGEST_IDLE = timedelta(seconds=5)

_DIALLED_AT_MOST = 4  # addresses of one host; each gets an equal share of the connect timeout
_USER_AGENT = "removal-notices/1"

Reason = Literal["dns", "address_refused", "connection", "tls", "timeout", "protocol"]


def require_safe_urllib3(installed: str) -> None:
    """Refuse a urllib3 older than 2.7, in which a small answer can unpack into a large one. Raises ``ImportError``."""
    if tuple(int(part) for part in installed.split(".")[:2]) < (2, 7):
        raise ImportError(f"urllib3 {installed} is not safe against hostile answers; install urllib3>=2.7,<3.")


require_safe_urllib3(version("urllib3"))


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
        self.allow_http = allow_http
        self.allowed_networks = allowed_networks
        self.connect_timeout = connect_timeout
        self.max_answer_bytes = max_answer_bytes
        self.longest_idle = longest_idle
        self.look_up = look_up
        self._adapter = _Adapter(tls=_tls(ca_file), in_flight=in_flight)

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
            addresses.check_url(url, allow_http=self.allow_http, allowed_networks=self.allowed_networks)
        except addresses.UrlRefused as error:
            return Unreachable("address_refused", str(error), _since(started_at))
        ours = {"User-Agent": _USER_AGENT, **headers, "Accept-Encoding": "identity"}
        request = requests.Request("POST", url, headers=ours, data=body).prepare()
        allowance = _Allowance(self, ends_at=started_at + deadline.total_seconds(), bytes_left=self.max_answer_bytes)
        token = _allowance.set(allowance)
        try:
            response = self._adapter.send(request)
            latency = _since(started_at)
            answer = _read_answer(response.raw)
        except _FAULTS as error:
            return Unreachable(*_explain(error), _since(started_at))
        finally:
            _allowance.reset(token)
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


@dataclass
class _Allowance:
    """What one post may still use, and the line that says what it may do."""

    line: Line
    ends_at: float
    bytes_left: int

    def seconds_left(self) -> float:
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        return left


# urllib3 has no way to hand something from a request to the connection that will carry it. A post runs in one thread
# from beginning to end, and so a connection, new or kept, always finds the allowance of the post it is carrying.
_allowance: ContextVar[_Allowance] = ContextVar("_allowance")


class _Reader(io.RawIOBase):
    """Reads a socket, and before every read asks the allowance how long and how much."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        allowance = _allowance.get()
        if allowance.bytes_left == 0:
            raise http.client.HTTPException(f"more than {allowance.line.max_answer_bytes} bytes of answer")
        self._sock.settimeout(allowance.seconds_left())
        count: int | None = self._raw.readinto(memoryview(buffer)[: allowance.bytes_left])
        allowance.bytes_left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach()))


class _Connection(HTTPConnection):
    """Dials checked addresses only, and never waits longer or reads more than the post it carries may."""

    response_class = _Response
    _used_at = 0.0

    def _new_conn(self) -> socket.socket:
        return _dial(self.host, self.port)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(_allowance.get().seconds_left())
        super().send(data)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # urllib3's own has the same
        response = super().getresponse()
        if response.status < 200:
            # http.client skips 100 only. The real answer is still to come, and must not meet the next request.
            raise http.client.HTTPException(f"status {response.status} before the answer")
        self._used_at = time.monotonic()
        return response

    @property
    def is_connected(self) -> bool:
        # Asked by the pool before it uses a kept connection again. The age is checked because a server that closes an
        # idle connection at the moment we send leaves us not knowing whether it has read the message.
        return super().is_connected and _since(self._used_at) < _allowance.get().line.longest_idle


class _TlsConnection(_Connection, HTTPSConnection):
    """The same, with TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    def __init__(self, *, tls: ssl.SSLContext, in_flight: int) -> None:
        self._tls = tls
        super().__init__(pool_maxsize=in_flight, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._tls, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Leave the pool's context as it is: it verifies, and must not load a CA file again for each connection."""

    def build_response(self, request: requests.PreparedRequest, raw: Any) -> requests.Response:
        """Make a response without parsing a stranger's cookies and content type."""
        response = requests.Response()
        response.status_code = raw.status
        response.headers = CaseInsensitiveDict(raw.headers)
        response.raw = raw
        return response


@functools.cache  # loading the public authorities takes 15 ms
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    # Not create_default_context(), which writes the keys to SSLKEYLOGFILE if the environment says so.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(ca_file or certifi.where())
    return context


def _dial(host: str, port: int) -> socket.socket:
    """Connect to the first address of ``host`` that answers, after all of them have passed."""
    allowance = _allowance.get()
    line = allowance.line
    timeout = min(line.connect_timeout.total_seconds(), allowance.seconds_left())
    ends_at = time.monotonic() + timeout
    found = addresses.resolve(
        host,
        port,
        allowed_networks=line.allowed_networks,
        timeout=timedelta(seconds=timeout),
        look_up=line.look_up,
    )[:_DIALLED_AT_MOST]
    failures = []
    for tried, address in enumerate(found):
        share = max((ends_at - time.monotonic()) / (len(found) - tried), 0.001)
        try:
            return _connect(address, port, seconds=share)
        except OSError as error:
            failures.append(f"{address}: {error.strerror or error}")
    raise ConnectionError("; ".join(failures))


def _connect(address: addresses.Address, port: int, *, seconds: float) -> socket.socket:
    sock = socket.create_connection((str(address), port), timeout=seconds)  # given a literal, it asks no name server
    with ExitStack() as undo:
        undo.callback(sock.close)
        peer = sock.getpeername()[0]  # checked again, now that it can no longer change: for 0.0.0.0 it is 127.0.0.1
        if ip_address(peer) != address:
            raise addresses.AddressRefused(f"{address} was dialled and {peer} answered")
        # Headers and body are two sends: with Nagle's algorithm the second would wait for the first's acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_allowance.get().seconds_left())  # for the TLS handshake, as a whole
        undo.pop_all()
    return sock


# What a peer or the network can make the layers below raise.
_REASONS: tuple[tuple[type[BaseException], Reason], ...] = (
    (addresses.AddressRefused, "address_refused"),
    (addresses.LookUpFailed, "dns"),
    (ssl.SSLError, "tls"),
    (TimeoutError, "timeout"),
    (ConnectionError, "connection"),
    (http.client.HTTPException, "protocol"),
    (ValueError, "protocol"),
)
_FAULTS: tuple[type[BaseException], ...] = (OSError, urllib3.exceptions.HTTPError, *(kind for kind, _ in _REASONS))


def _explain(error: BaseException) -> tuple[Reason, str]:
    """Find what went wrong under the layers that urllib3 and requests wrap around it."""
    layer: BaseException | None = error
    while layer is not None:
        for kind, reason in _REASONS:
            if isinstance(layer, kind):
                return reason, excerpt(str(layer).encode(errors="replace"))  # may quote what the peer sent
        layer = layer.__cause__ or layer.__context__
    return "connection", excerpt(str(error).encode(errors="replace"))


def _read_answer(raw: urllib3.HTTPResponse) -> bytes:
    """Read what can be read of the body. The status line has decided, and so nothing that goes wrong here matters."""
    answer = bytearray()
    with suppress(*_FAULTS):
        while chunk := raw.read1(decode_content=False):
            answer += chunk
    raw.close()  # a connection whose answer was read to its end has gone back to the pool already
    return bytes(answer)


def _since(started_at: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - started_at)
