"""All that happened with one request, in order of time: read only, a page at a time, at a price that is bounded.

It is put together from the rows that say so themselves; what staff did, pulls, and sending again come from the log.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import Model

from removal import pulling
from removal.models import (
    Acknowledgement,
    Attempt,
    Closing,
    Delivery,
    Escalation,
    Extension,
    LogEntry,
    Notice,
    RemovalRequest,
    RequestExtension,
    Waiver,
)
from removal.reports import told_as

MOST_ENTRIES = 500

# When it happened, what it was, and whose row says so; the newest first, from one place on. Each part reads an index.
HAPPENED = """
with recursive
line as materialized (
    select n.id, n.stream_id, n.epoch, n.sequence, n.planned_at, p.slug,
           -- no reminder names it after this; a minute is for one that was being made
           interval '1 minute' + least(
               n.closed_at, n.withdrawn_at,
               case when removal_handling_rank(n.handling) = 3 then n.acknowledged_at end) over_at
      from removal_notice n join partners_partner p on p.id = n.stream_id
     where n.request_id = %(told_as)s),
-- The message that carries a line's number and, where one was split, those that carried it before.
carrier as (
    select d.id, d.parent_id, l.slug, l.sequence
      from line l
     cross join lateral (
          select * from removal_delivery d
           where d.stream_id = l.stream_id and d.epoch = l.epoch and d.first_sequence <= l.sequence
             and d.state <> 'split'
           order by d.first_sequence desc limit 1) d
     where d.last_sequence >= l.sequence
    union
    select d.id, d.parent_id, c.slug, c.sequence from carrier c join removal_delivery d on d.id = c.parent_id),
wish as (
    select l.slug, l.sequence, x.id, x.asked_at, x.decided_at
      from line l join removal_extension x
        on x.stream_id = l.stream_id and x.epoch = l.epoch and x.sequence = l.sequence),
by_staff as materialized (
    select id, at, action from removal_logentry
     where about ->> 'request' = %(public_id)s and about ? 'request' and actor like 'staff:%%'
       and action <> 'request_extended'),
entry(at, kind, id, slug, sequence) as (
    select x.at, x.kind, x.id::text, '', 0
      from removal_removalrequest r
      left join by_staff w on w.action = 'request_withdrawn'
     cross join lateral (
          values (r.received_at, 'received', r.id), (r.closed_at, 'closed', r.id), (r.ended_at, 'ended', r.id),
                 (r.withdrawn_at, case when w.id is null then 'withdrawn' else 'withdrawn by staff' end,
                  coalesce(w.id, r.id))) x(at, kind, id)
     where r.id = %(request)s and x.at is not null
    union all
    -- What its row does not say any more since it was opened again …
    select x.at, x.kind, g.id::text, '', 0
      from removal_logentry g
     cross join lateral (
          values ((g.about ->> 'closed_at')::timestamptz, 'closed before'), (g.at, 'reopened')) x(at, kind)
     where g.action = 'request_reopened' and g.about ->> 'request' = %(public_id)s
    union all
    -- … or since another answer changed its outcome, which is rare.
    select (about ->> 'closed_at')::timestamptz, 'closed before', id::text, '', 0
      from removal_logentry where action = 'request_outcome_changed' and about ->> 'request' = %(public_id)s
    union all
    select planned_at, 'planned', id::text, slug, sequence from line
    union all
    select a.started_at, 'tried', a.id::text, c.slug, c.sequence
      from carrier c join removal_attempt a on a.delivery_id = c.id
    union all
    select d.delivered_at, 'arrived', d.id::text, c.slug, c.sequence
      from carrier c join removal_delivery d on d.id = c.id
     where d.delivered_at is not null and d.delivered_by <> 'response'
    union all
    select a.received_at, 'answered', a.id::text, l.slug, l.sequence
      from line l join removal_acknowledgement a
        on a.stream_id = l.stream_id and a.epoch = l.epoch and a.last_sequence = l.sequence
       and a.first_sequence = a.last_sequence
    union all
    select a.received_at, 'answered', a.id::text, l.slug, l.sequence
      from line l join removal_acknowledgement a
        on a.stream_id = l.stream_id and a.epoch = l.epoch and a.first_sequence < a.last_sequence
       and int8range(a.first_sequence, a.last_sequence + 1) @> l.sequence
    union all
    select asked_at, 'asked', id::text, slug, sequence from wish
    union all
    select decided_at, 'decided', id::text, slug, sequence from wish where decided_at is not null
    union all
    select c.closed_at, 'given up', c.id::text, l.slug, l.sequence
      from line l join removal_closing c on c.notice_id = l.id
    union all
    select x.at, x.kind, w.id::text, l.slug, l.sequence
      from line l join removal_waiver w on w.notice_id = l.id
     cross join lateral (values (w.asked_at, 'waiver asked'), (w.decided_at, 'waiver decided')) x(at, kind)
     where x.at is not null
    union all
    -- A pull hands out so many numbers at most: those that begin further below do not reach this one.
    select g.at, 'pulled', g.id::text, l.slug, l.sequence
      from line l join removal_logentry g
        on g.action = 'pulled' and g.about ->> 'partner' = l.stream_id::text
       and g.about ? 'first' and (g.about ->> 'first')::bigint between l.sequence - %(most_pulled)s and l.sequence
     where (g.about ->> 'last')::bigint >= l.sequence and (g.about ->> 'epoch')::bigint = l.epoch
    union all
    select g.at, 'sent again', g.id::text, l.slug, l.sequence
      from line l join removal_logentry g
        on g.action = 'messages_sent_again' and g.about ->> 'partner' = l.stream_id::text
       and (g.about ->> 'epoch')::bigint = l.epoch
     where exists (select from jsonb_array_elements(g.about -> 'numbers') run
                    where l.sequence between (run ->> 0)::bigint and (run ->> 1)::bigint)
    union all
    select d.created_at, 'reminded', d.id::text, l.slug, l.sequence
      from line l
      join removal_delivery d on d.stream_id = l.stream_id and d.epoch = l.epoch and d.first_sequence is null
       and d.state <> 'split' and d.created_at between l.planned_at and coalesce(l.over_at, 'infinity')
      join removal_deliverybody b on b.delivery_id = d.id
     where exists (select from jsonb_array_elements(convert_from(b.body, 'UTF8')::jsonb #> '{data,due}') due
                    where (due ->> 'sequence')::bigint = l.sequence)
    union all
    select extended_at, 'extended', request_id::text, '', 0 from removal_requestextension where request_id = %(request)s
    union all
    select raised_at, 'escalated', id::text, '', 0 from removal_escalation where request_id = %(request)s
    union all
    select at, 'staff', id::text, '', 0 from by_staff where action <> 'request_withdrawn')
select distinct on (at, kind, id) at, kind, id, slug, sequence
  from entry
 where %(at)s::timestamptz is null or (at, kind, id) < (%(at)s::timestamptz, %(kind)s, %(id)s)
 order by at desc, kind desc, id desc, sequence limit %(most)s + 1
"""

ROWS: dict[str, type[Model]] = {
    "planned": Notice,
    "tried": Attempt,
    "arrived": Delivery,
    "answered": Acknowledgement,
    "asked": Extension,
    "decided": Extension,
    "given up": Closing,
    "waiver asked": Waiver,
    "waiver decided": Waiver,
    "pulled": LogEntry,
    "sent again": LogEntry,
    "reminded": Delivery,
    "extended": RequestExtension,
    "escalated": Escalation,
    "staff": LogEntry,
    "withdrawn by staff": LogEntry,
    "closed before": LogEntry,
    "reopened": LogEntry,
}


class Place(NamedTuple):
    """Where a page begins: before this entry."""

    at: datetime
    kind: str
    id: str


class Told(NamedTuple):
    """An entry in words: a state for its colour, who did it, what, and somebody's own words with it."""

    state: str
    who: str
    text: str
    words: str = ""


@dataclass(frozen=True)
class Entry:
    """One thing that happened. ``row`` is what says so; ``partner`` is empty where it is about the request itself."""

    at: datetime
    kind: str
    partner: str
    sequence: int
    told: Told
    row: Model


@dataclass(frozen=True)
class Timeline:
    """A page of what happened, the newest last, and where the page of what was before begins, if anything was."""

    entries: list[Entry]
    earlier: Place | None


def timeline_of(request: RemovalRequest, *, before: Place | None = None, most: int = MOST_ENTRIES) -> Timeline:
    """Tell what happened with a request, up to ``most`` entries before a place; without one, the newest.

    One that only repeats an earlier request has that one's notices. Takes one statement, and one for each kind of row.
    """
    wanted: dict[str, Any] = {
        "request": request.pk,
        "told_as": told_as(request),
        "public_id": request.public_id,
        "most": most,
        "most_pulled": pulling.MOST_AT_ONCE,
        **(before or Place(None, "", ""))._asdict(),  # type: ignore[arg-type]  # none: from the newest on
    }
    with connection.cursor() as cursor:
        cursor.execute(HAPPENED, wanted)
        found = cursor.fetchall()
    more, found = len(found) > most, found[:most]
    rows = _read(found)
    entries = []
    for at, kind, row_id, slug, sequence in reversed(found):
        row = rows[ROWS[kind], row_id] if kind in ROWS else request
        entries.append(Entry(at, kind, slug, sequence, _tell(kind, row, request), row))
    return Timeline(entries, Place(*found[-1][:3]) if more else None)


def _read(found: Iterable[tuple[Any, ...]]) -> dict[tuple[type[Model], str], Model]:
    """Read the rows behind entries, each table once."""
    wanted: dict[type[Model], set[str]] = {}
    for _, kind, row_id, *_ in found:
        if kind in ROWS:
            wanted.setdefault(ROWS[kind], set()).add(row_id)
    return {
        (model, str(row.pk)): row for model, ids in wanted.items() for row in model._default_manager.filter(pk__in=ids)
    }


def _tell(kind: str, row: Any, request: RemovalRequest) -> Told:
    match kind:
        case "received":
            return Told("received", request.source, f"Received: {request.get_kind_display()}, {_reason(request)}.")
        case "withdrawn":
            return Told("withdrawn", request.source, "Withdrawn: the wish was taken back.")
        case "withdrawn by staff":
            return Told("withdrawn", row.actor, f"Withdrawn: the wish was taken back{_why(row)}.")
        case "closed":
            return Told(request.outcome, "worker", f"Closed: {request.get_outcome_display()}.")
        case "closed before":
            outcome = row.about["outcome"]
            return Told(outcome, "worker", f"Closed: {RemovalRequest.Outcome(outcome).label}.")
        case "reopened":
            is_late = row.actor == "planner"
            why = "a later handover holds its content" if is_late else "after a restore, partners are asked again"
            return Told("planned", row.actor, f"Reopened: {why}.")
        case "ended":
            return Told("ended", request.source, "Ended by a later request: handovers from here on are not covered.")
        case "planned":
            return Told("planned", "planner", f"Planned as number {row.sequence}: it holds {row.item_count} items.")
        case "tried":
            return _tried(row)
        case "arrived":
            return Told("delivered", "worker", f"Counts as delivered: {row.get_delivered_by_display()}.")
        case "answered":
            return _answered(row)
        case "asked":
            return Told("asked", "partner", f"Asks for time until {_at(row.extend_until)}.", row.reason)
        case "decided":
            word = "gives" if row.state == Extension.State.GRANTED else "refuses"
            text = f"{word.capitalize()} it time until {_at(row.extend_until)}."
            return Told(row.state, row.decided_by, text, row.decision)
        case "given up":
            return Told("closed", f"staff:{row.closed_by_id}", f"Closed by hand: {row.get_reason_display()}.", row.text)
        case "waiver asked":
            text = "Asks a second person to give it up."
            return Told("asked", f"staff:{row.asked_by_id}", text, row.text)
        case "waiver decided":
            return Told(row.state, f"staff:{row.decided_by_id}", f"The waiver is {row.get_state_display()}.")
        case "pulled":
            numbers = f"{row.about['first']} to {row.about['last']}"
            return Told("delivered", row.actor, f"The partner read its stream: numbers {numbers}.")
        case "sent again":
            return Told("waiting", row.actor, "Sent again at a person's wish.")
        case "reminded":
            return Told(row.state, "worker", f"A reminder of what is to be answered: {row.get_state_display()}.")
        case "extended":
            told = f"; the person was told {_at(row.person_told_at)}" if row.person_told_at else ""
            text = f"Its date moves from {_at(row.first_respond_by)} to {_at(row.respond_by)}{told}."
            return Told("extended", row.actor, text, row.reason)
        case "escalated":
            told = f"staff were told {_at(row.bundled_at)}" if row.bundled_at else "staff have not been told yet"
            text = f"{row.level} % of the time to {_at(row.respond_by)} were over: {told}."
            return Told("due_soon" if row.level < 100 else "overdue", "worker", text)
    return Told("staff", row.actor, f"{row.action.replace('_', ' ').capitalize()}{_why(row)}.")


def _why(entry: LogEntry) -> str:
    return f": {entry.about['reason'].replace('_', ' ')}" if entry.about.get("reason") else ""


def _reason(request: RemovalRequest) -> str:
    return f"{request.get_reason_display()}, for {', '.join(request.usages)}"


def _tried(attempt: Attempt) -> Told:
    took = "" if attempt.latency_ms is None else f" after {attempt.latency_ms} ms"
    status = "" if attempt.status is None else f" with HTTP {attempt.status}"
    why = f": {attempt.reason}" if attempt.reason else ""
    said = {
        "delivered": f"arrived{status}{took}.",
        "refused": f"refused{status}{took}{why}.",
        "unreachable": f"not reached{took}{why}.",
        "abandoned": "its worker is gone, and whether it arrived is unknown; it goes again.",
        "unsent": "given back before a byte of it left.",
    }
    text = said.get(attempt.outcome, "on its way.")
    return Told(attempt.outcome or "sending", "worker", f"Attempt {attempt.number}: {text}", attempt.response_excerpt)


def _answered(answer: Acknowledgement) -> Told:
    parts = [answer.get_status_display() + (", amending what it said before" if answer.amends else "")]
    if answer.last_sequence > answer.first_sequence:
        parts[0] += f", of all numbers {answer.first_sequence} to {answer.last_sequence}"
    if answer.reason:
        parts.append(f"reason: {answer.reason}")
    if answer.outcomes:
        parts.append(", ".join(f"{count} {outcome}" for outcome, count in sorted(answer.outcomes.items())))
    if claims := [str(claim.get("claim", "")) for claim in answer.attestations if isinstance(claim, dict)]:
        parts.append(f"attested: {', '.join(claim.replace('_', ' ') for claim in claims)}")
    signed = "signed" if answer.signed_answer_id else "not signed"
    parts.append(f"{answer.get_channel_display()}, {signed}")
    return Told(answer.status, "partner", f"Says: {'; '.join(parts)}.")


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
