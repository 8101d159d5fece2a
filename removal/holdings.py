"""Questions that the ledger answers: who holds what, and what happened meanwhile. Read only.

Each is one statement along primary keys, and takes milliseconds however long the history is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from django.db import connection, transaction

from partners.models import Partner
from removal.intake import UnknownRequest
from removal.models import RemovalRequest
from removal.transactions import read_along_indexes


class UnknownPartner(Exception):
    """No partner has this slug."""


# Of what one partner holds of one subject in one release, so many items are listed.
LISTED_ITEMS = 1000

# A line for each handover of each release that the subject is in. What it gave is gone once the partner has completed
# one notice about all of it, or its offboarding.
HOLDERS = """
select p.slug, r.name, m.item_count, m.items[:%(listed)s], d.usages, d.disclosed_at, d.reference, gone.attested_at
  from removal_subject s
  join removal_manifestentry m on m.subject_id = s.id
  join removal_disclosure d on d.release_id = m.release_id and d.disclosed_at <= %(as_of)s
  join removal_release r on r.id = d.release_id
  join partners_partner p on p.id = d.partner_id
 cross join lateral (
      select min(n.acknowledged_at) attested_at
        from (select t.request_id from removal_requesttarget t
               where t.subject_id = s.id
                 and (t.items is null or cardinality(removal_items_in_both(m.items, t.items)) = m.item_count)
              union all
              select o.id from removal_removalrequest o where o.partner_id = d.partner_id and o.kind = 'offboarding') x
        join removal_notice n on n.request_id = x.request_id and n.stream_id = d.partner_id
       where n.kind <> 'reinstatement' and d.id = any(n.disclosures)
         and n.handling = 'completed' and n.acknowledged_at <= %(as_of)s) gone
 where s.key = %(subject)s
 order by d.disclosed_at, d.id
"""


@dataclass(frozen=True)
class Holder:
    """What one handover gave a partner of a subject: ``items`` are the first thousand of ``items_total``.

    ``removed_at`` is when the partner attested that all of it is gone; None while it has not.
    """

    partner: str
    release: str
    items_total: int
    items: list[str]
    usages: list[str]
    disclosed_at: datetime
    reference: str
    removed_at: datetime | None


def holders_of(*, subject: str, as_of: datetime) -> list[Holder]:
    """List who had received what of a subject by a moment, oldest handover first. Nobody holds an unknown subject."""
    with connection.cursor() as cursor:
        cursor.execute(HOLDERS, {"subject": subject, "as_of": as_of, "listed": LISTED_ITEMS})
        return [Holder(*row) for row in cursor.fetchall()]


RELEASES_OF_PARTNER = """
select r.name, r.state, r.subject_count, r.item_count, count(*), min(d.disclosed_at), max(d.disclosed_at)
  from removal_disclosure d join removal_release r on r.id = d.release_id
 where d.partner_id = %s
 group by r.id order by 6, r.id
"""
# Along the index on what is open.
OPEN_NOTICES = """
select count(*), count(*) filter (where respond_by < %(now)s)
  from removal_notice
 where stream_id = %(partner)s and withdrawn_at is null and closed_at is null
   and handling not in ('completed', 'partially_completed', 'rejected')
"""
OLDEST_NOTICE = """
select n.sequence, r.public_id, n.planned_at, n.respond_by
  from removal_notice n join removal_removalrequest r on r.id = n.request_id
 where n.stream_id = %(partner)s and n.withdrawn_at is null and n.closed_at is null
   and n.handling not in ('completed', 'partially_completed', 'rejected')
 order by n.respond_by, n.id limit 1
"""


@dataclass(frozen=True)
class HeldRelease:
    release: str
    state: str
    subjects: int
    items: int
    handovers: int
    first_disclosed_at: datetime
    last_disclosed_at: datetime


@dataclass(frozen=True)
class OpenNotice:
    sequence: int
    request: str
    planned_at: datetime
    respond_by: datetime


@dataclass(frozen=True)
class Holdings:
    """What a partner was given in all, and what it still has to answer.

    ``items`` counts those of each release; ``oldest`` is the open notice that was, or will be, due first.
    """

    partner: str
    items: int
    releases: Sequence[HeldRelease]
    open_notices: int
    overdue_notices: int
    oldest: OpenNotice | None


def holdings_of(*, partner: str, now: datetime) -> Holdings:
    """Sum up one partner. Raises UnknownPartner."""
    holder = Partner.objects.filter(slug=partner).first()
    if holder is None:
        raise UnknownPartner(partner)
    asked: dict[str, Any] = {"partner": holder.pk, "now": now}
    releases = releases_of(partner_id=holder.pk)
    with connection.cursor() as cursor:
        cursor.execute(OPEN_NOTICES, asked)
        open_notices, overdue = cursor.fetchone()
        cursor.execute(OLDEST_NOTICE, asked)
        oldest = cursor.fetchone()
    return Holdings(
        partner=partner,
        items=sum(release.items for release in releases),
        releases=releases,
        open_notices=open_notices,
        overdue_notices=overdue,
        oldest=OpenNotice(*oldest) if oldest else None,
    )


def releases_of(*, partner_id: int) -> list[HeldRelease]:
    """List what one partner was given, the oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(RELEASES_OF_PARTNER, [partner_id])
        return [HeldRelease(*row) for row in cursor.fetchall()]


# For each partner with a notice of a request: the handovers that its notices name, of those recorded after the request
# and before the partner was told, by a delivery or, if it spoke first, by its own word. One line at least.
WINDOW = """
with
told as materialized (
    select n.stream_id, n.disclosures, least(sent.delivered_at, said.one_at, said.many_at) told_at
      from removal_notice n
     -- its first word, about this number alone or about several
     cross join lateral (
          select (select min(a.received_at) from removal_acknowledgement a
                   where a.stream_id = n.stream_id and a.epoch = n.epoch and a.last_sequence = n.sequence
                     and a.first_sequence = a.last_sequence) one_at,
                 (select min(a.received_at) from removal_acknowledgement a
                   where a.stream_id = n.stream_id and a.epoch = n.epoch and a.first_sequence < a.last_sequence
                     and int8range(a.first_sequence, a.last_sequence + 1) @> n.sequence) many_at) said
      left join lateral (
          select d.delivered_at, d.last_sequence, d.delivered_by from removal_delivery d
           where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence
             and d.state <> 'split'
           order by d.first_sequence desc limit 1) sent
        on sent.last_sequence >= n.sequence and sent.delivered_by <> 'closed'
     where n.request_id = %(request)s),
effect as (select stream_id, min(told_at) at from told group by 1),
named as (select distinct stream_id, d.id from told cross join unnest(disclosures) d(id))
select p.slug, e.at, h.name, h.reference, h.disclosed_at, h.recorded_at
  from effect e
  join partners_partner p on p.id = e.stream_id
  left join lateral (
      select r.name, d.reference, d.disclosed_at, d.recorded_at, d.id
        from named n
        join removal_disclosure d on d.id = n.id
        join removal_release r on r.id = d.release_id
       where n.stream_id = e.stream_id and d.recorded_at > %(received_at)s
         and (e.at is null or d.recorded_at < e.at)) h on true
 order by p.slug, h.recorded_at, h.id
"""


@dataclass(frozen=True)
class Handover:
    release: str
    reference: str
    disclosed_at: datetime
    recorded_at: datetime


@dataclass(frozen=True)
class Window:
    """What a partner was given of a request's content before it was told of it (``told_at`` None: it is not yet)."""

    partner: str
    told_at: datetime | None
    handovers: Sequence[Handover]


def window_of(*, source: str, public_id: str) -> list[Window]:
    """List, for each partner that a request is told to, what slipped through after it was received.

    A handover is seen as soon as the planner has matched it. Raises UnknownRequest.
    """
    request = _find_request(source, public_id)
    asked: dict[str, Any] = {"request": _told_as(request), "received_at": request.received_at}
    with connection.cursor() as cursor:
        cursor.execute(WINDOW, asked)
        rows = cursor.fetchall()
    return [
        Window(partner, told_at, [Handover(*row[2:]) for row in of_partner if row[2] is not None])
        for (partner, told_at), of_partner in groupby(rows, key=lambda row: row[:2])
    ]


# Up to so many targets every entry is looked up; of more, a sample of so many.
COUNTED_TARGETS = 1000
SAMPLED_TARGETS = 1000

COUNT_IN_RELEASES = """
select r.name, r.state, x.subjects, x.items
  from (select m.release_id, count(*) subjects,
               sum(case when t.items is null then m.item_count
                        else cardinality(removal_items_in_both(m.items, t.items)) end)::bigint items
          from removal_requesttarget t
          -- "offset 0" makes it a look-up by subject, however many targets other requests have
          cross join lateral (
              select m.release_id, m.item_count, m.items from removal_manifestentry m
               where m.subject_id = t.subject_id
                 and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m
         where t.request_id = %(request)s
         group by 1) x
  join removal_release r on r.id = x.release_id
 order by r.id
"""
# The sample is spread evenly over the targets: from each of a thousand points the next one is taken. So the time does
# not grow with their number, but for a release that is named and that the sample misses.
FIND_IN_RELEASES = """
with
ends as materialized (
    select (select subject_id from removal_requesttarget where request_id = %(request)s
             order by subject_id limit 1) first,
           (select subject_id from removal_requesttarget where request_id = %(request)s
             order by subject_id desc limit 1) last),
point as materialized (
    select distinct first + (last - first) * n / %(sample)s subject_id
      from ends cross join generate_series(0, %(sample)s) n),
sample as materialized (
    select distinct t.subject_id, t.items
      from point
     cross join lateral (
          select subject_id, items from removal_requesttarget
           where request_id = %(request)s and subject_id >= point.subject_id order by subject_id limit 1) t),
-- "offset 0" makes it a look-up by subject, however little the database knows yet of targets just recorded
seen as materialized (
    select distinct m.release_id
      from sample t
      cross join lateral (
          select release_id from removal_manifestentry m
           where m.subject_id = t.subject_id and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m)
select r.name, r.state, null, null
  from removal_release r
 where r.id in (select release_id from seen)
    or r.id = any(%(named)s::bigint[]) and exists (
          select from removal_requesttarget t
           cross join lateral (
               select from removal_manifestentry m
                where m.subject_id = t.subject_id and m.release_id = r.id
                  and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m
           where t.request_id = %(request)s)
 order by r.id
"""


@dataclass(frozen=True)
class ReleaseWith:
    """A release that holds some of a request's content: how much, or None where that is too much to count."""

    release: str
    state: str
    subjects: int | None
    items: int | None


def releases_with(*, source: str, public_id: str) -> list[ReleaseWith]:
    """List every release, handed over or not, that holds content a request is about. Raises UnknownRequest.

    Of a request about more than a thousand subjects: those it names that do, and others in which one of a thousand of
    its subjects is. A release that it does not name and that holds only a few of them may be missing.
    """
    request = _find_request(source, public_id)
    statement = COUNT_IN_RELEASES if request.target_count <= COUNTED_TARGETS else FIND_IN_RELEASES
    asked = {"request": request.pk, "named": request.release_ids, "sample": SAMPLED_TARGETS}
    with transaction.atomic(), connection.cursor() as cursor:
        read_along_indexes(cursor)
        cursor.execute(statement, asked)
        return [ReleaseWith(*row) for row in cursor.fetchall()]


def _find_request(source: str, public_id: str) -> RemovalRequest:
    request = RemovalRequest.objects.filter(source=source, public_id=public_id).first()
    if request is None:
        raise UnknownRequest(public_id)
    return request


def _told_as(request: RemovalRequest) -> int:
    """Find whose notices tell partners of a request: one that repeats an earlier one has none of its own."""
    return request.pk if request.withdrawn_at else request.repeats_id or request.pk
