"""A partner on a raw socket that answers as its script says, and keeps a log of its own.

It shares no code with what it judges. Each request is written to the log before it is answered, together with what the
answer is going to be; so the log knows of everything that arrived, and of every yes that may have been heard.

What it answers is decided by the seed, the message's range and how often that range has come: a seed gives the same
script again, however the processes interleave.
"""

import argparse
import base64
import hashlib
import hmac
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# How often each answer is drawn, in percent.
CHARACTERS: dict[str, dict[str, int]] = {
    "healthy": {"ok": 50, "receipt": 50},
    "flaky": {
        "ok": 40, "receipt": 15, "page": 5, "fail": 12, "busy": 6, "reset": 8, "close": 4, "slow_body": 3, "moved": 3,
        "unauthorised": 4,
    },
    "hostile": {
        "ok": 25, "receipt": 10, "fail": 15, "hang": 12, "drip": 8, "reset": 12, "close": 8, "slow_body": 5, "gone": 2,
        "moved": 3,
    },
}  # fmt: skip
# One number in so many makes a hostile partner refuse whatever holds it.
CULPRIT_EVERY = 23
# A flaky partner forgets our key for a while: these of each hundred requests.
KEY_LOST = range(60, 66)

STATUS = {
    "ok": 200, "receipt": 200, "page": 200, "slow_body": 200, "moved": 302, "culprit": 400, "unauthorised": 401,
    "gone": 410, "busy": 429, "fail": 500,
}  # fmt: skip
LONGEST_HANG_SECONDS = 20
TOLERANCE_SECONDS = 300


@dataclass
class Partner:
    slug: str
    seed: int
    character: str
    log: Path
    control: Path
    times: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def said(self) -> dict[str, Any]:
        """What the rig has told us: the secrets we know, and whether to be calm."""
        told: dict[str, Any] = json.loads(self.control.read_text())
        return told

    def serve(self, connection: socket.socket) -> None:
        """Answer one kept-alive connection until either side ends it."""
        with connection, connection.makefile("rb") as stream:
            while True:
                try:
                    head = read_head(stream)
                    if head is None:
                        return
                    path, headers = head
                    body = stream.read(int(headers.get("content-length", "0")))
                    received_at = time.time()
                    if not self.answer(connection, path, headers, body, received_at):
                        return
                except OSError:
                    return

    def answer(
        self, connection: socket.socket, path: str, headers: dict[str, str], body: bytes, received_at: float
    ) -> bool:
        """Write the request to the log and answer it; False when the connection is over."""
        told = self.said()
        data = json.loads(body)["data"]
        span = (data["epoch"], data["first"], data["last"])
        with self.lock:
            self.requests += 1
            self.times[span] += 1
            answer = "ok" if told["calm"] else self.choose(span, self.times[span])
            record = {
                "at": received_at,
                "id": headers["webhook-id"],
                "timestamp": headers["webhook-timestamp"],
                "path": path,
                "digest": hashlib.sha256(body).hexdigest(),
                "verified": is_signed(headers, body, told["secrets"], received_at),
                "partner": data["partner"],
                "epoch": data["epoch"],
                "head": data["head"],
                "notices": [
                    [n["sequence"], n["request"], n["kind"], n.get("subject")] for n in data.get("notices", [])
                ],
                "answer": answer,
                "status": STATUS.get(answer),
            }
            with self.log.open("ab", buffering=0) as log:
                log.write(json.dumps(record).encode() + b"\n")
        return act(connection, answer, last=data["last"])

    def choose(self, span: tuple[int, int, int], time_seen: int) -> str:
        if self.character == "hostile" and any(n % CULPRIT_EVERY == 0 for n in range(span[1], span[2] + 1)):
            return "culprit"
        if self.character == "flaky" and self.requests % 100 in KEY_LOST:
            return "unauthorised"
        chance = random.Random(f"{self.seed}/{self.slug}/{span}/{time_seen}")
        answers = CHARACTERS[self.character]
        return chance.choices(list(answers), list(answers.values()))[0]


def read_head(stream: Any) -> tuple[str, dict[str, str]] | None:
    request_line = stream.readline()
    if not request_line:
        return None
    headers: dict[str, str] = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return request_line.decode("latin-1").split()[1], headers


def is_signed(headers: dict[str, str], body: bytes, secrets: list[str], now: float) -> bool:
    """Check the signature by hand, as the text of Standard Webhooks has it."""
    moment = headers["webhook-timestamp"]
    content = f"{headers['webhook-id']}.{moment}.".encode() + body
    good = {
        "v1," + base64.b64encode(hmac.digest(base64.b64decode(s.removeprefix("whsec_")), content, "sha256")).decode()
        for s in secrets
    }
    return bool(good & set(headers["webhook-signature"].split())) and abs(now - int(moment)) < TOLERANCE_SECONDS


def act(connection: socket.socket, answer: str, *, last: int) -> bool:
    """Do what the script says; returns whether the connection goes on."""
    status = STATUS.get(answer)
    if answer == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    if answer == "close":
        return False
    if answer in {"hang", "drip"}:
        end = time.monotonic() + LONGEST_HANG_SECONDS
        connection.settimeout(0.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" if answer == "drip" else b"")
        while time.monotonic() < end:
            if answer == "drip":
                connection.sendall(b"x")
            try:
                if not connection.recv(1):
                    return False  # the sender has given up
            except TimeoutError:
                continue
        return False
    body, more = b"", ""
    if answer == "receipt":
        body = json.dumps({"through": last, "status": "received"}).encode()
    elif answer == "page":
        body, more = b"<html><body>Thank you!</body></html>", "content-type: text/html\r\n"
    elif answer == "busy":
        more = "retry-after: 1\r\n"
    elif answer == "moved":
        more = "location: http://127.0.0.1:1/elsewhere\r\n"
    elif answer == "slow_body":
        body = b"x" * 5
    connection.sendall(f"HTTP/1.1 {status} Answer\r\n{more}content-length: {len(body)}\r\n\r\n".encode())
    if answer == "slow_body":
        for byte in body:
            time.sleep(0.3)
            connection.sendall(bytes([byte]))
    elif body:
        connection.sendall(body)
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slug", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--character", choices=sorted(CHARACTERS), required=True)
    parser.add_argument("--log", type=Path, required=True, help="what arrived, one JSON object a line")
    parser.add_argument("--control", type=Path, required=True, help='JSON: {"secrets": […], "calm": false}')
    options = parser.parse_args()
    partner = Partner(options.slug, options.seed, options.character, options.log, options.control)
    with socket.create_server(("127.0.0.1", options.port), backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=partner.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
