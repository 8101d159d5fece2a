"""Questions over several tables. Read only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from removal.identifiers import Identifiers
from removal.intake import UnknownRequest
from removal.ledger import UnknownRelease
from removal.models import Release, RemovalRequest
from removal.prospects import Prospect


class UnknownNotice(Exception):
    """This partner has been sent no notice with this number."""


# The delivery state of a notice is that of the message which carries its number, but a number that was pulled is
# delivered; one that is in no message yet waits; messages to a partner that is paused, or not live yet, are held. A
# message that a person ended was not delivered.
DELIVERY_OF = """case when n.withdrawn_at is not null and d.id is null then 'withdrawn'
            when n.epoch = s.epoch and s.pulled @> n.sequence then 'delivered'
            when d.delivered_by = 'closed' then 'ended_by_hand'
            when coalesce(d.state, 'waiting') = 'waiting' and p.state <> 'live' then 'held'
            else coalesce(d.state, 'waiting') end"""
ARRIVED_AT = "case when d.delivered_by <> 'closed' then d.delivered_at end"

# A line per notice of a request.
PARTNER_LINES = f"""
select p.slug, n.sequence, n.kind, {DELIVERY_OF}, coalesce(d.attempts, 0), {ARRIVED_AT},
       case when n.handling = 'none' and n.sequence <= s.received_through and n.epoch = s.epoch then 'received'
            else n.handling end,
       n.acknowledged_at, n.respond_by, n.item_count, n.id, n.closed_at, coalesce(c.reason, ''), n.withdrawn_at
  from removal_notice n
  join removal_stream s on s.partner_id = n.stream_id
  join partners_partner p on p.id = n.stream_id
  left join removal_closing c on c.notice_id = n.id
  left join lateral (
      select * from removal_delivery d
       where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence and d.state <> 'split'
       order by d.first_sequence desc limit 1) d on d.last_sequence >= n.sequence
 where n.request_id = %s
 order by p.slug, n.sequence
"""


@dataclass(frozen=True)
class PartnerLine:
    """Where one partner stands with one request. ``delivery`` is our state, ``handling`` is the partner's word.

    ``closed_at`` and ``closed_reason`` are a person's, who ended it by hand; the partner may still answer.
    """

    partner: str
    sequence: int
    kind: str
    delivery: str
    attempts: int
    delivered_at: datetime | None
    handling: str
    acknowledged_at: datetime | None
    respond_by: datetime
    item_count: int
    notice_id: int
    closed_at: datetime | None = None
    closed_reason: str = ""
    withdrawn_at: datetime | None = None


def partner_lines(request: RemovalRequest) -> list[PartnerLine]:
    """List where each partner stands with a request; one that only repeats an earlier one has that one's lines."""
    with connection.cursor() as cursor:
        cursor.execute(PARTNER_LINES, [told_as(request)])
        return [PartnerLine(*row) for row in cursor.fetchall()]


def told_as(request: RemovalRequest) -> int:
    """Say whose notices tell of a request: its own, or those of the earlier one that it repeats."""
    return int(request.pk if request.withdrawn_at else request.repeats_id or request.pk)


# What comes next for each notice of a request, beside its line.
PROSPECTS = """
select n.id, n.planned_at, n.receive_by, n.withdrawn_at is not null, p.state, coalesce(e.state, '') <> 'suspended',
       d.id is not null, greatest(n.sequence - s.packed_through - 1, 0), d.due_at, s.probe_at, x.extend_until
  from removal_notice n
  join removal_stream s on s.partner_id = n.stream_id
  join partners_partner p on p.id = n.stream_id
  left join partners_endpoint e on e.partner_id = p.id
  left join removal_extension x
    on x.stream_id = n.stream_id and x.epoch = n.epoch and x.sequence = n.sequence and x.state = 'asked'
  left join lateral (
      select * from removal_delivery d
       where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence and d.state <> 'split'
       order by d.first_sequence desc limit 1) d on d.last_sequence >= n.sequence
 where n.request_id = %s
"""


def prospects(request: RemovalRequest, lines: Sequence[PartnerLine]) -> dict[int, Prospect]:
    """Read what comes next for each of a request's lines, by notice id; one planned in this moment has none yet."""
    with connection.cursor() as cursor:
        cursor.execute(PROSPECTS, [told_as(request)])
        found = {notice_id: rest for notice_id, *rest in cursor.fetchall()}
    prospects = {}
    for line in lines:
        if line.notice_id not in found:
            continue
        planned_at, receive_by, is_withdrawn, partner, is_open, is_packed, ahead, due_at, probe_at, asked_until = found[
            line.notice_id
        ]
        prospects[line.notice_id] = Prospect(
            delivery=line.delivery,
            handling=line.handling,
            planned_at=planned_at,
            respond_by=line.respond_by,
            receive_by=receive_by,
            is_withdrawn=is_withdrawn,
            is_closed=line.closed_at is not None,
            partner=partner,
            is_endpoint_open=is_open,
            is_packed=is_packed,
            ahead=ahead,
            attempts=line.attempts,
            due_at=due_at,
            probe_at=probe_at,
            asked_until=asked_until,
        )
    return prospects


# A source's requests, in the order of their ids, which is that of time. A repeat stands where the earlier one stands.
REQUEST_LINES = """
select r.public_id, r.kind, r.reason, t.subject, r.usages, r.received_at, r.respond_by,
       stands.state, nullif(stands.outcome, ''), earlier.public_id, r.withdrawn_at, stands.closed_at
  from removal_removalrequest r
  left join removal_removalrequest earlier on earlier.id = r.repeats_id
  join removal_removalrequest stands
    on stands.id = case when r.withdrawn_at is null then coalesce(r.repeats_id, r.id) else r.id end
 cross join lateral (
      select case when count(*) = 1 then min(x.key) end subject
        from (select s.key from removal_requesttarget t join removal_subject s on s.id = t.subject_id
               where t.request_id = r.id limit 2) x) t
 where r.source = %(source)s and r.public_id > %(after)s
   and (%(public_id)s::text is null or r.public_id = %(public_id)s)
   and (%(state)s::text is null or stands.state = %(state)s)
   and (%(subject)s::text is null
        or r.id in (select t.request_id from removal_requesttarget t join removal_subject s on s.id = t.subject_id
                     where s.key = %(subject)s))
 order by r.public_id limit %(limit)s
"""


@dataclass(frozen=True)
class RequestLine:
    """A request as its platform sees it. ``subject`` is None when it is about several."""

    id: str
    kind: str
    reason: str
    subject: str | None
    usages: list[str]
    received_at: datetime
    respond_by: datetime
    state: str
    outcome: str | None
    repeats: str | None
    withdrawn_at: datetime | None
    closed_at: datetime | None


def request_lines(
    *,
    source: str,
    limit: int,
    after: str = "",
    public_id: str | None = None,
    subject: str | None = None,
    state: str | None = None,
) -> list[RequestLine]:
    """List up to ``limit`` requests of a source whose public id comes after ``after``; None means any."""
    wanted: dict[str, str | int | None] = {
        "source": source,
        "after": after,
        "limit": limit,
        "public_id": public_id,
        "subject": subject,
        "state": state,
    }
    with connection.cursor() as cursor:
        cursor.execute(REQUEST_LINES, wanted)
        return [RequestLine(*row) for row in cursor.fetchall()]


def find_request(*, source: str, public_id: str) -> tuple[RequestLine, list[PartnerLine]]:
    """Find one request of a source, and where each partner stands with it. Raises UnknownRequest."""
    request = RemovalRequest.objects.filter(source=source, public_id=public_id).first()
    if request is None:
        raise UnknownRequest(public_id)
    [line] = request_lines(source=source, public_id=public_id, limit=1)
    return line, partner_lines(request)


def find_release(*, name: str) -> Release:
    """Find a release, with its dataset. Raises UnknownRelease."""
    release = Release.objects.select_related("dataset").filter(name=name).first()
    if release is None:
        raise UnknownRelease(name)
    return release


# Which parts of a manifest are here, as ranges of numbers, with what they hold.
UPLOADED = """
select min(number), max(number), sum(subject_count)::bigint, sum(item_count)::bigint
  from (select *, number - row_number() over (order by number) run from removal_manifestpart where release_id = %s) x
 group by run order by 1
"""


@dataclass(frozen=True)
class UploadedParts:
    """What has come so far of a manifest in parts: ranges of their numbers [first, last], and what these hold."""

    parts: list[tuple[int, int]]
    subjects: int
    items: int


def release_progress(*, name: str) -> tuple[Release, UploadedParts | None]:
    """Find a release and, while it is building from parts, what has come of it. Raises UnknownRelease."""
    release = find_release(name=name)
    if release.state != Release.State.BUILDING:
        return release, None
    with connection.cursor() as cursor:
        cursor.execute(UPLOADED, [release.pk])
        ranges = cursor.fetchall()
    if not ranges:
        return release, None
    return release, UploadedParts(
        parts=[(first, last) for first, last, *_ in ranges],
        subjects=sum(subjects for *_, subjects, _ in ranges),
        items=sum(items for *_, items in ranges),
    )


# A notice that was sent, with the releases that it is about.
SENT_NOTICE = """
select n.request_id, n.withdrawn_at is not null,
       array(select distinct d.release_id from removal_disclosure d where d.id = any(n.disclosures))
  from removal_notice n
  join removal_stream s on s.partner_id = n.stream_id and s.epoch = n.epoch
 where s.partner_id = %(partner)s and s.epoch = %(epoch)s and n.sequence = %(sequence)s
   and (n.sequence <= s.packed_through or s.served @> n.sequence)
"""

# Its targets that these releases hold, from one subject on: as many as a page has room for, and whether more follow.
NOTICE_ITEMS = """
with
held as materialized (
    select t.subject_id, sum(m.item_count) items
      from removal_requesttarget t
      join removal_manifestentry m on m.subject_id = t.subject_id and m.release_id = any(%(releases)s)
     where t.request_id = %(request)s and t.subject_id > %(after)s
       and (t.items is null or removal_items_meet(m.items, t.items))
     group by 1 order by 1 limit %(limit)s + 1),
page as materialized (
    select subject_id
      from (select subject_id, row_number() over w place, sum(items) over w - items items_before
              from held window w as (order by subject_id)) x
     where place <= %(limit)s and items_before < %(max_items)s)
select s.id, s.key,
       array(select distinct i.item
               from removal_manifestentry m
              cross join unnest(coalesce(removal_items_in_both(m.items, t.items), m.items)) i(item)
              where m.subject_id = t.subject_id and m.release_id = any(%(releases)s) order by i.item),
       (select count(*) from held) > (select count(*) from page)
  from page p
  join removal_requesttarget t on t.request_id = %(request)s and t.subject_id = p.subject_id
  join removal_subject s on s.id = t.subject_id
 order by s.id
"""

# A page ends early when its subjects hold more items than this; one subject always fits.
PAGE_ITEMS = 100_000


@dataclass(frozen=True)
class ItemPage:
    """Some of what a notice is about: (subject, distinct items) pairs, and the subject id to go on after, if any."""

    entries: list[tuple[str, list[str]]]
    next_after: int | None


def notice_items(*, partner_id: int, epoch: int, sequence: int, after: int, limit: int) -> ItemPage:
    """List what a partner holds of a notice's targets, by subject. None of it when the wish was withdrawn.

    In the identifiers that the partner is told today; a page of hashed ones is in their order, not in ours.
    Raises UnknownNotice also for a number that exists and was neither sent nor pulled yet, or of another epoch.
    """
    with connection.cursor() as cursor:
        cursor.execute(SENT_NOTICE, {"partner": partner_id, "epoch": epoch, "sequence": sequence})
        notice = cursor.fetchone()
        if notice is None:
            raise UnknownNotice(sequence)
        request_id, is_withdrawn, releases = notice
        if is_withdrawn:
            return ItemPage([], None)
        cursor.execute(
            NOTICE_ITEMS,
            {"request": request_id, "releases": releases, "after": after, "limit": limit, "max_items": PAGE_ITEMS},
        )
        rows = cursor.fetchall()
    more = bool(rows) and rows[-1][3]
    names = Identifiers.for_partner(partner_id)
    entries = [(names.subject(subject), names.items(subject, items)) for _, subject, items, _ in rows]
    return ItemPage(entries if names.is_raw else sorted(entries), rows[-1][0] if more else None)
