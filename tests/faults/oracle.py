"""What is compared once everything is healed: our rows, the partners' own logs, and what the API's clients were told.

Each function lists what is wrong, in words; an empty list is the only good answer.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import connection

from removal import invariants
from removal.models import Attempt, Delivery, Disclosure, Notice, RemovalRequest, Stream

# The partner's clock and the database's are one; this is for the rounding of either.
ROUNDING = timedelta(milliseconds=50)

# Every change of a delivery's state, kept by the database itself, whatever code made it.
WATCH_DELIVERIES = """
create table faults_delivery_change (
    at timestamptz not null default clock_timestamp(), id uuid, old_state text, new_state text, old_fence int,
    new_fence int, delivered_by text);
create function faults_note_change() returns trigger language plpgsql as $$ begin
    insert into faults_delivery_change (id, old_state, new_state, old_fence, new_fence, delivered_by)
    values (new.id, old.state, new.state, old.fence, new.fence, new.delivered_by);
    return null;
end $$;
create trigger faults_watch after update on removal_delivery for each row
    when (old.state is distinct from new.state or old.fence is distinct from new.fence)
    execute function faults_note_change();
"""
# What may follow what, and under which fence. An answer by API may end a message that waits; a try, only one under way.
WRONG_CHANGES = """
select id, old_state, new_state, old_fence, new_fence, delivered_by from faults_delivery_change
 where new_fence < old_fence
    or old_state in ('delivered', 'split')
    or new_state = 'sending' and not (old_state = 'waiting' and new_fence > old_fence)
    or old_state = 'waiting' and new_state = 'delivered' and delivered_by = 'response'
 order by at
"""
# An attempt moved its message although it had been given up, or a newer one had moved it before.
STALE_RECORDS = """
with moved as (
    select id, about->>'delivery' delivery, (about->>'attempt')::int attempt from removal_logentry
     where action like 'attempt\\_%' and action <> 'attempt_abandoned' and about ? 'delivery_state')
select delivery, attempt from moved m
 where exists (select from removal_logentry l
                where l.action = 'attempt_abandoned' and l.about->>'delivery' = m.delivery
                  and (l.about->>'attempt')::int = m.attempt)
    or exists (select from moved o where o.delivery = m.delivery and o.attempt > m.attempt and o.id < m.id)
"""


@dataclass(frozen=True)
class Call:
    """One call of the API, as its client saw it: ``ok``, ``refused``, or ``unknown`` when no answer came."""

    kind: str
    key: str
    outcome: str
    status: int | None = None
    answer: Any = None


def broken_promises() -> list[str]:
    return [f"invariant {name}: {count}" for name, count in invariants.check().items() if count]


def stale_records() -> list[str]:
    """Find results that counted although the worker that reported them had lost its lease."""
    with connection.cursor() as cursor:
        cursor.execute(STALE_RECORDS)
        return [f"attempt {attempt} of {delivery} counted after its lease" for delivery, attempt in cursor.fetchall()]


def wrong_changes() -> list[str]:
    """Find changes of a delivery that no step may make. Needs WATCH_DELIVERIES."""
    with connection.cursor() as cursor:
        cursor.execute(WRONG_CHANGES)
        return [
            f"delivery {id_} went from {old} (fence {old_fence}) to {new} (fence {fence}) {by}"
            for id_, old, new, old_fence, fence, by in cursor.fetchall()
        ]


def read_log(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    # The last line of a partner that was killed may have been cut; it was not answered then.
    lines = log.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def differences_from_witness(*, slug: str, log: Path, origin: str) -> list[str]:
    """Compare what a partner says it got with what we say we sent it. ``origin`` is the scheme and host of its URLs."""
    wrong: list[str] = []
    stream = Stream.objects.get(partner__slug=slug)
    deliveries = {d.id: d for d in Delivery.objects.filter(stream=stream)}
    attempts: dict[tuple[UUID, str], list[Attempt]] = defaultdict(list)
    # Of one that was given back unsent, no byte may have left.
    tries = Attempt.objects.filter(delivery__stream=stream).exclude(outcome="unsent")
    for attempt in tries.order_by("started_at", "number"):
        attempts[attempt.delivery_id, attempt.url].append(attempt)
    known = {
        (n.epoch, n.sequence): (n.request.public_id, n.kind)
        for n in Notice.objects.filter(stream=stream).select_related("request")
    }

    seen: Counter[tuple[UUID, str]] = Counter()
    yes: dict[UUID, list[datetime]] = defaultdict(list)
    told: set[tuple[int, int]] = set()
    for record in sorted(read_log(log), key=lambda record: float(record["at"])):
        name = f"{slug} {record['id']}"
        at = datetime.fromtimestamp(record["at"], UTC)
        delivery_id = UUID(record["id"].removeprefix("msg_"))
        delivery = deliveries.get(delivery_id)
        if delivery is None or delivery.body_digest is None:
            wrong.append(f"{name}: arrived, and we know of no such message")
            continue
        if bytes(delivery.body_digest).hex() != record["digest"]:
            wrong.append(f"{name}: arrived with other bytes than we keep")
        if record["partner"] != slug or not record["verified"]:
            wrong.append(f"{name}: was not for this partner, or not signed with a key that it knows")
        # Each arrival is one of the tries that began before it, at this address.
        way = (delivery_id, origin + record["path"])
        seen[way] += 1
        if sum(a.started_at <= at + ROUNDING for a in attempts[way]) < seen[way]:
            wrong.append(f"{name}: arrived {seen[way]} times at {way[1]}, which is more than we had tried by then")
        for sequence, request, kind, _ in record["notices"]:
            told.add((record["epoch"], sequence))
            if known.get((record["epoch"], sequence)) != (request, kind):
                wrong.append(f"{name}: number {sequence} stood for {request}, which is not what its notice says")
        if record["status"] is not None and 200 <= record["status"] < 300:
            yes[delivery_id].append(at)

    for (delivery_id, _), of_one in attempts.items():
        for attempt in of_one:
            if "delivered" not in (attempt.outcome, attempt.late_outcome):
                continue
            ended = attempt.finished_at if attempt.outcome == "delivered" else None
            if not any(
                attempt.started_at - ROUNDING <= at and (ended is None or at <= ended + ROUNDING)
                for at in yes[delivery_id]
            ):
                wrong.append(f"{slug} {delivery_id}: attempt {attempt.number} is delivered, and it never said yes")
    wrong += [f"{slug}: number {sequence} never arrived" for _, sequence in sorted(known.keys() - told)]
    return wrong


def differences_from_clients(calls: Iterable[Call], *, source: str) -> list[str]:
    """Hold what clients were told against what is stored: a 2xx is there once, what had no answer at most once."""
    wrong: list[str] = []
    by_key: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.kind, call.key].append(call)
    stored: dict[str, list[str]] = defaultdict(list)
    for key, public_id in RemovalRequest.objects.filter(source=source).values_list("idempotency_key", "public_id"):
        stored[key].append(public_id)
    handovers = Counter(Disclosure.objects.values_list("reference", flat=True))
    handling = {
        f"{slug}/{sequence}": word
        for slug, sequence, word in Notice.objects.values_list("stream__partner__slug", "sequence", "handling")
    }
    for (kind, key), group in by_key.items():
        said_yes = [call for call in group if call.outcome == "ok"]
        if kind == "acknowledgement":
            if said_yes and handling.get(key) != "completed":
                wrong.append(f"{key}: its answer was accepted, and it is {handling.get(key)}")
        elif kind == "handover":
            if handovers[key] > 1 or (said_yes and handovers[key] != 1):
                wrong.append(f"handover {key}: {len(said_yes)} times ok, and stored {handovers[key]} times")
        else:
            ids = {str(call.answer["id"]) for call in said_yes}
            if len(stored[key]) > 1 or (said_yes and ids != set(stored[key])):
                wrong.append(f"{kind} {key}: answered with {sorted(ids)}, and stored as {stored[key]}")
    keys = {key for _, key in by_key}
    wrong += [f"request {key}: stored, and nobody asked for it" for key in stored if key not in keys]
    return wrong
