"""The reference partner, as a real process that speaks real HTTP with a small fake of the service."""

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from partners import signing
from partners.reference.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 20

SECRET = signing.HmacSecret(b"the secret of acme, one way only")
PRIVATE_KEY = signing.Ed25519PrivateKey(b"the private key of the service!!")
API_KEY = "key-of-acme"

Notice = dict[str, Any]


# --- a fake service ---


@dataclass
class FakeService:
    """What the partner may ask of the service, and a record of what it asked."""

    url: str = ""
    is_down: bool = False
    redirects: bool = False
    refusals: dict[int, str] = field(default_factory=dict)
    pages: dict[str, tuple[list[dict[str, Any]], str | None]] = field(default_factory=dict)  # lines and Link, by path
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization
    acknowledgements: list[dict[str, Any]] = field(default_factory=list)
    under_way: set[socket.socket] = field(default_factory=set)  # connections that it has taken, and not yet closed

    def finish(self) -> None:
        """Wait until nothing that was asked before is still to be answered."""
        with closing(http.client.HTTPConnection(self.url.removeprefix("http://"))) as connection:
            connection.request("GET", "/last")  # connections are taken in the order in which they came
            connection.getresponse()
        eventually(lambda: not self.under_way)

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.is_down:
            return 503, {}, b""
        if self.redirects:
            return 307, {"Location": f"{self.url}/elsewhere"}, b""
        if path == "/.well-known/removal-notices":
            return 200, {}, json.dumps({"keys": self.keys}).encode()
        if path == "/v1/acknowledgements":
            lines = json.loads(body)["acknowledgements"]
            refused = [
                {"sequence": line["sequence"], "code": self.refusals[line["sequence"]], "message": "no"}
                for line in lines
                if line["sequence"] in self.refusals
            ]
            self.acknowledgements += lines
            answer = {"accepted": len(lines) - len(refused), "unchanged": 0, "refused": refused}
            return 207 if refused else 200, {}, json.dumps(answer).encode()
        if path in self.pages:
            lines, link = self.pages[path]
            body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            return 200, {"Link": link} if link else {}, body
        return 404, {}, b""


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            fake.asked.append((self.command, self.path, self.headers["Authorization"]))
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, headers, answer = fake.answer(self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            fake.under_way.add(request)
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            fake.under_way.discard(request)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        yield fake
        server.shutdown()
        thread.join()


# --- a partner process, and what we send it ---


@dataclass
class RunningPartner:
    process: subprocess.Popen[str]
    port: int
    database: Path

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def send(
        self,
        body: bytes,
        *,
        message_id: str = "msg_1",
        keys: Sequence[signing.SigningKey] = (SECRET,),
        at: datetime | None = None,
    ) -> tuple[int, Any]:
        timestamp = at or datetime.now(UTC)
        headers = signing.headers(message_id=message_id, timestamp=timestamp, body=body, keys=keys)
        return self.request("POST", "/", body, headers)

    def status(self) -> dict[str, int]:
        status: dict[str, int] = self.request("GET", "/status")[1]
        return status

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=PATIENCE_SECONDS)) as db:
            return db.execute(query).fetchall()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()


class StartPartner(Protocol):
    def __call__(self, *options: str, **environment: str) -> RunningPartner: ...


@contextmanager
def run_partner(database: Path, *options: str, environment: Mapping[str, str]) -> Iterator[RunningPartner]:
    command = [sys.executable, "-m", "partners.reference", "--slug", "acme", "--database", str(database), *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            announcement = process.stdout.readline()
            assert announcement.startswith("listening on http://127.0.0.1:")
            yield RunningPartner(process, int(announcement.rstrip("/\n").rpartition(":")[2]), database)
        finally:
            process.kill()


@pytest.fixture
def start_partner(tmp_path: Path, service: FakeService) -> Iterator[StartPartner]:
    """Start partners that share one database file, by default with the secret and the service they need."""
    with ExitStack() as stack:

        def start(*options: str, **environment: str) -> RunningPartner:
            defaults = {"REFERENCE_SECRET": SECRET.to_text(), "REFERENCE_API_KEY": API_KEY}
            partner = run_partner(
                tmp_path / "acme.sqlite3",
                "--service-url",
                service.url,
                *options,
                environment={**os.environ, **defaults, **environment},
            )
            return stack.enter_context(partner)

        yield start


def opt_out(sequence: int, items: Mapping[str, Sequence[str]], *, subject: str = "site:1") -> Notice:
    """Make a notice; ``items`` are by release."""
    return {
        "sequence": sequence,
        "kind": "opt_out",
        "reason": "user_request",
        "request": f"request-{sequence}",
        "subject": subject,
        "usages": ["all"],
        "items_total": len({item for held in items.values() for item in held}),
        "held": [{"release": name, "items_total": len(held), "items": list(held)} for name, held in items.items()],
        "received_at": "2026-11-24T00:19:58Z",
        "respond_by": "2026-12-24T00:19:58Z",
    }


def recall(sequence: int, *, items_total: int, items_url: str) -> Notice:
    return {
        "sequence": sequence,
        "kind": "recall",
        "reason": "shared_in_error",
        "request": f"request-{sequence}",
        "subjects_total": 2,
        "releases": ["2025-01"],
        "items_total": items_total,
        "items_url": items_url,
        "received_at": "2026-11-24T00:19:58Z",
        "respond_by": "2026-12-24T00:19:58Z",
    }


def message(*notices: Notice, partner: str = "acme", kind: str = "removal.notices") -> bytes:
    data = {"partner": partner, "epoch": 1, "notices": notices}
    return json.dumps({"type": kind, "version": "1", "timestamp": "2026-11-24T00:20:00Z", "data": data}).encode()


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, and fail when it never is."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < give_up_at, "this never happened"
        time.sleep(0.02)


def received(*sequences: int) -> dict[str, object]:
    return {"acknowledgements": [{"sequence": sequence, "status": "received"} for sequence in sequences]}


# --- good messages ---


def test_a_notice_is_removed_recorded_and_acknowledged(start_partner: StartPartner, service: FakeService) -> None:
    partner = start_partner()
    body = message(
        opt_out(1201, {"2024-02": ["post:9"], "2025-01": ["post:9", "post:12"]}),
        opt_out(1202, {"2025-01": ["post:7"]}, subject="site:2"),
    )

    assert partner.send(body) == (200, received(1201, 1202))

    eventually(lambda: partner.status()["answered"] == 2)
    assert partner.status() == {
        "received": 1,
        "verified": 1,
        "refused": 0,
        "notices": 2,
        "answered": 2,
        "answers_refused": 0,
        "pending": 0,
    }
    assert partner.rows("SELECT message_id, verified, verdict, body_sha256, body FROM received") == [
        ("msg_1", 1, "accepted", sha256(body).hexdigest(), body)
    ]
    assert partner.rows("SELECT epoch, sequence, kind, items_total, state, removed, not_found FROM notices") == [
        (1, 1201, "opt_out", 2, "done", 2, 0),
        (1, 1202, "opt_out", 1, "done", 1, 0),
    ]
    assert service.asked == [("POST", "/v1/acknowledgements", f"Bearer {API_KEY}")]
    completed_at = [line.pop("completed_at") for line in service.acknowledgements]
    assert all(
        timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(at) < timedelta(minutes=5) for at in completed_at
    )
    attestations = [{"claim": "removed_from_corpus", "detail": "holdings of acme"}]
    said = {"epoch": 1, "status": "completed", "attestations": attestations}
    assert service.acknowledgements == [
        {"sequence": 1201, "outcomes": {"removed": 2}, **said},
        {"sequence": 1202, "outcomes": {"removed": 1}, **said},
    ]


def test_a_repeat_changes_nothing_and_gets_the_same_answer(start_partner: StartPartner, service: FakeService) -> None:
    partner = start_partner()
    first, second, third = (opt_out(sequence, {"2025-01": ["post:1"]}) for sequence in (1, 2, 3))

    answers = [
        partner.send(message(first, second), message_id="msg_1"),
        partner.send(message(first, second), message_id="msg_1"),
        partner.send(message(first, second), message_id="msg_2"),
        partner.send(message(second, third), message_id="msg_3"),  # overlaps
    ]

    assert answers == [(200, received(1, 2))] * 3 + [(200, received(2, 3))]
    eventually(lambda: partner.status()["answered"] == 3)
    assert partner.rows("SELECT sequence FROM notices ORDER BY sequence") == [(1,), (2,), (3,)]
    assert [line["sequence"] for line in service.acknowledgements] == [1, 2, 3]
    assert partner.status()["received"] == 4


def test_repeats_at_the_same_time_do_the_work_once(start_partner: StartPartner, service: FakeService) -> None:
    partner = start_partner()
    body = message(*(opt_out(sequence, {"2025-01": ["post:1"]}) for sequence in range(1, 21)))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: partner.send(body, message_id=f"msg_{n}"), range(32)))

    assert answers == [(200, received(*range(1, 21)))] * 32
    eventually(lambda: partner.status()["answered"] == 20)
    assert sorted(line["sequence"] for line in service.acknowledgements) == list(range(1, 21))
    assert partner.status()["received"] == 32


def test_the_same_number_in_another_epoch_is_another_notice(start_partner: StartPartner) -> None:
    partner = start_partner("--no-acknowledge")
    body = message(opt_out(1, {"2025-01": ["post:1"]}))

    partner.send(body)
    partner.send(body.replace(b'"epoch": 1', b'"epoch": 2'))

    assert partner.rows("SELECT epoch, sequence FROM notices ORDER BY epoch") == [(1, 1), (2, 1)]


@pytest.mark.parametrize("kind", ["removal.ping", "removal.reminder", "removal.something_newer"])
def test_a_message_without_notices_is_answered(start_partner: StartPartner, kind: str) -> None:
    partner = start_partner("--no-acknowledge")

    assert partner.send(message(kind=kind)) == (200, received())
    assert partner.rows("SELECT verified, verdict FROM received") == [(1, "accepted")]


def test_withdrawn_wishes_and_reinstatements_remove_nothing(
    start_partner: StartPartner, service: FakeService, tmp_path: Path
) -> None:
    holds = tmp_path / "holds.ndjson"
    holds.write_text('{"subject": "site:1", "items": ["post:1"]}\n')
    partner = start_partner("--holds", str(holds))
    withdrawn = {
        "sequence": 1,
        "kind": "opt_out",
        "request": "request-1",
        "items_total": 0,
        "withdrawn_at": "2026-11-24T00:19:59Z",
    }
    reinstatement = opt_out(2, {"2025-01": ["post:1"]}) | {"kind": "reinstatement", "undoes": [1]}

    partner.send(message(withdrawn, reinstatement))

    eventually(lambda: partner.status()["answered"] == 2)
    assert [(line["sequence"], line["status"], line["outcomes"]) for line in service.acknowledgements] == [
        (1, "completed", {}),
        (2, "completed", {}),
    ]
    assert partner.rows("SELECT subject, item FROM holdings") == [("site:1", "post:1")]


def test_an_offboarding_removes_everything(start_partner: StartPartner, service: FakeService, tmp_path: Path) -> None:
    holds = tmp_path / "holds.ndjson"
    holds.write_text('{"subject": "site:1", "items": ["post:1"]}\n{"subject": "site:2", "items": ["post:1"]}\n')
    partner = start_partner("--holds", str(holds))
    everything = {"sequence": 1, "kind": "offboarding", "request": "r", "items_total": 2, "releases": ["2025-01"]}

    partner.send(message(everything))

    eventually(lambda: partner.status()["answered"] == 1)
    assert [(line["status"], line["outcomes"]) for line in service.acknowledgements] == [("completed", {})]
    assert partner.rows("SELECT subject, item FROM holdings") == []


# --- messages that are not believed ---


def test_what_is_refused_is_still_witnessed(start_partner: StartPartner, service: FakeService) -> None:
    partner = start_partner()
    good = message(opt_out(1, {"2025-01": ["post:1"]}))
    now = datetime.now(UTC)
    signed = signing.headers(message_id="msg", timestamp=now, body=good, keys=[SECRET])
    unknown_kind = message(opt_out(1, {"2025-01": ["post:1"]}) | {"kind": "correction"})
    no_items = message({"sequence": 1, "kind": "opt_out", "items_total": 1})

    answers = [
        partner.send(good, keys=[signing.HmacSecret.generate()]),
        partner.request("POST", "/", good + b" ", signed),
        partner.request("POST", "/", good, {"webhook-id": "msg"}),
        partner.request("POST", "/", good, signed | {"webhook-timestamp": "soon"}),
        partner.send(good, at=now - timedelta(minutes=6)),
        partner.send(good, at=now + timedelta(minutes=6)),
        partner.send(message(opt_out(1, {}), partner="globex")),
        partner.send(b"{"),
        partner.send(b"[]"),
        partner.send(b"\xff"),
        partner.send(b"[" * 100_000),
        partner.send(unknown_kind),
        partner.send(no_items),
        partner.send(b" " * (1024 * 1024 + 1)),
    ]

    assert [status for status, _ in answers] == [401] * 6 + [403] + [400] * 6 + [413]
    # Nobody learns what was wrong with a signature.
    assert [problem for _, problem in answers[:6]] == [
        {"type": "about:blank", "title": "Unauthorized", "status": 401}
    ] * 6
    assert partner.rows("SELECT verified, verdict FROM received ORDER BY id") == [
        (0, "no_matching_signature"),
        (0, "no_matching_signature"),
        (0, "header_missing"),
        (0, "header_unreadable"),
        (0, "signature_too_old"),
        (0, "signature_too_new"),
        (1, "wrong_partner"),
        *[(1, "unreadable")] * 6,
        (0, "too_large"),
    ]
    assert partner.rows("SELECT body FROM received WHERE id = 2") == [(good + b" ",)]
    assert partner.status() | {"received": 0} == {
        "received": 0,
        "verified": 7,
        "refused": 14,
        "notices": 0,
        "answered": 0,
        "answers_refused": 0,
        "pending": 0,
    }
    assert service.acknowledgements == []


def test_a_header_that_comes_twice_is_not_believed(start_partner: StartPartner) -> None:
    partner = start_partner("--no-acknowledge")
    body = message(kind="removal.ping")
    headers = signing.headers(message_id="msg_1", timestamp=datetime.now(UTC), body=body, keys=[SECRET])

    with closing(http.client.HTTPConnection("127.0.0.1", partner.port, timeout=PATIENCE_SECONDS)) as connection:
        connection.putrequest("POST", "/")
        for name, value in [*headers.items(), ("webhook-timestamp", headers["webhook-timestamp"])]:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        assert connection.getresponse().status == 401


def test_other_paths_are_not_found_and_connections_are_kept(start_partner: StartPartner) -> None:
    partner = start_partner("--no-acknowledge")

    with closing(http.client.HTTPConnection("127.0.0.1", partner.port, timeout=PATIENCE_SECONDS)) as connection:
        for method, path, expected in [("POST", "/other", 404), ("GET", "/", 404), ("GET", "/status", 200)]:
            connection.request(method, path, b"{}" if method == "POST" else None)
            response = connection.getresponse()
            response.read()
            assert (response.status, response.will_close) == (expected, False)


# --- keys ---


def test_each_of_two_secrets_is_good_while_they_are_changed(start_partner: StartPartner) -> None:
    new_secret = signing.HmacSecret.generate()
    partner = start_partner("--no-acknowledge", REFERENCE_SECRET=f"{SECRET.to_text()} {new_secret.to_text()}")

    for key in (SECRET, new_secret):
        assert partner.send(message(kind="removal.ping"), keys=[key])[0] == 200


def test_a_given_public_key_is_good_and_no_other_is_asked_for(
    start_partner: StartPartner, service: FakeService
) -> None:
    partner = start_partner("--no-acknowledge", "--public-key", PRIVATE_KEY.public_key.to_text())

    assert partner.send(message(kind="removal.ping"), keys=[PRIVATE_KEY])[0] == 200
    assert partner.send(message(kind="removal.ping"), keys=[signing.Ed25519PrivateKey.generate()])[0] == 401
    assert service.asked == []


def test_published_keys_are_asked_for_once_when_no_other_fits(
    start_partner: StartPartner, service: FakeService
) -> None:
    retired = signing.Ed25519PrivateKey.generate()
    service.keys = [
        {"id": "1", "algorithm": "rsa", "public_key": "…", "active_from": "2020-01-01T00:00:00Z", "retire_at": None},
        {
            "id": "2",
            "algorithm": "ed25519",
            "public_key": retired.public_key.to_text(),
            "active_from": "2020-01-01T00:00:00Z",
            "retire_at": "2021-01-01T00:00:00Z",
        },
        {
            "id": "3",
            "algorithm": "ed25519",
            "public_key": PRIVATE_KEY.public_key.to_text(),
            "active_from": "2020-01-01T00:00:00Z",
            "retire_at": None,
        },
    ]
    partner = start_partner("--no-acknowledge")
    ping = message(kind="removal.ping")

    assert partner.send(ping)[0] == 200
    assert service.asked == []
    assert partner.send(ping, keys=[PRIVATE_KEY])[0] == 200
    assert partner.send(ping, keys=[PRIVATE_KEY])[0] == 200
    assert partner.send(ping, keys=[retired])[0] == 401
    assert [path for _, path, _ in service.asked] == ["/.well-known/removal-notices"]


# --- items that must be fetched ---


def test_a_long_list_is_fetched_page_by_page(start_partner: StartPartner, service: FakeService, tmp_path: Path) -> None:
    holds = tmp_path / "holds.ndjson"
    holds.write_text(
        '{"subject": "site:1", "items": ["post:1", "post:99"]}\n{"subject": "site:2", "items": ["post:1"]}\n'
    )
    # Whatever host the addresses name, only the service that was configured gets our key.
    service.pages = {
        "/v1/stream/7/items": (
            [{"subject": "site:1", "items": ["post:1", "post:2"]}, {"subject": "site:2", "items": ["post:1"]}],
            '<https://removal.invalid/v1/stream/7/items?page=2>; rel="next"',
        ),
        "/v1/stream/7/items?page=2": ([{"subject": "site:1", "items": ["post:3"]}], '</v1/items?p=3>; rel="next"'),
        "/v1/items?p=3": ([{"subject": "site:1", "items": ["post:3", "post:4"]}], '</v1/stream/7/items>; rel="first"'),
    }
    partner = start_partner("--holds", str(holds))

    answer = partner.send(message(recall(7, items_total=5, items_url="https://removal.invalid/v1/stream/7/items")))

    assert answer == (200, received(7))
    eventually(lambda: partner.status()["answered"] == 1)
    assert service.asked == [
        ("GET", "/v1/stream/7/items", f"Bearer {API_KEY}"),
        ("GET", "/v1/stream/7/items?page=2", f"Bearer {API_KEY}"),
        ("GET", "/v1/items?p=3", f"Bearer {API_KEY}"),
        ("POST", "/v1/acknowledgements", f"Bearer {API_KEY}"),
    ]
    assert service.acknowledgements[0]["outcomes"] == {"removed": 2, "not_found": 3}
    assert partner.rows("SELECT subject, item FROM holdings") == [("site:1", "post:99")]


def test_a_list_that_is_not_complete_removes_nothing_yet(start_partner: StartPartner, service: FakeService) -> None:
    service.pages["/v1/stream/7/items"] = ([{"subject": "site:1", "items": ["post:1"]}], None)
    partner = start_partner()
    partner.send(message(recall(7, items_total=2, items_url=f"{service.url}/v1/stream/7/items")))
    partner.send(message(opt_out(8, {"2025-01": ["post:1"]})))

    eventually(lambda: partner.status()["answered"] == 1)  # the other notice is not held up
    assert partner.rows("SELECT sequence, state FROM notices ORDER BY sequence") == [(7, "pending"), (8, "done")]

    service.pages["/v1/stream/7/items"] = ([{"subject": "site:1", "items": ["post:1", "post:2"]}], None)
    eventually(lambda: partner.status()["answered"] == 2)
    assert [line["outcomes"] for line in service.acknowledgements] == [{"removed": 1}, {"removed": 2}]


# --- answers ---


def test_answers_wait_for_a_service_that_is_down(start_partner: StartPartner, service: FakeService) -> None:
    service.is_down = True
    partner = start_partner()

    assert partner.send(message(opt_out(1, {"2025-01": ["post:1"]}))) == (200, received(1))
    eventually(lambda: len(service.asked) >= 3)
    assert partner.status()["pending"] == 1

    service.is_down = False
    eventually(lambda: partner.status()["answered"] == 1)
    assert [line["sequence"] for line in service.acknowledgements] == [1]


def test_a_refused_answer_is_kept_with_its_code_and_one_not_yet_sent_is_posted_again(
    start_partner: StartPartner, service: FakeService
) -> None:
    service.refusals = {1: "unknown_sequence", 2: "not_yet_sent"}
    partner = start_partner()
    partner.send(message(*(opt_out(sequence, {"2025-01": ["post:1"]}) for sequence in (1, 2, 3))))

    eventually(lambda: [line["sequence"] for line in service.acknowledgements][:5] == [1, 2, 3, 2, 2])
    del service.refusals[2]
    eventually(lambda: partner.status()["answered"] == 2)
    assert partner.rows("SELECT sequence, state, code, message FROM answers ORDER BY sequence") == [
        (1, "refused", "unknown_sequence", "no"),
        (2, "answered", None, None),
        (3, "answered", None, None),
    ]
    assert partner.status()["answers_refused"] == 1


def test_a_power_cut_loses_no_answer_and_repeats_no_work(start_partner: StartPartner, service: FakeService) -> None:
    service.is_down = True
    body = message(opt_out(1, {"2025-01": ["post:1"]}))
    partner = start_partner()
    assert partner.send(body)[0] == 200
    partner.kill()

    service.finish()
    service.is_down = False
    again = start_partner()

    eventually(lambda: again.status()["answered"] == 1)
    assert again.send(body) == (200, received(1))
    assert [line["sequence"] for line in service.acknowledgements] == [1]
    assert again.rows("SELECT count(*) FROM received") == [(2,)]


def test_many_answers_go_in_batches(start_partner: StartPartner, service: FakeService) -> None:
    service.is_down = True
    partner = start_partner()
    for first in (1, 101, 201):
        partner.send(message(*(opt_out(n, {"2025-01": ["post:1"]}) for n in range(first, first + 100))))
    service.is_down = False

    eventually(lambda: partner.status()["answered"] == 300)
    assert sorted(line["sequence"] for line in service.acknowledgements) == list(range(1, 301))


def test_a_redirect_is_not_followed_with_our_key(start_partner: StartPartner, service: FakeService) -> None:
    service.redirects = True
    partner = start_partner()

    partner.send(message(opt_out(1, {"2025-01": ["post:1"]})))

    eventually(lambda: len(service.asked) >= 2)
    assert {path for _, path, _ in service.asked} == {"/v1/acknowledgements"}


# --- options ---


def test_holdings_decide_the_outcomes_and_are_read_once(
    start_partner: StartPartner, service: FakeService, tmp_path: Path
) -> None:
    holds = tmp_path / "holds.ndjson"
    holds.write_text('{"subject": "site:1", "items": ["post:1", "post:2"]}\n')
    partner = start_partner("--holds", str(holds))
    partner.send(message(opt_out(1, {"2024-02": ["post:1"], "2025-01": ["post:1", "post:3"]})))
    partner.kill()

    again = start_partner("--holds", str(holds))
    again.send(message(opt_out(2, {"2025-01": ["post:1"]})))

    eventually(lambda: again.status()["answered"] == 2)
    assert again.rows("SELECT sequence, removed, not_found FROM notices ORDER BY sequence") == [(1, 1, 1), (2, 0, 1)]
    assert {line["sequence"]: line["outcomes"] for line in service.acknowledgements} == {
        1: {"removed": 1, "not_found": 1},
        2: {"not_found": 1},
    }
    assert again.rows("SELECT subject, item FROM holdings") == [("site:1", "post:2")]


def test_the_first_requests_are_refused_when_asked_for(start_partner: StartPartner) -> None:
    partner = start_partner("--no-acknowledge", "--refuse-first", "2")
    body = message(opt_out(1, {"2025-01": ["post:1"]}))

    assert [partner.send(body)[0] for _ in range(3)] == [503, 503, 200]
    assert partner.rows("SELECT verified, verdict FROM received ORDER BY id") == [
        (1, "unavailable"),
        (1, "unavailable"),
        (1, "accepted"),
    ]
    assert partner.rows("SELECT count(*) FROM notices") == [(1,)]


def test_a_partner_that_does_not_acknowledge_still_does_the_work(
    start_partner: StartPartner, service: FakeService
) -> None:
    partner = start_partner("--no-acknowledge")

    assert partner.send(message(opt_out(1, {"2025-01": ["post:1"]}))) == (200, received(1))
    assert partner.status()["pending"] == 1
    assert service.asked == []

    # What it did not say then, it says when it is started as a speaking one.
    partner.kill()
    again = start_partner()
    eventually(lambda: again.status()["answered"] == 1)


def test_the_work_is_committed_before_a_late_answer(start_partner: StartPartner) -> None:
    partner = start_partner("--delay", "3600")

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(partner.send, message(opt_out(1, {"2025-01": ["post:1"]})))
        eventually(lambda: partner.rows("SELECT state FROM notices") == [("done",)])
        assert not answer.done()
        partner.kill()
        with pytest.raises(ConnectionError):
            answer.result()


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_in_order(start_partner: StartPartner, stop_signal: signal.Signals) -> None:
    partner = start_partner("--no-acknowledge", "--delay", "0")

    # An open connection, as the service keeps one, must not hold it up.
    with closing(http.client.HTTPConnection("127.0.0.1", partner.port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("GET", "/status")
        connection.getresponse().read()
        partner.process.send_signal(stop_signal)
        assert partner.process.wait(timeout=PATIENCE_SECONDS) == 0

    # Only a file that was closed has no log beside it.
    assert not partner.database.with_name("acme.sqlite3-wal").exists()


BASICS = ["--slug", "acme", "--database", "acme.sqlite3"]
SPEAKING = [*BASICS, "--service-url", "http://127.0.0.1:1", "--api-key", "key"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "the following arguments are required: --slug, --database"),
        ([*BASICS, "--no-acknowledge"], "without a key no message can be verified"),
        ([*BASICS, "--secret", SECRET.to_text()], "give --service-url and --api-key, or --no-acknowledge"),
        ([*SPEAKING, "--secret", "hunter2"], "argument --secret: this key must start with whsec_"),
        ([*SPEAKING, "--secret", "whsec_aHVudGVyMg=="], "argument --secret: a whsec_ secret has 24 to 64 bytes, not 7"),
        ([*SPEAKING, "--public-key", "whpk_hunter2"], "argument --public-key: this whpk_ key is not base64"),
        ([*SPEAKING, "--service-url", "ftp://x"], "argument --service-url: expected http://… or https://…"),
        ([*SPEAKING, "--listen", "8000"], "argument --listen: expected HOST:PORT"),
        ([*SPEAKING, "--listen", "127.0.0.1:70000"], "argument --listen: expected HOST:PORT"),
        ([*SPEAKING, "--delay", "-1"], "argument --delay: expected 0 to 3600 seconds"),
        ([*SPEAKING, "--delay", "nan"], "argument --delay: expected 0 to 3600 seconds"),
        ([*SPEAKING, "--refuse-first", "some"], "argument --refuse-first: invalid int value"),
        ([*SPEAKING, "--holds", "missing.ndjson"], "No such file or directory: 'missing.ndjson'"),
        ([*SPEAKING, "--holds", "broken.ndjson"], "broken.ndjson, line 2: expected"),
        ([*SPEAKING, "--database", "missing/acme.sqlite3"], "unable to open database file"),
        ([*SPEAKING, "--database", "broken.ndjson"], "file is not a database"),
        ([*SPEAKING, "--listen", "192.0.2.1:0"], "Cannot assign requested address"),
    ],
)
def test_a_bad_option_is_named_and_no_secret_is_shown(
    options: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFERENCE_SECRET", raising=False)
    monkeypatch.delenv("REFERENCE_API_KEY", raising=False)
    Path("broken.ndjson").write_text('{"subject": "site:1", "items": ["post:1"]}\n{"subject": "site:1"}\n' * 100)

    with pytest.raises(SystemExit) as caught:
        main(options)

    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert "hunter2" not in errors
    assert "aHVudGVyMg" not in errors


def test_a_bad_secret_in_the_environment_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFERENCE_SECRET", f"{SECRET.to_text()} whsec_hunter2!")

    with pytest.raises(SystemExit):
        main(SPEAKING)

    assert "REFERENCE_SECRET: this whsec_ key is not base64" in capsys.readouterr().err


def test_it_needs_neither_django_nor_any_other_library_of_the_service() -> None:
    code = "import sys, partners.reference.__main__; print(sorted({'celery', 'django', 'requests'} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"
