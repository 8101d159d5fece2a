"""Lease what partners must be told, and write down what came of it; removal.sending is what happens in between.

A claim leases ranges of one partner's stream and writes the attempts before the first byte leaves. A result counts
only from the holder of the newest fence. Whoever touches a stream's deliveries locks the stream first (design §7); only
reaping takes them one by one, and skips what is locked.
"""

import random
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec
import structlog
from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from partners import webhook
from partners.keys import Signer, signer_for
from removal import acknowledgement, flow, payload, settling
from removal.crashpoints import crashpoint
from removal.flow import Flow
from removal.identifiers import Identifiers
from removal.models.identifiers import new_id
from removal.transactions import whole_step
from removal.verdict import Verdict

log = structlog.get_logger()

# How many messages whose content was refused may stand aside before new ranges wait as well. Then one new notice is
# tried at a time, this long after the last one that was refused: if it arrives, those before it can go into quarantine,
# and if none does, a backlog does not fall apart into single notices.
MAX_SUSPECTS = 100
TRY_ONE_AFTER = timedelta(seconds=5)

# A try at an address that is no longer in use, and did not arrive: it says nothing of the one that is.
ELSEWHERE = Verdict("waiting")


@dataclass(frozen=True)
class Claim:
    """One message that this process may send until its lease ends. Only the newest ``fence`` may record a result.

    ``failures`` counts the tries before this one that failed. A reminder has no range.
    """

    delivery_id: uuid.UUID
    epoch: int
    first: int | None
    last: int | None
    fence: int
    failures: int
    url: str
    body: bytes
    signer: Signer
    lease_ends: float  # by time.monotonic(), from before the claim was made

    @property
    def webhook_id(self) -> str:
        return f"msg_{self.delivery_id.hex}"

    @property
    def notices(self) -> int:
        """How many notices it carries. One message that cannot be halved counts as one."""
        return 1 if self.first is None or self.last is None else self.last - self.first + 1


@dataclass(frozen=True)
class Claimed:
    """What was leased. Where that is nothing though there is something to send, a turn may come ``after`` a while."""

    claims: Sequence[Claim]
    after: timedelta | None = None


@dataclass(frozen=True)
class Result:
    """What came of a claim."""

    claim: Claim
    outcome: webhook.Outcome
    verdict: Verdict


# --- claim ---

# First the lock, and then a look at what holds now: a statement that waited for the one would show the partner and its
# endpoint as they were before.
LOCK_STREAM = "select from removal_stream where partner_id = %s for no key update"
READ_STREAM = """
select s.epoch, s.head, s.packed_through, p.slug, p.state = 'live' and e.state = 'open', e.url,
       e."window", e.max_notices, e.rate_per_second, clock_timestamp(), p.identifiers,
       exists (select from removal_incident i where i.stream_id = s.partner_id and i.closed_at is null),
       coalesce(upper(s.served) > s.packed_through + 1, false),
       s.failures, s.probe_at, s.allowance, s.tokens, s.tokens_at
  from removal_stream s
  join partners_partner p on p.id = s.partner_id
  join partners_endpoint e on e.partner_id = s.partner_id
 where s.partner_id = %s
"""
KEEP_STREAM = """
update removal_stream
   set packed_through = %(packed_through)s, failures = %(failures)s, probe_at = %(probe_at)s,
       allowance = %(allowance)s, tokens = %(tokens)s, tokens_at = %(tokens_at)s
 where partner_id = %(stream)s
"""

# What holds places in the window: messages on their way, and messages that wait for another try. Those that a person
# asked for again come last, and hold none while they wait.
OPEN = """
select (select count(*) from removal_delivery where stream_id = %(stream)s and state = 'sending'),
       count(*) filter (where not suspect), count(*) filter (where suspect),
       coalesce(max(created_at) filter (where suspect) > clock_timestamp() - %(try_one_after)s, false),
       exists (select from removal_delivery where stream_id = %(stream)s and state = 'waiting' and resent)
  from removal_delivery where stream_id = %(stream)s and state = 'waiting' and not resent
"""

DUE = """
with due as materialized (
    select id from removal_delivery
     where stream_id = %(stream)s and state = 'waiting' and resent = %(resent)s and due_at <= clock_timestamp()
     order by due_at, id limit %(limit)s for no key update skip locked)
select d.id, d.epoch, d.first_sequence, d.last_sequence, d.abandoned, b.body
  from due join removal_delivery d using (id) left join removal_deliverybody b on b.delivery_id = d.id
 order by d.due_at, d.id
"""

# New messages and due ones take the same step: a lease, a higher fence, an attempt, and bytes if they had none.
CLAIM = """
with message as (
    select id, epoch, first, last, decode(digest, 'hex') digest
      from json_to_recordset(%(messages)s) m(id uuid, epoch int, first bigint, last bigint, digest text)),
claimed as (
    insert into removal_delivery as d (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts,
                                       failures, abandoned, created_at, due_at, lease_until, delivered_by, suspect,
                                       resent, body_digest)
    select id, %(stream)s, epoch, first, last, 'sending', 1, 1, 0, 0,
           clock_timestamp(), clock_timestamp(), clock_timestamp() + %(lease)s, '', false, false, digest
      from message
        on conflict (id) do update
       set state = 'sending', fence = d.fence + 1, attempts = d.attempts + 1, lease_until = excluded.lease_until,
           body_digest = excluded.body_digest
    returning d.id, d.fence, d.failures),
tried as (
    insert into removal_attempt (delivery_id, number, url, key_ids, started_at, outcome, reason, response_excerpt,
                                 late_outcome)
    select id, fence, %(url)s, %(key_ids)s::text[], clock_timestamp(), '', '', '', '' from claimed)
select id, fence, failures from claimed
"""


@dataclass(frozen=True)
class _Stream:
    """The locked row of a stream, with what its partner allows."""

    partner_id: int
    flow: Flow
    epoch: int
    head: int
    packed_through: int
    slug: str
    is_open: bool
    url: str
    window: int
    max_notices: int
    rate: int
    now: datetime
    identifiers: str
    has_incident: bool
    is_served_ahead: bool  # a pull has handed out numbers that are in no message yet


def _lock_stream(cursor: CursorWrapper, partner_id: int, *, or_skip: bool = False) -> _Stream | None:
    cursor.execute(LOCK_STREAM + (" skip locked" if or_skip else ""), [partner_id])
    if cursor.fetchone() is None:
        return None
    cursor.execute(READ_STREAM, [partner_id])
    row = cursor.fetchone()
    return _Stream(partner_id, Flow(*row[13:]), *row[:13])


def _keep(cursor: CursorWrapper, stream: _Stream, *, packed_through: int, kept: Flow) -> None:
    if (packed_through, kept) != (stream.packed_through, stream.flow):
        cursor.execute(KEEP_STREAM, {"stream": stream.partner_id, "packed_through": packed_through, **vars(kept)})


@whole_step
def claim(*, partner_id: int, patient: bool = True, most: int = 100, probing: bool = True) -> Claimed:
    """Lease what the partner is due, as far as its window, its rate and its breaker have room.

    Due messages come first, then new ranges, then what a person asked for again. ``patient`` waits up to two seconds
    for the stream's row; otherwise a stream that is busy yields nothing. Without ``probing``, a partner is left alone
    that has not answered its last try, and what somebody who waits for its answer can claim next is left to them.
    """
    lease_ends = _lease_end()
    with connection.cursor() as cursor:
        if patient:
            cursor.execute("set local lock_timeout = '2s'")
        stream = _lock_stream(cursor, partner_id, or_skip=not patient)
        if stream is None:
            return Claimed([])
        settling.settle_deliveries(cursor, stream_id=partner_id)
        return _claim(cursor, stream, most=most, probing=probing, beside_others=probing, lease_ends=lease_ends)


def _lease_end() -> float:
    """Say when a lease ends that is about to be taken: by our clock, from before the database's begins."""
    return time.monotonic() + settings.DELIVERY_LEASE.total_seconds()


def _claim(
    cursor: CursorWrapper, stream: _Stream, *, most: int, probing: bool, beside_others: bool, lease_ends: float
) -> Claimed:
    if not stream.is_open or (stream.flow.failures and not probing):
        return Claimed([])
    parameters: dict[str, Any] = {"stream": stream.partner_id, "try_one_after": TRY_ONE_AFTER}
    cursor.execute(OPEN, parameters)
    sending, waiting, suspects, has_new_suspect, has_resent = cursor.fetchone()
    # Whoever sends to it now claims again with its answers. If it hangs, one worker more would only hang beside them.
    if sending and not beside_others and stream.head - stream.packed_through <= most * stream.max_notices:
        return Claimed([])
    room = flow.room(stream.flow, window=stream.window, rate=stream.rate, sending=sending, now=stream.now)
    room = min(room, most)
    messages = _due(cursor, stream, room, resent=False) if waiting + suspects else []
    packed_through = stream.packed_through
    if not any(one.abandoned for one in messages):
        places = min(room - len(messages), stream.window - sending - waiting)
        if suspects >= MAX_SUSPECTS and places > 0:
            stream, places = replace(stream, max_notices=1), int(not (sending or messages or has_new_suspect))
        if places > 0 and stream.is_served_ahead:
            # What was pulled is not sent; one message at a time, so that the next one looks again where it begins.
            packed_through = settling.pack_pulled(cursor, stream_id=stream.partner_id) or packed_through
            stream, places = replace(stream, packed_through=packed_through), 1
        if places > 0 and stream.head > packed_through:
            messages += _fresh(stream, places)
            packed_through = messages[-1].last or packed_through
        if has_resent:
            messages += _due(cursor, stream, room - len(messages), resent=True, beside=messages)
    if not messages:
        is_limited = flow.waits_for_rate(
            stream.flow, window=stream.window, rate=stream.rate, sending=sending, now=stream.now
        )
        return Claimed([], after=timedelta(seconds=1 / stream.rate) if is_limited else None)
    kept = flow.started(stream.flow, len(messages), rate=stream.rate, now=stream.now)
    _keep(cursor, stream, packed_through=packed_through, kept=kept)
    signer = signer_for(partner_id=stream.partner_id, now=stream.now)
    leased = _lease(cursor, stream, messages, signer=signer)
    crashpoint("before_claim_commit")
    return Claimed(
        [
            Claim(one.id, one.epoch, one.first, one.last, *leased[one.id], stream.url, one.body, signer, lease_ends)
            for one in sorted(messages, key=lambda one: (one.first is None, one.epoch, one.first or 0))
        ]
    )


@dataclass(frozen=True)
class _Message:
    """A range about to be leased; ``abandoned`` counts the workers in a row that died of it, or beside it.

    ``is_kept`` tells that the database has its bytes already.
    """

    id: uuid.UUID
    epoch: int
    first: int | None
    last: int | None
    body: bytes
    is_kept: bool = False
    abandoned: int = 0


def _due(
    cursor: CursorWrapper, stream: _Stream, limit: int, *, resent: bool, beside: Sequence[_Message] = ()
) -> list[_Message]:
    """Find the messages whose time has come. One that was abandoned stands alone: it may be what kills its workers."""
    if limit <= 0:
        return []
    cursor.execute(DUE, {"stream": stream.partner_id, "resent": resent, "limit": limit})
    rows = cursor.fetchall()
    is_alone = bool(rows) and not beside and rows[0][4] > 0
    rows = rows[:1] if is_alone else [row for row in rows if not row[4]]
    messages = []
    for delivery_id, epoch, first, last, abandoned, body in rows:
        if body is None:  # a half of a split message, or numbers that were pulled and are asked for again
            message, *rest = _pack(stream, epoch, first, last, max_notices=last - first + 1, most=2)
            if rest:  # halves may fit; they are due at once
                cursor.execute(HALVE, {"delivery": delivery_id})
                cursor.execute(SPLIT, {"parent": delivery_id, "left": new_id(), "right": new_id()})
                continue
            messages.append(_Message(delivery_id, epoch, first, last, message.body, abandoned=abandoned))
        else:
            kept = bytes(body)
            messages.append(_Message(delivery_id, epoch, first, last, kept, is_kept=True, abandoned=abandoned))
    return messages


def _fresh(stream: _Stream, places: int) -> list[_Message]:
    """Pack the numbers that are in no message yet into at most ``places`` new ones."""
    first = stream.packed_through + 1
    last = min(stream.head, stream.packed_through + places * stream.max_notices)
    packed = _pack(stream, stream.epoch, first, last, max_notices=stream.max_notices, most=places)
    return [_Message(new_id(), stream.epoch, one.first, one.last, one.body) for one in packed]


def _pack(stream: _Stream, epoch: int, first: int, last: int, *, max_notices: int, most: int) -> list[payload.Message]:
    envelope = payload.Envelope(stream.slug, epoch, stream.head, stream.now)
    return payload.read_messages(
        stream_id=stream.partner_id,
        first=first,
        last=last,
        max_notices=max_notices,
        most=most,
        envelope=envelope,
        identifiers=Identifiers.of(stream.partner_id, stream.identifiers),
    )


def _lease(
    cursor: CursorWrapper, stream: _Stream, messages: Sequence[_Message], *, signer: Signer
) -> dict[uuid.UUID, tuple[int, int]]:
    """Lease messages and write their attempts; returns the fence and the earlier failures of each."""
    rows = [
        {"id": one.id, "epoch": one.epoch, "first": one.first, "last": one.last, "digest": sha256(one.body).hexdigest()}
        for one in messages
    ]
    parameters: dict[str, Any] = {
        "messages": msgspec.json.encode(rows).decode(),
        "stream": stream.partner_id,
        "lease": settings.DELIVERY_LEASE,
        "url": stream.url,
        "key_ids": list(signer.key_ids),
    }
    cursor.execute(CLAIM, parameters)
    leased = {delivery_id: (fence, failures) for delivery_id, fence, failures in cursor.fetchall()}
    with cursor.copy("copy removal_deliverybody (delivery_id, body) from stdin (format binary)") as copy:
        copy.set_types(["uuid", "bytea"])
        for one in messages:
            if not one.is_kept:
                copy.write_row((one.id, one.body))
    return leased


# --- record ---

RECORD = """
with result as (
    select * from json_to_recordset(%(results)s)
           r(id uuid, fence int, state text, delay float, suspect bool, outcome text, status int, reason text,
             latency int, excerpt text)),
judged as materialized (
    -- A single notice is quarantined at a later refusal, if the endpoint took another message since the one before.
    select r.*, case when r.suspect and d.suspect and exists (
                         select from removal_delivery o
                          where o.stream_id = d.stream_id and o.state = 'delivered' and o.delivered_by = 'response'
                            and o.delivered_at > (
                                select max(a.started_at) from removal_attempt a
                                 where a.delivery_id = d.id and a.status in (400, 413, 422)))
                     then 'quarantined' else r.state end next
      from result r join removal_delivery d on d.id = r.id),
moved as (
    update removal_delivery d
       set state = j.next, lease_until = null, suspect = j.suspect,
           due_at = clock_timestamp() + make_interval(secs => j.delay), abandoned = 0,
           -- what is to go again at once has not failed: it went to an address that is no longer in use
           failures = d.failures + (j.next = 'split' or j.delay > 0)::int,
           -- of a message that was sent again, the first arrival counts
           delivered_at = case when j.next = 'delivered' then coalesce(d.delivered_at, clock_timestamp())
                               else d.delivered_at end,
           delivered_by = case when j.next = 'delivered' and d.delivered_by = '' then 'response'
                               else d.delivered_by end
      from judged j where d.id = j.id and d.fence = j.fence and d.state = 'sending'
    returning d.id, d.fence, d.state),
closed as (
    update removal_attempt a
       set finished_at = clock_timestamp(), outcome = r.outcome, status = r.status, reason = r.reason,
           latency_ms = r.latency, response_excerpt = r.excerpt
      from moved m join result r using (id)
     where a.delivery_id = m.id and a.number = m.fence and a.finished_at is null),
logged as (
    insert into removal_logentry (actor, action, about)
    select 'worker', 'attempt_' || r.outcome, jsonb_strip_nulls(jsonb_build_object(
               'partner', %(stream)s::bigint, 'delivery', r.id, 'attempt', r.fence, 'status', r.status,
               'delivery_state', m.state))
      from result r left join moved m on m.id = r.id)
select id, state from moved
"""

# The lease was lost: say so on the attempt, and change nothing else. A statement of its own, to see the attempt as
# whoever took the lease away left it.
LATE = """
update removal_attempt a set late_outcome = r.outcome
  from json_to_recordset(%(results)s) r(id uuid, fence int, outcome text)
 where a.delivery_id = r.id and a.number = r.fence and a.finished_at is not null and a.late_outcome = ''
"""

# What was never packed, and is too long for one message.
HALVE = "update removal_delivery set state = 'split' where id = %(delivery)s"

# Two children with new ids cover exactly the parent's range.
SPLIT = """
insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, created_at,
                              due_at, failures, abandoned, delivered_by, suspect, resent, parent_id)
select half.id, d.stream_id, d.epoch, half.first, half.last, 'waiting', 0, 0, clock_timestamp(), clock_timestamp(),
       0, 0, '', false, d.resent, d.id
  from removal_delivery d
  cross join lateral (values
      (%(left)s::uuid, d.first_sequence, (d.first_sequence + d.last_sequence) / 2),
      (%(right)s::uuid, (d.first_sequence + d.last_sequence) / 2 + 1, d.last_sequence)) half(id, first, last)
 where d.id = %(parent)s
"""

OPEN_INCIDENT = """
insert into removal_incident (stream_id, kind, opened_at) values (%s, %s, clock_timestamp())
on conflict (stream_id, kind) where closed_at is null do nothing
"""
# That an endpoint takes messages does not prove that it verifies them: that incident ends with a verification.
CLOSE_INCIDENTS = """
update removal_incident set closed_at = clock_timestamp()
 where stream_id = %s and closed_at is null and kind <> 'verification'
"""
SUSPEND = """
update partners_endpoint set state = 'suspended', state_reason = 'It answered 410 Gone.', changed_at = clock_timestamp()
 where partner_id = %s and url = %s and state = 'open'
"""


FAILING = """
select count(*) from removal_delivery
 where stream_id = %s and state = 'waiting' and not suspect and failures > 0
"""
DUE_NOW = """
update removal_delivery set due_at = clock_timestamp()
 where stream_id = %s and state = 'waiting' and not suspect and due_at > clock_timestamp()
"""


@whole_step
def record(results: Sequence[Result], *, partner_id: int, unsent: Collection[Claim] = ()) -> None:
    """Write down what came of the claims of one partner, in one transaction.

    ``unsent`` are given back: of them no byte has left. A claim whose lease was lost moves nothing: its attempt says
    what its worker saw too late.
    """
    with connection.cursor() as cursor:
        _record(cursor, results, partner_id=partner_id, unsent=unsent)
        crashpoint("before_record_commit")


@whole_step
def record_and_claim(
    results: Sequence[Result],
    *,
    partner_id: int,
    unsent: Collection[Claim] = (),
    most: int = 100,
    probing: bool = True,
) -> Claimed:
    """Do what ``record`` and then what ``claim`` does, in one transaction: a commit costs as much as many messages."""
    lease_ends = _lease_end()
    with connection.cursor() as cursor:
        stream = _record(cursor, results, partner_id=partner_id, unsent=unsent)
        crashpoint("before_record_commit")
        if stream is None:
            return Claimed([])
        return _claim(cursor, stream, most=most, probing=probing, beside_others=True, lease_ends=lease_ends)


def _record(
    cursor: CursorWrapper, results: Sequence[Result], *, partner_id: int, unsent: Collection[Claim]
) -> _Stream | None:
    """Record results, and return the stream as it is then; None where there is no such stream."""
    stream = _lock_stream(cursor, partner_id)
    if stream is None:
        return None
    if any(result.claim.url != stream.url for result in results):
        results = [_judge_again(result, url=stream.url) for result in results]
    cursor.execute(RECORD, {"results": _as_json(results), "stream": partner_id})
    states = dict(cursor.fetchall())
    current = [result for result in results if result.claim.delivery_id in states]
    if late := [result for result in results if result.claim.delivery_id not in states]:
        cursor.execute(LATE, {"results": _as_json(late)})
    if stream.has_incident and any(isinstance(result.outcome, webhook.Delivered) for result in current):
        cursor.execute(CLOSE_INCIDENTS, [partner_id])
    for result in current:
        _follow_up(cursor, result, state=states[result.claim.delivery_id], partner_id=partner_id)
    if unsent:
        _give_back(cursor, unsent, partner_id=partner_id)
    kept = _let_flow(cursor, stream, current)
    if unsent or any(state != "delivered" for state in states.values()):
        # The partner may have answered by API while we were sending: what failed then is over all the same.
        settling.settle_deliveries(cursor, stream_id=partner_id)
    is_suspended = any(result.verdict.suspends for result in current)
    return replace(stream, flow=kept, is_open=stream.is_open and not is_suspended)


def _judge_again(result: Result, *, url: str) -> Result:
    """Judge by the address that is in use now: what failed elsewhere is sent there at once."""
    if result.claim.url == url or isinstance(result.outcome, webhook.Delivered):
        return result
    return replace(result, verdict=ELSEWHERE)


def _let_flow(cursor: CursorWrapper, stream: _Stream, results: Sequence[Result]) -> Flow:
    """Open or close the stream's breaker by what its endpoint answered; returns what holds from now on."""
    results = [result for result in results if result.verdict is not ELSEWHERE]
    answered = sum(result.verdict.is_answer for result in results)
    failing = 0
    if not answered:
        cursor.execute(FAILING, [stream.partner_id])
        (failing,) = cursor.fetchone()
    asked = [wait for wait in (getattr(result.outcome, "retry_after", None) for result in results) if wait]
    answers = flow.Answers(answered, len(results) - answered, failing, max(asked, default=None))
    kept = flow.settled(stream.flow, answers, now=stream.now, jitter=random.uniform(0, 0.5))  # noqa: S311
    _keep(cursor, stream, packed_through=stream.packed_through, kept=kept)
    if kept.is_open != stream.flow.is_open:
        if not kept.is_open:
            cursor.execute(DUE_NOW, [stream.partner_id])
        log.warning("breaker_opened" if kept.is_open else "breaker_closed", partner_id=stream.partner_id)
    return kept


GIVE_BACK = """
with given as (select * from unnest(%(ids)s::uuid[], %(fences)s::int[]) g(id, fence)),
freed as (
    update removal_delivery d set state = 'waiting', lease_until = null, due_at = clock_timestamp()
      from given g where d.id = g.id and d.fence = g.fence and d.state = 'sending'
    returning d.id, d.fence),
closed as (
    update removal_attempt a set finished_at = clock_timestamp(), outcome = 'unsent'
      from freed f where a.delivery_id = f.id and a.number = f.fence and a.finished_at is null)
insert into removal_logentry (actor, action, about)
select 'worker', 'attempt_unsent', jsonb_build_object('partner', %(stream)s::bigint, 'delivery', id, 'attempt', fence)
  from freed
"""


def _give_back(cursor: CursorWrapper, unsent: Collection[Claim], *, partner_id: int) -> None:
    parameters: dict[str, Any] = {
        "ids": [claim.delivery_id for claim in unsent],
        "fences": [claim.fence for claim in unsent],
        "stream": partner_id,
    }
    cursor.execute(GIVE_BACK, parameters)


def _follow_up(cursor: CursorWrapper, result: Result, *, state: str, partner_id: int) -> None:
    claim, outcome, verdict = result.claim, result.outcome, result.verdict
    if state == "split":
        cursor.execute(SPLIT, {"parent": claim.delivery_id, "left": new_id(), "right": new_id()})
    elif state == "quarantined":
        log.warning("delivery_quarantined", partner_id=partner_id, delivery=claim.webhook_id)
    if isinstance(outcome, webhook.Delivered):
        if claim.first is not None and claim.last is not None:
            acknowledgement.accept_response(
                cursor,
                stream_id=partner_id,
                epoch=claim.epoch,
                first=claim.first,
                last=claim.last,
                answer=outcome.answer,
            )
    elif verdict.incident:
        cursor.execute(OPEN_INCIDENT, [partner_id, verdict.incident])
        if cursor.rowcount:
            log.warning("incident_opened", partner_id=partner_id, kind=verdict.incident)
    if verdict.suspends:
        cursor.execute(SUSPEND, [partner_id, claim.url])


def _as_json(results: Sequence[Result]) -> str:
    rows = [
        {
            "id": result.claim.delivery_id,
            "fence": result.claim.fence,
            "state": result.verdict.state,
            "delay": result.verdict.delay.total_seconds(),
            "suspect": result.verdict.suspect,
            "outcome": type(result.outcome).__name__.lower(),
            "status": getattr(result.outcome, "status", None),
            "reason": _reason(result.outcome),
            "latency": int(result.outcome.latency.total_seconds() * 1000),
            "excerpt": webhook.excerpt(getattr(result.outcome, "answer", b"")),
        }
        for result in results
    ]
    return msgspec.json.encode(rows).decode()


def _reason(outcome: webhook.Outcome) -> str:
    """Say for staff why it was not delivered."""
    return "" if isinstance(outcome, webhook.Delivered) else webhook.explain(outcome)
