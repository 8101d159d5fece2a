"""A whole installation for one test: web, worker and reference partners as real processes on the test's database."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.db import connection

from partners.models import ApiKey, Endpoint
from removal import invariants
from removal.config.celery import app
from removal.demo.processes import Processes, free_port
from removal.models import Notice
from removal.partnerships import NewPartner
from tests.factories import make_partner

PATIENCE_SECONDS = 60  # until everything is delivered, on a busy machine


class Installation:
    """The processes, and what a test asks of them."""

    def __init__(self, processes: Processes, *, port: int, folder: Path) -> None:
        self.processes = processes
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.folder = folder
        _, self.api_key = ApiKey.create(source="blogs")

    def start_web(self) -> None:
        self.processes.start_web(port=self.port)

    def is_answering(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=2).ok
        except requests.RequestException:
            return False

    def add_partner(self, slug: str, *options: str, **limits: Any) -> NewPartner:
        """Make a partner, and run its reference receiver."""
        made = make_partner(slug, **limits)
        url = self.processes.start_partner(
            slug,
            *("--service-url", self.url, "--database", str(self.database_of(slug))),
            *options,
            secret=made.secret,
            api_key=made.api_key,
        )
        Endpoint.objects.filter(partner=made.partner).update(url=url)
        return made

    def database_of(self, slug: str) -> Path:
        return self.folder / f"{slug}.sqlite3"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Call the API as the platform."""
        headers = {"Authorization": f"Bearer {self.api_key}", **options.pop("headers", {})}
        return requests.request(method, f"{self.url}{path}", headers=headers, timeout=30, **options)

    def opt_out(self, subject: str) -> str:
        answer = self.ask(
            "POST",
            "/v1/requests",
            json={"kind": "opt_out", "subject": subject},
            headers={"Idempotency-Key": f"opt-out-{subject}"},
        )
        answer.raise_for_status()
        return str(answer.json()["id"])

    def witnessed(self, slug: str) -> list[int]:
        """The numbers that a partner's own log says it has done, in order."""
        with sqlite3.connect(f"file:{self.database_of(slug)}?mode=ro", uri=True) as log:
            rows = log.execute("select sequence from notices where state = 'done' order by 1").fetchall()
        log.close()
        return [sequence for (sequence,) in rows]

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            self.processes.check()
            if time.monotonic() > end:
                words = "\n".join(f"--- {name}\n{self.processes.last_words(name)}" for name in self.processes.running)
                raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}\n{words}")
            time.sleep(0.1)

    def wait_until_all_answered(self, *, notices: int) -> None:
        """Wait until so many notices exist and partners have completed each of them."""
        self.wait_until(
            lambda: Notice.objects.filter(handling="completed").count() == notices == Notice.objects.count(),
            f"{notices} notices completed",
        )

    def assert_promises_hold(self) -> None:
        broken = {name: count for name, count in invariants.check().items() if count}
        assert broken == {}


def forget_hints_of_other_tests() -> None:
    """Empty the queue that tests share, in which those without a worker leave thousands of hints."""
    app.control.purge()


def empty_broker() -> None:
    """Lose every hint that waits in the broker."""
    assert app.control.purge() > 0, "there was nothing to lose"


def database_url(**instead: str) -> str:
    """Name the test's database as libpq does; ``instead`` replaces parts of it."""
    database = connection.settings_dict
    parts = {"dbname": database["NAME"], "user": database["USER"], "password": database["PASSWORD"],
             "host": database["HOST"], "port": str(database["PORT"]), **instead}  # fmt: skip
    return "postgresql:///?" + "&".join(f"{name}={value}" for name, value in parts.items() if value)


def environment_of_tests() -> dict[str, str]:
    """What a process needs to work on the test's database."""
    return {
        "DATABASE_URL": database_url(),
        "ALLOWED_HOSTS": "127.0.0.1",
        "PARTNER_ALLOW_HTTP": "1",
        "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "BROKER_QUEUE": settings.CELERY_TASK_DEFAULT_QUEUE,
    }


@contextmanager
def installation(folder: Path, **environment: str) -> Iterator[Installation]:
    """Run an installation on the test's database, with an empty queue, short leases and quick sweeps."""
    forget_hints_of_other_tests()
    port = free_port()
    environment = {
        **environment_of_tests(),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DELIVERY_DEADLINE_SECONDS": "2",
        "DELIVERY_LEASE_SECONDS": "4",
        "SWEEP_INTERVAL_SECONDS": "1",
        **environment,
    }
    with Processes(logs=folder / "logs", environment=environment) as processes:
        yield Installation(processes, port=port, folder=folder)
