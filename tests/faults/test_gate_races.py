"""Opt-outs against seal and handover, in any order: the content was kept out, or a notice exists. No third case."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import intake, invariants, ledger, planning, uploads
from removal.models import Notice
from tests.factories import make_partner, make_wish

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults, pytest.mark.long]

EPISODES = int(os.environ.get("RACE_EPISODES", "1000"))
WRITERS = 6
SUBJECTS = 3


class Race:
    """Many small episodes on one ledger: in each, six connections do what may be done to one release at once."""

    def __init__(self, seed: int, partners: list[Partner]) -> None:
        self.seed = seed
        self.partners = partners
        self.seen: Counter[str] = Counter()

    def run(self, episodes: int) -> None:
        with planners(2), ThreadPoolExecutor(WRITERS, initializer=self._choose_isolation) as pool:
            for episode in range(episodes):
                chance = random.Random(f"{self.seed}-{episode}")
                release = f"race-{episode}"
                subjects = [f"race:{episode}-{n}" for n in range(SUBJECTS)]
                ledger.create_release(actor="test", name=release, dataset="race", source="")
                entries = [ledger.Entry(n, subject, ["post:1"]) for n, subject in enumerate(subjects, start=1)]
                uploads.replace_manifest(actor="test", name=release, entries=entries)
                for future in [pool.submit(step) for step in self._steps(chance, release, subjects)]:
                    future.result()
            all_of_them = threading.Barrier(WRITERS)
            for _ in range(WRITERS):
                pool.submit(self._leave, all_of_them)

    def _choose_isolation(self) -> None:
        """Let two of the six call at REPEATABLE READ, as somebody's own code may."""
        with connection.cursor() as cursor:
            if threading.get_ident() % 3 == 0:
                cursor.execute("set session characteristics as transaction isolation level repeatable read")

    def _leave(self, all_of_them: threading.Barrier) -> None:
        """Close this thread's connection; the barrier gives each thread one of these."""
        all_of_them.wait()
        connection.close()

    def _steps(self, chance: random.Random, release: str, subjects: list[str]) -> list[Callable[[], None]]:
        steps: list[Callable[[], None]] = [lambda: self._seal(release, exclude=chance.random() < 0.7)]
        for _ in range(2):
            partner, wait = chance.choice(self.partners), chance.random() / 400
            steps.append(lambda partner=partner, wait=wait: self._hand_over(release, partner, wait))  # type: ignore[misc]
        for _ in range(3):
            kind = chance.choice(["opt_out", "opt_out", "deletion", "reinstatement"])
            subject, wait = chance.choice(subjects), chance.random() / 30
            steps.append(lambda kind=kind, subject=subject, wait=wait: self._wish(kind, subject, wait))  # type: ignore[misc]
        chance.shuffle(steps)
        return steps

    def _seal(self, release: str, *, exclude: bool) -> None:
        try:
            ledger.seal_release(actor="test", name=release, exclude=exclude)
            self.seen["sealed"] += 1
        except ledger.ContentMustGo:
            self.seen["seal refused"] += 1
        except ledger.EmptyManifest:
            self.seen["nothing left"] += 1

    def _hand_over(self, release: str, partner: Partner, wait: float) -> None:
        for _ in range(20):
            time.sleep(wait)
            try:
                ledger.record_disclosure(
                    actor="test", release=release, partner=partner.slug, reference=f"{threading.get_ident()}-{wait}",
                    disclosed_at=None, now=timezone.now(),
                )  # fmt: skip
            except ledger.ReleaseIsNotSealed:
                continue
            except ledger.ContentMustGo:
                self.seen["handover refused"] += 1
            else:
                self.seen["handed over"] += 1
            return

    def _wish(self, kind: str, subject: str, wait: float) -> None:
        time.sleep(wait)
        intake.record_request(source="blogs", actor="test", wish=make_wish(subject, kind=kind), now=timezone.now())
        self.seen[kind] += 1


@contextmanager
def planners(count: int) -> Iterator[None]:
    """Keep planners running beside a test, each on a connection of its own."""
    going = threading.Event()
    going.set()

    def plan() -> None:
        try:
            while going.is_set():
                planning.plan_round(limit=5)
                time.sleep(0.002)
        finally:
            connection.close()

    threads = [threading.Thread(target=plan) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        going.clear()
        for thread in threads:
            thread.join()


def test_content_was_kept_out_or_a_notice_exists(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("RACE_SEED", time.time_ns() % 10**9))
    race = Race(seed, [make_partner().partner for _ in range(3)])
    race.run(EPISODES)
    planning.plan(budget=timedelta(seconds=60))
    with capsys.disabled():
        print(f"\n{EPISODES} interleavings, RACE_SEED={seed}: {dict(race.seen)}, {Notice.objects.count()} notices")  # noqa: T201
    broken = {name: count for name, count in invariants.check().items() if count}
    assert broken == {}
    # Each of the outcomes was really met, or this would prove nothing.
    assert min(race.seen[outcome] for outcome in ("sealed", "handed over", "handover refused")) > 0
    assert Notice.objects.count() > 0


def test_the_check_sees_a_planner_without_the_later_of_the_two_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    only_new_requests = planning.MATCH_NEW.partition("union all\n-- … and new disclosures")[0]
    broken_plan = planning.statement(match=only_new_requests, meet=planning.MEET_NEW, offboard=planning.OFFBOARD_NEW)
    monkeypatch.setattr(planning, "PLAN_NEW", broken_plan)
    Race(1, [make_partner().partner for _ in range(3)]).run(100)
    planning.plan(budget=timedelta(seconds=60))
    assert invariants.check()["every_holder_has_a_notice"] > 0
