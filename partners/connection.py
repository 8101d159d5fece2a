"""Connections to strangers: they keep to a deadline, to a budget of bytes, and to addresses that may be called.

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
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from partners import addresses

_DIALLED_AT_MOST = 4  # addresses of one host; each gets an equal share of the connect timeout

Reason = Literal["dns", "address_refused", "connection", "tls", "timeout", "protocol"]


def require_safe_urllib3(installed: str) -> None:
    """Refuse a urllib3 older than 2.7, in which a small answer can unpack into a large one. Raises ``ImportError``."""
    if tuple(int(part) for part in installed.split(".")[:2]) < (2, 7):
        raise ImportError(f"urllib3 {installed} is not safe against hostile answers; install urllib3>=2.7,<3.")


require_safe_urllib3(version("urllib3"))


@dataclass(frozen=True)
class Limits:
    """What holds for every post on a line; see ``webhook.Line``."""

    allowed_networks: Collection[addresses.Network]
    connect_timeout: timedelta
    answer_bytes: int
    longest_idle: timedelta
    look_up: addresses.LookUp


@dataclass
class _Allowance:
    """What one post may still use."""

    limits: Limits
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


@contextmanager
def allow(limits: Limits, *, ends_at: float) -> Iterator[None]:
    """Let one post be sent and read in this block. It ends at ``ends_at`` of ``time.monotonic()``."""
    token = _allowance.set(_Allowance(limits, ends_at=ends_at, bytes_left=limits.answer_bytes))
    try:
        yield
    finally:
        _allowance.reset(token)


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
            raise http.client.HTTPException(f"more than {allowance.limits.answer_bytes} bytes of answer")
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
        idle = timedelta(seconds=time.monotonic() - self._used_at)
        return super().is_connected and idle < _allowance.get().limits.longest_idle


class _TlsConnection(_Connection, HTTPSConnection):
    """The same, with TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Adapter(HTTPAdapter):
    """Posts on connections that it keeps, at most ``in_flight``; ``ca_file`` replaces the public authorities.

    ``send`` needs an ``allow`` around it, and raises one of ``FAULTS`` when no answer comes.
    """

    def __init__(self, *, ca_file: Path | None, in_flight: int) -> None:
        self._tls = _tls(ca_file)
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
    limits = allowance.limits
    timeout = min(limits.connect_timeout.total_seconds(), allowance.seconds_left())
    ends_at = time.monotonic() + timeout
    found = addresses.resolve(
        host,
        port,
        allowed_networks=limits.allowed_networks,
        timeout=timedelta(seconds=timeout),
        look_up=limits.look_up,
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
FAULTS: tuple[type[BaseException], ...] = (OSError, urllib3.exceptions.HTTPError, *(kind for kind, _ in _REASONS))


def explain(error: BaseException) -> tuple[Reason, str]:
    """Find what went wrong under the layers that urllib3 and requests wrap around it.

    The words may quote what the peer sent.
    """
    layer: BaseException | None = error
    while layer is not None:
        for kind, reason in _REASONS:
            if isinstance(layer, kind):
                return reason, str(layer)
        layer = layer.__cause__ or layer.__context__
    return "connection", str(error)


def read_answer(raw: urllib3.HTTPResponse) -> bytes:
    """Read what can be read of the body. The status line has decided, and so nothing that goes wrong here matters."""
    answer = bytearray()
    with suppress(*FAULTS):
        while chunk := raw.read1(decode_content=False):
            answer += chunk
    raw.close()  # a connection whose answer was read to its end has gone back to the pool already
    return bytes(answer)
