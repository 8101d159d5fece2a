"""A partner that hangs on every call, beside healthy ones: do theirs still leave at once?

``python -m tests.bench.hanging --json [--healthy N] [--backlog N] [--requests N] [--told one|all] [--no-more]``

A worker as in the demo (two processes, a durable PostgreSQL, the broker of BROKER_URL or the embedded one) sends to
healthy partners at a fast sink, and to one whose server accepts, reads, and never answers. Opt-outs are recorded at a
steady pace, each about content of one healthy partner (in turn) or of all of them; measured is, by the database's
clock, the time from a request's ``recorded_at`` to the start of the first attempt at each healthy partner.

alone_p95_ms           before the hanging partner is owed anything
beside_p95_ms          while it is owed its backlog, and each new opt-out too (without --no-more): more hints for it
beside_vs_alone        the second over the first; below 2
hanging_attempts       calls that it got meanwhile
hanging_most_at_once   most of them under way at once
hanging_longest_s      how long one of them took at most: a deadline, here 5 s instead of 15
hanging_unsent         messages that were claimed beside them and given back without a call

For a p95 that means something: at least 300 samples, and phases that last longer than two deadlines.
"""

import argparse
import json
import os
import random
import signal
import socketserver
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from removal.config.children import ending_with_parent
from removal.demo.processes import Processes
from tests.bench.delivery import fetch, make_audience, open_up, pause, plan_everything, record, settle
from tests.bench.measure import database, database_url, delete_queue, machine, require_durable, scheme
from tests.bench.sink import sink

DEADLINE_SECONDS = 5
LEASE_SECONDS = 20  # as many deadlines as in production
WARM_UP = 60  # opt-outs that are not counted
PATIENCE_SECONDS = 60

# The first attempt at each healthy partner's message that tells of an opt-out of this phase.
FIRST_ATTEMPTS = """
select coalesce(array_agg(extract(epoch from a.started_at - r.recorded_at)::float8 * 1000), '{}')
  from removal_removalrequest r
  join removal_notice n on n.request_id = r.id and n.stream_id = any(%s)
  join lateral (
      select min(t.started_at) started_at
        from removal_delivery d join removal_attempt t on t.delivery_id = d.id
       where d.stream_id = n.stream_id and d.epoch = n.epoch and d.state <> 'split'
         and n.sequence between d.first_sequence and d.last_sequence) a on a.started_at is not null
 where r.source = %s
"""
ATTEMPTS = """
select coalesce(json_agg(json_build_array(extract(epoch from a.started_at), extract(epoch from a.finished_at),
                                          a.outcome, a.reason) order by a.started_at), '[]')
  from removal_delivery d join removal_attempt a on a.delivery_id = d.id
 where d.stream_id = %s and a.started_at <= %s
"""
# Its stream, with the notices that no message of it has brought.
OWED = """
select s.head - coalesce((select sum(last_sequence - first_sequence + 1) from removal_delivery d
                           where d.stream_id = s.partner_id and d.state = 'delivered'), 0)::int, s.probe_at is not null
  from removal_stream s where s.partner_id = %s
"""


class Silence(socketserver.BaseRequestHandler):
    """Reads until the caller goes away."""

    def handle(self) -> None:
        while self.request.recv(65536):
            pass


class HangingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def hang() -> None:
    with HangingServer(("127.0.0.1", 0), Silence) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
        server.serve_forever()


@contextmanager
def hanging_server() -> Iterator[str]:
    """Run a server that never answers in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "tests.bench.hanging", "--hang"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=ending_with_parent(signal.SIGTERM)
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class OptOuts:
    """Records opt-outs that each healthy partner, or all of them, must be told of."""

    def __init__(self, options: argparse.Namespace, *, url: str) -> None:
        from tests.factories import disclose, make_partner, make_release

        self.told_each = options.healthy if options.told == "all" else 1
        partners = [make_partner(f"healthy-{n}", url=url).partner for n in range(options.healthy)]
        self.partner_ids = [partner.pk for partner in partners]
        sizes = {"warm-up": WARM_UP, "alone": options.requests, "beside": options.requests}
        subjects = [f"{phase}:{n}" for phase, size in sizes.items() for n in range(size)]
        holders = [partners] if options.told == "all" else [[partner] for partner in partners]
        for place, held_by in enumerate(holders):
            contents = {subject: ["post:1"] for subject in subjects[place :: len(holders)]}
            release = make_release(f"healthy-{place}", contents=contents)
            for partner in held_by:
                disclose(release, partner)

    def turn(self, phase: str, *, requests: int, seconds: float, processes: Processes) -> list[float]:
        """Record opt-outs, spread over so many seconds; returns the milliseconds to each first attempt."""
        from django.utils import timezone

        from removal import intake

        chance = random.Random(1)
        next_at = time.monotonic()
        for n in range(requests):
            # Never in step with anything that looks at intervals.
            next_at += chance.uniform(0.5, 1.5) * seconds / requests
            time.sleep(max(next_at - time.monotonic(), 0))
            wish = intake.Wish(idempotency_key=str(n), kind="opt_out", subject=f"{phase}:{n}")
            intake.record_request(source=phase, actor="bench", wish=wish, now=timezone.now())
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            (taken,) = fetch(FIRST_ATTEMPTS, self.partner_ids, phase)
            if len(taken) == requests * self.told_each:
                break
            processes.check()
            if time.monotonic() > end:
                raise SystemExit(f"{phase}: {len(taken)} of {requests * self.told_each} were sent")
            time.sleep(0.2)
        print(f"{phase}: {figures('', taken)}, {len(taken)} samples", file=sys.stderr)
        return list(taken)


def figures(phase: str, milliseconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    named = {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98], "max_ms": max(milliseconds)}
    return {f"{phase}{name}": round(value, 1) for name, value in named.items()}


def calls_of(partner_id: int, *, until: datetime) -> dict[str, Any]:
    """Say what the hanging partner got, up to a moment; waits until what was under way then is over."""
    end = time.monotonic() + LEASE_SECONDS + DEADLINE_SECONDS
    while True:
        (attempts,) = fetch(ATTEMPTS, partner_id, until)
        if all(finished is not None for _, finished, _, _ in attempts):
            break
        if time.monotonic() > end:
            raise SystemExit("an attempt at the hanging partner never ended")
        time.sleep(0.2)
    calls = [(started, finished) for started, finished, outcome, _ in attempts if outcome != "unsent"]
    moments = sorted([(at, 1) for at, _ in calls] + [(at, -1) for _, at in calls])
    under_way = most = 0
    for _, change in moments:
        under_way += change
        most = max(most, under_way)
    if not calls or any(
        reason.partition(":")[0] != "timeout" for _, _, outcome, reason in attempts if outcome != "unsent"
    ):
        raise SystemExit("the hanging partner was to be called, and each call to time out")
    return {
        "hanging_attempts": len(calls),
        "hanging_most_at_once": most,
        "hanging_longest_s": round(max(finished - started for started, finished in calls), 2),
        "hanging_unsent": len(attempts) - len(calls),
    }


def bench(options: argparse.Namespace, *, fast: str, hanging: str, processes: Processes) -> dict[str, Any]:
    from partners.models import Partner
    from removal import hints
    from tests.factories import disclose, make_release

    opt_outs = OptOuts(options, url=fast)
    plan_everything()
    processes.start_worker(concurrency=2)
    # Each worker process connects, and imports what it needs.
    opt_outs.turn("warm-up", requests=WARM_UP, seconds=5, processes=processes)
    settle()
    alone = opt_outs.turn("alone", requests=options.requests, seconds=options.seconds, processes=processes)

    owed = make_audience(
        "hanging", url=hanging, partners=1, subjects=options.backlog, items=1,
        max_notices=options.max_notices, window=options.window,
    )  # fmt: skip
    [partner_id] = owed.partner_ids
    pause(owed)
    if not options.no_more:
        contents = {f"beside:{n}": ["post:1"] for n in range(options.requests)}
        disclose(make_release("beside", contents=contents), Partner.objects.get(pk=partner_id))
    record(owed, requests_each=options.backlog)
    plan_everything()
    settle()
    open_up(owed)
    hints.hint_stream(partner_id=partner_id)
    beside = opt_outs.turn("beside", requests=options.requests, seconds=options.seconds, processes=processes)
    (ended_at,) = fetch("select clock_timestamp()")
    pause(owed)
    still_owed, is_open = fetch(OWED, partner_id)
    expected = options.backlog + (0 if options.no_more else options.requests)
    if still_owed != expected:
        raise SystemExit(f"the hanging partner is owed {still_owed} notices, not {expected}")
    alone_figures, beside_figures = figures("alone_", alone), figures("beside_", beside)
    return {
        "ratios": {"beside_vs_alone": round(beside_figures["beside_p95_ms"] / alone_figures["alone_p95_ms"], 2)},
        **alone_figures,
        **beside_figures,
        "samples": len(beside),
        **calls_of(partner_id, until=ended_at),
        "hanging_owed": still_owed,
        "hanging_breaker_opened": is_open,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--healthy", type=int, default=20, help="partners (default 20)")
    parser.add_argument("--backlog", type=int, default=5000, help="notices owed to the hanging one (default 5,000)")
    parser.add_argument("--requests", type=int, help="of a phase (default 320; 30 if each is told to all)")
    parser.add_argument("--told", choices=("one", "all"), default="one", help="each to one healthy partner, or to all")
    parser.add_argument("--seconds", type=float, default=27, help="of a phase (default 27)")
    parser.add_argument("--max-notices", type=int, default=100, help="in a message to the hanging one (default 100)")
    parser.add_argument("--window", type=int, default=4, help="of the hanging one (default 4)")
    parser.add_argument("--no-more", action="store_true", help="nothing new for the hanging one beside its backlog")
    parser.add_argument("--hang", action="store_true", help="only be the server that never answers")
    options = parser.parse_args()
    options.requests = options.requests or (30 if options.told == "all" else 320)
    return options


def main() -> None:
    options = parse_options()
    if options.hang:
        hang()
        return
    queue = f"removal-bench-{os.getpid()}"
    os.environ |= {
        "BROKER_QUEUE": queue,
        "PARTNER_ALLOW_HTTP": "1",
        "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "DELIVERY_DEADLINE_SECONDS": str(DEADLINE_SECONDS),
        "DELIVERY_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    with database(), sink() as fast, hanging_server() as hanging:
        from django.conf import settings

        server = require_durable()
        environment = {"DATABASE_URL": database_url()}
        try:
            with Processes(logs=Path(os.environ["REMOVAL_VAR"]) / "log", environment=environment) as processes:
                result = bench(options, fast=fast, hanging=hanging, processes=processes)
        finally:
            delete_queue(settings.BROKER_URL, queue)
        result["broker"] = scheme(settings.BROKER_URL)
    print(json.dumps({**result, "machine": {**machine(), "database": server}, "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
