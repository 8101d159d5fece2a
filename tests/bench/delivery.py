"""Delivery: from planned notices, or committed requests, to recorded results.

``python -m tests.bench.delivery --json [--singles N] [--batched N] [--window N] … [--long]``

In one run, to one sink, from the same notices, on a durable PostgreSQL:

raw              one process, one thread: ``Session.post`` as it comes, of the very bodies that ``single`` sent, all
                 signed before the clock starts
baseline         one Celery task for each notice, ``requests.post``, ``Model.save()`` (tests/bench/baseline.py), with
                 the same bodies and two worker processes
single           ours with two worker processes, one notice a message, from planned notices
batch_planned    ours with two worker processes, 100 notices a message, from planned notices
batch_committed  the same from committed requests: with planning
slow_*           baseline and single with a partner that takes 50 ms for each answer

The queues are filled beforehand, and workers are up: ours run from the moment that the partners are opened and hinted
at, to the last recorded result; the baseline from its first recorded result to its last. Each figure is the median of
interleaved rounds, in notices a second, and each ratio is one of two such figures:

single_vs_raw           single / raw: what a durable queue costs, or rather does not
single_vs_baseline      single / baseline
batch_vs_raw_planned    batch_planned / raw
batch_vs_raw_committed  batch_committed / raw
slow50_vs_baseline      slow_single / slow_baseline

``sink_ceiling_per_second`` is what the sink can answer at least, beside the messages a second that it was sent.
``--long`` adds
rss_growth              peak memory of a process that drains 4 N messages over that of one that drains N
claim_p99_ms_10m        ``claim`` with ten million notices in the streams, half of them sent and half waiting
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import requests

from removal.demo.processes import Processes
from tests.bench.measure import (
    broker_that_answers,
    database,
    database_url,
    delete_queue,
    machine,
    peak_rss_bytes,
    require_durable,
    scheme,
)
from tests.bench.sink import measure_ceiling, posts_at, sink

BLOCK = 1000  # requests recorded in one transaction
PATIENCE_SECONDS = 120  # for one row
SLOW_MS = 50
# Tried in turn without a BROKER_URL. Without any it is the embedded one, a folder of files, which the baseline suffers
# from: it has a message for each notice.
BROKERS = ("amqp://guest:guest@127.0.0.1:5672//", "redis://127.0.0.1:6379/9")
WARM_UP = 20  # opt-outs
CLAIMS = 1000
DEEP_PARTNERS = 20


@dataclass
class Audience:
    """Partners that all hold one release, and who of its subjects has not opted out yet."""

    name: str
    partner_ids: list[int]
    secret: str  # the first partner's
    next_subject: int = 0


@dataclass(frozen=True)
class Sent:
    """What a run of ours came to."""

    notices: int
    messages: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.notices / self.seconds


def make_audience(name: str, *, url: str, partners: int, subjects: int, items: int, **limits: int) -> Audience:
    from tests.factories import disclose, make_partner, make_release

    limits.setdefault("rate_per_second", 10_000)  # never what limits here
    made = [make_partner(f"{name}-{n}", url=url, **limits) for n in range(partners)]
    release = make_release(
        f"release-{name}",
        contents={f"{name}:{n}": [f"post:{n * items + i}" for i in range(items)] for n in range(subjects)},
    )
    for partner in made:
        disclose(release, partner.partner)
    return Audience(name, [partner.partner.pk for partner in made], made[0].secret)


def record(audience: Audience, *, requests_each: int) -> None:
    """Have so many subjects opt out, each in a request of its own."""
    from django.utils import timezone

    from removal import intake

    first, last = audience.next_subject, audience.next_subject + requests_each
    audience.next_subject = last
    for start in range(first, last, BLOCK):
        wishes = [
            intake.Wish(idempotency_key=f"{audience.name}:{n}", kind="opt_out", subject=f"{audience.name}:{n}")
            for n in range(start, min(start + BLOCK, last))
        ]
        intake.record_requests(source="bench", actor="bench", wishes=wishes, now=timezone.now())


def pause(audience: Audience) -> None:
    from partners.models import Partner

    Partner.objects.filter(id__in=audience.partner_ids).update(state=Partner.State.PAUSED)


def fetch(statement: str, *parameters: Any) -> Any:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()


def plan_everything() -> None:
    """Plan until nothing is left; a worker may be at it too."""
    from removal import planning

    while not fetch(NOTHING_TO_PLAN)[0]:
        planning.plan(budget=timedelta(minutes=1))


def settle() -> None:
    """Let the workers finish with hints of the preparation, and refresh what the database knows of its tables.

    An installation that runs for longer has autovacuum for that.
    """
    fetch_nothing("analyze")
    time.sleep(0.5)


def fetch_nothing(statement: str, *parameters: Any) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


NOTHING_TO_PLAN = """
select not exists (select from removal_removalrequest
                    where round is null and repeats_id is null and withdrawn_at is null)
"""
# Asked in this order, so that the look at the messages, which costs most, is not taken before all is packed.
EVERYTHING_PACKED = """
select not exists (select from removal_stream where partner_id = any(%s) and packed_through < head)
"""
EVERYTHING_SENT = """
select not exists (select from removal_delivery where stream_id = any(%s) and state in ('waiting', 'sending'))
"""
SENT = """
select coalesce(sum(d.last_sequence - d.first_sequence + 1), 0)::int, count(*), max(a.finished_at)
  from removal_delivery d join removal_attempt a on a.delivery_id = d.id
 where d.stream_id = any(%s) and d.created_at >= %s and d.state = 'delivered' and a.outcome = 'delivered'
"""


def send_planned(audience: Audience, *, requests_each: int, processes: Processes) -> Sent:
    """Fill the streams, then open them to the workers; timed from there to the last recorded result."""
    from removal import hints

    pause(audience)
    record(audience, requests_each=requests_each)
    plan_everything()
    settle()
    (started_at,) = fetch("select clock_timestamp()")
    open_up(audience)
    for partner_id in audience.partner_ids:
        hints.hint_stream(partner_id=partner_id)
    return wait_until_sent(audience, started_at, requests_each=requests_each, processes=processes)


def send_committed(audience: Audience, *, requests_each: int, processes: Processes) -> Sent:
    """Commit the requests while no planner may run; timed from when it may to the last recorded result."""
    from removal import hints
    from removal.planning import LOCK

    fetch("select pg_advisory_lock(%s)", LOCK)
    record(audience, requests_each=requests_each)
    settle()
    (started_at,) = fetch("select clock_timestamp()")
    fetch("select pg_advisory_unlock(%s)", LOCK)
    hints.hint_planner()
    return wait_until_sent(audience, started_at, requests_each=requests_each, processes=processes)


def open_up(audience: Audience) -> None:
    from partners.models import Partner

    Partner.objects.filter(id__in=audience.partner_ids).update(state=Partner.State.LIVE)


def wait_until_sent(audience: Audience, started_at: datetime, *, requests_each: int, processes: Processes) -> Sent:
    expected = requests_each * len(audience.partner_ids)
    end = time.monotonic() + PATIENCE_SECONDS
    while not (
        fetch(NOTHING_TO_PLAN)[0]
        and fetch(EVERYTHING_PACKED, audience.partner_ids)[0]
        and fetch(EVERYTHING_SENT, audience.partner_ids)[0]
    ):
        processes.check()
        if time.monotonic() > end:
            raise SystemExit(f"{audience.name} was not sent within {PATIENCE_SECONDS} s")
        time.sleep(0.25)  # each look costs what is measured; when it ended is in the rows
    notices, messages, finished_at = fetch(SENT, audience.partner_ids, started_at)
    if notices != expected:
        raise SystemExit(f"{audience.name}: {notices} notices were delivered at the first try, not {expected}")
    return Sent(notices, messages, (finished_at - started_at).total_seconds())


def bodies_of(audience: Audience, *, newest: int) -> list[tuple[str, bytes]]:
    """The last messages that were sent to an audience: their ids and bytes."""
    from removal.models import DeliveryBody

    rows = (
        DeliveryBody.objects.filter(delivery__stream_id__in=audience.partner_ids)
        .select_related("delivery")
        .order_by("-delivery_id")[:newest]
    )
    return [(row.delivery.webhook_id, bytes(row.body)) for row in rows]


def post_raw(messages: Sequence[tuple[str, bytes]], *, url: str, partner_id: int) -> float:
    """Post messages one after the other, and return how many a second."""
    from django.utils import timezone

    from partners import signing
    from partners.keys import signer_for

    keys = signer_for(partner_id=partner_id, now=timezone.now()).keys
    signed = []
    for message_id, body in messages:
        headers = signing.headers(message_id=message_id, timestamp=int(time.time()), body=body, keys=keys)
        signed.append((body, {"Content-Type": "application/json", **headers}))
    session = requests.Session()
    started = time.perf_counter()
    for body, headers in signed:
        session.post(url, data=body, headers=headers).raise_for_status()
    took = time.perf_counter() - started
    session.close()
    return len(signed) / took


def run_baseline(
    messages: Sequence[tuple[str, bytes]], *, name: str, url: str, secret: str, processes: Processes
) -> float:
    """Send messages as the textbook does, and return how many a second from the first recorded to the last."""
    from tests.bench import baseline

    # The same bytes go out in every round; a row of its own each time.
    baseline.enqueue([(f"{name}-{message_id}", body) for message_id, body in messages], url=url, secret=secret)
    fetch_nothing("analyze")
    processes.start(
        "baseline", "-m", "celery", "--app", "tests.bench.baseline", "worker", "--concurrency", "2",
        "--without-gossip", "--without-mingle", "--hostname", f"baseline-{os.getpid()}@%h",
    )  # fmt: skip
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        processes.check()
        count, first, last = fetch(
            "select count(*), min(delivered_at), max(delivered_at) from baseline_delivery"
            " where webhook_id like %s and state = 'delivered'",
            f"{name}-%",
        )
        if count == len(messages):
            break
        if time.monotonic() > end:
            raise SystemExit(f"the baseline recorded {count} of {len(messages)} within {PATIENCE_SECONDS} s")
        time.sleep(0.2)
    processes.kill("baseline")  # it has nothing left to do
    return float((count - 1) / (last - first).total_seconds())


def bench(options: argparse.Namespace, *, fast: str, slow: str, processes: Processes) -> dict[str, Any]:
    from tests.bench import baseline

    baseline.create_table()
    rounds, partners = options.rounds, options.partners
    single = make_audience(
        "single", url=fast, partners=partners, subjects=WARM_UP + rounds * options.singles, items=options.items,
        max_notices=1, window=options.window,
    )  # fmt: skip
    batch = make_audience(
        "batch", url=fast, partners=partners, subjects=WARM_UP + 2 * rounds * options.batched, items=options.items,
        max_notices=100, window=options.batch_window,
    )  # fmt: skip
    slow_single = make_audience(
        "slow", url=slow, partners=1, subjects=WARM_UP + rounds * options.slow, items=options.items,
        max_notices=1, window=options.window,
    )  # fmt: skip
    plan_everything()
    processes.start_worker(concurrency=2)
    # A first, small turn: each worker process connects, and imports what it needs.
    for audience in (single, batch, slow_single):
        send_planned(audience, requests_each=WARM_UP, processes=processes)

    figures: dict[str, list[float]] = {}
    messages_per_second: list[float] = []
    body_bytes = 0
    for number in range(rounds):

        def note(name: str, per_second: float, number: int = number) -> None:
            figures.setdefault(name, []).append(per_second)
            print(f"round {number + 1} {name}: {per_second:.0f}/s", file=sys.stderr)

        before = posts_at(fast)
        sent = send_planned(single, requests_each=options.singles, processes=processes)
        if posts_at(fast) - before != sent.messages:
            raise SystemExit(f"the sink got {posts_at(fast) - before} messages, not {sent.messages}")
        note("single", sent.per_second)
        messages_per_second.append(sent.messages / sent.seconds)
        bodies = bodies_of(single, newest=max(options.raw, options.baseline))
        body_bytes = round(statistics.mean(len(body) for _, body in bodies))

        note("raw", post_raw(bodies[: options.raw], url=fast, partner_id=single.partner_ids[0]))
        note("baseline", run_baseline(
            bodies[: options.baseline], name=f"fast-{number}", url=fast, secret=single.secret, processes=processes,
        ))  # fmt: skip
        for name, send in (("batch_planned", send_planned), ("batch_committed", send_committed)):
            sent = send(batch, requests_each=options.batched, processes=processes)
            note(name, sent.per_second)
            messages_per_second.append(sent.messages / sent.seconds)
        note("slow_single", send_planned(slow_single, requests_each=options.slow, processes=processes).per_second)
        note("slow_baseline", run_baseline(
            bodies[: options.slow_baseline], name=f"slow-{number}", url=slow, secret=single.secret,
            processes=processes,
        ))  # fmt: skip
        figures.setdefault("sink_ceiling", []).append(measure_ceiling(fast, body_bytes=body_bytes, seconds=1))

    median = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "ratios": {
            "single_vs_raw": round(median["single"] / median["raw"], 2),
            "single_vs_baseline": round(median["single"] / median["baseline"], 2),
            "batch_vs_raw_planned": round(median["batch_planned"] / median["raw"], 1),
            "batch_vs_raw_committed": round(median["batch_committed"] / median["raw"], 1),
            "slow50_vs_baseline": round(median["slow_single"] / median["slow_baseline"], 2),
        },
        "per_second": {name: round(value) for name, value in median.items() if name != "sink_ceiling"},
        "sink_ceiling_per_second": round(median["sink_ceiling"]),
        "sink_was_sent_per_second": round(max(messages_per_second)),
        "rounds": {name: [round(value) for value in values] for name, values in figures.items()},
        "body_bytes": body_bytes,
    }


def measure_claims(notices: int, items: int) -> float:
    """Claim with so many notices in the streams, half of them sent; returns the 99th percentile in milliseconds."""
    from removal import delivery

    deep = make_audience(
        "deep", url="http://127.0.0.1:9/", partners=DEEP_PARTNERS, subjects=notices // DEEP_PARTNERS, items=items
    )
    pause(deep)
    record(deep, requests_each=notices // DEEP_PARTNERS)
    plan_everything()
    fetch_nothing(SEND_HALF, deep.partner_ids)
    fetch_nothing("vacuum analyze")
    open_up(deep)
    took = []
    for n in range(min(CLAIMS, notices // 1000)):  # a claim takes up to 400 of those that wait
        partner_id = deep.partner_ids[n % DEEP_PARTNERS]
        started = time.perf_counter()
        claims = delivery.claim(partner_id=partner_id).claims
        took.append((time.perf_counter() - started) * 1000)
        if not claims:
            raise SystemExit(f"partner {partner_id} was due nothing")
        fetch_nothing(END_SENDING, partner_id)
    return round(statistics.quantiles(took, n=100)[98], 2)


# Messages of one notice each, since they make the most rows.
SEND_HALF = """
with half as (
    update removal_stream set packed_through = head / 2 where partner_id = any(%s)
    returning partner_id, packed_through),
sent as (
    insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts,
                                  created_at, due_at, delivered_at, delivered_by, suspect, body_digest)
    select gen_random_uuid(), h.partner_id, 1, n, n, 'delivered', 1, 1, now(), now(), now(), 'response', false, ''
      from half h cross join lateral generate_series(1, h.packed_through) n
    returning id)
insert into removal_attempt (delivery_id, number, url, key_ids, started_at, finished_at, outcome, status, reason,
                             response_excerpt, late_outcome)
select id, 1, '', '{}', now(), now(), 'delivered', 200, '', '', '' from sent
"""
END_SENDING = """
update removal_delivery set state = 'delivered', lease_until = null, delivered_at = clock_timestamp(),
                            delivered_by = 'response'
 where stream_id = %s and state = 'sending'
"""


def grow(messages: int, *, url: str, items: int) -> int:
    """Drain so many messages in a process of its own, and return its peak memory in bytes."""
    audience = make_audience(
        f"memory-{messages}", url=url, partners=1, subjects=messages, items=items, max_notices=1, window=16
    )
    record(audience, requests_each=messages)
    plan_everything()
    arguments = [sys.executable, "-m", "tests.bench.delivery", "--drain", str(audience.partner_ids[0])]
    environment = {**os.environ, "DATABASE_URL": database_url()}
    drained = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(drained.stdout)


def drain(partner_id: int) -> int:
    """Send what a partner is due, and return the peak memory of this process in bytes."""
    import django

    django.setup()
    from removal import sending

    while sending.drain(partner_id=partner_id, budget=timedelta(seconds=20)):
        pass
    return peak_rss_bytes()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partners", type=int, default=8, help="that each opt-out is told to (default 8)")
    parser.add_argument("--items", type=int, default=1, help="of a subject (default 1)")
    parser.add_argument("--raw", type=int, default=1500, help="posts of a round")
    parser.add_argument("--baseline", type=int, default=800, help="tasks of a round")
    parser.add_argument("--singles", type=int, default=1500, help="opt-outs of a round, one notice a message")
    parser.add_argument("--batched", type=int, default=10000, help="opt-outs of a round, 100 notices a message")
    parser.add_argument("--slow", type=int, default=400, help="opt-outs of a round that the slow partner is told of")
    parser.add_argument("--slow-baseline", type=int, default=80, help="tasks of a round for the slow partner")
    parser.add_argument("--window", type=int, default=100, help="of a partner that is told one notice a message")
    parser.add_argument("--batch-window", type=int, default=25, help="of a partner that is told 100 (default 25)")
    parser.add_argument("--long", action="store_true", help="measure rss_growth and claim_p99_ms_10m too")
    parser.add_argument("--long-messages", type=int, default=10_000, help="N of rss_growth")
    parser.add_argument("--long-notices", type=int, default=10_000_000, help="of claim_p99_ms_10m")
    parser.add_argument("--drain", type=int, metavar="PARTNER", help="only drain a partner, and print the peak memory")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.drain:
        print(drain(options.drain))
        return
    queue = f"removal-bench-{os.getpid()}"
    broker_url = os.environ.get("BROKER_URL") or broker_that_answers(*BROKERS)
    os.environ |= {
        "BROKER_URL": broker_url,
        "BROKER_QUEUE": queue,
        "BASELINE_QUEUE": f"{queue}-baseline",
        "PARTNER_ALLOW_HTTP": "1",
        "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    with database(), sink() as fast, sink(delay_ms=SLOW_MS) as slow:
        from django.conf import settings

        os.environ["BASELINE_BROKER"] = settings.BROKER_URL
        server = require_durable()
        environment = {"DATABASE_URL": database_url()}
        try:
            with Processes(logs=Path(os.environ["REMOVAL_VAR"]) / "log", environment=environment) as processes:
                result = bench(options, fast=fast, slow=slow, processes=processes)
        finally:
            delete_queue(broker_url, queue)
            delete_queue(broker_url, f"{queue}-baseline")
        if options.long:
            small = options.long_messages
            result["rss_growth"] = round(
                grow(4 * small, url=fast, items=options.items) / grow(small, url=fast, items=options.items), 3
            )
            result["claim_p99_ms_10m"] = measure_claims(options.long_notices, options.items)
        result["broker"] = scheme(settings.BROKER_URL)
    print(json.dumps({**result, "machine": {**machine(), "database": server}, "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
