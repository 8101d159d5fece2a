"""Peers that misbehave on purpose: scripted servers on 127.0.0.1 that work on the bare socket, byte by byte."""

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LONGEST_TALK = (
    30.0  # seconds, after which a peer gives up: a client without a deadline fails its test and does not hang it
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


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


def old_tls(talk: Talk) -> None:
    """Answer the ClientHello by choosing TLS 1.1."""
    hello = b"\x03\x02" + bytes(32) + b"\x00" + b"\xc0\x13" + b"\x00"
    message = b"\x02" + len(hello).to_bytes(3, "big") + hello
    talk.sock.recv(65536)
    talk.send(b"\x16\x03\x02" + len(message).to_bytes(2, "big") + message)
    talk.hang()


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

    def server(self, name: str, *, days: int = 30) -> ssl.SSLContext:
        """Make a server's TLS context with a certificate for ``name`` that ends in ``days``, which may be negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(subject=x509.Name([]), key=key, days=days)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        chain = self._folder / f"{name}.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def _builder(self, *, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
