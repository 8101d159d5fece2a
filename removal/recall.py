"""The publisher takes back what it shared in error: one request about any number of subjects and items.

Accepted lines become the frozen targets of one request, which walks the same path as everyone's. A line that names what
was never in the releases is refused; nothing is guessed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import connection, transaction

from removal import hints
from removal.intake import InvalidWish, KeyReused
from removal.models import LogEntry, Release, RemovalRequest
from removal.models.identifiers import new_ulid
from removal.policies import Asked, request_dates
from removal.transactions import one_transaction

# Refused lines are listed up to here; all of them are counted.
LISTED = 1000


@dataclass(frozen=True)
class Line:
    """One line of a recall. ``items`` None means all that the releases hold of the subject."""

    line: int
    subject: str
    items: list[str] | None


@dataclass(frozen=True)
class Recall:
    """What is taken back, beside its lines. ``releases`` are names of sealed releases."""

    idempotency_key: str
    releases: tuple[str, ...]
    reason: str = RemovalRequest.Reason.SHARED_IN_ERROR
    received_at: datetime | None = None


@dataclass(frozen=True)
class RefusedLine:
    """A line that was not taken, and why."""

    line: int
    code: str


@dataclass(frozen=True)
class Recalled:
    """What became of a recall: the ranges of accepted lines, and the first of the refused ones."""

    public_id: str
    created: bool
    accepted: Sequence[tuple[int, int]] = ()
    accepted_count: int = 0
    refused: Sequence[RefusedLine] = ()
    refused_count: int = 0


STAGE = "create temporary table recalled (line bigint, subject text, items text[]) on commit drop"

# Why a line cannot be taken, or null. What a subject has in several releases is looked at together.
JUDGE = """
create temporary table judged on commit drop as
with known as materialized (
    select g.line, s.id subject_id, row_number() over (partition by g.subject order by g.line) nth
      from recalled g left join removal_subject s on s.key = g.subject),
held as (
    select g.line, count(distinct i.item) items
      from known k
      join recalled g on g.line = k.line
      join removal_manifestentry m on m.subject_id = k.subject_id and m.release_id = any(%(releases)s)
      cross join unnest(coalesce(removal_items_in_both(m.items, g.items), m.items)) i(item)
     group by 1)
select k.line, k.subject_id,
       case when k.nth > 1 then 'repeated_subject'
            when h.items is null then 'not_in_these_releases'
            when h.items < cardinality(g.items) then 'item_not_in_these_releases' end code
  from known k join recalled g on g.line = k.line left join held h on h.line = k.line
"""

# Lines next to each other share their difference from their place among the accepted.
ACCEPTED = """
select min(line), max(line) from (select line, line - row_number() over (order by line) run
                                    from judged where code is null) x
 group by run order by 1
"""
REFUSED = "select line, code from judged where code is not null order by line limit %s"
COUNTS = "select count(*) filter (where code is null), count(code) from judged"

REQUEST = """
insert into removal_removalrequest (public_id, kind, reason, usages, jurisdiction, received_at, recorded_at,
                                    respond_by, confirm_by, extendable_to, tells_person, deadline_policy, source,
                                    idempotency_key, body_digest, state, outcome, release_ids, target_count)
values (%(public_id)s, 'recall', %(reason)s, '{all}', '', %(received_at)s, clock_timestamp(),
        coalesce(%(respond_by)s, ((%(received_at)s at time zone 'UTC') + interval '1 month') at time zone 'UTC'),
        %(confirm_by)s,
        case when %(respond_by)s::timestamptz is null
             then ((%(received_at)s at time zone 'UTC') + interval '3 months') at time zone 'UTC'
             else %(extendable_to)s end, %(tells_person)s, %(policy)s,
        %(source)s, %(key)s, %(digest)s, 'received', '', %(releases)s, %(targets)s)
returning id
"""
TARGETS = """
insert into removal_requesttarget (request_id, subject_id, items)
select %(request)s, j.subject_id, g.items from judged j join recalled g on g.line = j.line where j.code is null
 order by j.subject_id
"""


@one_transaction()
def record_recall(*, source: str, actor: str, recall: Recall, lines: Iterable[Line], now: datetime) -> Recalled:
    """Record a recall in one transaction; memory stays flat. A repeat of its key changes nothing.

    ``lines`` may raise: then nothing is kept. Raises InvalidWish for a release that is unknown or not sealed, or when
    no line can be taken; KeyReused when the key came before with another body.
    """
    if recall.received_at and recall.received_at > now + settings.CLOCK_SKEW:
        raise InvalidWish("received_at", "It lies in the future; send when the error was found.")
    release_ids = _sealed(recall.releases)
    digest = hashlib.sha256(json.dumps([sorted(recall.releases), recall.reason]).encode())
    with connection.cursor() as cursor:
        # The same key twice at once: the second waits, and finds the first's request.
        cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{source} {recall.idempotency_key}"])
        cursor.execute(STAGE)
        with cursor.copy("copy recalled from stdin") as copy:
            for line in lines:
                items = line.items and list(dict.fromkeys(line.items))  # an item named twice is meant once
                copy.write_row((line.line, line.subject, items))
                digest.update(json.dumps([line.subject, line.items]).encode())
        earlier = RemovalRequest.objects.filter(source=source, idempotency_key=recall.idempotency_key).first()
        if earlier:
            if bytes(earlier.body_digest) != digest.digest():
                raise KeyReused(f"The Idempotency-Key was used for request {earlier.public_id} with another body.")
            return Recalled(earlier.public_id, created=False)
        cursor.execute(JUDGE, {"releases": release_ids})
        cursor.execute(COUNTS)
        accepted_count, refused_count = cursor.fetchone()
        cursor.execute(REFUSED, [LISTED])
        refused = [RefusedLine(*row) for row in cursor.fetchall()]
        if not accepted_count:
            if not refused:
                raise InvalidWish("body", "It has no lines. Send a line for each subject.")
            first = refused[0]
            raise InvalidWish("body", f"None of {refused_count} lines can be taken. Line {first.line}: {first.code}.")
        public_id = new_ulid()
        received_at = recall.received_at or now
        [dates] = request_dates(cursor, [Asked("recall", "", received_at)])
        said = vars(dates) | {
            "public_id": public_id,
            "reason": str(recall.reason),
            "received_at": received_at,
            "source": source,
            "key": recall.idempotency_key,
            "digest": digest.digest(),
            "releases": release_ids,
            "targets": accepted_count,
        }
        cursor.execute(REQUEST, said)
        (request_id,) = cursor.fetchone()
        cursor.execute(TARGETS, {"request": request_id})
        cursor.execute(ACCEPTED)
        accepted = cursor.fetchall()
        cursor.execute("drop table recalled, judged")
    LogEntry.objects.create(
        actor=actor,
        action="recall_recorded",
        about={"request": public_id, "releases": release_ids, "targets": accepted_count, "refused": refused_count},
    )
    # Robust: a broker that is down must not fail the request; the sweep finds the row.
    transaction.on_commit(lambda: hints.hint_planner(), robust=True)
    return Recalled(public_id, True, accepted, accepted_count, refused, refused_count)


def _sealed(names: Sequence[str]) -> list[int]:
    found = {release.name: release for release in Release.objects.filter(name__in=names)}
    for name in names:
        if name not in found:
            raise InvalidWish("release", f"There is no release {name}.")
        if found[name].state == Release.State.BUILDING:
            raise InvalidWish("release", f"Release {name} is not sealed, so nobody was given it.")
    if not found:
        raise InvalidWish("release", "Name the releases that it was shared in.")
    return sorted(release.pk for release in found.values())
