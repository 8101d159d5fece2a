"""The desk at scale: every list, each of its filters' choices, searches, second pages, pages of rows, the start page.

``python -m tests.bench.desk --json [--requests N] [--small N] [--loads N]``

Loads the sample twice, each time into a database of its own: first small, then large with four times as many notices as
requests; then every page is loaded so many times by a superuser. On two cores 5,000,000 requests took six minutes to
load; some 350 pages, 20 times each, took about two minutes for each of the two desks.

pages                 p95 of each page of the large desk, in milliseconds
worst_p95_ms          the slowest of them
worst_ratio_to_small  the largest ratio to the same page of the small desk; pages under ``FLOOR_MS`` count as that long
failed                pages that did not answer 200; there are none
export                one of everything on the large desk, read to its end or up to ``EXPORTED`` lines: how many, how
                      many a second, and the peak memory at the end over that after a quarter of them
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.bench.measure import database, machine, peak_rss_bytes, timed

# Below this, the ratio of two pages is one of noise.
FLOOR_MS = 50.0
# Of a file that is streamed: its heading, and its first lines.
FIRST_CHUNKS = 2
# Lines of one export that is read on.
EXPORTED = 2_000_000


def p95(milliseconds: list[float]) -> float:
    ordered = sorted(milliseconds)
    return ordered[max(-(-len(ordered) * 95 // 100) - 1, 0)]


def open_desk() -> Any:
    """Log a superuser in."""
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.test import Client

    settings.REQUIRE_TOTP, settings.ALLOWED_HOSTS = False, ["testserver"]
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)
    client = Client()
    client.force_login(User.objects.create_superuser("bench"))
    session = client.session
    session["proven_at"] = time.time() + 86_400
    session.save()
    return client


def addresses(client: Any) -> Iterator[tuple[str, str]]:
    """Name every page and its address: lists with their filters' choices, and rows that are there."""
    from django.contrib import admin
    from django.urls import reverse

    from removal.models import Delivery, Notice, RemovalRequest

    yield "start", "/admin/"
    yield "glossary", "/admin/glossary/"
    yield "exports", "/admin/exports/"
    yield "yearly metrics", "/admin/metrics/"
    yield "who holds what", "/admin/removal/disclosure/who-holds/?subject=site:123"
    for model, model_admin in admin.site._registry.items():
        options = model._meta
        if options.app_label not in {"partners", "removal"}:
            continue
        name, url = str(options.model_name), reverse(f"admin:{options.app_label}_{options.model_name}_changelist")
        yield name, url
        response = client.get(url)
        changes = response.context_data["cl"]
        if changes.result_count > changes.list_per_page:
            yield f"{name} p=2", f"{url}?p=2"
            yield f"{name} last page", f"{url}?p={changes.paginator.num_pages}"
        for spec in changes.filter_specs:
            for choice in list(spec.choices(changes))[1:]:
                query = choice["query_string"]
                yield f"{name} {query}", f"{url}{query}"
        for where in ("-pk", "pk"):
            row = model._default_manager.order_by(where).first()
            if row is not None:
                page = reverse(f"admin:{options.app_label}_{options.model_name}_change", args=[row.pk])
                yield f"{name} page {where}", page
        if model_admin.search_fields:
            yield f"{name} search nothing", f"{url}?q=nothing-like-this"
    notice, delivery = Notice.objects.order_by("-pk").first(), Delivery.objects.order_by("-pk").first()
    request = RemovalRequest.objects.order_by("-pk").first()
    assert notice
    assert request
    for model_name, q in (
        ("notice", "atlas 1203"), ("notice", "1203"),
        ("delivery", str(delivery)), ("removalrequest", request.public_id),
        ("removalrequest", "site:123"), ("preference", "site:123"), ("logentry", "request_recorded"),
        ("logentry", "api:sample"), ("alarm", "site:123"), ("disclosure", "shipment-1"),
    ):  # fmt: skip
        yield f"{model_name} search {q}", f"{reverse(f'admin:removal_{model_name}_changelist')}?q={q}"
    for partner_id in range(1, 9):
        for late in ("overdue", "silent", "due_soon", "unsent", "open"):
            query = f"late={late}&stream__partner__id__exact={partner_id}"
            yield f"notice of {partner_id} {late}", f"/admin/removal/notice/?{query}"


def exports() -> Iterator[tuple[str, Any]]:
    """Name each kind of export, with what begins it."""
    from django.utils import timezone

    from removal.exports import export, of_partner, of_period, of_request
    from removal.models import RemovalRequest

    request = RemovalRequest.objects.order_by("-pk").values_list("public_id", flat=True)[0]
    now = timezone.now()
    yield "export a request", lambda: export(of_request(public_id=request), actor="bench")
    yield "export a partner", lambda: export(of_partner(slug="atlas"), actor="bench")
    yield "export a month", lambda: export(of_period(start=now - timedelta(days=30), end=now), actor="bench")


def load_page(client: Any, url: str) -> int:
    response = client.get(url)
    return int(response.status_code)


def begin(make: Any) -> int:
    pieces = make()
    for _ in range(FIRST_CHUNKS):
        next(pieces, None)
    pieces.close()
    return 200


def read_export() -> dict[str, float]:
    """Export everything, up to ``EXPORTED`` lines; gives how many, how many a second, and how peak memory grew."""
    from django.utils import timezone

    from removal.exports import export, of_period

    now = timezone.now()
    pieces: Any = export(of_period(start=now - timedelta(days=3650), end=now), actor="bench")
    lines, at_first, started = 0, 0, time.perf_counter()
    for piece in pieces:
        lines += piece.count("\r\n")
        if lines >= EXPORTED // 4 and not at_first:
            at_first = peak_rss_bytes()
        if lines >= EXPORTED:
            break
    took = time.perf_counter() - started
    pieces.close()
    growth = round(peak_rss_bytes() / at_first, 3) if at_first else 0.0
    return {"lines": lines, "per_second": round(lines / took), "rss_growth": growth}


def measure(
    *, requests: int, loads: int, seconds: dict[str, float]
) -> tuple[dict[str, float], list[str], dict[str, float]]:
    """Fill the database, and load every page so many times; returns p95 by page, pages that failed, and an export."""
    from django.db import connection
    from django.utils import timezone

    from removal import sample

    with timed(seconds, f"load {requests}"):
        sample.make(requests=requests, now=timezone.now())
        with connection.cursor() as cursor:
            cursor.execute("vacuum analyze")  # what autovacuum will have done
            cursor.execute("checkpoint")  # nobody's load, and so the first pages do not wait for its writes
    client = open_desk()
    pages: dict[str, float] = {}
    failed = []
    todo: list[tuple[str, Any]] = [(name, lambda url=url: load_page(client, url)) for name, url in addresses(client)]
    todo += [(name, lambda make=make: begin(make)) for name, make in exports()]
    for name, load in todo:
        if load() != 200:  # and warm: a page that is asked for the first time reads from disk, or compiles its template
            failed.append(name)
        took = []
        for _ in range(loads):
            started = time.perf_counter()
            load()
            took.append((time.perf_counter() - started) * 1000)
        pages[name] = round(p95(took), 1)
        print(f"{requests} requests, {name}: {pages[name]} ms", file=sys.stderr)
    return pages, failed, read_export()


def run(requests: int, loads: int) -> Any:
    """Measure in a process, and with a database, of its own."""
    arguments = [sys.executable, "-m", "tests.bench.desk", "--only", "--requests", str(requests), "--loads", str(loads)]
    return json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object (it is what is printed anyway)")
    parser.add_argument("--requests", type=int, default=5_000_000, help="of the large desk (default 5,000,000)")
    parser.add_argument("--small", type=int, default=5_000, help="of the small desk (default 5,000)")
    parser.add_argument("--loads", type=int, default=20, help="of each page (default 20)")
    parser.add_argument("--only", action="store_true", help="load and measure one desk, of --requests")
    options = parser.parse_args()
    if options.only:
        seconds: dict[str, float] = {}
        with database():
            found = measure(requests=options.requests, loads=options.loads, seconds=seconds)
        print(json.dumps([*found, seconds]))
        return
    small, failed, _, seconds_small = run(options.small, options.loads)
    pages, failed_large, export, seconds = run(options.requests, options.loads)
    ratios = {name: took / max(small[name], FLOOR_MS) for name, took in pages.items() if name in small}
    worst = max(ratios, key=lambda name: ratios[name])
    result = {
        "worst_p95_ms": max(pages.values()),
        "worst_page": max(pages, key=lambda name: pages[name]),
        "worst_ratio_to_small": round(max(ratios[worst], 0), 2),
        "worst_ratio_page": worst,
        "pages": pages,
        "small": small,
        "failed": failed + failed_large,
        "export": export,
        "seconds": {name: round(value, 1) for name, value in (seconds_small | seconds).items()},
        "machine": machine(),
        "options": vars(options),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
