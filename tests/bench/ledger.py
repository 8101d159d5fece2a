"""The ledger at scale: loading, planning, the gate, and who holds what.

``python -m tests.bench.ledger --json [--entries N] [--items N] [--releases N] [--partners N] [--opt-outs N]``

Each ratio compares two ways of doing the same thing in this run:
copy_vs_plain     our checked manifest load, against psycopg's COPY of the same rows into a table without constraints
planning_vs_loop  the planner, against one query for the holders and one ``create()`` for each notice
gate_vs_set       the gate, against a plain loop that looks each line's subject up in a set
rss_growth        peak memory at 4 N entries over peak memory at N, for loading and gating, each in a process of its own
"""

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.measure import database, machine, peak_rss_bytes, timed

BLOCK_BYTES = 64 * 1024
OPT_OUT_BLOCK = 1000
LOOPED = 2000  # opt-outs that the loop plans; its rate is what counts
RESTRICTED = 20  # one subject in so many is kept out by the gate
LOOK_UPS = 1000


def write_manifest(file: Path, *, entries: int, items: int, first: int = 0, state: bool = False) -> None:
    """Write lines of subjects ``site:<first>`` … with as many items each; ``state`` makes them candidates."""
    with file.open("w") as out:
        for n in range(first, first + entries):
            line: dict[str, Any] = {"subject": f"site:{n}", "items": [f"post:{n * items + i}" for i in range(items)]}
            if state:
                line["container_state"] = "public"
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


def pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(BLOCK_BYTES):
            yield piece


def load(name: str, file: Path) -> None:
    from removal import ledger, manifests, uploads

    ledger.create_release(actor="bench", name=name, dataset="bench", source="bench")
    uploads.replace_manifest(actor="bench", name=name, entries=manifests.read_ndjson(pieces(file)))


def load_plain(file: Path) -> None:
    from django.db import connection

    from removal import manifests

    with connection.cursor() as cursor:
        cursor.execute("create table if not exists plain (line bigint, subject text, items text[])")
        with cursor.copy("copy plain from stdin") as copy:
            for entry in manifests.read_ndjson(pieces(file)):
                copy.write_row((entry.line, entry.subject, entry.items))


def hand_over(release: str, partner: str) -> None:
    from django.utils import timezone

    from removal import ledger

    ledger.record_disclosure(
        actor="bench", release=release, partner=partner, reference="bench", disclosed_at=timezone.now(),
        now=timezone.now(),
    )  # fmt: skip


def opt_out(subjects: list[str], *, source: str) -> None:
    from django.utils import timezone

    from removal import intake

    for start in range(0, len(subjects), OPT_OUT_BLOCK):
        wishes = [
            intake.Wish(idempotency_key=subject, kind="opt_out", subject=subject)
            for subject in subjects[start : start + OPT_OUT_BLOCK]
        ]
        intake.record_requests(source=source, actor="bench", wishes=wishes, now=timezone.now())


def plan_by_loop(subjects: list[str]) -> int:
    """Match as a textbook would: one query for the holders, one ``create()`` for each notice, in one transaction."""
    from django.db import connection, transaction
    from django.utils import timezone

    from removal.models import Notice, RemovalRequest, Stream

    with connection.cursor() as cursor:
        cursor.execute("create table if not exists looped (like removal_notice including all)")
    made = 0
    streams = {stream.pk: stream for stream in Stream.objects.all()}
    with transaction.atomic():
        for request in RemovalRequest.objects.filter(source="looped", idempotency_key__in=subjects).order_by("id"):
            with connection.cursor() as cursor:
                cursor.execute(
                    "select d.partner_id, array_agg(distinct d.id), count(distinct i)"
                    "  from removal_requesttarget t"
                    "  join removal_manifestentry m on m.subject_id = t.subject_id"
                    "  join removal_disclosure d on d.release_id = m.release_id cross join unnest(m.items) i"
                    " where t.request_id = %s group by 1",
                    [request.pk],
                )
                holders = cursor.fetchall()
            for partner_id, disclosures, items in holders:
                stream = streams[partner_id]
                stream.head += 1
                Notice.objects.create(
                    stream=stream, epoch=1, sequence=stream.head, request=request, kind=request.kind,
                    disclosures=disclosures, item_count=items, round=0, respond_by=timezone.now(),
                )  # fmt: skip
                made += 1
        transaction.set_rollback(True)
    return made


def gate_by_set(file: Path, kept_out: set[str]) -> int:
    """Look each candidate's subject up in a set, and write those that are not in it."""
    out = io.BytesIO()
    with file.open("rb") as lines:
        for line in lines:
            if json.loads(line)["subject"] not in kept_out:
                out.write(line)
    return out.tell()


class Discarding(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def sift(release: str, file: Path) -> None:
    from removal import gate
    from removal.models import Release

    gate.sift(
        actor="bench",
        release=Release.objects.get(name=release),
        candidates=pieces(file),
        allowed=Discarding(),  # type: ignore[arg-type]  # the gate only writes
        decisions=Discarding(),  # type: ignore[arg-type]
    )


def bench(options: argparse.Namespace) -> dict[str, Any]:
    from django.db import connection
    from django.utils import timezone

    from removal import holdings, planning
    from removal.models import Notice
    from tests.factories import make_partner

    seconds: dict[str, float] = {}
    each = options.entries // options.releases
    partners = [make_partner(f"bench-{n}").partner.slug for n in range(options.partners)]
    with TemporaryDirectory(prefix="removal-bench-") as folder:
        for n in range(options.releases):
            file = Path(folder) / "manifest.ndjson"
            # Releases of one dataset overlap by half: most subjects are in two of them.
            write_manifest(file, entries=each, items=options.items, first=n * each // 2)
            # Interleaved, so that whatever slows the machine down slows both.
            with timed(seconds, "plain"):
                load_plain(file)
            with timed(seconds, "copy"):
                load(f"r{n}", file)
        from removal import ledger

        with timed(seconds, "seal"):
            for n in range(options.releases):
                ledger.seal_release(actor="bench", name=f"r{n}")
        for n, slug in enumerate(partners):
            for offset in range(3):
                hand_over(f"r{(n + offset) % options.releases}", slug)
        with connection.cursor() as cursor:
            cursor.execute("drop table plain")
            cursor.execute("analyze")
        planning.plan(budget=timedelta(minutes=10))

        chance = random.Random(1)
        everyone = [
            f"site:{n}" for n in chance.sample(range(each * (options.releases + 1) // 2), options.opt_outs + LOOPED)
        ]
        looped, planned = everyone[:LOOPED], everyone[LOOPED:]
        with timed(seconds, "record"):
            opt_out(planned, source="planned")
        before = Notice.objects.count()
        with timed(seconds, "plan"):
            planning.plan(budget=timedelta(minutes=10))
        notices = Notice.objects.count() - before
        opt_out(looped, source="looped")
        with timed(seconds, "loop"):
            looped_notices = plan_by_loop(looped)

        candidates = Path(folder) / "candidates.ndjson"
        write_manifest(candidates, entries=each, items=options.items, first=0, state=True)
        ledger.create_release(actor="bench", name="next", dataset="bench", source="bench")
        kept_out = set(everyone)
        for _ in range(3):
            with timed(seconds, "set"):
                gate_by_set(candidates, kept_out)
            with timed(seconds, "gate"):
                sift("next", candidates)

    look_ups = []
    for subject in chance.choices(everyone, k=LOOK_UPS):
        started = time.perf_counter()
        holdings.holders_of(subject=subject, as_of=timezone.now())
        look_ups.append((time.perf_counter() - started) * 1000)
    return {
        "ratios": {
            "copy_vs_plain": round(seconds["plain"] / seconds["copy"], 3),
            "planning_vs_loop": round((notices / seconds["plan"]) / (looped_notices / seconds["loop"]), 1),
            "gate_vs_set": round(seconds["set"] / seconds["gate"], 3),
        },
        "who_holds_p99_ms": round(statistics.quantiles(look_ups, n=100)[98], 2),
        "per_second": {
            "copied_entries": round(each * options.releases / seconds["copy"]),
            "plain_entries": round(each * options.releases / seconds["plain"]),
            "recorded_opt_outs": round(options.opt_outs / seconds["record"]),
            "planned_notices": round(notices / seconds["plan"]),
            "looped_notices": round(looped_notices / seconds["loop"]),
            "gated_candidates": round(3 * each / seconds["gate"]),
        },
        "notices": notices,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def measure_memory(entries: int, items: int) -> int:
    """Load and gate so many entries, and return the peak memory of this process in bytes."""
    with database(), TemporaryDirectory(prefix="removal-bench-") as folder:
        file = Path(folder) / "manifest.ndjson"
        write_manifest(file, entries=entries, items=items)
        load("memory", file)
        write_manifest(file, entries=entries, items=items, state=True)
        sift("memory", file)
        return peak_rss_bytes()


def grow(entries: int, items: int) -> int:
    """Measure memory in a process of its own, which has no other run behind it."""
    arguments = [sys.executable, "-m", "tests.bench.ledger", "--memory", str(entries), "--items", str(items)]
    return int(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--entries", type=int, default=2_000_000, help="in all releases together (default 2,000,000)")
    parser.add_argument("--items", type=int, default=10, help="of an entry (default 10)")
    parser.add_argument("--releases", type=int, default=10)
    parser.add_argument("--partners", type=int, default=10)
    parser.add_argument("--opt-outs", type=int, default=50_000)
    parser.add_argument("--memory", type=int, metavar="N", help="only measure the peak memory of loading N entries")
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(options.memory, options.items))
        return
    with database():
        result = bench(options)
    small = max(options.entries // 40, 10_000)
    result["rss_growth"] = round(grow(4 * small, options.items) / grow(small, options.items), 3)
    print(json.dumps({**result, "machine": machine(), "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
