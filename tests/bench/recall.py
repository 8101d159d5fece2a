"""A large recall, and the opt-outs beside it: does each still leave at once?

``python -m tests.bench.recall --json [--subjects N] [--partners N] [--items N] [--alone SECONDS]``

Three processes: one records the recall, as the API would; one is a worker with a single slot, which runs the planner's
task for each hint and the sweeper's thread beside it; and this one records an opt-out every 50 ms, by turns of a
subject that is recalled and of one that is not. Measured is the time from an opt-out's commit until its notices are
there for others to see, before the recall (``alone_``) and beside it, from its first line until it is numbered.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from tests.bench.ledger import hand_over, load, write_manifest
from tests.bench.measure import database, machine, timed

DATABASE = "removal_bench"  # as tests.bench.measure names it
PAUSE_SECONDS = 0.05  # between two opt-outs
LOOK_SECONDS = 0.005  # between two looks for their notices
PATIENCE_SECONDS = 30


class OptOuts:
    """Records opt-outs at a steady pace, and watches for their notices."""

    def __init__(self, subjects: Iterator[str], hints: IO[bytes]) -> None:
        self.subjects = subjects
        self.hints = hints
        self.waiting: dict[int, float] = {}
        self.seconds: list[float] = []
        self.record_seconds: list[float] = []
        self.next_at = time.perf_counter()

    def turn(self) -> None:
        if time.perf_counter() >= self.next_at:
            self.next_at += PAUSE_SECONDS
            self._record()
        self._look()
        time.sleep(LOOK_SECONDS)

    def finish(self) -> list[float]:
        """Wait for the last notices, and start again; returns the seconds that each took."""
        end = time.perf_counter() + PATIENCE_SECONDS
        while self.waiting:
            if time.perf_counter() > end:
                raise TimeoutError(f"{len(self.waiting)} opt-outs were never planned.")
            self._look()
            time.sleep(LOOK_SECONDS)
        taken, self.seconds = self.seconds, []
        self.next_at = time.perf_counter()
        return taken

    def _record(self) -> None:
        from django.utils import timezone

        from removal import intake
        from removal.models import RemovalRequest

        subject = next(self.subjects)
        wish = intake.Wish(idempotency_key=subject, kind="opt_out", subject=subject)
        started = time.perf_counter()
        recorded = intake.record_request(source="bench", actor="bench", wish=wish, now=timezone.now())
        committed = time.perf_counter()
        self.record_seconds.append(committed - started)
        self.hints.write(b".")
        self.hints.flush()
        self.waiting[RemovalRequest.objects.values_list("pk", flat=True).get(public_id=recorded.public_id)] = committed

    def _look(self) -> None:
        from removal.models import Notice

        there = set(Notice.objects.filter(request__in=list(self.waiting)).values_list("request_id", flat=True))
        now = time.perf_counter()
        for request_id in there:
            self.seconds.append(now - self.waiting.pop(request_id))


def work() -> None:
    """Be a worker with one slot: a turn of the planner's task for each hint, until there will be none."""
    from django.conf import settings

    from removal import sweep, tasks

    sweep.start(interval=settings.SWEEP_INTERVAL)
    print("ready", flush=True)
    while True:
        select.select([sys.stdin], [], [])
        if not os.read(sys.stdin.fileno(), 65536):  # all hints that came meanwhile; one turn plans what they are about
            return
        tasks.plan()


def record_recall(subjects: int) -> None:
    from django.utils import timezone

    from removal import recall

    lines = (recall.Line(n, f"site:{n}", None) for n in range(1, subjects + 1))
    said = recall.Recall(idempotency_key="recall", releases=("r",))
    seconds: dict[str, float] = {}
    with timed(seconds, "record"):
        recall.record_recall(source="bench", actor="bench", recall=said, lines=lines, now=timezone.now())
    print(seconds["record"])


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part of this benchmark on its database in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.recall", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def attach() -> None:
    import django

    django.setup()
    from django.db import connection

    connection.settings_dict["NAME"] = DATABASE


def interleaved(subjects: int, opt_outs: int) -> Iterator[str]:
    """Name subjects: by turns one that is recalled and one that is not, all over the release."""
    for n in range(opt_outs):
        yield f"site:{subjects + 1 + n}"
        yield f"site:{1 + n * subjects // opt_outs}"


def bench(options: argparse.Namespace) -> dict[str, Any]:
    from django.db import connection

    from removal import ledger, partnerships, planning
    from removal.models import Notice, RemovalRequest
    from tests.factories import make_partner

    opt_outs = 20_000
    with TemporaryDirectory(prefix="removal-bench-") as folder:
        file = Path(folder) / "manifest.ndjson"
        write_manifest(file, entries=options.subjects + opt_outs, items=options.items, first=1)
        load("r", file)
    ledger.seal_release(actor="bench", name="r")
    for n in range(options.partners):
        slug = make_partner(f"bench-{n}").partner.slug
        # Planning is measured; and paused partners are planned for as any others.
        partnerships.set_paused(actor="bench", slug=slug, paused=True)
        hand_over("r", slug)
    planning.plan(budget=timedelta(minutes=10))
    with connection.cursor() as cursor:
        cursor.execute("vacuum analyze")
        cursor.execute("checkpoint")

    with child("--worker") as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdout.readline()
        beside = OptOuts(interleaved(options.subjects, opt_outs), worker.stdin)
        end = time.perf_counter() + options.alone
        while time.perf_counter() < end:
            beside.turn()
        alone = beside.finish()
        alone_record, beside.record_seconds = beside.record_seconds, []

        started = time.perf_counter()
        recorded_after = None
        with child("--record", str(options.subjects)) as api:
            recall = None
            while recall is None or recall.is_matching or recall.round is None:
                beside.turn()
                if recorded_after is None and api.poll() is not None:
                    assert api.returncode == 0
                    recorded_after = time.perf_counter() - started
                    during_recording = len(beside.seconds)
                recall = RemovalRequest.objects.filter(kind="recall").first()
        recall_seconds = time.perf_counter() - started
        during = len(beside.seconds)
        # The reconciler and the statistics come after it: a while longer, as long as it was alone.
        end = time.perf_counter() + options.alone
        while time.perf_counter() < end:
            beside.turn()
        taken = beside.finish()
    told = Notice.objects.filter(request=recall)
    assert [notice.item_count for notice in told] == [options.subjects * options.items] * options.partners
    return {
        **figures("", taken),
        **figures("alone_", alone),
        "recording": figures("", taken[:during_recording]),
        "matching": figures("", taken[during_recording:during]),
        "after": figures("", taken[during:]),
        "recall_seconds": round(recall_seconds, 1),
        "recording_seconds": round(recorded_after or 0, 1),
        "record_opt_out": figures("", beside.record_seconds),
        "alone_record_opt_out": figures("", alone_record),
    }


def figures(name: str, seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    return {
        f"{name}p50_ms": round(statistics.median(seconds) * 1000, 1),
        f"{name}p99_ms": round(statistics.quantiles(seconds, n=100)[98] * 1000, 1),
        f"{name}max_ms": round(max(seconds) * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--subjects", type=int, default=1_000_000, help="that are recalled (default 1,000,000)")
    parser.add_argument("--items", type=int, default=3, help="of a subject (default 3)")
    parser.add_argument("--partners", type=int, default=5, help="that hold them (default 5)")
    parser.add_argument("--alone", type=int, default=20, metavar="SECONDS", help="before and after (default 20)")
    parser.add_argument("--worker", action="store_true", help="only be the worker; it reads hints")
    parser.add_argument("--record", type=int, metavar="N", help="only record the recall")
    options = parser.parse_args()
    if options.worker:
        attach()
        work()
    elif options.record:
        attach()
        record_recall(options.record)
    else:
        with database():
            result = bench(options)
        print(json.dumps({**result, "machine": machine(), "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
