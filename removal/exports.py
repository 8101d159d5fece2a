"""Exports: what was asked and what each partner did about it, a line a notice, for a request, a partner or a period.

Rows come in keyset pages, each a statement of its own: memory stays the same for ten rows and ten million, and no
transaction is open while a slow reader takes them. So a long export is no snapshot: each line says what was true when
it was read. Every export leaves log entries: who, what, and how it ended.
"""

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from django.db import connection
from django.db.models.functions import Now

from removal.intake import UnknownRequest
from removal.models import Export, LogEntry, RemovalRequest
from removal.partnerships import find_partner
from removal.reports import ARRIVED_AT, DELIVERY_OF

PAGE = 2000  # requests or notices in one statement
COUNTED = 1000  # lines that are counted before an export; above that their number is a guess
PIECE = 200  # lines written at once, and read for the first of them: a download begins at once
TELL_EVERY_SECONDS = 1.0  # how far an export has come

# Requests and notices as lines, from a page of (request id, notice id or null, key, key).
LINES = """
with page as materialized (<PAGE>)
select page.one, page.two,
       r.public_id, r.kind, r.reason, r.source, r.jurisdiction, earlier.public_id, t.subjects, t.subject,
       r.received_at, r.respond_by, stands.state, stands.outcome, stands.closed_at, r.withdrawn_at,
       p.slug, n.epoch, n.sequence, n.item_count, n.planned_at, n.respond_by,
       case when n.id is not null then <DELIVERY> end, d.attempts, <ARRIVED>,
       case when n.handling = 'none' and n.sequence <= s.received_through and n.epoch = s.epoch then 'received'
            else n.handling end,
       n.acknowledged_at, n.closed_at, c.reason
  from page
  join removal_removalrequest r on r.id = page.request_id
  join removal_removalrequest stands
    on stands.id = case when r.withdrawn_at is null then coalesce(r.repeats_id, r.id) else r.id end
  left join removal_removalrequest earlier on earlier.id = r.repeats_id
  left join removal_notice n on n.id = page.notice_id
  left join removal_stream s on s.partner_id = n.stream_id
  left join partners_partner p on p.id = n.stream_id
  left join removal_closing c on c.notice_id = n.id
  left join lateral (
      select * from removal_delivery d
       where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence and d.state <> 'split'
       order by d.first_sequence desc limit 1) d on d.last_sequence >= n.sequence
 cross join lateral (
      select r.target_count subjects, case when r.target_count = 1 then (
          select k.key from removal_requesttarget t join removal_subject k on k.id = t.subject_id
           where t.request_id = r.id limit 1) end subject) t
 order by page.one, page.two, page.notice_id
""".replace("<DELIVERY>", DELIVERY_OF).replace("<ARRIVED>", ARRIVED_AT)
PAGE_OF_REQUEST = """
    select r.id request_id, n.id notice_id, 0::bigint one, coalesce(n.id, 0) two
      from removal_removalrequest r
      left join removal_notice n on n.request_id = case when r.withdrawn_at is null then coalesce(r.repeats_id, r.id)
                                                        else r.id end
     where r.id = %(request)s and (0, coalesce(n.id, 0)) > (%(one)s, %(two)s) order by 4 limit %(limit)s"""
PAGE_OF_PARTNER = """
    select n.request_id, n.id notice_id, n.epoch::bigint one, n.sequence two
      from removal_notice n
     where n.stream_id = %(partner)s and (n.epoch, n.sequence) > (%(one)s, %(two)s)
     order by n.epoch, n.sequence limit %(limit)s"""
PAGE_OF_PERIOD = """
    select r.id request_id, n.id notice_id, (extract(epoch from r.received_at) * 1000000)::bigint one, r.id two
      from (select * from removal_removalrequest
             where (received_at, id) > (to_timestamp(%(one)s / 1000000.0), %(two)s)
               and received_at >= %(start)s and received_at < %(end)s
             order by received_at, id limit %(limit)s) r
      left join removal_notice n on n.request_id = case when r.withdrawn_at is null then coalesce(r.repeats_id, r.id)
                                                        else r.id end"""

COLUMNS = (
    "request", "kind", "reason", "source", "jurisdiction", "repeats", "subjects", "subject",
    "received_at", "platform_respond_by", "state", "outcome", "closed_at", "withdrawn_at",
    "partner", "epoch", "sequence", "items", "planned_at", "partner_respond_by",
    "delivery", "attempts", "delivered_at", "handling", "acknowledged_at", "closed_by_hand_at",
    "closed_by_hand_because",
)  # fmt: skip

# Excel reads UTF-8 only with this in front; others are told by the documentation.
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
# How a spreadsheet knows a formula (OWASP, CSV Injection), full-width forms included, and our own mark.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")


@dataclass(frozen=True)
class Scope:
    """What is exported: ``kind`` and ``about`` for the log, ``page`` with ``named`` for the statement."""

    kind: str
    name: str
    about: dict[str, Any]
    page: str
    named: dict[str, Any]


def of_request(*, public_id: str) -> Scope:
    """Mean one request, with each partner's line. Raises UnknownRequest."""
    pk = RemovalRequest.objects.filter(public_id=public_id).values_list("pk", flat=True).first()
    if pk is None:
        raise UnknownRequest(public_id)
    return Scope("request", public_id, {"request": public_id}, PAGE_OF_REQUEST, {"request": pk})


def of_partner(*, slug: str) -> Scope:
    """Mean everything that one partner was told. Raises UnknownPartner."""
    pk = find_partner(slug).pk
    return Scope("partner", slug, {"partner": pk}, PAGE_OF_PARTNER, {"partner": pk})


def of_period(*, start: datetime, end: datetime) -> Scope:
    """Mean the requests received from ``start`` until before ``end``, with their notices, or without if none."""
    about = {"from": start.isoformat(), "until": end.isoformat()}
    name = f"{start:%Y-%m-%d}..{end - timedelta(microseconds=1):%Y-%m-%d}"
    return Scope("period", name, about, PAGE_OF_PERIOD, {"start": start, "end": end})


def lines(scope: Scope) -> Iterator[tuple[Any, ...]]:
    """Read the lines of an export, in the order of ``COLUMNS``, a page at a time."""
    one, two, limit = -1, -1, PIECE
    while True:
        with connection.cursor() as cursor:
            statement = LINES.replace("<PAGE>", scope.page)
            cursor.execute(statement, {**scope.named, "one": one, "two": two, "limit": limit})
            rows = cursor.fetchall()
        if not rows:
            return
        yield from (row[2:] for row in rows)
        one, two = rows[-1][:2]
        limit = PAGE


def estimate(scope: Scope) -> int:
    """Count the lines, up to ``COUNTED``; above that, guess their number as PostgreSQL does: without reading them."""
    with connection.cursor() as cursor:
        all_of_it = {**scope.named, "one": -1, "two": -1}
        cursor.execute(f"select count(*) from ({scope.page}) x", {**all_of_it, "limit": COUNTED + 1})
        (counted,) = cursor.fetchone()
        if counted <= COUNTED:
            return int(counted)
        cursor.execute(f"explain (format json) {scope.page}", {**all_of_it, "limit": 2**62})
        [(plan,)] = cursor.fetchall()
    return max(int(plan[0]["Plan"]["Plan Rows"]), int(counted))


def say_lines(number: int) -> str:
    """Write what ``estimate`` gave: a count, or a guess."""
    return f"{number:,} line{'' if number == 1 else 's'}" if number <= COUNTED else f"about {number:,} lines"


def safe_cell(value: Any) -> str:
    """Write a value so that no spreadsheet takes it for a formula: ``'`` in front of what might be one.

    Of a cell that begins with ``'``, all after it is the value: what began with one has two.
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = str(value)
    # A blank in front is skipped by some.
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) and isinstance(value, str) else text


def as_csv(rows: Iterator[Sequence[Any]], columns: Sequence[str]) -> Iterator[str]:
    """Write rows as CSV (RFC 4180), in pieces of ``PIECE`` lines. Every cell is quoted."""
    yield BOM + _csv([columns])
    while batch := list(islice(rows, PIECE)):
        yield _csv([[safe_cell(value) for value in row] for row in batch])


def _csv(rows: Sequence[Sequence[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    return written.getvalue()


def export(scope: Scope, *, actor: str, progress: Callable[[int], None] = lambda rows: None) -> Iterator[str]:
    """Export as CSV, in pieces, for whoever may; ``progress`` is told the number of lines so far.

    The log says that it began before the first line leaves, and then that it ended or was cut off, after how many.
    Meanwhile its row says how far it has come.
    """
    row = Export.objects.create(kind=scope.kind, name=scope.name, actor=actor, expected=estimate(scope))
    LogEntry.objects.create(actor=actor, action="export_begun", about={"kind": scope.kind, **scope.about})
    count, state = 0, Export.State.CUT_OFF
    told_at = time.monotonic()

    def counted() -> Iterator[tuple[Any, ...]]:
        nonlocal count
        for line in lines(scope):
            count += 1
            yield line

    try:
        for piece in as_csv(counted(), COLUMNS):
            yield piece
            if time.monotonic() - told_at > TELL_EVERY_SECONDS:
                told_at = time.monotonic()
                progress(count)
                _tell(row, lines=count)
        progress(count)
        state = Export.State.FINISHED
    finally:
        about = {"kind": scope.kind, **scope.about, "lines": count}
        LogEntry.objects.create(actor=actor, action=f"export_{state}", about=about)
        _tell(row, lines=count, state=state)


def _tell(row: Export, **now: Any) -> None:
    Export.objects.filter(pk=row.pk).update(seen_at=Now(), **now)


# --- yearly metrics ---

# A repeat was asked and answered like any other, with the outcome of the one it repeats. A request that every partner
# rejected is denied; one that met no disclosure is complied with, since the person is kept out of future releases.
METRICS = """
with
asked as (
    -- what stands for itself, as nearly all does, is not looked for among the others
    select kind, received_at, id stands, state, outcome, closed_at
      from removal_removalrequest
     where received_at >= %(start)s and received_at < %(end)s and (repeats_id is null or withdrawn_at is not null)
    union all
    select r.kind, r.received_at, e.id, e.state, e.outcome, e.closed_at
      from removal_removalrequest r
      join removal_removalrequest e on e.id = r.repeats_id
     where r.received_at >= %(start)s and r.received_at < %(end)s and r.withdrawn_at is null),
judged as materialized (
    select kind, extract(year from received_at at time zone 'UTC')::int as year, state, outcome,
           greatest(closed_at - received_at, interval '0') took,
           outcome = 'partially_fulfilled' and not exists (
               select from removal_notice n
                where n.request_id = stands and n.withdrawn_at is null and n.handling <> 'rejected') denied
      from asked)
select year, kind, count(*),
       count(*) filter (where outcome in ('fulfilled', 'nothing_disclosed')),
       count(*) filter (where outcome = 'partially_fulfilled' and not denied),
       count(*) filter (where denied),
       count(*) filter (where outcome = 'withdrawn'),
       count(*) filter (where state <> 'closed'),
       extract(epoch from percentile_cont(0.5) within group (order by took)
               filter (where state = 'closed' and outcome <> 'withdrawn')) / 86400,
       extract(epoch from avg(took) filter (where state = 'closed' and outcome <> 'withdrawn')) / 86400
  from judged group by 1, 2 order by 1 desc, 2
"""

METRIC_COLUMNS = (
    "year", "kind", "received", "complied_in_whole", "complied_in_part", "denied", "withdrawn", "still_open",
    "median_days", "mean_days",
)  # fmt: skip


@dataclass(frozen=True)
class YearlyMetrics:
    """What 11 CCR §7102 asks for, of one kind of request in one calendar year (UTC), by the day it was received.

    Days are from receipt to closing; None while nothing has closed. Withdrawn requests have none.
    """

    year: int
    kind: str
    received: int
    complied_in_whole: int
    complied_in_part: int
    denied: int
    withdrawn: int
    still_open: int
    median_days: float | None
    mean_days: float | None


def yearly_metrics(*, first_year: int, last_year: int) -> list[YearlyMetrics]:
    """Count requests by year and kind, the newest year first (11 CCR §7102(a)(1))."""
    limits = {"start": datetime(first_year, 1, 1, tzinfo=UTC), "end": datetime(last_year + 1, 1, 1, tzinfo=UTC)}
    with connection.cursor() as cursor:
        cursor.execute(METRICS, limits)
        return [
            YearlyMetrics(*row[:8], *(None if days is None else round(float(days), 2) for days in row[8:]))
            for row in cursor.fetchall()
        ]
