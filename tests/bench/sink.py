"""A partner that costs next to nothing: one process, one epoll loop, and the same answer to every POST.

``python -m tests.bench.sink [--delay-ms N]`` prints where it listens. Its own speed is measured in the same run as
those that it serves (``measure_ceiling``), so that a figure can be seen not to be the sink's.
"""

import argparse
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from removal.config.children import ending_with_parent

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
READ_BYTES = 256 * 1024
CALLERS = 2  # processes, each
CALLER_CONNECTIONS = 16

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

# (time.time() at the first byte, body)
Arrived = Callable[[float, bytes], None]


@dataclass
class _Caller:
    sock: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    first_byte_at: float = 0.0


class Sink:
    """Answers 200 to every POST, ``delay_seconds`` after its last byte; a GET is told how many POSTs there were.

    Connections are kept until the caller closes them. ``arrived`` is called for each POST, before its answer leaves.
    """

    def __init__(self, *, delay_seconds: float = 0.0, arrived: Arrived | None = None) -> None:
        self.posts = 0
        self._delay = delay_seconds
        self._arrived = arrived
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._callers: dict[int, _Caller] = {}
        self._owed: deque[tuple[float, _Caller]] = deque()  # by time, since every answer takes as long

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def serve(self) -> None:
        """Answer until the process ends."""
        poll = select.epoll()
        poll.register(self._listener, select.EPOLLIN)
        listener = self._listener.fileno()
        while True:
            wait = max(self._owed[0][0] - time.monotonic(), 0) if self._owed else -1
            for number, _ in poll.poll(wait):
                if number == listener:
                    self._accept(poll)
                else:
                    self._read(self._callers[number])
            while self._owed and self._owed[0][0] <= time.monotonic():
                self._say(self._owed.popleft()[1], ANSWER)

    def _accept(self, poll: select.epoll) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._callers[sock.fileno()] = _Caller(sock)
        poll.register(sock, select.EPOLLIN)

    def _read(self, caller: _Caller) -> None:
        try:
            data = caller.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            del self._callers[caller.sock.fileno()]
            caller.sock.close()  # which epoll notices by itself
            return
        if not caller.buffer:
            caller.first_byte_at = time.time()
        caller.buffer += data
        while self._take(caller):
            pass

    def _take(self, caller: _Caller) -> bool:
        """Answer one request of the buffer, if there is a whole one."""
        head = caller.buffer.find(b"\r\n\r\n")
        if head < 0:
            return False
        if caller.buffer.startswith(b"GET"):
            del caller.buffer[: head + 4]
            count = str(self.posts).encode()
            self._say(caller, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(count), count))
            return True
        length = _LENGTH.search(caller.buffer, 0, head)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(caller.buffer) < end:
            return False
        self.posts += 1
        if self._arrived:
            self._arrived(caller.first_byte_at, bytes(caller.buffer[head + 4 : end]))
        del caller.buffer[:end]
        if self._delay:
            self._owed.append((time.monotonic() + self._delay, caller))
        else:
            self._say(caller, ANSWER)
        return True

    def _say(self, caller: _Caller, answer: bytes) -> None:
        with suppress(OSError):  # it is gone; its end will be read
            caller.sock.send(answer)  # far smaller than any socket's buffer


@contextmanager
def sink(*, delay_ms: int = 0) -> Iterator[str]:
    """Run a sink in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "tests.bench.sink", "--delay-ms", str(delay_ms)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=ending_with_parent(signal.SIGTERM)
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def posts_at(url: str) -> int:
    """Ask a sink how many POSTs it has answered or owes an answer to."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return int(answer.read())


def measure_ceiling(url: str, *, body_bytes: int, seconds: float) -> float:
    """POST from several processes as fast as plain sockets can, and return the answers per second of all together.

    What the sink can do is at least this much: a caller does two system calls a request,
    and takes its share of the CPU.
    """
    command = [sys.executable, "-m", "tests.bench.sink", "--call", url]
    options = ["--body-bytes", str(body_bytes), "--seconds", str(seconds)]
    callers = [subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) for _ in range(CALLERS)]
    return sum(float(caller.communicate()[0]) for caller in callers)


def call(url: str, *, body: bytes, seconds: float) -> float:
    """POST on 16 connections in turn, and return the answers per second."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    request = b"POST / HTTP/1.1\r\nHost: sink\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    socks = [socket.create_connection((host, int(port))) for _ in range(CALLER_CONNECTIONS)]
    answered = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for sock in socks:
            sock.sendall(request)
        for sock in socks:
            if sock.recv(4096) != ANSWER:
                raise ValueError("the sink said something else")
        answered += len(socks)
    took = time.perf_counter() - started
    for sock in socks:
        sock.close()
    return answered / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=int, default=0, help="that each answer takes")
    parser.add_argument(
        "--call", metavar="URL", help="be a caller of that sink instead, and print the answers per second"
    )
    parser.add_argument("--body-bytes", type=int, default=1024, help="that a caller sends (default 1024)")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a caller goes on (default 1)")
    options = parser.parse_args()
    if options.call:
        print(call(options.call, body=b"x" * options.body_bytes, seconds=options.seconds))
        return
    partner = Sink(delay_seconds=options.delay_ms / 1000)
    print(partner.url, flush=True)
    partner.serve()


if __name__ == "__main__":
    main()
