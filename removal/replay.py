"""Send again what a partner had already: the same numbers in the same messages, under the same webhook-id.

For a partner that lost what it received, and the way out of quarantine. What is sent again comes after everything that
is new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal.models import LogEntry
from removal.partnerships import find_partner
from removal.transactions import whole_step
from removal.why import UNSAID, Why

BATCH = 10_000  # messages in one transaction


class NothingSent(Exception):
    """The range is empty, or none of it is in a message yet. The message says what to do."""


@dataclass(frozen=True)
class Extent:
    """How many messages are sent again, and the notices in them."""

    messages: int
    notices: int

    def __str__(self) -> str:
        notices = f"{self.notices:,} notice{'' if self.notices == 1 else 's'}"
        return f"{notices} in {self.messages:,} message{'' if self.messages == 1 else 's'}"


# Messages that have ended, or that are waiting anyway, and touch the range or were delivered since a moment.
CHOSEN = """
  from removal_delivery d join removal_stream s on s.partner_id = d.stream_id and s.epoch = d.epoch
 where d.stream_id = %(partner)s and d.state in ('delivered', 'quarantined', 'waiting')
   and d.first_sequence <= %(last)s and d.last_sequence >= %(first)s
   and (%(since)s::timestamptz is null or d.delivered_at >= %(since)s)
"""
COUNT = f"select count(*), coalesce(sum(d.last_sequence - d.first_sequence + 1), 0)::bigint {CHOSEN}"
# In order of sequence, a batch at a time. One in quarantine has never arrived: it takes its place in the window again.
AGAIN = f"""
with chosen as materialized (
    select d.id {CHOSEN} and d.first_sequence > %(after)s order by d.first_sequence limit %(batch)s)
update removal_delivery d
   set state = 'waiting', resent = d.resent or d.state = 'delivered', suspect = false, failures = 0, abandoned = 0,
       due_at = clock_timestamp()
  from chosen where d.id = chosen.id
returning d.first_sequence, d.last_sequence
"""


def extent_of(*, slug: str, first: int = 1, last: int | None = None, since: datetime | None = None) -> Extent:
    """Count what ``send_again`` would send. Raises UnknownPartner."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT, _chosen(find_partner(slug).pk, first, last, since))
        return Extent(*cursor.fetchone())


def send_again(
    *,
    actor: str,
    slug: str,
    first: int = 1,
    last: int | None = None,
    since: datetime | None = None,
    why: Why = UNSAID,
    progress: Callable[[int], None] = lambda messages: None,
) -> Extent:
    """Send again the messages that hold the numbers ``first`` to ``last``, or what was delivered since a moment.

    A number is sent with the others of its message. Goes on in batches, each committed; when it is cut off, the same
    call starts over without harm. Raises UnknownPartner, and NothingSent.
    """
    chosen = _chosen(find_partner(slug).pk, first, last, since)
    messages = notices = after = 0
    while batch := _send_batch(actor=actor, chosen=chosen, after=after, why=why):
        messages += len(batch)
        notices += sum(end - start + 1 for start, end in batch)
        after = max(start for start, _ in batch)
        progress(messages)
    if not messages:
        raise NothingSent("None of these numbers is in a message yet: what is new is sent by itself.")
    return Extent(messages, notices)


def _chosen(partner_id: int, first: int, last: int | None, since: datetime | None) -> dict[str, Any]:
    if first < 1 or (last is not None and last < first):
        raise NothingSent("Numbers start at 1, and the last is not before the first.")
    return {"partner": partner_id, "first": first, "last": 2**62 if last is None else last, "since": since}


@whole_step
def _send_batch(*, actor: str, chosen: dict[str, Any], after: int, why: Why) -> list[tuple[int, int]]:
    with connection.cursor() as cursor:
        epoch = _lock(cursor, chosen["partner"])
        cursor.execute(AGAIN, {**chosen, "after": after, "batch": BATCH})
        ranges: list[tuple[int, int]] = cursor.fetchall()
    if ranges:
        LogEntry.objects.create(
            actor=actor,
            action="messages_sent_again",
            about={
                "partner": chosen["partner"],
                "epoch": epoch,
                "messages": len(ranges),
                "numbers": _joined(ranges),
                **why.as_ids(),
            },
        )
    return ranges


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that follow each other."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _lock(cursor: CursorWrapper, partner_id: int) -> int:
    """Lock the stream, and return its epoch."""
    cursor.execute("select epoch from removal_stream where partner_id = %s for no key update", [partner_id])
    (epoch,) = cursor.fetchone()
    return int(epoch)
