"""Partners' answers in bulk: what does a line cost, and does memory stay flat?

``python -m tests.bench.acknowledgements --json [--lines N] [--singles N] [--rss-lines N]``

A real web server with one worker process is called over HTTP. Each notice is of a request of its own, so that each
last answer closes one, as it would. In one run:

through  one call that says ``completed`` of all numbers up to N
bulk     one call with N lines of NDJSON, each ``completed`` with its outcomes
again    the same call once more, which changes nothing
single   one call for each line, over one connection

Figures are notices a second. The single calls are made before and after the others, and count together.

through_vs_single  through / single
bulk_vs_single     bulk / single
rss_growth         peak memory of the server's process after one call of 4 N lines over that after one of N, each in a
                   server of its own
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from removal.demo.processes import Processes, free_port
from tests.bench.measure import database, database_url, machine, require_durable

PATIENCE_SECONDS = 1800
NDJSON = "application/x-ndjson"

REQUESTS = """
insert into removal_removalrequest (public_id, kind, reason, usages, received_at, recorded_at, respond_by, source,
    idempotency_key, body_digest, state, outcome, jurisdiction, round, is_matching)
select lpad(upper(to_hex(%(first)s + n)), 26, '0'), 'opt_out', 'user_request', '{all}', now(), now(), now(), 'bench',
       (%(first)s + n)::text, '', 'planned', '', '', 1, false
  from generate_series(1, %(notices)s) n
returning id
"""
NOTICES = f"""
with request as ({REQUESTS})
insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round, respond_by,
    handling)
select %(partner)s, 1, row_number() over (order by id), id, 'opt_out', '{{}}', 2, 1, now() + interval '30 days', 'none'
  from request
"""


class Partner:
    """Holds a key, and is owed notices."""

    made = 0

    def __init__(self, name: str, *, notices: int) -> None:
        from django.db import connection

        from removal.models import Stream
        from tests.factories import make_partner

        new = make_partner(name)
        self.notices = notices
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {new.api_key}"
        with connection.cursor() as cursor:
            cursor.execute(NOTICES, {"partner": new.partner.pk, "notices": notices, "first": Partner.made})
            Partner.made += notices
            Stream.objects.filter(partner=new.partner).update(head=notices, packed_through=notices)
            cursor.execute("vacuum analyze")

    def say(self, url: str, body: Any, *, content_type: str = "application/json", expected: int) -> float:
        """Post an answer; returns the seconds that it took. Raises SystemExit unless it was wholly accepted."""
        started = time.perf_counter()
        answer = self.session.post(
            f"{url}/v1/acknowledgements", body, headers={"Content-Type": content_type}, timeout=PATIENCE_SECONDS
        )
        seconds = time.perf_counter() - started
        if answer.status_code != 200 or answer.json()["accepted"] != expected:
            raise SystemExit(f"{answer.status_code}: {answer.text[:1000]}")
        return seconds

    def say_file(self, url: str, file: Path, *, expected: int) -> float:
        with file.open("rb") as body:
            return self.say(url, body, content_type=NDJSON, expected=expected)


def line(sequence: int) -> str:
    said = {"sequence": sequence, "status": "completed", "completed_at": "2026-11-25T09:00:00Z"}
    return json.dumps({**said, "outcomes": {"removed": 1, "not_found": 1}})


def write_lines(file: Path, *, lines: int) -> Path:
    with file.open("w") as out:
        out.writelines(f"{line(n)}\n" for n in range(1, lines + 1))
    return file


@contextmanager
def server(logs: Path) -> Iterator[tuple[str, int]]:
    """Run the web server; yields its URL and the process that answers."""
    port = free_port()
    with Processes(logs=logs, environment={"DATABASE_URL": database_url()}) as processes:
        processes.start_web(port=port)
        pid = processes.running["web"].pid
        yield f"http://127.0.0.1:{port}", int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def peak_bytes(pid: int) -> int:
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("VmHWM:"):
            return int(row.split()[1]) * 1024
    raise SystemExit("this system does not tell how much memory a process has used")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    single = Partner("single", notices=2 * options.singles)
    through = Partner("through", notices=options.lines)
    bulk = Partner("bulk", notices=options.lines)
    file = write_lines(folder / "lines", lines=options.lines)
    seconds: dict[str, float] = {"single": 0.0}

    def say_singly(url: str, numbers: range) -> None:
        seconds["single"] += sum(single.say(url, line(n), expected=1) for n in numbers)

    with server(folder) as (url, _):
        single.say(url, json.dumps({"through": 2 * options.singles, "status": "received"}), expected=single.notices)
        say_singly(url, range(1, options.singles + 1))
        seconds["bulk"] = bulk.say_file(url, file, expected=options.lines)
        seconds["again"] = bulk.say_file(url, file, expected=0)
        all_of_them = json.dumps({"through": options.lines, "status": "completed"})
        seconds["through"] = through.say(url, all_of_them, expected=options.lines)
        say_singly(url, range(options.singles + 1, 2 * options.singles + 1))
    print(f"seconds: {seconds}", file=sys.stderr)
    counts = {"single": single.notices, "bulk": options.lines, "again": options.lines, "through": options.lines}
    return {name: round(count / seconds[name], 1) for name, count in counts.items()}


def measure_memory(options: argparse.Namespace, folder: Path) -> dict[int, int]:
    """Peak memory in bytes of a server that takes so many lines in one call."""
    peaks = {}
    for lines in (options.rss_lines, 4 * options.rss_lines):
        partner = Partner(f"memory-{lines}", notices=lines)
        file = write_lines(folder / f"lines-{lines}", lines=lines)
        with server(folder) as (url, pid):
            partner.say_file(url, file, expected=lines)
            peaks[lines] = peak_bytes(pid)
        print(f"{lines} lines: {peaks[lines] >> 20} MiB", file=sys.stderr)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the large calls (default 1,000,000)")
    parser.add_argument("--singles", type=int, default=500, help="calls of one line, twice (default 500)")
    parser.add_argument("--rss-lines", type=int, default=40_000, help="N for rss_growth (default 40,000)")
    options = parser.parse_args()
    os.environ["ALLOWED_HOSTS"] = "127.0.0.1"
    with database(), TemporaryDirectory(prefix="removal-bench-") as folder:
        database_server = require_durable()
        per_second = measure(options, Path(folder))
        peaks = measure_memory(options, Path(folder))
    small, large = peaks.values()
    result = {
        "ratios": {
            "through_vs_single": round(per_second["through"] / per_second["single"], 1),
            "bulk_vs_single": round(per_second["bulk"] / per_second["single"], 1),
        },
        "rss_growth": round(large / small, 3),
        "notices_per_second": per_second,
        "peak_rss_mib": {str(lines): peak >> 20 for lines, peak in peaks.items()},
        "machine": {**machine(), "database": database_server},
        "options": vars(options),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
