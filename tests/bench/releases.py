"""How a release finds its rows: four ways to lay the ledger out, with the same data in each.

``python -m tests.bench.releases --json [--entries N] [--items N] [--releases N] [--parts N]``

by_release   hash-partitioned by subject, with an index on (release_id)
by_part      the same, with the index on (release_id, part)
per_release  list-partitioned by release, each partition with an index on (part)
by_range     hash-partitioned by subject, with a block range index on (release_id, part)

Measured are: loading one more release (``load``), a late disclosure that meets few or many targets (``late_few``,
``late_many``), dropping one part or a whole upload (``drop_part``, ``drop_release``), who holds a subject (p99), and
the size of the indexes. Ratios are against by_release: below 1 is better.

``python -m tests.bench.releases --json --size N`` loads N entries through removal.uploads instead, in parts, and asks
the questions of removal.holdings at that size.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.ledger import hand_over, opt_out, pieces, write_manifest
from tests.bench.measure import database, machine, peak_rss_bytes

LAYOUTS = ("by_release", "by_part", "per_release", "by_range")
PARTITIONS = 16
EXTRA = 3  # releases that are loaded, met by a disclosure, and dropped, each of them timed
LOOK_UPS = 2000

COLUMNS = """
create table {layout} (
    subject_id bigint not null, release_id bigint not null, items text[] not null, item_count integer not null,
    part integer not null default 0, primary key (subject_id, release_id)
) partition by {key}
"""
INDEX = {
    "by_release": "create index by_release_release on by_release (release_id)",
    "by_part": "create index by_part_release on by_part (release_id, part)",
    "per_release": "create index per_release_part on per_release (part)",
    "by_range": "create index by_range_release on by_range using brin (release_id, part)",
}
# Half of a release's subjects are in the one before it too; ids follow the order in which subjects were first seen.
STAGE = """
create temporary table stage as
select s.id subject_id, (s.id - %(first)s) * %(parts)s / %(entries)s + 1 part,
       array(select 'post:' || s.id * %(items)s + i from generate_series(1, %(items)s) i) items
  from generate_series(%(first)s::bigint, %(first)s + %(entries)s - 1) s(id)
"""
LOAD = """
insert into {layout} (subject_id, release_id, items, item_count, part)
select subject_id, %s, items, cardinality(items), part from stage order by subject_id
"""
TARGETS = """
create table {name} as
select id subject_id, id request_id, null::text[] items
  from (select distinct (random() * %(subjects)s)::bigint id from generate_series(1, %(targets)s)) x
"""
# The planner's second branch (removal.planning.MATCH_NEW): a new disclosure with the requests planned before.
LATE = """
with new_disclosure as materialized (select %s::bigint release_id)
select count(*)
  from new_disclosure d
  join {layout} m on m.release_id = d.release_id
  join {targets} t on t.subject_id = m.subject_id and (t.items is null or m.items && t.items)
"""
HOLDERS = """
select m.release_id, m.item_count from {layout} m where m.subject_id = %s order by 1
"""
SIZES = """
select coalesce(sum(pg_indexes_size(relid)), 0)::bigint, coalesce(sum(pg_table_size(relid)), 0)::bigint
  from pg_partition_tree(%s::regclass) where isleaf
"""


def seconds_of(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


class Layouts:
    """The same ledger in each layout. Steps run in turn, so that whatever slows the machine down slows all."""

    def __init__(self, cursor: Any, options: argparse.Namespace) -> None:
        self.cursor = cursor
        self.options = options
        self.each = options.entries // options.releases
        self.subjects = self.each * (options.releases + 1) // 2
        self.seconds: dict[str, dict[str, list[float]]] = {layout: {} for layout in LAYOUTS}

    def run(self, statement: str, *parameters: Any) -> None:
        self.cursor.execute(statement, parameters or None)

    def time(self, name: str, step: Callable[[str], object]) -> None:
        for layout in random.sample(LAYOUTS, len(LAYOUTS)):
            taken = seconds_of(lambda layout=layout: step(layout))  # type: ignore[misc]
            self.seconds[layout].setdefault(name, []).append(taken)
        print(name, {layout: round(self.seconds[layout][name][-1], 4) for layout in LAYOUTS}, file=sys.stderr)

    def build(self) -> None:
        for layout in LAYOUTS:
            key = "list (release_id)" if layout == "per_release" else "hash (subject_id)"
            self.run(COLUMNS.format(layout=layout, key=key))
            self.run(INDEX[layout])
            if layout != "per_release":
                for n in range(PARTITIONS):
                    self.run(
                        f"create table {layout}_{n:02} partition of {layout}"
                        f" for values with (modulus {PARTITIONS}, remainder {n})"
                    )
        for release in range(1, self.options.releases + 1):
            self.stage(release)
            for layout in LAYOUTS:
                self.load(layout, release)
        many = self.subjects // 20
        for name, targets in (("few", 1000), ("many", many)):
            self.cursor.execute(TARGETS.format(name=name), {"subjects": self.subjects, "targets": targets})
            self.run(f"alter table {name} add primary key (subject_id, request_id)")
        self.run("vacuum analyze")
        self.run("checkpoint")

    def stage(self, release: int) -> None:
        self.run("drop table if exists stage")
        said = {
            "first": (release - 1) * self.each // 2 + 1,
            "entries": self.each,
            "parts": self.options.parts,
            "items": self.options.items,
        }
        self.cursor.execute(STAGE, said)
        self.run("analyze stage")

    def load(self, layout: str, release: int) -> None:
        if layout == "per_release":
            self.run(f"create table per_release_{release} partition of per_release for values in ({release})")
        self.run(LOAD.format(layout=layout), release)

    def drop(self, layout: str, release: int) -> None:
        # What partitioning by release is for: a drop reads nothing.
        gone = "truncate per_release_{1}" if layout == "per_release" else "delete from {0} where release_id = {1}"
        self.run(gone.format(layout, release))

    def measure(self) -> None:
        extra = range(self.options.releases + 1, self.options.releases + 1 + EXTRA)
        for release in extra:
            self.stage(release - EXTRA)
            self.time("load", lambda layout, release=release: self.load(layout, release))  # type: ignore[misc]
        self.run("analyze")  # what autovacuum does within a minute
        for release in extra:
            for targets in ("few", "many"):
                self.time(
                    f"late_{targets}",
                    lambda layout, r=release, t=targets: self.run(LATE.format(layout=layout, targets=t), r),  # type: ignore[misc]
                )
        for _ in range(LOOK_UPS):
            subject = random.randint(1, self.subjects)
            for layout in LAYOUTS:
                taken = seconds_of(
                    lambda layout=layout, subject=subject: self.run(HOLDERS.format(layout=layout), subject)  # type: ignore[misc]
                )
                self.seconds[layout].setdefault("who_holds", []).append(taken)
        for part, release in enumerate(extra, start=1):
            self.time(
                "drop_part",
                lambda layout, r=release, p=part: self.run(  # type: ignore[misc]
                    f"delete from {layout} where release_id = {r} and part = {p}"
                ),
            )
        for release in extra:
            self.time("drop_release", lambda layout, release=release: self.drop(layout, release))  # type: ignore[misc]

    def sizes(self) -> dict[str, dict[str, int]]:
        found = {}
        for layout in LAYOUTS:
            self.run(SIZES, layout)
            indexes, table = self.cursor.fetchone()
            found[layout] = {"indexes_mib": indexes >> 20, "table_mib": table >> 20}
        return found


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from django.db import connection

    random.seed(1)
    with connection.cursor() as cursor:
        layouts = Layouts(cursor, options)
        layouts.build()
        sizes = layouts.sizes()
        layouts.measure()
    figures = {
        layout: {
            **{f"{name}_ms": round(statistics.median(taken) * 1000, 2) for name, taken in of.items()},
            "who_holds_p99_ms": round(p99(of["who_holds"]), 3),
            **sizes[layout],
        }
        for layout, of in layouts.seconds.items()
    }
    base = figures["by_release"]
    ratios = {
        layout: {name: round(value / base[name], 3) for name, value in of.items() if base[name]}
        for layout, of in figures.items()
        if layout != "by_release"
    }
    return {"ratios": ratios, "figures": figures}


def p99(seconds: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100)[98] * 1000


# --- through removal.uploads, at size ---


def load_parts(name: str, folder: Path, *, entries: int, items: int, parts: int, first: int) -> float:
    """Load a release in parts; returns the seconds that were spent loading."""
    from removal import ledger, manifests, uploads
    from removal.formats import Digested

    ledger.create_release(actor="bench", name=name, dataset="bench", source="bench")
    seconds = 0.0
    for part in range(parts):
        file = folder / "part.ndjson"
        start = part * entries // parts
        write_manifest(file, entries=(part + 1) * entries // parts - start, items=items, first=first + start)
        body = Digested(pieces(file))

        def put(body: Digested = body, number: int = part + 1) -> object:
            read = manifests.read_ndjson(body)
            return uploads.put_part(actor="bench", name=name, number=number, entries=read, digest=body.digest)

        seconds += seconds_of(put)
    print(f"{name}: {entries / seconds:.0f} entries/s, {peak_rss_bytes() >> 20} MiB", file=sys.stderr)
    return seconds


def ask(questions: list[Callable[[], object]]) -> dict[str, float]:
    taken = [seconds_of(question) for question in questions]
    return {"p50_ms": round(statistics.median(taken) * 1000, 2), "p99_ms": round(p99(taken), 2)}


def recall(subjects: range, *, key: str) -> str:
    from django.utils import timezone

    from removal.recall import Line, Recall, record_recall

    lines = (Line(n, f"site:{subject}", None) for n, subject in enumerate(subjects, start=1))
    said = Recall(idempotency_key=key, releases=("r0",))
    return record_recall(source="bench", actor="bench", recall=said, lines=lines, now=timezone.now()).public_id


def at_size(options: argparse.Namespace) -> dict[str, Any]:
    from django.db import connection
    from django.utils import timezone

    from removal import holdings, large, ledger, planning
    from removal.models import RemovalRequest
    from tests.factories import make_partner

    each = options.size // options.releases
    partners = [make_partner(f"bench-{n}").partner.slug for n in range(10)]
    load_seconds = seal_seconds = 0.0
    with TemporaryDirectory(prefix="removal-bench-") as folder:
        for n in range(options.releases):
            load_seconds += load_parts(
                f"r{n}", Path(folder), entries=each, items=options.items, parts=options.parts, first=n * each // 2
            )
            started = time.perf_counter()
            ledger.seal_release(actor="bench", name=f"r{n}", parts=options.parts)
            seal_seconds += time.perf_counter() - started
    memory = peak_rss_bytes()
    for n, slug in enumerate(partners):
        for offset in range(3):
            hand_over(f"r{(n + offset) % options.releases}", slug)
    with connection.cursor() as cursor:
        cursor.execute("analyze")
    chance = random.Random(1)
    everyone = [f"site:{n}" for n in chance.sample(range(each * (options.releases + 1) // 2), LOOK_UPS)]
    opt_out(everyone, source="bench")
    planning.plan(budget=timedelta(minutes=10))
    opted_out = list(RemovalRequest.objects.values_list("public_id", flat=True))
    recalls = [n for n in (1000, 100_000, 1_000_000) if n <= each]
    recalled = {n: recall(range(n), key=f"recall-{n}") for n in recalls}
    planning.plan(budget=timedelta(minutes=10))
    large.advance(budget=timedelta(minutes=30))
    questions: dict[str, list[Callable[[], object]]] = {
        "holders_of": [lambda s=s: holdings.holders_of(subject=s, as_of=timezone.now()) for s in everyone],  # type: ignore[misc]
        "holdings_of": [lambda p=p: holdings.holdings_of(partner=p, now=timezone.now()) for p in partners * 20],  # type: ignore[misc]
        "window_of": [lambda r=r: holdings.window_of(source="bench", public_id=r) for r in opted_out],  # type: ignore[misc]
        "releases_with": [lambda r=r: holdings.releases_with(source="bench", public_id=r) for r in opted_out],  # type: ignore[misc]
    }
    for targets, public_id in recalled.items():
        questions[f"window_of_{targets}"] = [lambda r=public_id: holdings.window_of(source="bench", public_id=r)] * 50  # type: ignore[misc]
        questions[f"releases_with_{targets}"] = [
            lambda r=public_id: holdings.releases_with(source="bench", public_id=r)  # type: ignore[misc]
        ] * 50
    with connection.cursor() as cursor:
        cursor.execute(SIZES, ["removal_manifestentry"])
        indexes, table = cursor.fetchone()
    return {
        "entries": each * options.releases,
        "loaded_entries_per_second": round(each * options.releases / load_seconds),
        "sealed_entries_per_second": round(each * options.releases / seal_seconds),
        "peak_rss_mib": memory >> 20,
        "table_mib": table >> 20,
        "indexes_mib": indexes >> 20,
        "questions": {name: ask(asked) for name, asked in questions.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--entries", type=int, default=2_000_000, help="in all releases together (default 2,000,000)")
    parser.add_argument("--items", type=int, default=10, help="of an entry (default 10)")
    parser.add_argument("--releases", type=int, default=20)
    parser.add_argument("--parts", type=int, default=10, help="of a release (default 10)")
    parser.add_argument("--size", type=int, metavar="N", help="load N entries through removal.uploads, and ask")
    options = parser.parse_args()
    with database():
        result = at_size(options) if options.size else compare(options)
    print(json.dumps({**result, "machine": machine(), "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
