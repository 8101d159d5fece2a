"""Peers that misbehave on purpose: scripted servers on 127.0.0.1 that work on the bare socket, byte by byte."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from partners import webhook
from partners.addresses import NOTHING_OURS, LookUp, OwnPlaces
from partners.webhook import Line, Outcome, Unreachable

LONGEST_TALK = (
    30.0  # seconds, after which a peer gives up: a client without a deadline fails its test and does not hang it
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LOOPBACK = [ip_network("127.0.0.0/8")]
HEADERS = {"webhook-id": "msg_1", "Content-Type": "application/json"}
NAME = "partner.example"
PATIENT = timedelta(seconds=20)  # for peers that answer: how slow the machine is must not matter

# Rows S1 to S6 of the fault list: what no partner's name or URL may lead to.
NEVER_CALLED = {
    "S1 loopback": ["127.0.0.1", "127.255.255.255"],
    "S1 private": ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"],
    "S1 this network": ["0.0.0.0", "0.255.255.255"],
    "S1 link-local and metadata": ["169.254.0.1", "169.254.169.254"],
    "S2 IPv6 loopback and unspecified": ["::1", "::"],
    "S2 unique local": ["fc00::1", "fd00::1", "fdff:ffff::1"],
    "S2 link-local": ["fe80::1", "febf::1", "fe80::1%eth0"],
    "S2 site-local": ["fec0::1", "feff::1"],
    "S2 IPv6 multicast": ["ff00::1", "ff02::1", "ff0e::1"],
    "S3 IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16"],
    "S3 IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "S3 IPv4-translated": ["::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"],
    "S4 NAT64": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1"],
    "S4 6to4": ["2002:7f00:1::1", "2002:808:808::1"],
    "S4 Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "S5 carriers": ["100.64.0.1", "100.100.100.200", "100.127.255.255"],
    "S5 Azure": ["168.63.129.16"],
    "S5 protocol assignments": ["192.0.0.8", "192.0.0.192", "192.88.99.1", "2001:2::1", "2001:20::1", "2001:1ff::1"],
    "S5 benchmarks": ["198.18.0.1", "198.19.255.255"],
    "S5 documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1", "3fff:fff::1"],
    "S5 multicast and reserved": ["224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"],
    "S5 discarded": ["100::1", "100:0:0:1::1"],
    "S5 segment routing": ["5f00::1"],
    "S5 not handed out": ["1::1", "400::1", "4000::1", "8000::1", "c000::1", "fe00::1"],
    "S6 metadata": ["fd00:ec2::254", "fd20:ce::254"],
}


class Talk:
    """One connection, as the script of a peer sees it."""

    def __init__(self, sock: socket.socket, peer: "Peer") -> None:
        self.sock = sock
        self.peer = peer

    def read_request(self) -> bytes:
        """Read one whole request and note it on the peer. Returns its body; raises ``ConnectionError`` at the end."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._receive()
        self.peer.requests.append(head + b"\r\n\r\n" + body)
        return body

    def _receive(self) -> bytes:
        received = self.sock.recv(65536)
        if not received:
            raise ConnectionError("the client has gone")
        return received

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """End the connection with RST in place of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def repeat(self, data: bytes, *, every: float = 0.0) -> None:
        """Send ``data`` again and again, with ``every`` seconds between, until somebody hangs up."""
        ends_at = time.monotonic() + LONGEST_TALK
        while time.monotonic() < ends_at and not self.peer.stopping.wait(every):
            self.send(data)

    def hang(self) -> None:
        """Do nothing until the test is over."""
        self.peer.stopping.wait(LONGEST_TALK)


Script = Callable[[Talk], None]


class Peer:
    """A server that plays ``script`` on every connection, after a TLS handshake if ``tls`` is given."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.connections = 0
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(0)  # released once for each connection that the script has left
        self.stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/hook"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes accept()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes recv() and send()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self.stopping.is_set():
                sock.close()
                return
            self.connections += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._play, args=[sock])
            self._threads.append(thread)
            thread.start()

    def _play(self, sock: socket.socket) -> None:
        # The script ends when the client hangs up, or when its handshake fails: both are OSError.
        with suppress(OSError), sock:
            if self.tls is None:
                self.script(Talk(sock, self))
            else:
                with self.tls.wrap_socket(sock, server_side=True) as wrapped:
                    self._open.append(wrapped)
                    self.script(Talk(wrapped, self))
        self.ended.release()


def answering(answer: bytes) -> Script:
    """Give the same answer to every request, on a connection that is kept."""

    def script(talk: Talk) -> None:
        while True:
            talk.read_request()
            talk.send(answer)

    return script


def answering_once(answer: bytes) -> Script:
    """Answer one request, then close the connection without having said so."""

    def script(talk: Talk) -> None:
        talk.read_request()
        talk.send(answer)

    return script


def silence(talk: Talk) -> None:
    talk.hang()


def slow_headers(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    talk.repeat(b"x", every=0.05)


def slow_body(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    talk.repeat(b"x", every=0.05)


def slow_continue(talk: Talk) -> None:
    talk.read_request()
    talk.repeat(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.05)


def flooding_continue(talk: Talk) -> None:
    talk.read_request()
    talk.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def endless_header_lines(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\n")
    talk.repeat(b"X: x\r\n" * 100)


def endless_trailer_lines(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
    talk.repeat(b"X: x\r\n" * 100)


def endless_header_line(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nX: ")
    talk.repeat(b"x" * 1000)


def endless_trailer_line(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: ")
    talk.repeat(b"x" * 1000)


def slow_trailer_lines(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
    talk.repeat(b"X: x\r\n", every=0.05)


def endless_chunk_size(talk: Talk) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
    talk.repeat(b"0" * 1000)


ENDLESS_BODY_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def endless_body(talk: Talk) -> None:
    talk.read_request()
    talk.send(ENDLESS_BODY_HEAD)
    talk.repeat(b"x" * 65536)


def dripping_handshake(talk: Talk) -> None:
    talk.send(b"\x16\x03\x03\x3f\xff")  # a handshake record of 16,383 bytes, of which one comes at a time
    talk.repeat(b"\x02", every=0.05)


def choosing_tls(minor: int) -> Script:
    """Answer the ClientHello by choosing a version: 1 is TLS 1.0, 2 is TLS 1.1, 0 is SSL 3."""

    def script(talk: Talk) -> None:
        hello = bytes([3, minor]) + bytes(32) + b"\x00" + b"\xc0\x13" + b"\x00"
        message = b"\x02" + len(hello).to_bytes(3, "big") + hello
        talk.sock.recv(65536)
        talk.send(bytes([22, 3, minor]) + len(message).to_bytes(2, "big") + message)
        talk.hang()

    return script


def alerting(talk: Talk) -> None:
    """Answer the ClientHello with the alert that the handshake failed."""
    talk.sock.recv(65536)
    talk.send(b"\x15\x03\x03\x00\x02\x02\x28")


@contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """An address where connections are neither accepted nor refused."""
    with socket.create_server((address, port), backlog=0), ExitStack() as waiting:
        with suppress(TimeoutError):
            while True:  # until its queue is full and it no longer answers
                waiting.enter_context(socket.create_connection((address, port), timeout=0.3))
        yield


class Authority:
    """A certificate authority of our own; ``ca_file`` is what a client has to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        certificate = (
            self._builder(subject=self._name, key=self._key, days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "authority.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, *, days: int = 30, begins: int = -60) -> ssl.SSLContext:
        """Make a server's TLS context with a certificate for ``name``, valid between two numbers of days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject=x509.Name([]), key=key, days=days, begins=begins)
        return self._context(name, key, builder, signer=self._key)

    def signed_by_itself(self, name: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._context(name, key, self._builder(subject=subject, issuer=subject, key=key, days=30), signer=key)

    def _context(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        builder: x509.CertificateBuilder,
        *,
        signer: ec.EllipticCurvePrivateKey,
    ) -> ssl.SSLContext:
        certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False).sign(
            signer, hashes.SHA256()
        )
        chain = self._folder / f"{x509.random_serial_number()}.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def _builder(
        self,
        *,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: int,
        begins: int = -60,
        issuer: x509.Name | None = None,
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins))
            .not_valid_after(now + timedelta(days=days))
        )


def open_line(
    *,
    ca_file: Path | None = None,
    look_up: LookUp = lambda host, port: ["127.0.0.1"],
    own_places: OwnPlaces = NOTHING_OURS,
    connect_timeout: timedelta = timedelta(seconds=10),
    max_answer_bytes: int = webhook.MAX_ANSWER_BYTES,
    longest_idle: timedelta = timedelta(minutes=1),
) -> Line:
    """A line that may call the loopback, where every name is unless ``look_up`` says otherwise."""
    return Line(
        allow_http=True,
        allowed_networks=LOOPBACK,
        own_places=own_places,
        ca_file=ca_file,
        look_up=look_up,
        connect_timeout=connect_timeout,
        max_answer_bytes=max_answer_bytes,
        longest_idle=longest_idle,
    )


def send(line: Line, peer: Peer, *, body: bytes = b"{}", deadline: timedelta = PATIENT) -> Outcome:
    return line.post(url=peer.url(NAME), headers=HEADERS, body=body, deadline=deadline)


def send_once(peer: Peer, *, body: bytes = b"{}", deadline: timedelta = PATIENT) -> Outcome:
    with open_line() as line:
        return send(line, peer, body=body, deadline=deadline)


def in_time(call: Callable[[], Outcome], deadline: timedelta) -> Outcome:
    """Make the call, which may take its deadline and what a busy machine adds to it."""
    started_at = time.monotonic()
    outcome = call()
    assert time.monotonic() - started_at < deadline.total_seconds() + 3
    return outcome


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome, Unreachable), outcome
    return outcome.reason


def detail(outcome: Outcome) -> str:
    assert isinstance(outcome, Unreachable), outcome
    return outcome.detail
