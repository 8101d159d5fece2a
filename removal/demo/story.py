"""What the demo tells: releases are handed to three partners, people opt out, every partner answers."""

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import requests
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import invariants, ledger, partnerships, uploads, verification, wxr
from removal.demo.processes import Processes, free_port
from removal.models import Attempt
from removal.models.identifiers import new_ulid

SAMPLE = Path(__file__).parent / "sample.wordpress.xml"
BLOGS = 12
PATIENCE_SECONDS = 55  # for the whole story

# Who gets which release, and how each partner behaves. All keep the real retry schedule.
PROMPT, FLAKY, LATE = "acme", "globex", "initech"
RELEASES_OF = {PROMPT: ("site", "blogs"), FLAKY: ("blogs",), LATE: ("site", "blogs")}
OPTIONS_OF = {FLAKY: ("--refuse-first", "1")}
NAMES = {PROMPT: "Acme (prompt)", FLAKY: "Globex (fails at first)", LATE: "Initech (down at first)"}


class DemoFailed(Exception):
    """The story did not come to its end; the message says where it stood."""


@dataclass(frozen=True)
class Progress:
    """Counts of this run. ``witnessed`` is what the partners' own logs say, not ours."""

    requests: int
    partners: int
    notices: int
    delivered: int
    acknowledged: int
    witnessed: int
    attempts: int
    retried: int

    def __str__(self) -> str:
        return (
            f"{self.requests} requests  {self.notices} notices  {self.delivered} delivered  "
            f"{self.acknowledged} acknowledged  ({self.attempts} attempts, {self.retried} messages retried)"
        )

    @property
    def is_complete(self) -> bool:
        return 0 < self.notices == self.delivered == self.acknowledged == self.witnessed


@dataclass(frozen=True)
class Result:
    """How the story ended."""

    progress: Progress
    seconds: float
    violations: int

    def as_json(self) -> dict[str, object]:
        return {**asdict(self.progress), "seconds": round(self.seconds, 1), "violations": self.violations}


# Notices of this run's requests, each with the message that carries it.
COUNTS = """
with told as (
    select n.*, d.id delivery_id, d.state delivery_state
      from removal_notice n
      join removal_removalrequest r on r.id = n.request_id and r.source = %(source)s
      left join removal_delivery d on d.stream_id = n.stream_id and d.epoch = n.epoch and d.state <> 'split'
                                  and n.sequence between d.first_sequence and d.last_sequence)
select (select count(*) from removal_removalrequest where source = %(source)s),
       (select count(distinct stream_id) from told),
       (select count(*) from told),
       (select count(*) from told where delivery_state = 'delivered'),
       (select count(*) from told where handling = 'completed'),
       (select coalesce(sum(attempts), 0) from removal_delivery where id in (select delivery_id from told)),
       (select count(*) from removal_delivery where id in (select delivery_id from told) and attempts > 1)
"""

NUMBERS = """
select p.slug, n.epoch, n.sequence from removal_notice n
  join partners_partner p on p.id = n.stream_id
  join removal_removalrequest r on r.id = n.request_id and r.source = %s
"""


class Story:
    """One run. Each has releases, subjects and a source of its own, so that it can be told again on the same data."""

    def __init__(self, processes: Processes, *, url: str, folder: Path) -> None:
        self.processes = processes
        self.url = url
        self.run = new_ulid().lower()
        self.source = f"demo-{self.run}"
        self.folder = folder / self.run
        self.folder.mkdir(parents=True)
        self.late_port = free_port()
        self.keys: dict[str, partnerships.NewPartner] = {}

    def tell(self) -> Iterator[Progress]:
        """Go from nothing to every partner's answer; yields how far it is, about twice a second."""
        started = time.monotonic()
        for slug in NAMES:
            self._introduce(slug)
        subjects = self._fill_ledger()
        for slug, releases in RELEASES_OF.items():
            for release in releases:
                self._hand_over(f"{release}-{self.run}", slug)
        self._opt_out(subjects)
        late_is_up = False
        while True:
            self.processes.check()
            progress = self.progress()
            yield progress
            if progress.is_complete:
                return
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise DemoFailed(f"After {PATIENCE_SECONDS} s: {progress}. Its logs are in {self.processes.logs}.")
            if not late_is_up and self._late_was_missed():
                self._start_partner(LATE, listen=f"127.0.0.1:{self.late_port}")
                late_is_up = True
            time.sleep(0.5)

    def _introduce(self, slug: str) -> None:
        """Add a partner, or give an earlier run's one new keys, since their texts are not kept."""
        url = f"http://127.0.0.1:{self.late_port}/"
        now = timezone.now()
        if Partner.objects.filter(slug=slug).exists():
            secret = partnerships.rotate_secret(actor="command:demo", slug=slug, now=now, overlap=timedelta(0))
            _, api_key = partnerships.create_api_key(actor="command:demo", slug=slug)
            keys = partnerships.NewPartner(Partner.objects.get(slug=slug), secret, api_key)
        else:
            keys = partnerships.add_partner(actor="command:demo", slug=slug, name=NAMES[slug], url=url, now=now)
        self.keys[slug] = keys
        endpoint = self._start_partner(slug, listen=f"127.0.0.1:{self.late_port if slug == LATE else 0}")
        self._go_live(slug, endpoint)
        if slug != PROMPT:  # it proved what it can do; from now on it makes trouble
            self.processes.kill(slug)
        if slug == FLAKY:
            self._start_partner(slug, *OPTIONS_OF[slug], listen=urlsplit(endpoint).netloc)

    def _go_live(self, slug: str, url: str) -> None:
        """Have a partner prove that it verifies what it takes: nothing is sent to it before."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                result = verification.verify(actor="command:demo", slug=slug, url=url)
            except verification.Underway:  # a worker, because of an earlier run's partner and its new key
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
                continue
            if not result.passed:
                failed = ", ".join(check["name"] for check in result.checks if not check["passed"])
                raise DemoFailed(f"{slug} did not pass: {failed}. Its logs are in {self.processes.logs}.")
            return

    def _start_partner(self, slug: str, *options: str, listen: str) -> str:
        return self.processes.start_partner(
            slug, "--service-url", self.url, "--database", str(self._log_of(slug)), *options,
            secret=self.keys[slug].secret, api_key=self.keys[slug].api_key, listen=listen,
        )  # fmt: skip

    def _fill_ledger(self) -> list[str]:
        """Make two releases, one from a WordPress export, and list the subjects that will opt out."""
        with SAMPLE.open("rb") as stream:
            export = wxr.read(stream)
            items = [entry.item for entry in export.entries if isinstance(entry, wxr.Public)]
        site = f"{export.subject}/{self.run}"
        blogs = {f"blog:{self.run}-{n}": [f"post:{i}" for i in range(1, n + 2)] for n in range(BLOGS)}
        for name, contents in (("site", {site: items}), ("blogs", blogs)):
            ledger.create_release(actor="command:demo", name=f"{name}-{self.run}", dataset="demo", source="demo")
            entries = (ledger.Entry(n, subject, held) for n, (subject, held) in enumerate(contents.items(), start=1))
            uploads.replace_manifest(actor="command:demo", name=f"{name}-{self.run}", entries=entries)
            ledger.seal_release(actor="command:demo", name=f"{name}-{self.run}")
        return [site, *list(blogs)[: BLOGS // 2]]

    def _hand_over(self, release: str, slug: str) -> None:
        ledger.record_disclosure(
            actor="command:demo", release=release, partner=slug, reference="demo", disclosed_at=None, now=timezone.now()
        )

    def _opt_out(self, subjects: list[str]) -> None:
        """Record the wishes as a platform does: over HTTP."""
        _, api_key = partnerships.create_api_key(actor="command:demo", source=self.source)
        for subject in subjects:
            answer = requests.post(
                f"{self.url}/v1/requests",
                json={"kind": "opt_out", "subject": subject},
                headers={"Authorization": f"Bearer {api_key}", "Idempotency-Key": subject},
                timeout=10,
            )
            if answer.status_code != 201:
                raise DemoFailed(f"POST /v1/requests answered {answer.status_code}: {answer.text}")

    def _late_was_missed(self) -> bool:
        return Attempt.objects.filter(
            delivery__stream__partner__slug=LATE, outcome="unreachable", url__contains=f":{self.late_port}/"
        ).exists()

    def progress(self) -> Progress:
        with connection.cursor() as cursor:
            cursor.execute(COUNTS, {"source": self.source})
            requests_, partners, notices, delivered, acknowledged, attempts, retried = cursor.fetchone()
            cursor.execute(NUMBERS, [self.source])
            numbers = set(cursor.fetchall())
        witnessed = {(slug, *number) for slug in NAMES for number in self._done_by(slug)}
        return Progress(
            requests_, partners, notices, delivered, acknowledged, len(numbers & witnessed), int(attempts), retried
        )

    def _done_by(self, slug: str) -> list[tuple[int, int]]:
        """Read a partner's own log: which numbers it has done."""
        if not self._log_of(slug).exists():
            return []
        with sqlite3.connect(f"file:{self._log_of(slug)}?mode=ro", uri=True) as log:
            rows = log.execute("select epoch, sequence from notices where state = 'done'").fetchall()
        log.close()
        return rows

    def _log_of(self, slug: str) -> Path:
        return self.folder / f"{slug}.sqlite3"


def count_violations() -> int:
    return sum(invariants.check().values())
