"""Notices -> the exact bytes that are signed (design §10).

The bytes are made once, at a message's first claim, and stored: nothing that changes later alters a message.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import urlencode

from django.conf import settings
from django.db import connection
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from removal import wording
from removal.identifiers import Identifiers

MAX_BYTES = 256 * 1024  # of one message
MAX_NOTICES_BYTES = MAX_BYTES - 1024  # of the notices in it: what is around them takes less than 1 KiB
MAX_INLINE_ITEMS = 1000  # of one notice; longer lists are fetched from items_url
MAX_INLINE_BYTES = 64 * 1024  # of one notice, so that a message always holds one
READ_AT_ONCE = 1250  # notices: what is read beyond the messages that are asked for is thrown away
MAX_COUNTED = 10_000  # targets of a request that are looked up to say how many of them a partner holds


# What a number, a text or a time may be, for the published schema (removal/api/contract.py).
Number = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="RFC 3339, UTC.")]


class Held(TypedDict):
    """What the partner received in one release. Without ``items``, the list is at ``items_url``."""

    release: Name
    items_total: Number
    items: NotRequired[list[Name]]


class Notice(TypedDict):
    """One notice. ``items_total`` counts distinct items over all releases.

    With ``withdrawn_at`` the wish was taken back before this was sent: nothing is asked, and no subject named. A
    reinstatement ``undoes`` earlier numbers for future use; past removals stand.
    """

    sequence: Number
    kind: Annotated[Name, Field(description="opt_out, deletion, recall, offboarding or reinstatement.")]
    request: Name
    items_total: Count
    reason: NotRequired[Name]
    subject: NotRequired[Name]
    usages: NotRequired[list[Name]]
    held: NotRequired[list[Held]]
    subjects_total: NotRequired[Number]
    releases: NotRequired[list[Name]]
    items_url: NotRequired[Url]
    received_at: NotRequired[Time]
    respond_by: NotRequired[Time]
    withdrawn_at: NotRequired[Time]
    undoes: NotRequired[list[Number]]


class NoticesData(TypedDict):
    """Numbers ``first`` to ``last`` of the partner's stream, of ``head`` that it had then. Samples have epoch 0."""

    partner: str
    epoch: Count
    first: Number
    last: Number
    head: Count
    acknowledge_url: Url
    notices: list[Notice]


class NoticesMessage(TypedDict):
    """A range of a partner's stream."""

    type: Literal["removal.notices"]
    version: Literal["1"]
    timestamp: Time
    data: NoticesData


class StreamData(TypedDict):
    """Where the partner's stream stands."""

    partner: str
    epoch: Count
    head: Count


class PingMessage(TypedDict):
    """A message that says only that we reach each other: answer with a 2xx."""

    type: Literal["removal.ping"]
    version: Literal["1"]
    timestamp: Time
    data: StreamData


class Due(TypedDict):
    """A number that an answer is owed for, and how late it is."""

    sequence: Number
    respond_by: Time
    state: Literal["on_track", "due_soon", "overdue", "silent"]


class ReminderData(StreamData):
    """The first of what is due, soonest first, and how many there are in all."""

    due: list[Due]
    due_total: Count
    acknowledge_url: Url


class ReminderMessage(TypedDict):
    """A reminder of numbers that still have no final answer. It adds none to the stream."""

    type: Literal["removal.reminder"]
    version: Literal["1"]
    timestamp: Time
    data: ReminderData


@dataclass(frozen=True)
class Message:
    """A range of a stream and the bytes that carry it."""

    first: int
    last: int
    body: bytes


# Each notice of a range with its request: its subject where that is only one, else the releases it is about. How many
# subjects: those in the partner's releases. A recall of others too is counted anew, up to a limit, or not told.
NOTICES = """
select n.sequence, n.kind, r.reason, r.public_id, r.usages, n.item_count, r.received_at, n.respond_by, n.withdrawn_at,
       r.target_count, case when r.target_count = 1 then
           (select s.key from removal_requesttarget t join removal_subject s on s.id = t.subject_id
             where t.request_id = r.id) end,
       case when n.kind = 'reinstatement' then array(
           select o.sequence from removal_notice o join removal_removalrequest x on x.id = o.request_id
            where o.stream_id = n.stream_id and o.epoch = n.epoch and o.sequence < n.sequence
              and x.ended_by_id = n.request_id order by o.sequence) end,
       case when r.target_count <> 1 then array(
           select l.name from removal_release l
            where l.id in (select d.release_id from removal_disclosure d where d.id = any(n.disclosures))
            order by l.id) end,
       case when r.target_count <= 1 or r.release_ids <@ given.releases then r.target_count
            when r.target_count <= %(counted)s then (
                select count(*) from removal_requesttarget t
                 where t.request_id = r.id and exists (
                     select from removal_manifestentry m
                      where m.subject_id = t.subject_id and m.release_id = any(given.releases)
                        and (t.items is null or removal_items_meet(m.items, t.items)))) end
  from removal_notice n
  join removal_removalrequest r on r.id = n.request_id
 cross join lateral (
      select array(select d.release_id from removal_disclosure d where d.id = any(n.disclosures)) releases) given
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence between %(first)s and %(last)s
 order by n.sequence
"""

# What each release holds of a notice's one subject: item lists only where they are short enough for the message.
HELD = """
select n.sequence, l.name, sum(x.item_count)::bigint,
       case when n.item_count <= %(inline)s and count(*) = 1 then min(x.items) end
  from removal_notice n
  join lateral (select distinct l.id, l.name from removal_disclosure d join removal_release l on l.id = d.release_id
                 where d.id = any(n.disclosures)) l on true
  join removal_removalrequest r on r.id = n.request_id and r.target_count = 1
  join removal_requesttarget t on t.request_id = n.request_id
  join removal_manifestentry m on m.subject_id = t.subject_id and m.release_id = l.id
  cross join lateral (
      select w.items, cardinality(w.items) item_count
        from (select coalesce(removal_items_in_both(m.items, t.items), m.items) items offset 0) w) x
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence between %(first)s and %(last)s
   and n.withdrawn_at is null and x.item_count > 0
 group by n.sequence, n.item_count, l.id, l.name
 order by n.sequence, l.id
"""


def as_time(moment: datetime) -> str:
    """Write a time as the wire has it: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_notices(
    *, stream_id: int, epoch: int, first: int, last: int, identifiers: Identifiers | None = None
) -> list[Notice]:
    """Read a range of a stream in the form that its partner sees. ``identifiers`` are looked up where not given."""
    names = identifiers or Identifiers.for_partner(stream_id)
    span = {"stream": stream_id, "epoch": epoch, "first": first, "last": last}
    span |= {"inline": MAX_INLINE_ITEMS, "counted": MAX_COUNTED}
    held: dict[int, list[Held]] = {}
    with connection.cursor() as cursor:
        cursor.execute(HELD, span)
        for sequence, release, total, items in cursor.fetchall():
            part = Held(release=release, items_total=total)
            if items is not None:
                part["items"] = items
            held.setdefault(sequence, []).append(part)
        cursor.execute(NOTICES, span)
        return [_notice(row, held.get(row[0], []), names, epoch) for row in cursor.fetchall()]


def read_encoded(
    *, stream_id: int, epoch: int, first: int, last: int, identifiers: Identifiers | None = None
) -> list[bytes]:
    """Read a range of a stream as the JSON of each of its notices, in order. Hashed ones all go the long way."""
    names = identifiers or Identifiers.for_partner(stream_id)
    encoded: dict[int, bytes] = {}
    if names.is_raw:
        encoded = wording.read(
            stream_id=stream_id,
            epoch=epoch,
            first=first,
            last=last,
            most_items=MAX_INLINE_ITEMS,
            most_bytes=MAX_INLINE_BYTES,
        )
    for start, end in _gaps(encoded, first=first, last=last):
        for notice in read_notices(stream_id=stream_id, epoch=epoch, first=start, last=end, identifiers=names):
            encoded[notice["sequence"]] = _encode(notice)
    return [encoded[sequence] for sequence in range(first, last + 1)]


def _gaps(known: Collection[int], *, first: int, last: int) -> Iterator[tuple[int, int]]:
    """List the runs of numbers from ``first`` to ``last`` that are not known."""
    if len(known) == last - first + 1:
        return
    start = None
    for sequence in range(first, last + 1):
        if sequence not in known:
            start = sequence if start is None else start
        elif start is not None:
            yield start, sequence - 1
            start = None
    if start is not None:
        yield start, last


def _notice(row: tuple[Any, ...], held: list[Held], names: Identifiers, epoch: int) -> Notice:
    """Put a row of ``NOTICES`` into the form that its partner sees."""
    sequence, kind, reason, request, usages, items, received_at, respond_by, withdrawn_at = row[:9]
    subjects, subject, undoes, releases, subjects_held = row[9:]
    notice = Notice(sequence=sequence, kind=kind, request=names.request(request), items_total=items)
    if withdrawn_at:
        notice["items_total"] = 0
        notice["withdrawn_at"] = as_time(names.time(withdrawn_at))
        return notice
    notice["reason"] = reason
    notice["usages"] = usages
    if undoes is not None:
        notice["subject"] = names.subject(subject)
        notice["undoes"] = undoes
    elif subjects == 1:
        notice["subject"] = names.subject(subject)
        for part in held:
            if "items" in part:
                part["items"] = names.items(subject, part["items"])
        notice["held"] = held
        if not all("items" in part for part in held) or len(_encode(held)) > MAX_INLINE_BYTES:
            notice["held"] = [Held(release=part["release"], items_total=part["items_total"]) for part in held]
            notice["items_url"] = items_url(sequence, epoch=epoch)
    else:
        notice["releases"] = releases
        if subjects:  # an offboarding is about all of the releases: there is no list to fetch
            if subjects_held is not None:
                notice["subjects_total"] = subjects_held
            notice["items_url"] = items_url(sequence, epoch=epoch)
    notice["received_at"] = as_time(names.time(received_at))
    notice["respond_by"] = as_time(names.time(respond_by))
    return notice


def acknowledge_url() -> str:
    return f"{settings.PUBLIC_URL}/v1/acknowledgements"


def items_url(sequence: int, *, epoch: int, **rest: str | int) -> str:
    """Name the address of a notice's items. One that is kept must not list another notice's after a restore."""
    query = urlencode(({"epoch": epoch} if epoch > 1 else {}) | rest)
    return f"{settings.PUBLIC_URL}/v1/stream/{sequence}/items{'?' if query else ''}{query}"


@dataclass(frozen=True)
class Envelope:
    """What a message says of its stream beside the notices."""

    partner: str
    epoch: int
    head: int
    now: datetime


def read_messages(
    *,
    stream_id: int,
    first: int,
    last: int,
    max_notices: int,
    envelope: Envelope,
    most: int | None = None,
    identifiers: Identifiers | None = None,
) -> list[Message]:
    """Read a range of a stream as messages of ``max_notices``, or of fewer where those would be too long.

    Reads no further than for ``most`` messages, where that is given. ``identifiers`` are looked up where not given.
    """
    names = identifiers or Identifiers.for_partner(stream_id)
    envelope = replace(envelope, now=names.time(envelope.now))
    messages: list[Message] = []
    notices: list[bytes] = []  # from number ``first`` on: those that are in no message yet
    for start in range(first, last + 1, READ_AT_ONCE):
        end = min(last, start + READ_AT_ONCE - 1)
        notices += read_encoded(stream_id=stream_id, epoch=envelope.epoch, first=start, last=end, identifiers=names)
        packed = pack(notices, first=first, max_notices=max_notices, envelope=envelope)
        if most is not None and (len(messages) + len(packed) > most or end == last):
            return [*messages, *packed][:most]
        if end < last:  # what follows may fit into the last one
            notices = notices[packed[-1].first - first :]
            first = packed.pop().first
        messages += packed
    return messages


def pack(notices: Sequence[bytes], *, first: int, max_notices: int, envelope: Envelope) -> list[Message]:
    """Put the JSON of notices, from number ``first`` on, into as few messages as the limits allow."""
    messages: list[Message] = []
    start = 0
    while start < len(notices):
        count = max_notices
        while len(run := b",".join(notices[start : start + count])) > MAX_NOTICES_BYTES and count > 1:
            count = min(count, len(notices) - start)
            count = max(1, min(count - 1, count * MAX_NOTICES_BYTES // len(run)))
        end = min(start + count, len(notices))
        messages.append(_message(run, first=first + start, last=first + end - 1, envelope=envelope))
        start = end
    return messages


def reminder(*, due: Sequence[Due], due_total: int, envelope: Envelope) -> bytes:
    """Write a message that refers to numbers and carries none."""
    data: ReminderData = {
        "partner": envelope.partner,
        "epoch": envelope.epoch,
        "head": envelope.head,
        "due": list(due),
        "due_total": due_total,
        "acknowledge_url": acknowledge_url(),
    }
    message: ReminderMessage = {
        "type": "removal.reminder",
        "version": "1",
        "timestamp": as_time(envelope.now),
        "data": data,
    }
    return _encode(message)


def _message(notices: bytes, *, first: int, last: int, envelope: Envelope) -> Message:
    around: NoticesMessage = {
        "type": "removal.notices",
        "version": "1",
        "timestamp": as_time(envelope.now),
        "data": {
            "partner": envelope.partner,
            "epoch": envelope.epoch,
            "first": first,
            "last": last,
            "head": envelope.head,
            "acknowledge_url": acknowledge_url(),
            "notices": [],
        },
    }
    # Each notice is JSON already; they go between the brackets of the empty list.
    opening = _encode(around).removesuffix(b"]}}")
    return Message(first=first, last=last, body=b"%b%b]}}" % (opening, notices))


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
