"""Look for work without being told: what makes the broker, and any other worker, optional (design §2.3).

Every worker process runs this on a timer: it frees the messages of dead workers, plans, sends what is due, and now and
then checks that the planner missed nothing and what time runs out for.
"""

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from django.db import close_old_connections, connection
from django.utils import timezone

from removal import escalation, hints, large, planning, recovery, reminders, sending, verification

log = structlog.get_logger()

# Partners that a sweep sends to at once: one that hangs must not keep the others waiting.
AT_ONCE = 6
# Of these, so many may be partners that have not answered their last try, since one that hangs takes its deadline, and
# so many such that take their time.
MOST_OF_A_KIND = {"probe": 2, "slow": 2}
# How much of its time a process spends on looking for what the planner missed, at the most.
RECONCILE_SHARE = 0.01
# A process that sends as fast as it can, or takes one hint after the other, only hints at a partner, in so many sweeps
# in a row: every further thread slows those that send. What no hint sends, sweeps do at once.
LEFT_TO_HINTS = 5
# What a process that ends waits for beyond the deadline of a try: its results must be on record.
TIME_TO_RECORD_SECONDS = 2.0

BEAT = """
insert into removal_heartbeat (process, swept_at, reconciled_at, missed_notices)
values (%(process)s, clock_timestamp(), case when %(has_reconciled)s then clock_timestamp() end, %(missed)s)
    on conflict (process) do update
   set swept_at = excluded.swept_at,
       reconciled_at = coalesce(excluded.reconciled_at, removal_heartbeat.reconciled_at),
       missed_notices = removal_heartbeat.missed_notices + excluded.missed_notices
"""
# The rows of processes that are gone; but what one of them has found must not go unseen.
FORGET = """
delete from removal_heartbeat where swept_at < clock_timestamp() - %(quiet)s - interval '1 hour' and missed_notices = 0
"""


class Sweeper:
    """One process's timer. ``run`` returns only when ``stop`` is called."""

    def __init__(
        self,
        *,
        interval: timedelta,
        reconcile_interval: timedelta,
        deadlines_interval: timedelta = timedelta(minutes=5),
    ) -> None:
        self.interval = interval
        self.deadlines_interval = deadlines_interval
        self.deadlines_at = time.monotonic() + deadlines_interval.total_seconds() * random.random()  # noqa: S311
        self.watching: Future[None] | None = None
        self.reconcile_interval = reconcile_interval
        self.reconcile_at = time.monotonic() + reconcile_interval.total_seconds() * random.random()  # noqa: S311
        self.pool = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="sweep")
        self.draining: dict[int, Future[None]] = {}
        self.kinds: dict[int, str] = {}  # of those in draining
        self.due: dict[int, int] = {}  # by partner, in how many sweeps in a row
        self.verifier = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="verify"
        )  # one at a time may take a minute
        self.verifying: Future[None] | None = None
        self.stopping = threading.Event()
        self.process = f"{socket.gethostname()}:{os.getpid()}"
        self.found: planning.Round | None = None  # by a reconcile that is not on record yet

    def run(self) -> None:
        # Jitter: many processes that started together must not look together.
        while not self.stopping.wait(self.interval.total_seconds() * random.uniform(0.75, 1.25)):  # noqa: S311
            close_old_connections()
            self.sweep()

    def stop(self) -> None:
        """Start nothing new. What is being sent goes on."""
        self.stopping.set()

    def finish(self) -> None:
        """Stop, and wait for what is being sent: each try ends by its deadline. What is claimed beside is given back.

        A process that ends without this looks as if its messages had killed it.
        """
        self.stop()
        wait(list(self.draining.values()), timeout=settings.DELIVERY_DEADLINE.total_seconds() + TIME_TO_RECORD_SECONDS)

    def sweep(self) -> None:
        """Do one turn. Sending goes on in the pool when this returns, and no step keeps another from its turn."""
        steps: list[Callable[[], object]] = [recovery.reap, self._plan, self._send, self._match_large, self._verify]
        if time.monotonic() >= self.reconcile_at:
            self.reconcile_at = float("inf")  # until this one has ended
            self.pool.submit(self._reconcile)
        if time.monotonic() >= self.deadlines_at:
            self.deadlines_at = time.monotonic() + self.deadlines_interval.total_seconds()
            steps.append(self._watch_deadlines)
        for step in (*steps, self._beat):
            try:
                step()
            except Exception as error:  # noqa: BLE001
                # The outermost loop of a process that must not end: the next turn may find the database back. The
                # type alone, since a database quotes rows in its messages.
                log.error("sweep_failed", step=step.__name__, error=type(error).__name__)  # noqa: TRY400
                connection.close()

    def _plan(self) -> None:
        planning.plan(budget=self.interval)

    def _match_large(self) -> None:
        hints.hint_streams(large.advance(budget=self.interval))

    def _reconcile(self) -> None:
        """Look for what the planner missed, beside the sweep: it takes the longer the more was ever planned."""
        started = time.monotonic()
        try:
            self.found = planning.reconcile()
        except Exception as error:  # noqa: BLE001
            # The next one may find the database back.
            log.error("reconcile_failed", error=type(error).__name__)  # noqa: TRY400
        finally:
            connection.close()
            ended = time.monotonic()
            pause = max(self.reconcile_interval.total_seconds(), (ended - started) / RECONCILE_SHARE)
            self.reconcile_at = ended + pause

    def _watch_deadlines(self) -> None:
        """Beside the sweep: a mail server that hangs must keep no message waiting."""
        if self.watching is None or self.watching.done():
            self.watching = self.pool.submit(watch_deadlines)

    def _beat(self) -> None:
        """Leave word of this turn: what watches the service sees by it that somebody is at work."""
        found = self.found
        parameters: dict[str, Any] = {
            "process": self.process,
            "has_reconciled": found is not None,
            "missed": found.notices if found else 0,
            "quiet": self.reconcile_interval,
        }
        with connection.cursor() as cursor:
            cursor.execute(BEAT, parameters)
            if found:
                cursor.execute(FORGET, parameters)
        if self.found is found:  # no other one has ended meanwhile
            self.found = None

    def _send(self) -> None:
        self.draining = {partner: future for partner, future in self.draining.items() if not future.done()}
        self.kinds = {partner: kind for partner, kind in self.kinds.items() if partner in self.draining}
        if self.stopping.is_set():
            return
        found = recovery.due_partners()
        self.due = {due.partner_id: self.due.get(due.partner_id, 0) + 1 for due in found}
        for due in found:
            if due.partner_id in self.draining:
                continue
            if due.kind in MOST_OF_A_KIND:
                if list(self.kinds.values()).count(due.kind) >= MOST_OF_A_KIND[due.kind]:
                    continue
            elif self.due[due.partner_id] <= LEFT_TO_HINTS and sending.is_busy():
                hints.hint_stream(partner_id=due.partner_id)
                continue
            self.kinds[due.partner_id] = due.kind
            self.draining[due.partner_id] = self.pool.submit(self._drain, due.partner_id)

    def _verify(self) -> None:
        """Run a verification that is due after a change of keys, beside everything else."""
        slug = verification.next_due()
        if slug and (self.verifying is None or self.verifying.done()):
            self.verifying = self.verifier.submit(self._verify_one, slug)

    def _verify_one(self, slug: str) -> None:
        try:
            with suppress(verification.Underway):  # another worker was faster
                verification.verify(actor="worker", slug=slug)
        except Exception as error:  # noqa: BLE001
            # Its lease ends by itself, and another sweep finds it.
            log.error("verification_broke", error=type(error).__name__)  # noqa: TRY400
        finally:
            connection.close()

    def _drain(self, partner_id: int) -> None:
        try:
            budget = settings.DRAIN_BUDGET
            if sending.drain(partner_id=partner_id, budget=budget, patient=False, stopping=self.stopping):
                hints.hint_stream(partner_id=partner_id)
        except Exception as error:  # noqa: BLE001
            # Its claims come back when their lease ends.
            log.error("drain_failed", partner_id=partner_id, error=type(error).__name__)  # noqa: TRY400
        finally:
            connection.close()


def watch_deadlines() -> None:
    """Remind partners, and tell staff, of what time runs out for. No step keeps another from its turn."""
    steps: list[Callable[[], object]] = [
        escalation.look,
        reminders.remind,
        partial(escalation.bundle, now=timezone.now()),
        partial(escalation.send_due, budget=settings.DRAIN_BUDGET),
    ]
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001
            log.error("deadlines_failed", error=type(error).__name__)  # noqa: TRY400
            connection.close()
    connection.close()


def start(*, interval: timedelta) -> Sweeper:
    """Start this process's sweeper on a thread of its own, which ends with the process."""
    sweeper = Sweeper(
        interval=interval,
        reconcile_interval=settings.RECONCILE_INTERVAL,
        deadlines_interval=settings.DEADLINES_INTERVAL,
    )
    threading.Thread(target=sweeper.run, name="sweeper", daemon=True).start()
    return sweeper
