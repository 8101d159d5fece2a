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
import os
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from ipaddress import ip_address
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from partners import addresses

_DIALLED_AT_MOST = 4  # addresses of one host
_HEAD_START = 0.25  # seconds that an address is waited for before the next one is tried beside it (RFC 8305 §8)

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
    own_places: addresses.OwnPlaces
    connect_timeout: timedelta
    answer_bytes: int
    longest_idle: timedelta
    look_up: addresses.LookUp


@dataclass
class _Allowance:
    """What one post may still use, and what it is at: "the deadline passed while ..."."""

    limits: Limits
    ends_at: float
    bytes_left: int
    doing: str = "connecting"
    has_hung_up: bool = False  # the peer: there is nothing more to read

    def seconds_left(self) -> float:
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        return left

    def end_within(self, time_left: timedelta) -> None:
        self.ends_at = min(self.ends_at, time.monotonic() + time_left.total_seconds())


# urllib3 has no way to hand something from a request to the connection that will carry it. A post runs in one thread
# from beginning to end, and so a connection, new or kept, always finds the allowance of the post it is carrying.
_allowance: ContextVar[_Allowance] = ContextVar("_allowance")


@contextmanager
def allow(limits: Limits, *, ends_at: float) -> Iterator[_Allowance]:
    """Let one post be sent and read in this block. It ends at ``ends_at`` of ``time.monotonic()``."""
    allowance = _Allowance(limits, ends_at=ends_at, bytes_left=limits.answer_bytes)
    token = _allowance.set(allowance)
    try:
        yield allowance
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
        allowance.has_hung_up = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach()))


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


class _Connection(HTTPConnection):
    """Dials checked addresses only, and never waits longer or reads more than the post it carries may."""

    response_class = _Response
    _used_at = 0.0
    _held: list[bytes] | None = None

    def _new_conn(self) -> socket.socket:
        return _dial(self.host, self.port)

    def request(self, *args: Any, **kwargs: Any) -> None:
        # Headers and body leave together: one system call, and one packet where they fit.
        held: list[bytes] = []
        self._held = held
        try:
            super().request(*args, **kwargs)
        finally:
            self._held = None
        self.send(b"".join(held))

    def putheader(self, header: str | bytes, *values: Any) -> None:
        # What cannot be a header was refused before (webhook.check_custom_headers): to look again, as urllib3 and
        # http.client both do, takes a fifth of a post.
        [value] = values
        self._output(_as_bytes(header) + b": " + _as_bytes(value))  # type: ignore[attr-defined]  # http.client's

    def send(self, data: Any) -> None:
        if self._held is not None:
            self._held.append(data)
            return
        if self.sock is None:
            self.connect()
        allowance = _allowance.get()
        allowance.doing = "sending the message"
        self.sock.settimeout(allowance.seconds_left())
        super().send(data)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # urllib3's own has the same
        allowance = _allowance.get()
        allowance.doing = "waiting for the answer"
        response = super().getresponse()
        if allowance.has_hung_up:
            response.close()
            # http.client takes what was cut off in its headers for a whole answer (RFC 9112 §8 says it is none).
            raise ConnectionResetError("it closed the connection in the middle of its answer")
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


class _Answer(requests.Response):
    """Status and raw answer only: what a stranger says of cookies, encoding and content type is not parsed."""

    def __init__(self, raw: urllib3.HTTPResponse) -> None:
        self.status_code = raw.status
        self.raw = raw


class Adapter(HTTPAdapter):
    """Posts on connections that it keeps, at most ``in_flight``; ``ca_file`` replaces the public authorities.

    ``send`` needs an ``allow`` around it, and raises one of ``FAULTS`` when no answer comes.
    """

    def __init__(self, *, ca_file: Path | None, in_flight: int) -> None:
        self._tls = _tls(ca_file)
        # By URL: where a request goes is worked out once, since that costs more than sending it.
        self._pools: dict[str | None, Any] = {}
        self._paths: dict[str | None, str] = {}
        super().__init__(pool_maxsize=in_flight, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._tls, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        pool = self._pools.get(request.url)
        if pool is None:
            pool = self._pools[request.url] = super().get_connection_with_tls_context(request, *args, **kwargs)
        return pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        path = self._paths.get(request.url)
        if path is None:
            path = self._paths[request.url] = request.path_url
        return path

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Leave the pool's context as it is: it verifies, and must not load a CA file again for each connection."""

    def build_response(self, request: requests.PreparedRequest, raw: Any) -> requests.Response:
        return _Answer(raw)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        super().close()


@functools.cache  # loading the public authorities takes 15 ms
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    # Not create_default_context(), which writes the keys to SSLKEYLOGFILE if the environment says so.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(ca_file or certifi.where())
    return context


def _dial(host: str, port: int) -> socket.socket:
    """Connect to the address of ``host`` that answers first, after all of them have passed."""
    allowance = _allowance.get()
    limits = allowance.limits
    timeout = min(limits.connect_timeout.total_seconds(), allowance.seconds_left())
    ends_at = time.monotonic() + timeout
    found = addresses.resolve(
        host,
        port,
        allowed_networks=limits.allowed_networks,
        own_places=limits.own_places,
        timeout=timedelta(seconds=timeout),
        look_up=limits.look_up,
    )
    with ExitStack() as undo:
        sock, address = _race(_in_turns(found)[:_DIALLED_AT_MOST], port, ends_at=ends_at)
        undo.callback(sock.close)
        peer = sock.getpeername()[0]  # checked again, now that it can no longer change: for 0.0.0.0 it is 127.0.0.1
        if ip_address(peer) != address:
            raise addresses.AddressRefused(f"{address} was dialled and {peer} answered")
        # Without it, a body that needs a second packet would wait until the first one is acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(allowance.seconds_left())  # for the TLS handshake, as a whole
        allowance.doing = "agreeing on TLS"
        undo.pop_all()
    return sock


def _in_turns(found: Sequence[addresses.Address]) -> list[addresses.Address]:
    """Alternate the families, beginning with the first address's, so that one broken family is not tried throughout."""
    first = [address for address in found if address.version == found[0].version]
    other = [address for address in found if address.version != found[0].version]
    return [address for address in chain(*zip_longest(first, other)) if address is not None]


def _race(found: Sequence[addresses.Address], port: int, *, ends_at: float) -> tuple[socket.socket, addresses.Address]:
    """Dial one address after the other, and return the first that answers (RFC 8305 §5, plainly).

    The next one starts when those before it have failed or have had their head start. Raises ``ConnectionError``, which
    names all failures, at ``ends_at`` of ``time.monotonic()`` at the latest.
    """
    failures = dict.fromkeys(found, "no answer")
    waiting = deque(found)
    running: dict[socket.socket, addresses.Address] = {}
    next_at = 0.0
    try:
        with selectors.DefaultSelector() as selector:
            while (now := time.monotonic()) < ends_at and (running or waiting):
                if waiting and (now >= next_at or not running):
                    address = waiting.popleft()
                    try:
                        sock = _start(address, port)
                    except OSError as error:
                        failures[address] = error.strerror or str(error)
                        continue
                    running[sock] = address
                    selector.register(sock, selectors.EVENT_WRITE, data=sock)
                    next_at = now + _HEAD_START
                until = min(next_at, ends_at) if waiting else ends_at
                for key, _ in selector.select(max(until - now, 0)):
                    sock = key.data
                    address = running.pop(sock)
                    fault = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not fault:
                        return sock, address
                    selector.unregister(sock)
                    sock.close()
                    failures[address] = os.strerror(fault)
    finally:
        for sock in running:
            sock.close()
    raise ConnectionError("; ".join(f"{address}: {failure}" for address, failure in failures.items()))


def _start(address: addresses.Address, port: int) -> socket.socket:
    """Begin to connect, without waiting. Raises ``OSError``, also where the machine has no such family of addresses."""
    with ExitStack() as undo:
        sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        undo.callback(sock.close)
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((str(address), port))  # a literal: no name server is asked
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


# What OpenSSL found wrong with a certificate (X509_V_ERR_…) or with the handshake, for the staff.
_CERTIFICATE_FAULTS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself and by no authority",
    19: "its certificate comes from an authority that is not a public one",
    20: "its certificate comes from an unknown authority, or an intermediate certificate is not sent along",
    21: "its certificate comes from an unknown authority, or an intermediate certificate is not sent along",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}
_TOO_OLD = "it speaks no TLS of version 1.2 or newer"
_HANDSHAKE_FAULTS = {
    "WRONG_VERSION_NUMBER": "what it speaks on this port is not TLS",
    "HTTP_REQUEST": "what it speaks on this port is not TLS",
    "UNSUPPORTED_PROTOCOL": _TOO_OLD,
    "TLSV1_ALERT_PROTOCOL_VERSION": _TOO_OLD,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refused the handshake: no cipher in common, or it asks for a certificate",
    "UNEXPECTED_EOF_WHILE_READING": "it hung up in the middle of TLS",
}


def name_fault(error: BaseException, *, doing: str) -> tuple[Reason, str]:
    """Find what went wrong under the layers that urllib3 and requests wrap around it, and say it in a few words.

    The words may quote what the peer sent.
    """
    layers = []
    layer: BaseException | None = error
    while layer is not None:
        layers.append(layer)
        layer = layer.__cause__ or layer.__context__
    for layer in layers:
        for kind, reason in _REASONS:
            if isinstance(layer, kind):
                return reason, _words(layer, doing)
    plain = next((layer for layer in layers if isinstance(layer, OSError) and layer.strerror), error)
    return "connection", _words(plain, doing)


def _words(fault: BaseException, doing: str) -> str:
    match fault:
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE_FAULTS.get(fault.verify_code) or fault.verify_message
        case ssl.SSLError():
            return _HANDSHAKE_FAULTS.get(fault.reason) or f"{fault.reason or fault} while {doing}"
        case TimeoutError():
            return f"the deadline passed while {doing}"
        case http.client.RemoteDisconnected():
            return "it closed the connection without an answer"
        case OSError(strerror=str(said)):
            return f"{said} while {doing}"
        case _:
            return str(fault)


def read_answer(raw: urllib3.HTTPResponse) -> bytes:
    """Read what can be read of the body. The status line has decided, and so nothing that goes wrong here matters."""
    answer = bytearray()
    with suppress(*FAULTS):
        while chunk := raw.read1(decode_content=False):
            answer += chunk
    raw.close()  # a connection whose answer was read to its end has gone back to the pool already
    return bytes(answer)
