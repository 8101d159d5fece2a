"""Latency: from an opt-out's commit to the first byte at the partner, on an idle installation of real processes.

``python -m tests.bench.latency --json [--requests N] [--silent-broker [--posts N]]``

Web and worker run as in the demo, on a durable PostgreSQL and the broker of BROKER_URL (the embedded one without it).
Opt-outs are sent to ``POST /v1/requests`` one after the other, with random pauses, and each is waited for.

p50_ms, p99_ms         from the request's ``recorded_at``, which the database writes just before its commit, to the
                       first byte of its message at the partner. Database and partner share this machine's clock.
from_answer_*_ms       the same from the API's answer
broker                 the kind of broker

With ``--silent-broker`` two web servers on one database are asked in turn, without pauses and without workers: one with
its broker up, one with a broker that accepts connections and never says anything.

silent_broker_vs_up    p99 of the POST with the silent broker over p99 with the other, the median of interleaved rounds
silent_answers         how often each status was answered there: 201 alone, if a broker cannot fail a request
"""

import argparse
import json
import os
import queue
import random
import selectors
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from removal.demo.processes import Processes, free_port
from tests.bench.measure import database, database_url, delete_queue, machine, require_durable, scheme
from tests.bench.sink import Sink

WARM_UP = 10  # requests that are not counted
PATIENCE_SECONDS = 30  # for one message
ROUNDS = 3


class Platform:
    """Who asks the API, on a kept-alive connection."""

    def __init__(self, *, port: int, api_key: str, name: str) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/requests"
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {api_key}"
        self.name = name
        self.asked = 0

    def opt_out(self, subject: str) -> requests.Response:
        self.asked += 1
        return self.session.post(
            self.url,
            json={"kind": "opt_out", "subject": subject},
            headers={"Idempotency-Key": f"{self.name}-{self.asked}"},
            timeout=30,
        )


def percentiles(milliseconds: list[float], *, prefix: str = "") -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {f"{prefix}p50_ms": round(cuts[49], 1), f"{prefix}p99_ms": round(cuts[98], 1)}


def measure_latency(processes: Processes, options: argparse.Namespace, *, api_key: str, port: int) -> dict[str, float]:
    from removal.models import RemovalRequest
    from tests.factories import disclose, make_partner, make_release

    arrivals: queue.Queue[tuple[float, bytes]] = queue.Queue()
    partner = Sink(arrived=lambda at, body: arrivals.put((at, body)))
    threading.Thread(target=partner.serve, daemon=True).start()
    subjects = [f"site:{n}" for n in range(WARM_UP + options.requests)]
    release = make_release("latency", contents={subject: ["post:1", "post:2"] for subject in subjects})
    disclose(release, make_partner("latency", url=partner.url).partner)
    processes.start_worker()
    platform = Platform(port=port, api_key=api_key, name="latency")

    since_commit, since_answer = [], []
    chance = random.Random(1)
    for subject in subjects:
        # Never in step with anything that looks at intervals.
        time.sleep(chance.uniform(0.05, 0.25))
        answer = platform.opt_out(subject)
        answered_at = time.time()
        if answer.status_code != 201:
            raise SystemExit(f"{answer.status_code}: {answer.text}")
        try:
            arrived_at, body = arrivals.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            processes.check()
            raise SystemExit(f"{subject} was not told within {PATIENCE_SECONDS} s") from None
        if [notice["subject"] for notice in json.loads(body)["data"]["notices"]] != [subject]:
            raise SystemExit(f"{subject} was expected, and another message came")
        recorded_at = RemovalRequest.objects.get(public_id=answer.json()["id"]).recorded_at
        since_commit.append((arrived_at - recorded_at.timestamp()) * 1000)
        since_answer.append((arrived_at - answered_at) * 1000)
    return percentiles(since_commit[WARM_UP:]) | percentiles(since_answer[WARM_UP:], prefix="from_answer_")


@contextmanager
def silent_broker() -> Iterator[int]:
    """Run a server that accepts every connection, reads, and never says anything; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    poll = selectors.DefaultSelector()
    poll.register(listener, selectors.EVENT_READ)

    def serve() -> None:
        while True:
            for key, _ in poll.select():
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    poll.register(sock, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and not _read(key.fileobj):
                    poll.unregister(key.fileobj)
                    key.fileobj.close()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def _read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def measure_silence(
    processes: Processes, options: argparse.Namespace, *, api_key: str, port: int, broker_url: str
) -> dict[str, Any]:
    kind = scheme(broker_url) if broker_url.startswith(("amqp", "redis")) else "redis"
    with silent_broker() as silent_port:
        other_port = free_port()
        # Its own name and log; otherwise as start_web does.
        processes.start(
            "web-silent", "-m", "gunicorn", "removal.config.wsgi", "--bind", f"127.0.0.1:{other_port}",
            "--worker-class", "gthread", "--threads", "8", "--no-control-socket",
            environment={"BROKER_URL": f"{kind}://127.0.0.1:{silent_port}/"},
        )  # fmt: skip
        platforms = {
            "up": Platform(port=port, api_key=api_key, name="up"),
            "silent": Platform(port=other_port, api_key=api_key, name="silent"),
        }
        processes.wait_for(lambda: _is_up(other_port), "web-silent")
        took: dict[str, list[list[float]]] = {"up": [], "silent": []}
        statuses: Counter[int] = Counter()
        for _ in range(ROUNDS):
            for name, platform in platforms.items():
                round_took = []
                for n in range(options.posts):
                    started = time.perf_counter()
                    answer = platform.opt_out(f"{name}:{platform.asked}")
                    round_took.append((time.perf_counter() - started) * 1000)
                    if name == "silent":
                        statuses[answer.status_code] += 1
                    elif answer.status_code != 201:
                        raise SystemExit(f"{answer.status_code}: {answer.text} at {n}")
                took[name].append(round_took)
                print(f"{name}: {percentiles(round_took)}", file=sys.stderr)
    p99 = {name: statistics.median(percentiles(one)["p99_ms"] for one in rounds) for name, rounds in took.items()}
    return {
        "silent_broker_vs_up": round(p99["silent"] / p99["up"], 2),
        "silent_answers": {str(status): count for status, count in statuses.items()},
        "post_p99_ms": p99,
        "post_max_ms": {name: round(max(map(max, rounds)), 1) for name, rounds in took.items()},
    }


def _is_up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--requests", type=int, default=200, help="that are timed (default 200)")
    parser.add_argument("--silent-broker", action="store_true", help="compare with a broker that never answers, too")
    parser.add_argument("--posts", type=int, default=1000, help="to each web server in each round (default 1000)")
    options = parser.parse_args()
    port = free_port()
    broker_queue = f"removal-bench-{os.getpid()}"
    os.environ |= {
        "BROKER_QUEUE": broker_queue,
        "PARTNER_ALLOW_HTTP": "1",
        "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    with database():
        from django.conf import settings

        from partners.models import ApiKey

        server = require_durable()
        _, api_key = ApiKey.create(source="bench")
        logs = Path(os.environ["REMOVAL_VAR"]) / "log"
        result: dict[str, Any] = {}
        try:
            with Processes(logs=logs, environment={"DATABASE_URL": database_url()}) as processes:
                processes.start_web(port=port)
                result |= measure_latency(processes, options, api_key=api_key, port=port)
                if options.silent_broker:
                    processes.kill("worker")  # it would take its share of the CPU, now from one and now from the other
                    result |= measure_silence(
                        processes, options, api_key=api_key, port=port, broker_url=settings.BROKER_URL
                    )
        finally:
            delete_queue(settings.BROKER_URL, broker_queue)
        result["broker"] = scheme(settings.BROKER_URL)
    print(json.dumps({**result, "machine": {**machine(), "database": server}, "options": vars(options)}, indent=2))


if __name__ == "__main__":
    main()
