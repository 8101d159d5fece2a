"""A partner's endpoint on a real socket, which does what a test tells it and remembers what it was sent."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    @property
    def sequences(self) -> list[int]:
        return [notice["sequence"] for notice in self.data["notices"]]


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Received], Reply]


@dataclass
class Receiver:
    url: str
    script: Script
    received: list[Received] = field(default_factory=list)

    @property
    def sequences(self) -> list[int]:
        """Every number it was sent, in the order of arrival."""
        return [number for message in self.received for number in message.sequences]


@contextmanager
def listening(script: Script = lambda _: Reply()) -> Iterator[Receiver]:
    """Run an endpoint on loopback. ``script`` decides the reply to each request, on the request's own thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            message = Received({name.lower(): value for name, value in self.headers.items()}, body)
            receiver.received.append(message)
            reply = receiver.script(message)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A sender that goes away in the middle is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/", script)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
