"""The stream, read by its partner itself: the same notices under the same numbers as in its messages (design §7, §10).

Two things are kept apart. A number was *served* when a pull handed it out: from then on its notice counts as told, so
it can be answered, and stands when its wish is withdrawn. It is *pulled* when the partner came back for what follows
it: only that ends the sending, since the answer to a pull may be cut off on its way
(docs/decisions/0013-pulling.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal import payload
from removal.models import LogEntry, Stream
from removal.reports import UnknownNotice
from removal.settling import pack_pulled, settle_deliveries
from removal.transactions import whole_step

MAX_BYTES = 1024 * 1024  # of the notices in one answer, unless a single one is longer
MOST_AT_ONCE = 1000  # notices in one answer
READ_AT_ONCE = 100  # notices: what is read beyond MAX_BYTES is thrown away
# Of so many ranges is what was served made up at most, or the stream's row would grow with every odd number read.
MAX_RANGES = 1000


class WrongEpoch(Exception):
    """The caller speaks of an epoch that is over. The message says which is on, and what to do."""


class PastHead(Exception):
    """The caller has numbers that its stream does not have. The message says what to do."""


class TooScattered(Exception):
    """Too many numbers were read here and there. The message says what to do."""


@dataclass(frozen=True)
class Page:
    """Some of a stream in order: the JSON of each notice. ``first`` and ``last`` are None where nothing follows."""

    partner: str
    epoch: int
    head: int
    first: int | None
    last: int | None
    notices: Sequence[bytes]


# "served" on the right is what was served before: nothing is confirmed by the call that hands it out.
MARK = """
with before as (select served, pulled from removal_stream where partner_id = %(stream)s)
update removal_stream s
   set served = before.served + int8multirange(int8range(%(first)s, %(last)s + 1)),
       pulled = before.pulled + before.served * int8multirange(int8range(1, %(after)s + 1))
  from before
 where s.partner_id = %(stream)s
   and not (before.served @> int8range(%(first)s, %(last)s + 1)
            and before.pulled @> before.served * int8multirange(int8range(1, %(after)s + 1)))
returning s.served <> before.served, s.pulled <> before.pulled
"""


@whole_step
def pull(*, partner_id: int, key_prefix: str, after: int, limit: int, epoch: int | None = None) -> Page:
    """Hand out up to ``limit`` numbers behind ``after``, and take it that the partner has what was served up to there.

    Safe to repeat. ``epoch`` is the one that the caller believes in, if it says so. Raises WrongEpoch, PastHead and
    TooScattered.
    """
    stream = _lock(partner_id)
    if epoch not in (None, stream.epoch):
        raise WrongEpoch(f"Your stream is in epoch {stream.epoch}. Its numbers are new: start with after=0.")
    if after > stream.head:
        raise PastHead(
            f"Your stream has numbers up to {stream.head}, in epoch {stream.epoch}. If you have more, they are of "
            "another epoch: start with after=0."
        )
    notices = _read(stream, after + 1, min(stream.head, after + limit))
    last = after + len(notices)
    _mark(stream, key_prefix, first=after + 1, last=last, after=after)
    return Page(
        partner=stream.partner.slug,
        epoch=stream.epoch,
        head=stream.head,
        first=after + 1 if notices else None,
        last=last if notices else None,
        notices=notices,
    )


@whole_step
def pull_one(*, partner_id: int, key_prefix: str, sequence: int) -> bytes:
    """Hand out one notice, as JSON. One that was sent is told already, and not marked. Raises what ``pull`` does."""
    stream = _lock(partner_id)
    if not 1 <= sequence <= stream.head:
        raise UnknownNotice(sequence)
    [notice] = _read(stream, sequence, sequence)
    if not stream.has_told(sequence):
        _mark(stream, key_prefix, first=sequence, last=sequence, after=0)
    return notice


def _lock(partner_id: int) -> Stream:
    # Locked before its notices are read, as a withdrawal locks it before it looks at what was told: of the two, the
    # later one sees what the other did.
    streams = Stream.objects.select_related("partner").select_for_update(no_key=True, of=("self",))
    return streams.get(partner_id=partner_id)


def _read(stream: Stream, first: int, last: int) -> list[bytes]:
    """Read notices up to ``last``, or to where MAX_BYTES are full."""
    notices: list[bytes] = []
    size = 0
    for start in range(first, last + 1, READ_AT_ONCE):
        end = min(last, start + READ_AT_ONCE - 1)
        for notice in payload.read_encoded(stream_id=stream.pk, epoch=stream.epoch, first=start, last=end):
            size += len(notice)
            if notices and size > MAX_BYTES:
                return notices
            notices.append(notice)
    return notices


def _mark(stream: Stream, key_prefix: str, *, first: int, last: int, after: int) -> None:
    """Note what is handed out and what is confirmed, and end the sending of what the partner has."""
    joins = first == 1 or any(start <= first <= end + 1 for start, end in stream.served)
    if not joins and first <= last and len(stream.served) >= MAX_RANGES:
        raise TooScattered(f"You have read in {MAX_RANGES} places. Read your stream in order, from after=0.")
    with connection.cursor() as cursor:
        cursor.execute(MARK, {"stream": stream.pk, "first": first, "last": last, "after": after})
        is_served, is_pulled = cursor.fetchone() or (False, False)
        # Also where nothing is new: a message may have come back from its worker meanwhile.
        _settle(cursor, stream, after=after)
    about: dict[str, Any] = {"partner": stream.pk, "epoch": stream.epoch}
    if is_served:
        about |= {"first": first, "last": last}
    if is_pulled:
        about |= {"has_through": after}
    if is_served or is_pulled:
        LogEntry.objects.create(actor=f"api:{key_prefix}", action="pulled", about=about)


def _settle(cursor: CursorWrapper, stream: Stream, *, after: int) -> None:
    if not stream.served:
        return
    settle_deliveries(cursor, stream_id=stream.pk)
    if after > stream.packed_through:
        pack_pulled(cursor, stream_id=stream.pk)


def heads(partner_ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Read where streams end now: (epoch, head) by partner."""
    rows = Stream.objects.filter(partner_id__in=partner_ids).values_list("partner_id", "epoch", "head")
    return {partner_id: (epoch, head) for partner_id, epoch, head in rows}
