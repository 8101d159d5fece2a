"""What the start page says: who has not been told, who has not answered, what is late. Reads only.

Nothing is counted further than ``COUNTED`` rows, and each question has an index of its own, so that asking costs the
same whatever has ended well. Days are UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.core.cache import cache
from django.db import connection
from django.db.models import QuerySet

# A count that comes here says only that there are more.
COUNTED = 2_001
# A number that has been given so long ago, and that a partner who could be reached was not sent, is a backlog.
BACKLOG_AFTER = timedelta(minutes=15)
WEEK = timedelta(days=7)
DAYS = 30
# More in one day are drawn as so many.
COUNTED_A_DAY = 100_000
# So many in the days before today take long to count: that is done once for a while.
MANY = 10_000
KEPT = timedelta(minutes=10)


def count(rows: QuerySet[Any]) -> int:
    """Count rows, up to ``COUNTED``."""
    return rows.order_by().values("pk")[:COUNTED].count()


def say_count(number: int) -> str:
    """Write a count that ``count`` made: above two thousand it is not known."""
    return f"{COUNTED - 1:,}+" if number >= COUNTED else f"{number:,}"


# --- partners ---

OVERDUE = """
select s.partner_id
  from removal_stream s
 where exists (
       select from removal_notice n
        where n.stream_id = s.partner_id and n.respond_by < %(now)s and n.withdrawn_at is null and n.closed_at is null
          and n.handling not in ('completed', 'partially_completed', 'rejected'))
"""
# What is in no message and was not pulled, or in a message that waits to be tried again.
NOT_TOLD = """
with owed as materialized (
    select s.partner_id, s.epoch, s.packed_through, s.served, s.probe_at is not null is_down, p.state,
           e.state = 'suspended' is_suspended
      from removal_stream s
      join partners_partner p on p.id = s.partner_id
      join partners_endpoint e on e.partner_id = s.partner_id
     where s.head > s.packed_through and not s.served @> int8range(s.packed_through + 1, s.head + 1)
        or exists (select from removal_delivery d
                    where d.stream_id = s.partner_id and d.state = 'waiting' and not d.resent
                      and d.first_sequence is not null)),
named as (
    select o.partner_id,
           case when o.state <> 'live' then 'held' when o.is_suspended then 'suspended'
                when o.is_down then 'unreachable'
                when exists (
                     select from removal_notice n
                      where n.stream_id = o.partner_id and n.epoch = o.epoch and n.sequence = o.packed_through + 1
                        and least(n.planned_at + %(backlog_after)s, n.send_by) < %(now)s and not o.served @> n.sequence)
                then 'backlog' end why
      from owed o)
select partner_id, why from named where why is not null
"""
# What should have been brought to its partner by now: of each stream what is in no message, then what is in one that
# did not arrive. A stream's numbers are given in the order of their dates, as a rule: the first so many tell.
NOT_SENT = """
select n.id
  from (select n.stream_id, n.epoch, n.sequence, n.id, n.send_by, n.withdrawn_at, n.closed_at, n.handling
          from removal_stream s
         cross join lateral (
              select * from removal_notice n
               where n.stream_id = s.partner_id and n.epoch = s.epoch and n.sequence > s.packed_through
               order by n.sequence limit %(most)s) n
         where s.head > s.packed_through
         union all
        select n.stream_id, n.epoch, n.sequence, n.id, n.send_by, n.withdrawn_at, n.closed_at, n.handling
          from (select d.stream_id, d.epoch, d.first_sequence, d.last_sequence from removal_delivery d
                 where d.state in ('waiting', 'sending', 'quarantined') and d.delivered_at is null
                   and d.first_sequence is not null limit %(most)s) d
         cross join lateral (
              select * from removal_notice n
               where n.stream_id = d.stream_id and n.epoch = d.epoch
                 and n.sequence between d.first_sequence and d.last_sequence
               order by n.sequence limit %(most)s) n) n
  join removal_stream s on s.partner_id = n.stream_id and s.epoch = n.epoch
 where n.send_by < %(now)s and n.withdrawn_at is null and n.closed_at is null and n.handling = 'none'
   and n.sequence > s.received_through and not s.pulled @> n.sequence
   and (%(partner)s::text is null or n.stream_id::text = %(partner)s)
 order by n.send_by, n.id limit %(most)s
"""


def overdue_partners(*, now: datetime) -> set[int]:
    """Find the partners that owe an answer whose date is past."""
    with connection.cursor() as cursor:
        cursor.execute(OVERDUE, {"now": now})
        return {partner_id for (partner_id,) in cursor.fetchall()}


def partners_not_told(*, now: datetime) -> dict[int, str]:
    """Find the partners that do not get what they are owed, and why not: held, suspended, unreachable or backlog.

    Whoever can be reached has ``BACKLOG_AFTER``, or the time that its policy gives, before it counts.
    """
    with connection.cursor() as cursor:
        asked: dict[str, Any] = {"now": now, "backlog_after": BACKLOG_AFTER}
        cursor.execute(NOT_TOLD, asked)
        return dict(cursor.fetchall())


def notices_not_sent(*, now: datetime, partner: str | None = None) -> Sequence[int]:
    """Find the notices, of all partners or of one, that should have been sent by now and have not arrived.

    Up to ``COUNTED``, what should have been sent first at first. ``partner`` is a key as it is written.
    """
    with connection.cursor() as cursor:
        cursor.execute(NOT_SENT, {"now": now, "partner": partner, "most": COUNTED})
        return [notice_id for (notice_id,) in cursor.fetchall()]


# --- requests over time ---


@dataclass(frozen=True)
class Day:
    """How many requests were received, and how many closed, on one day; each up to ``COUNTED_A_DAY``."""

    day: date
    received: int
    closed: int


# Along the indexes of received_at and closed_at, which hold all that is asked.
REQUESTS_BY_DAY = """
select d.start,
       (select count(*) from (select from removal_removalrequest r
                               where r.received_at >= d.start and r.received_at < d.start + interval '24 hours'
                               limit %(most)s) x),
       (select count(*) from (select from removal_removalrequest r
                               where r.closed_at >= d.start and r.closed_at < d.start + interval '24 hours'
                               limit %(most)s) x)
  from unnest(%(starts)s::timestamptz[]) d(start) order by 1
"""


def requests_by_day(*, now: datetime, days: int = DAYS) -> Sequence[Day]:
    """Count the requests of the last days, today included, the oldest day first.

    Where there are ``MANY``, each process counts all but today's every ten minutes.
    """
    today = now.astimezone(UTC).date()
    key = f"desk.requests_before:{today}:{days}"
    before: Sequence[Day] | None = cache.get(key)
    if before is None:
        before = _count_days([today - timedelta(days=back) for back in range(days - 1, 0, -1)])
        if sum(day.received + day.closed for day in before) >= MANY:
            cache.set(key, before, KEPT.total_seconds())
    return [*before, *_count_days([today])]


def _count_days(days: Sequence[date]) -> Sequence[Day]:
    with connection.cursor() as cursor:
        cursor.execute(REQUESTS_BY_DAY, {"starts": [start_of(day) for day in days], "most": COUNTED_A_DAY})
        return [Day(start.astimezone(UTC).date(), received, closed) for start, received, closed in cursor.fetchall()]


def start_of(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
