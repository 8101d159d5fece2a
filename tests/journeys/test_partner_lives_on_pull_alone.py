"""A partner's endpoint is dead for its whole life. It pulls, acknowledges, loses its database, and catches up again."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from django.utils import timezone
from standardwebhooks import Webhook

from removal.demo.processes import free_port
from removal.models import Attempt, Delivery, Notice, Stream
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release
from tests.faults.harness import Installation, installation

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey]


class PullingPartner:
    """What a partner without an endpoint runs: pull, commit, acknowledge; all it knows is in its database."""

    def __init__(self, url: str, made: NewPartner, database: Path) -> None:
        self.url = url
        self.made = made
        self.database = database
        with self.open() as db:
            db.execute("create table if not exists notices (sequence integer primary key, kind text, items integer)")

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.database)
        try:
            with db:
                yield db
        finally:
            db.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.made.api_key}"}
        answer = requests.request(method, f"{self.url}{path}", headers=headers, timeout=40, **options)
        answer.raise_for_status()
        return answer

    def hang_up(self) -> None:
        """Ask, and be gone before the answer comes."""
        address = urlsplit(self.url)
        with socket.create_connection((str(address.hostname), int(address.port or 80))) as line:
            lines = ("GET /v1/stream?limit=3 HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self.made.api_key}")
            line.sendall("\r\n".join((*lines, "", "")).encode())

    @property
    def has_through(self) -> int:
        with self.open() as db:
            return int(db.execute("select coalesce(max(sequence), 0) from notices").fetchone()[0])

    def catch_up(self, *, limit: int = 3) -> list[int]:
        """Pull until nothing follows, acknowledge each page once it is committed; returns the new numbers."""
        caught: list[int] = []
        while page := self.ask("GET", f"/v1/stream?after={self.has_through}&limit={limit}").json():
            notices = page["notices"]
            if not notices:
                return caught
            with self.open() as db:
                rows = [(notice["sequence"], notice["kind"], notice["items_total"]) for notice in notices]
                db.executemany("insert into notices values (?, ?, ?)", rows)
            lines = [{"sequence": notice["sequence"], "status": "completed"} for notice in notices]
            assert self.ask("POST", "/v1/acknowledgements", json={"acknowledgements": lines}).json()["refused"] == []
            caught += [notice["sequence"] for notice in notices]
        return caught

    def digest(self) -> str:
        with self.open() as db:
            rows = db.execute("select sequence, kind, items from notices order by sequence").fetchall()
        return sha256(sha256("".join(f"{n} {kind} {items}\n" for n, kind, items in rows).encode()).digest()).hexdigest()

    def statement(self) -> dict[str, Any]:
        answer = self.ask("GET", "/v1/stream/statement")
        document = Webhook(self.made.secret).verify(answer.content, dict(answer.headers))
        data: dict[str, Any] = document["data"]
        return data


def opt_out(platform: Installation, numbers: range, *, notices: int) -> None:
    for n in numbers:
        platform.opt_out(f"site:{n}")
    platform.wait_until(lambda: Notice.objects.count() == notices, f"{notices} notices planned")


def test_it_is_told_everything_and_answers_it(tmp_path: Path) -> None:
    with installation(tmp_path) as platform:
        platform.start_web()
        platform.processes.start_worker()
        dead = f"http://127.0.0.1:{free_port()}/"
        made = make_partner("acme", url=dead, max_notices=2)
        disclose(make_release("2024-02", contents={f"site:{n}": ["post:1"] for n in range(1, 21)}), made.partner)
        partner = PullingPartner(platform.url, made, tmp_path / "acme.sqlite3")

        opt_out(platform, range(1, 11), notices=10)
        platform.wait_until(
            lambda: Attempt.objects.filter(outcome="unreachable").exists(), "a try at the dead endpoint"
        )
        partner.hang_up()
        platform.wait_until(lambda: bool(Stream.objects.get().served), "the first three handed out")
        assert (Stream.objects.get().served, Stream.objects.get().pulled) == (((1, 3),), ())
        assert not Delivery.objects.filter(state="delivered").exists()
        assert partner.catch_up() == list(range(1, 11))
        backup = partner.database.read_bytes()

        opt_out(platform, range(11, 16), notices=15)
        assert partner.catch_up() == list(range(11, 16))

        partner.database.write_bytes(backup)  # it lost what came since
        assert partner.has_through == 10
        assert partner.statement()["digest"] != partner.digest()
        assert partner.catch_up(limit=100) == list(range(11, 16))

        # Something new is there while it waits for it.
        waiting = partner.ask("GET", f"/v1/stream?after={partner.has_through}&wait=1").json()
        assert (waiting["first"], waiting["head"]) == (None, 15)
        opt_out(platform, range(16, 21), notices=20)
        assert partner.catch_up() == list(range(16, 21))

        said = partner.statement()
        assert (said["head"], said["digest"]) == (20, partner.digest())
        assert (said["delivered"], said["pulled"]) == ([], [[1, 20]])
        assert (said["acknowledged"]["completed"], said["open"]["count"]) == (20, 0)
        # Nothing is left to be sent, and nothing ever arrived there.
        platform.wait_until(
            lambda: not Delivery.objects.filter(state__in=["waiting", "sending"]).exists(), "every message ended"
        )
        assert set(Delivery.objects.values_list("delivered_by", flat=True)) <= {"pulled", "acknowledged", ""}
        assert Stream.objects.get().packed_through == 20
        assert not Attempt.objects.filter(outcome="delivered").exists()
        status = platform.ask("GET", "/v1/requests?limit=1").json()["requests"][0]
        assert (status["state"], status["outcome"]) == ("closed", "fulfilled")
        [line] = platform.ask("GET", f"/v1/requests/{status['id']}").json()["partners"]
        assert line["delivery"] == "delivered"
        assert line["delivered_at"] > (timezone.now() - timedelta(minutes=5)).isoformat()
        platform.assert_promises_hold()
