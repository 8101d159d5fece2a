"""The HTTP side: where messages arrive, and where ``/status`` is asked for."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from partners.reference.partner import MAX_BODY_BYTES, Partner


class Receiver(ThreadingHTTPServer):
    """A thread for each connection, none of which holds up the end of the program."""

    daemon_threads = True
    request_queue_size = 128  # with the library's 5, a burst of connections waits for a second

    def __init__(self, address: tuple[str, int], *, partner: Partner, delay_seconds: float) -> None:
        super().__init__(address, RequestHandler)
        self.partner = partner
        self.delay_seconds = delay_seconds


class RequestHandler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"  # keeps the connection for the next message
    timeout = 30
    disable_nagle_algorithm = True  # or answers on a kept connection wait 40 ms between their headers and their body

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        announced = int(length) if re.fullmatch("[0-9]{1,10}", length) else -1
        body = self.rfile.read(max(0, min(announced, MAX_BODY_BYTES + 1)))
        # What is left on the connection would be taken for the next request.
        self.close_connection |= len(body) != announced
        if self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, {})
            return
        # A header that came twice becomes one value (RFC 9110 §5.3), which then has the wrong form.
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        status, document = self.server.partner.receive(headers=headers, body=body, now=datetime.now(UTC))
        time.sleep(self.server.delay_seconds)
        self._send(status, document)

    def do_GET(self) -> None:
        if self.path == "/status":
            self._send(HTTPStatus.OK, self.server.partner.status())
        else:
            self._send(HTTPStatus.NOT_FOUND, {})

    def _send(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        # The service hangs up when it is tired of waiting. It will come again.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Write no access log: the table ``received`` is one."""
