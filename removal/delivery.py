"""Send what partners must be told: claim (commit) -> POST, with no transaction open -> record (commit, fenced).

A claim leases ranges of one partner's stream and writes the attempts before the first byte leaves. A result counts
only from the holder of the newest fence. Whoever touches a stream's deliveries locks the stream first (design §7); only
reaping takes them one by one, and skips what is locked.
"""

import random
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import OperationalError, connection
from django.db.backends.utils import CursorWrapper
from psycopg.errors import LockNotAvailable

from partners import signing, webhook
from partners.keys import Signer, signer_for
from removal import acknowledgement, payload
from removal.crashpoints import crashpoint
from removal.models.identifiers import new_id
from removal.transactions import whole_step
from removal.verdict import Verdict, judge

log = structlog.get_logger()

# Results are recorded together: at the latest after this time, since the first of them waits in memory.
RECORD_EVERY_SECONDS = 0.25
# Reaped messages go again at once: their worker died, not their partner.
AFTER_REAPING = timedelta(seconds=1)
# A try ends this long before its lease does, for the time that recording it takes.
LEASE_MARGIN_SECONDS = 1.0
# How many messages whose content was refused may stand aside before new ranges wait as well.
MAX_SUSPECTS = 100


@dataclass(frozen=True)
class Claim:
    """One message that this process may send until its lease ends. Only the newest ``fence`` may record a result."""

    delivery_id: uuid.UUID
    first: int
    last: int
    fence: int
    attempt: int
    url: str
    body: bytes
    signer: Signer
    lease_ends: float  # by time.monotonic(), from before the claim was made

    @property
    def webhook_id(self) -> str:
        return f"msg_{self.delivery_id.hex}"


@dataclass(frozen=True)
class Result:
    """What came of a claim."""

    claim: Claim
    outcome: webhook.Outcome
    verdict: Verdict


# --- claim ---

LOCK_STREAM = """
select s.epoch, s.head, s.packed_through, p.slug, p.state = 'live' and e.state = 'open', e.url,
       e."window", e.max_notices, clock_timestamp()
  from removal_stream s
  join partners_partner p on p.id = s.partner_id
  join partners_endpoint e on e.partner_id = s.partner_id
 where s.partner_id = %s for no key update of s
"""

# What holds places in the window: messages on their way, and messages that wait for another try.
OPEN = """
select count(*) filter (where state = 'sending'), count(*) filter (where not suspect), count(*) filter (where suspect)
  from removal_delivery where stream_id = %s and state in ('waiting', 'sending')
"""

DUE = """
with due as materialized (
    select id from removal_delivery where stream_id = %s and state = 'waiting' and due_at <= clock_timestamp()
     order by due_at, id limit %s for no key update skip locked)
select d.id, d.first_sequence, d.last_sequence, d.epoch, b.body
  from due join removal_delivery d using (id) left join removal_deliverybody b on b.delivery_id = d.id
 order by d.first_sequence
"""

# New messages and due ones take the same step: a lease, a higher fence, an attempt, and bytes if they had none.
CLAIM = """
with message as (
    select * from unnest(%(ids)s::uuid[], %(firsts)s::bigint[], %(lasts)s::bigint[], %(bodies)s::bytea[])
           m(id, first, last, body)),
claimed as (
    insert into removal_delivery as d (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts,
                                       created_at, due_at, lease_until, delivered_by, suspect, body_digest)
    select id, %(stream)s, %(epoch)s, first, last, 'sending', 1, 1,
           clock_timestamp(), clock_timestamp(), clock_timestamp() + %(lease)s, '', false, sha256(body)
      from message
        on conflict (id) do update
       set state = 'sending', fence = d.fence + 1, attempts = d.attempts + 1, lease_until = excluded.lease_until,
           body_digest = excluded.body_digest
    returning d.id, d.fence, d.attempts),
kept as (
    insert into removal_deliverybody (delivery_id, body) select id, body from message on conflict do nothing),
tried as (
    insert into removal_attempt (delivery_id, number, url, key_ids, started_at, outcome, reason, response_excerpt,
                                 late_outcome)
    select id, fence, %(url)s, %(key_ids)s::text[], clock_timestamp(), '', '', '', '' from claimed)
select id, fence, attempts from claimed
"""


@whole_step
def claim_due(*, partner_id: int, patient: bool = True) -> list[Claim]:
    """Lease what the partner is due, as far as its window has room: due messages first, then new ranges.

    ``patient`` waits up to two seconds for the stream's row; otherwise a stream that is busy yields nothing.
    """
    lease_ends = time.monotonic() + settings.DELIVERY_LEASE.total_seconds()
    with connection.cursor() as cursor:
        if patient:
            cursor.execute("set local lock_timeout = '2s'")
        cursor.execute(LOCK_STREAM + ("" if patient else " skip locked"), [partner_id])
        stream = cursor.fetchone()
        if stream is None:
            return []
        epoch, head, packed_through, slug, is_open, url, window, max_notices, now = stream
        if not is_open:
            return []
        acknowledgement.settle_deliveries(cursor, stream_id=partner_id)
        cursor.execute(OPEN, [partner_id])
        sending, steady, suspects = cursor.fetchone()
        limits: dict[str, Any] = {"partner": slug, "head": head, "now": now, "max_notices": max_notices}

        cursor.execute(DUE, [partner_id, max(window - sending, 0)])
        messages: list[tuple[uuid.UUID, int, int, bytes]] = []
        for delivery_id, first, last, of_epoch, body in cursor.fetchall():
            if body is None:  # a half of a split message; it fits into one message, as the whole did
                whole = limits | {"max_notices": last - first + 1}
                [message] = _pack(partner_id, of_epoch, first, last, whole)
                body = message.body
            messages.append((delivery_id, first, last, bytes(body)))

        room = min(window - sending - len(messages), window - steady) if suspects < MAX_SUSPECTS else 0
        if room > 0 and head > packed_through:
            fresh = _pack(partner_id, epoch, packed_through + 1, min(head, packed_through + room * max_notices), limits)
            messages += [(new_id(), message.first, message.last, message.body) for message in fresh[:room]]
            cursor.execute(
                "update removal_stream set packed_through = %s where partner_id = %s", [messages[-1][2], partner_id]
            )
        if not messages:
            return []
        signer = signer_for(partner_id=partner_id, now=now)
        ids, firsts, lasts, bodies = (list(column) for column in zip(*messages, strict=True))
        parameters: dict[str, Any] = {
            "ids": ids, "firsts": firsts, "lasts": lasts, "bodies": bodies, "stream": partner_id, "epoch": epoch,
            "lease": settings.DELIVERY_LEASE, "url": url, "key_ids": list(signer.key_ids),
        }  # fmt: skip
        cursor.execute(CLAIM, parameters)
        leased = {delivery_id: (fence, attempt) for delivery_id, fence, attempt in cursor.fetchall()}
    return [
        Claim(delivery_id, first, last, *leased[delivery_id], url, body, signer, lease_ends)
        for delivery_id, first, last, body in messages
    ]


def _pack(stream_id: int, epoch: int, first: int, last: int, limits: dict[str, Any]) -> list[payload.Message]:
    notices = payload.read_notices(stream_id=stream_id, epoch=epoch, first=first, last=last)
    return payload.pack(notices, epoch=epoch, **limits)


# --- send ---


def send(claim: Claim, *, line: webhook.Line) -> Result:
    """POST one message. No transaction is open; never raises for anything that the partner or the network does."""
    headers = signing.headers(
        message_id=claim.webhook_id, timestamp=int(time.time()), body=claim.body, keys=claim.signer.keys
    )
    headers["Content-Type"] = "application/json"
    # Never past the lease: from then on somebody else may be sending this.
    lease_left = timedelta(seconds=claim.lease_ends - time.monotonic() - LEASE_MARGIN_SECONDS)
    if lease_left > timedelta(0):
        deadline = min(settings.DELIVERY_DEADLINE, lease_left)
        outcome = line.post(url=claim.url, headers=headers, body=claim.body, deadline=deadline)
    else:
        outcome = webhook.Unreachable("timeout", "The lease was over before the first byte.", timedelta(0))
    verdict = judge(
        outcome,
        notices=claim.last - claim.first + 1,
        attempt=claim.attempt,
        jitter=random.uniform(0, 0.5),  # noqa: S311  # spreads retries; nothing secret
    )
    return Result(claim, outcome, verdict)


def drain(*, partner_id: int, budget: timedelta, patient: bool = True) -> bool:
    """Claim, send and record until the partner is due nothing or ``budget`` is spent; True when there may be more."""
    end = time.monotonic() + budget.total_seconds()
    with webhook.Line(
        allow_http=settings.PARTNER_ALLOW_HTTP, allowed_networks=settings.PARTNER_ALLOWED_NETWORKS
    ) as line:
        while time.monotonic() < end:
            try:
                claims = claim_due(partner_id=partner_id, patient=patient)
            except OperationalError as error:
                if isinstance(error.__cause__, LockNotAvailable):
                    return False  # another drain of this partner has been at it for two seconds; so it is not idle
                raise
            if not claims:
                return False
            crashpoint("after_claim")
            answered = False
            for results in _send_all(claims, line=line):
                crashpoint("after_send")
                record(results, partner_id=partner_id)
                answered |= any(not isinstance(result.outcome, webhook.Unreachable) for result in results)
            if not answered:
                return False  # it is down, or hangs: it holds this worker for one deadline, no more
    return True


def _send_all(claims: Sequence[Claim], *, line: webhook.Line) -> Iterator[list[Result]]:
    """Send all claims at once, and yield their results as they come in, a moment's worth together."""
    if len(claims) == 1:
        yield [send(claims[0], line=line)]
        return
    with ThreadPoolExecutor(max_workers=len(claims)) as pool:
        under_way = {pool.submit(send, claim, line=line) for claim in claims}
        while under_way:
            wait(under_way, return_when=FIRST_COMPLETED)
            # Let others of the same moment join: one commit for all of them.
            done, under_way = wait(under_way, timeout=RECORD_EVERY_SECONDS)
            yield [future.result() for future in done]


# --- record ---

RECORD = """
with result as (
    select * from unnest(%(ids)s::uuid[], %(fences)s::int[], %(states)s::text[], %(delays)s::interval[],
                         %(suspects)s::bool[], %(outcomes)s::text[], %(statuses)s::int[], %(reasons)s::text[],
                         %(latencies)s::int[], %(excerpts)s::text[])
           r(id, fence, state, delay, suspect, outcome, status, reason, latency, excerpt)),
judged as (
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
       set state = j.next, lease_until = null, suspect = j.suspect, due_at = clock_timestamp() + j.delay,
           delivered_at = case when j.next = 'delivered' then clock_timestamp() end,
           delivered_by = case when j.next = 'delivered' then 'response' else '' end
      from judged j where d.id = j.id and d.fence = j.fence and d.state = 'sending'
    returning d.id, d.fence, d.state),
closed as (
    update removal_attempt a
       set finished_at = clock_timestamp(), outcome = r.outcome, status = r.status, reason = r.reason,
           latency_ms = r.latency, response_excerpt = r.excerpt
      from result r where a.delivery_id = r.id and a.number = r.fence and a.finished_at is null),
-- The lease was lost: say so on the attempt, and change nothing else.
late as (
    update removal_attempt a set late_outcome = r.outcome
      from result r where a.delivery_id = r.id and a.number = r.fence and a.finished_at is not null
       and a.late_outcome = ''),
logged as (
    insert into removal_logentry (actor, action, about)
    select 'worker', 'attempt_' || r.outcome, jsonb_strip_nulls(jsonb_build_object(
               'partner', %(stream)s::bigint, 'delivery', r.id, 'attempt', r.fence, 'status', r.status,
               'delivery_state', m.state))
      from result r left join moved m on m.id = r.id)
select id, state from moved
"""

# Two children with new ids cover exactly the parent's range.
SPLIT = """
insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, created_at,
                              due_at, delivered_by, suspect, parent_id)
select half.id, d.stream_id, d.epoch, half.first, half.last, 'waiting', 0, 0, clock_timestamp(), clock_timestamp(), '',
       false, d.id
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
CLOSE_INCIDENTS = "update removal_incident set closed_at = clock_timestamp() where stream_id = %s and closed_at is null"
SUSPEND = """
update partners_endpoint set state = 'suspended', state_reason = 'It answered 410 Gone.', changed_at = clock_timestamp()
 where partner_id = %s and url = %s and state = 'open'
"""


@whole_step
def record(results: Sequence[Result], *, partner_id: int) -> None:
    """Write down what came of the claims of one partner, in one transaction.

    A claim whose lease was lost moves nothing: its attempt says what its worker saw too late.
    """
    with connection.cursor() as cursor:
        cursor.execute("select from removal_stream where partner_id = %s for no key update", [partner_id])
        cursor.execute(RECORD, {**_columns(results), "stream": partner_id})
        states = dict(cursor.fetchall())
        for result in results:
            state = states.get(result.claim.delivery_id)
            if state is not None:
                _follow_up(cursor, result, state=state, partner_id=partner_id)
        # The partner may have answered by API while we were sending: what failed then is over all the same.
        acknowledgement.settle_deliveries(cursor, stream_id=partner_id)


def _follow_up(cursor: CursorWrapper, result: Result, *, state: str, partner_id: int) -> None:
    claim, outcome, verdict = result.claim, result.outcome, result.verdict
    if state == "split":
        cursor.execute(SPLIT, {"parent": claim.delivery_id, "left": new_id(), "right": new_id()})
    elif state == "quarantined":
        log.warning("delivery_quarantined", partner_id=partner_id, delivery=claim.webhook_id)
    if isinstance(outcome, webhook.Delivered):
        cursor.execute(CLOSE_INCIDENTS, [partner_id])
        acknowledgement.accept_response(
            cursor, stream_id=partner_id, first=claim.first, last=claim.last, answer=outcome.answer
        )
    elif verdict.incident:
        cursor.execute(OPEN_INCIDENT, [partner_id, verdict.incident])
        if cursor.rowcount:
            log.warning("incident_opened", partner_id=partner_id, kind=verdict.incident)
    if verdict.suspends:
        cursor.execute(SUSPEND, [partner_id, claim.url])


def _columns(results: Sequence[Result]) -> dict[str, list[Any]]:
    outcomes = [result.outcome for result in results]
    return {
        "ids": [result.claim.delivery_id for result in results],
        "fences": [result.claim.fence for result in results],
        "states": [result.verdict.state for result in results],
        "delays": [result.verdict.delay for result in results],
        "suspects": [result.verdict.suspect for result in results],
        "outcomes": [type(outcome).__name__.lower() for outcome in outcomes],
        "statuses": [getattr(outcome, "status", None) for outcome in outcomes],
        "reasons": [_reason(outcome) for outcome in outcomes],
        "latencies": [int(outcome.latency.total_seconds() * 1000) for outcome in outcomes],
        "excerpts": [webhook.excerpt(getattr(outcome, "answer", b"")) for outcome in outcomes],
    }


def _reason(outcome: webhook.Outcome) -> str:
    """Say why a partner was unreachable, for staff."""
    return f"{outcome.reason}: {outcome.detail}"[:200] if isinstance(outcome, webhook.Unreachable) else ""


# --- recover, and find work without a hint ---

REAP = """
with lost as materialized (
    select id, fence, stream_id from removal_delivery where state = 'sending' and lease_until < clock_timestamp()
     order by lease_until limit 500 for no key update skip locked),
freed as (
    -- The fence grows now, so that a worker that wakes up later has lost already.
    update removal_delivery d
       set state = 'waiting', fence = d.fence + 1, lease_until = null, due_at = clock_timestamp() + %(soon)s
      from lost where d.id = lost.id),
abandoned as (
    update removal_attempt a set finished_at = clock_timestamp(), outcome = 'abandoned'
      from lost where a.delivery_id = lost.id and a.number = lost.fence and a.finished_at is null),
logged as (
    insert into removal_logentry (actor, action, about)
    select 'worker', 'attempt_abandoned', jsonb_build_object('partner', stream_id, 'delivery', id, 'attempt', fence)
      from lost)
select count(*) from lost
"""


@whole_step
def reap() -> int:
    """Free the messages of workers that are gone; returns how many. Their outcome is marked as unknown."""
    with connection.cursor() as cursor:
        parameters: dict[str, Any] = {"soon": AFTER_REAPING}
        cursor.execute(REAP, parameters)
        (count,) = cursor.fetchone()
    return int(count)


DUE_PARTNERS = """
select s.partner_id
  from removal_stream s
  join partners_partner p on p.id = s.partner_id and p.state = 'live'
  join partners_endpoint e on e.partner_id = s.partner_id and e.state = 'open'
 where exists (select from removal_delivery d
                where d.stream_id = s.partner_id and d.state = 'waiting' and d.due_at <= clock_timestamp())
    or s.head > s.packed_through
   and e."window" > (select count(*) from removal_delivery d
                      where d.stream_id = s.partner_id and d.state in ('waiting', 'sending') and not d.suspect)
 order by s.partner_id
"""


def due_partners() -> list[int]:
    """List the partners that are due something now and have room in their window."""
    with connection.cursor() as cursor:
        cursor.execute(DUE_PARTNERS)
        return [partner_id for (partner_id,) in cursor.fetchall()]
