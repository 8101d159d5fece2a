"""How partners stand: what they owe, how they answer, whether their endpoints do. Read only.

Every number comes from an index and stops somewhere, whatever the history has grown to: counts at ``MOST``, shares and
percentiles at the newest ``SAMPLE``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from removal.models.streams import SILENT_AFTER_ARRIVAL

MOST = 2_000  # a count that found more than this is shown as "2,000+"; lists go as far
SAMPLE = 200  # messages, or answers
READ_STATEMENTS = 2_000  # the newest ones, to find SAMPLE answers among them
LOOKED_AT = 1_000  # open notices, those due first, to see which is the oldest, and whether the partner is silent
SHOWN_FAILURES = 10
# Ages of what is open, in days since it was planned: (first, last), the last one without an end.
AGES = ((0, 7), (8, 30), (31, 90), (91, None))

OPEN = """n.withdrawn_at is null and n.closed_at is null
       and n.handling not in ('completed', 'partially_completed', 'rejected')"""

# Whether the partner of a stream is silent: as NoticeQuerySet.silent has it, among what is due first.
IS_SILENT = f"""exists (
      select from (
          select n.* from removal_notice n
           where n.stream_id = s.partner_id and {OPEN} order by n.respond_by limit %(looked_at)s) n
       where n.handling = 'none' and not (n.epoch = s.epoch and n.sequence <= s.received_through)
         and coalesce(n.receive_by, n.respond_by) < %(now)s
         and (select d.last_sequence >= n.sequence and d.state = 'delivered' and d.delivered_at < %(arrived_by)s
                from removal_delivery d
               where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence
                 and d.state <> 'split'
               order by d.first_sequence desc limit 1))"""

# One row for each partner, or for one. What is behind "cross join lateral" is one short look into an index each.
HEALTH = f"""
select p.id, p.slug, p.name, p.state, e.state, opened.notices, late.notices, oldest.sequence, oldest.planned_at,
       sent.messages, sent.delivered, said.answers, said.half, said.most, quiet.is_silent, wrong.incidents,
       case when e.state = 'suspended' then wrong.gone_at when s.probe_at is not null then down.since end
  from removal_stream s
  join partners_partner p on p.id = s.partner_id
  join partners_endpoint e on e.partner_id = s.partner_id
 cross join lateral (
      select count(*) notices
        from (select from removal_notice n where n.stream_id = s.partner_id and {OPEN} limit %(most)s + 1) n) opened
 cross join lateral (
      select count(*) notices
        from (select from removal_notice n
               where n.stream_id = s.partner_id and n.respond_by < %(now)s and {OPEN} limit %(most)s + 1) n) late
  left join lateral (
      select n.sequence, n.planned_at
        from (select n.id, n.sequence, n.planned_at from removal_notice n
               where n.stream_id = s.partner_id and {OPEN} order by n.respond_by limit %(looked_at)s) n
       order by n.planned_at, n.id limit 1) oldest on true
 -- the newest messages that were tried, or that needed no try
 cross join lateral (
      select count(*) messages, count(*) filter (where d.delivered_by not in ('', 'closed')) delivered
        from (select d.delivered_by from removal_delivery d
               where d.stream_id = s.partner_id and d.epoch = s.epoch and d.first_sequence >= 1 and d.state <> 'split'
                 and (d.attempts > 0 or d.delivered_at is not null)
               order by d.first_sequence desc limit %(sample)s) d) sent
 -- the answers about the highest numbers: from the arrival of a number, or from its planning where it came otherwise
 cross join lateral (
      select count(*) answers,
             percentile_cont(0.5) within group (order by took) half,
             percentile_cont(0.95) within group (order by took) most
        from (select greatest(a.received_at - coalesce(m.delivered_at, n.planned_at), interval '0') took
                from (select * from (
                          select a.epoch, a.last_sequence, a.status, a.received_at from removal_acknowledgement a
                           where a.stream_id = s.partner_id and a.epoch = s.epoch
                           order by a.last_sequence desc limit %(read)s) a
                       where a.status in ('completed', 'partially_completed', 'rejected')
                       order by a.last_sequence desc limit %(sample)s) a
                join removal_notice n
                  on n.stream_id = s.partner_id and n.epoch = a.epoch and n.sequence = a.last_sequence
                left join lateral (
                     select d.last_sequence, d.delivered_at from removal_delivery d
                      where d.stream_id = s.partner_id and d.epoch = a.epoch and d.first_sequence <= a.last_sequence
                        and d.state <> 'split'
                      order by d.first_sequence desc limit 1) m
                  on m.last_sequence >= a.last_sequence and m.delivered_at < a.received_at) x) said
 cross join lateral (select {IS_SILENT} is_silent) quiet
 cross join lateral (
      select count(*) incidents, min(i.opened_at) filter (where i.kind = 'http_410') gone_at
        from removal_incident i where i.stream_id = s.partner_id and i.closed_at is null) wrong
 -- the first try since the last answer, of the messages that wait for another one
 cross join lateral (
      select min(t.started_at) since
        from (select d.id from removal_delivery d
               where d.stream_id = s.partner_id and d.state = 'waiting' and not d.resent and d.failures > 0
               order by d.due_at, d.id limit %(sample)s) d
       cross join lateral (
            select t.started_at from removal_attempt t
             where t.delivery_id = d.id and t.outcome in ('refused', 'unreachable', 'abandoned')
               and t.started_at > coalesce((select l.delivered_at from removal_delivery l
                                             where l.stream_id = s.partner_id and l.state = 'delivered'
                                             order by l.delivered_at desc limit 1), '-infinity')
             order by t.number limit 1) t
       where s.probe_at is not null) down
 where %(partner)s::bigint is null or s.partner_id = %(partner)s
 order by p.slug
"""


@dataclass(frozen=True)
class Health:
    """How a partner stands. Counts stop at ``MOST`` + 1, which stands for "more".

    ``oldest_sequence`` and ``oldest_at`` are of the open notice that was planned first, of the ``LOOKED_AT`` due first.
    ``messages`` are its newest ones, at most ``SAMPLE``, of which so many were ``delivered``; ``half_within`` and
    ``most_within`` are the median and the 95th percentile of the time from arrival to answer of its newest
    ``answers``. ``is_silent``: something arrived, and there was no word of it within the agreed time. ``down_since`` is
    None where the endpoint answers.
    """

    partner_id: int
    slug: str
    name: str
    state: str
    endpoint_state: str
    open: int
    overdue: int
    oldest_sequence: int | None
    oldest_at: datetime | None
    messages: int
    delivered: int
    answers: int
    half_within: timedelta | None
    most_within: timedelta | None
    is_silent: bool
    incidents: int
    down_since: datetime | None

    @property
    def success_rate(self) -> float | None:
        """The share of the newest messages that arrived, 0 to 1; None where nothing was sent."""
        return self.delivered / self.messages if self.messages else None


class UnknownPartner(Exception):
    """There is no such partner, or it has no stream."""


def health_of_all(*, now: datetime) -> list[Health]:
    """Say how each partner stands, by slug."""
    return _health(None, now=now)


def health_of(*, partner_id: int, now: datetime) -> Health:
    """Say how one partner stands. Raises UnknownPartner."""
    for health in _health(partner_id, now=now):
        return health
    raise UnknownPartner(partner_id)


def silent_partners(*, now: datetime) -> set[int]:
    """Find the partners to which something was delivered, and that have not said in time that they have it."""
    with connection.cursor() as cursor:
        cursor.execute(f"select s.partner_id from removal_stream s where {IS_SILENT}", _silence(now))
        return {partner_id for (partner_id,) in cursor.fetchall()}


def _silence(now: datetime) -> dict[str, Any]:
    return {"now": now, "arrived_by": now - SILENT_AFTER_ARRIVAL, "looked_at": LOOKED_AT}


def _health(partner_id: int | None, *, now: datetime) -> list[Health]:
    asked: dict[str, Any] = {
        "partner": partner_id,
        "most": MOST,
        "sample": SAMPLE,
        "read": READ_STATEMENTS,
        **_silence(now),
    }
    with connection.cursor() as cursor:
        cursor.execute(HEALTH, asked)
        return [Health(*row) for row in cursor.fetchall()]


# --- one partner ---

# Numbers at which a pull has got to, and counts of messages by what they wait for; reminders carry no number.
POSITION = """
select s.epoch, s.head, s.packed_through, s.received_through, coalesce(upper(s.served) - 1, 0),
       coalesce(upper(s.pulled) - 1, 0), waiting.messages, again.messages, sending.messages, aside.messages,
       nudged.reminders, s.reminded_at, wished.extensions
  from removal_stream s
 cross join lateral (select count(*) messages from (
      select from removal_delivery where stream_id = s.partner_id and state = 'waiting' and not resent
       limit %(most)s + 1) d) waiting
 cross join lateral (select count(*) messages from (
      select from removal_delivery where stream_id = s.partner_id and state = 'waiting' and resent
       limit %(most)s + 1) d) again
 -- along what is under way anywhere: a few
 cross join lateral (
      select count(*) messages from removal_delivery where stream_id = s.partner_id and state = 'sending') sending
 cross join lateral (select count(*) messages from (
      select from removal_delivery where stream_id = s.partner_id and state = 'quarantined' limit %(most)s + 1) d) aside
 cross join lateral (select count(*) reminders from (
      select from removal_delivery where stream_id = s.partner_id and epoch = s.epoch and first_sequence is null
         and state = 'delivered' limit %(most)s + 1) d) nudged
 cross join lateral (select count(*) extensions from (
      select from removal_extension where stream_id = s.partner_id and state = 'asked' limit %(most)s + 1) x) wished
 where s.partner_id = %(partner)s
"""


@dataclass(frozen=True)
class Position:
    """How far a stream has got, by number, and what of it waits, by message. Counts stop at ``MOST`` + 1.

    ``again`` are messages that a person asked for again, and reminders; ``reminders`` those that arrived, in this
    epoch; ``wishes`` those for more time that nobody has decided on.
    """

    epoch: int
    head: int
    packed_through: int
    received_through: int
    served_through: int
    pulled_through: int
    waiting: int
    again: int
    sending: int
    quarantined: int
    reminders: int
    reminded_at: datetime | None
    wishes: int

    @property
    def unpacked(self) -> int:
        return self.head - self.packed_through


def position_of(*, partner_id: int) -> Position:
    """Say how far one partner's stream has got. Raises UnknownPartner."""
    with connection.cursor() as cursor:
        cursor.execute(POSITION, {"partner": partner_id, "most": MOST})
        row = cursor.fetchone()
    if row is None:
        raise UnknownPartner(partner_id)
    return Position(*row)


# Along the index on open notices by age; one short count for each.
AGES_OF_OPEN = f"""
select x.place, counted.notices
  from unnest(%(from)s::timestamptz[], %(to)s::timestamptz[]) with ordinality x("from", "to", place)
 cross join lateral (select count(*) notices from (
      select from removal_notice n
       where n.stream_id = %(partner)s and n.planned_at > x."from" and n.planned_at <= x."to" and {OPEN}
       limit %(most)s + 1) n) counted
 order by x.place
"""


@dataclass(frozen=True)
class Age:
    """How many open notices were planned so many days ago; ``last`` None has no end."""

    first: int
    last: int | None
    notices: int


def name_age(first: int, last: int | None) -> str:
    return f"{first} to {last} days" if last else f"more than {first - 1} days"


def edges(first: int, last: int | None, *, now: datetime) -> tuple[datetime | None, datetime]:
    """Give the moments of planning after which, and up to which, a notice is ``first`` to ``last`` days old."""
    newest = now - timedelta(days=first) if first else now + timedelta(days=1)  # the database's clock may be ahead
    return None if last is None else now - timedelta(days=last + 1), newest


def ages_of(*, partner_id: int, now: datetime) -> list[Age]:
    """Count what one partner has open, by age."""
    spans = [edges(first, last, now=now) for first, last in AGES]
    asked: dict[str, Any] = {
        "partner": partner_id,
        "from": [start.isoformat() if start else "-infinity" for start, _ in spans],
        "to": [end.isoformat() for _, end in spans],
        "most": MOST,
    }
    with connection.cursor() as cursor:
        cursor.execute(AGES_OF_OPEN, asked)
        counts = [notices for _, notices in cursor.fetchall()]
    return [Age(first, last, notices) for (first, last), notices in zip(AGES, counts, strict=True)]


# The last tries that failed, of the newest messages and of those that still wait or are set aside.
FAILURES = """
with message as (
    (select d.id from removal_delivery d join removal_stream s on s.partner_id = d.stream_id and s.epoch = d.epoch
      where d.stream_id = %(partner)s and d.first_sequence >= 1 and d.state <> 'split'
      order by d.first_sequence desc limit %(sample)s)
    union
    (select id from removal_delivery where stream_id = %(partner)s and state = 'waiting' and not resent
      order by due_at, id limit %(sample)s)
    union
    (select id from removal_delivery where stream_id = %(partner)s and state = 'waiting' and resent
      order by due_at, id limit %(sample)s)
    union
    (select id from removal_delivery where stream_id = %(partner)s and state = 'quarantined' limit %(sample)s))
select t.id, t.delivery_id, t.started_at, t.outcome, t.status, t.reason, t.response_excerpt
  from message m
 cross join lateral (
      select * from removal_attempt t
       where t.delivery_id = m.id and t.outcome in ('refused', 'unreachable', 'abandoned')
       order by t.number desc limit %(shown)s) t
 order by t.started_at desc, t.id desc limit %(shown)s
"""


@dataclass(frozen=True)
class Failure:
    """A try that failed: ``reason`` is ours, ``words`` are the partner's."""

    attempt_id: int
    delivery_id: Any
    at: datetime
    outcome: str
    status: int | None
    reason: str
    words: str


def failures_of(*, partner_id: int) -> Sequence[Failure]:
    """List the last tries that failed, newest first."""
    with connection.cursor() as cursor:
        cursor.execute(FAILURES, {"partner": partner_id, "sample": SAMPLE, "shown": SHOWN_FAILURES})
        return [Failure(*row) for row in cursor.fetchall()]
