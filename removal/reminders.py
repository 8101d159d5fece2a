"""Remind a partner of what it has still to answer: numbers and dates, in a message that carries no notice.

Made at 50, 80 and 100 % of a notice's time, for all of a partner's notices together, and at most one a day. It goes
the way of every message, after all that is new, and with the same retries; one that has not arrived when a newer one
is made is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal import payload
from removal.deadlines import LEVELS, SOON_AT_MOST, SOON_LEVEL
from removal.identifiers import Identifiers
from removal.models import LogEntry
from removal.models.identifiers import new_id
from removal.models.streams import SILENT_AFTER_ARRIVAL
from removal.transactions import whole_step

MOST_LISTED = 500  # numbers in one reminder, soonest first; ``due_total`` counts the others too
AT_MOST_EVERY = timedelta(days=1)

# Open notices of one stream that half of the time is over for, through its index of open ones. What is in no message
# yet, and was not pulled, is left out. Whether a message has arrived is asked only of what is called silent: a partner
# that cannot be reached, or refuses a message, is reminded of its notices all the same.
DUE = """
with due as materialized (
    select n.sequence, n.planned_at, n.respond_by, n.receive_by,
           n.handling = 'none' and n.sequence > s.received_through is_unheard, s.partner_id, s.epoch
      from removal_stream s
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch
     where s.partner_id = %(stream)s and (n.sequence <= s.packed_through or s.served @> n.sequence)
       and n.withdrawn_at is null
       and n.closed_at is null
       and n.handling not in ('completed', 'partially_completed', 'rejected')
       and clock_timestamp() >= n.planned_at + (n.respond_by - n.planned_at) * %(first_level)s / 100)
"""
LISTED = f"""
{DUE}
select d.sequence, d.respond_by,
       case when d.is_unheard and coalesce(d.receive_by, d.respond_by) < clock_timestamp() and exists (
                     select from removal_delivery m
                      where m.stream_id = d.partner_id and m.epoch = d.epoch and m.state = 'delivered'
                        and m.first_sequence <= d.sequence and m.last_sequence >= d.sequence
                        and m.delivered_at < clock_timestamp() - %(arrival)s) then 'silent'
            when d.respond_by < clock_timestamp() then 'overdue'
            when clock_timestamp() >= greatest(d.planned_at + (d.respond_by - d.planned_at) * %(soon_level)s / 100,
                                               d.respond_by - %(soon_at_most)s) then 'due_soon'
            else 'on_track' end,
       (select count(*) from due)
  from (select * from due order by respond_by, sequence limit %(most)s) d
 order by d.respond_by, d.sequence
"""

# Some notices of the stream have come to a level since the last reminder: removal.escalation has seen that.
IS_TIME = """(s.reminded_at is null or s.reminded_at < clock_timestamp() - %(every)s)
   and exists (select from removal_escalation x
                where x.stream_id = s.partner_id and (s.reminded_at is null or x.until > s.reminded_at))
"""
PARTNERS = f"""
select s.partner_id
  from removal_stream s
  join partners_partner p on p.id = s.partner_id and p.state = 'live'
  join partners_endpoint e on e.partner_id = s.partner_id and e.state = 'open'
 where {IS_TIME} order by s.partner_id
"""
LOCK = 0x52454D44  # "REMD": of two workers at once, one reminds a partner
SEE = f"select s.epoch, s.reminded_at from removal_stream s where s.partner_id = %(stream)s and {IS_TIME}"
# Behind the reading, which takes seconds where a million notices are open: whoever plans, sends or takes an answer
# waits for the stream.
LOCK_STREAM = """
select s.head, p.slug, clock_timestamp()
  from removal_stream s join partners_partner p on p.id = s.partner_id
 where s.partner_id = %(stream)s and s.epoch = %(epoch)s and s.reminded_at is not distinct from %(seen)s::timestamptz
   for no key update of s
"""
# One that is under way is left to its end.
DROP = """
update removal_delivery set state = 'dropped', suspect = false
 where stream_id = %(stream)s and first_sequence is null and state in ('waiting', 'quarantined')
"""
# "resent" is what puts it behind all that is new, and keeps it out of the window while it waits.
MAKE = """
with made as (
    insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, failures,
                                  abandoned, created_at, due_at, delivered_by, suspect, resent, body_digest)
    values (%(id)s, %(stream)s, %(epoch)s, null, null, 'waiting', 0, 0, 0, 0, clock_timestamp(), clock_timestamp(), '',
            false, true, %(digest)s)
    returning id)
insert into removal_deliverybody (delivery_id, body) select id, %(body)s from made
"""
KEEP = "update removal_stream set reminded_at = clock_timestamp() where partner_id = %(stream)s"


@dataclass(frozen=True)
class Reminder:
    """What a partner has to answer: the first ones due, and how many there are in all."""

    due: Sequence[payload.Due]
    due_total: int


def reminders_for(*, partner_id: int) -> Reminder:
    """List what a reminder to this partner would say now, whether or not one is made: a statement shows the same."""
    with connection.cursor() as cursor:
        return _read(cursor, partner_id)


def remind() -> int:
    """Make the reminders that are due; returns how many. Each partner is a transaction of its own."""
    with connection.cursor() as cursor:
        every: dict[str, Any] = {"every": AT_MOST_EVERY}
        cursor.execute(PARTNERS, every)
        partner_ids = [partner_id for (partner_id,) in cursor.fetchall()]
    return sum(remind_partner(partner_id=partner_id) for partner_id in partner_ids)


@whole_step
def remind_partner(*, partner_id: int) -> bool:
    """Make a reminder, if it is time for one; of two workers at once, one does. Returns whether one was made."""
    stream: dict[str, Any] = {"stream": partner_id, "every": AT_MOST_EVERY}
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_xact_lock(%s, %s::int)", [LOCK, partner_id])
        if not cursor.fetchone()[0]:
            return False
        cursor.execute(SEE, stream)
        seen = cursor.fetchone()
        if seen is None:
            return False
        epoch, reminded_at = seen
        reminder = _read(cursor, partner_id)
        if not reminder.due:
            return False  # answered meanwhile, or not sent yet
        names = Identifiers.for_partner(partner_id)
        cursor.execute(LOCK_STREAM, stream | {"epoch": epoch, "seen": reminded_at})
        locked = cursor.fetchone()
        if locked is None:
            return False  # reminded meanwhile, or restored
        head, slug, now = locked
        cursor.execute(DROP, stream)
        dropped = cursor.rowcount
        envelope = payload.Envelope(slug, epoch, head, names.time(now))
        body = payload.reminder(due=reminder.due, due_total=reminder.due_total, envelope=envelope)
        delivery_id = new_id()
        kept: dict[str, Any] = {"id": delivery_id, "epoch": epoch, "body": body, "digest": sha256(body).digest()}
        cursor.execute(MAKE, stream | kept)
        cursor.execute(KEEP, stream)
    LogEntry.objects.create(
        actor="worker",
        action="partner_reminded",
        about={
            "partner": partner_id,
            "delivery": str(delivery_id),
            "notices": reminder.due_total,
            "reminders_dropped": dropped,
        },
    )
    return True


def _read(cursor: CursorWrapper, partner_id: int) -> Reminder:
    asked: dict[str, Any] = {
        "stream": partner_id,
        "first_level": LEVELS[0],
        "soon_level": SOON_LEVEL,
        "soon_at_most": SOON_AT_MOST,
        "arrival": SILENT_AFTER_ARRIVAL,
        "most": MOST_LISTED,
    }
    cursor.execute(LISTED, asked)
    rows = cursor.fetchall()
    names = Identifiers.for_partner(partner_id)
    due = [
        payload.Due(sequence=sequence, respond_by=payload.as_time(names.time(respond_by)), state=state)
        for sequence, respond_by, state, _ in rows
    ]
    return Reminder(due, rows[0][3] if rows else 0)
