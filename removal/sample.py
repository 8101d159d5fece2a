"""A lively desk to try out: partners of every kind, and a year of requests that they have, or have not, answered.

Made by statements over many rows, so that five million requests and twenty million notices take minutes. What is made
keeps every invariant; only messages have no bodies, but for the newest ones of each partner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Any

from django.db import connection

from partners.models import Endpoint, Partner
from removal import intake, ledger, partnerships, payload, planning, verification
from removal.models import Disclosure, Release, RemovalRequest, Stream
from removal.transactions import whole_step

SIZES = {"small": 3_000, "large": 5_000_000}  # requests; four times as many notices
ACTOR = "sample"
HISTORY = timedelta(days=400)
BLOCK = 100_000
WITH_BODY = 20  # of each partner's newest messages


class NotEmpty(Exception):
    """There are partners or requests already; a sample goes only into an empty installation."""


@dataclass(frozen=True)
class Character:
    """How a partner behaves. The shares are of the history: of what is older than that, so much is true.

    ``releases`` are those it holds, of the six there are. ``word`` is what it says of what it has not answered yet;
    ``is_partial`` leaves some items where they are. ``state`` is how it stands now.
    """

    slug: str
    name: str
    releases: tuple[int, ...]
    answered: float
    told: float
    answers_within: timedelta
    word: str = "none"
    is_partial: bool = False
    state: str = "live"


CAST = (
    Character("atlas", "Atlas AI", (0, 1, 2), 0.9995, 1, timedelta(hours=4)),
    Character("borealis", "Borealis Models", (0, 1, 5), 0.97, 1, timedelta(days=10), is_partial=True),
    Character("cobalt", "Cobalt Research (silent)", (1, 2, 3), 0.91, 1, timedelta(days=20)),
    Character("dune", "Dune Labs (paused)", (2, 3, 4), 0.96, 0.97, timedelta(days=8), state="paused"),
    Character("ember", "Ember Search (410)", (3, 4, 5), 0.95, 0.98, timedelta(days=6), state="suspended"),
    Character("fathom", "Fathom Data (certificate expired)", (0, 4, 5), 0.96, 0.985, timedelta(days=5), state="tls"),
    Character("glacier", "Glacier Corpus (slow)", (0, 1, 3, 4), 0.93, 1, timedelta(days=25), word="in_progress"),
    Character("harbor", "Harbor Language", (2, 5), 0.955, 1, timedelta(days=9), word="received"),
)
RELEASES = 6
WINDOW = 4

Progress = Callable[[str, int, int], None]


def make(*, requests: int, now: datetime, progress: Progress = lambda what, done, of: None) -> None:
    """Fill an empty installation with so many requests. Opens its own transactions, one a block. Raises NotEmpty.

    ``progress`` is told what is made, how much of it there is, and how much there will be.
    """
    if Partner.objects.exists() or RemovalRequest.objects.exists():
        raise NotEmpty
    for character in CAST:
        partnerships.add_partner(
            actor=ACTOR, slug=character.slug, name=character.name, url=f"https://{character.slug}.example/removal",
            now=now,
        )  # fmt: skip
        verification.waive(actor=ACTOR, slug=character.slug, reason="There is no endpoint: this is sample data.")
    _fill_ledger(requests, now, progress)
    _set_stage(requests, now)
    for first, last in _blocks(requests):
        _run(RECORDED, {"first": first, "last": last, "batch": _batch(requests), "now": now})
        progress("requests and notices", last, requests)
    _run(("analyze",), {})  # or the statements below are planned for empty tables, and take minutes
    for number, character in enumerate(CAST, start=1):
        _tell(character, requests, now)
        progress("partners' messages and answers", number, len(CAST))
    _take_the_desks_work(now)
    with connection.cursor() as cursor:
        cursor.execute("analyze")


def _blocks(total: int) -> Sequence[tuple[int, int]]:
    """Cut 1..total into runs (first, last)."""
    edges = [*range(0, total, BLOCK), total]
    return [(before + 1, after) for before, after in pairwise(edges)]


# --- the ledger: subject i is in release i modulo six ---

SUBJECTS = """
insert into removal_subject (id, key) select i, 'site:' || i from generate_series(%(first)s::bigint, %(last)s) i
"""
ENTRIES = """
insert into removal_manifestentry (subject_id, release_id, items, item_count, part)
select i, (%(releases)s::bigint[])[1 + (i - 1) %% 6], array['post:' || i || '-1', 'post:' || i || '-2'], 2, 0
  from generate_series(%(first)s::bigint, %(last)s) i
"""
SEAL = f"""
update removal_release r
   set state = 'sealed', sealed_at = %(sealed_at)s, subject_count = x.subjects, item_count = x.items, digest = x.digest
  from ({ledger.SEAL}) x(subjects, items, digest) where r.id = %(release)s
"""


def _fill_ledger(requests: int, now: datetime, progress: Progress) -> None:
    names = [f"posts-{now.year - 1}-{number:02}" for number in range(1, RELEASES + 1)]
    for name in names:
        ledger.create_release(actor=ACTOR, name=name, dataset="posts", source="sample data")
    releases = [Release.objects.get(name=name).pk for name in names]
    subjects = requests + requests // 10  # some have never asked for anything
    for first, last in _blocks(subjects):
        _run((SUBJECTS, ENTRIES), {"first": first, "last": last, "releases": releases})
        progress("subjects", last, subjects)
    _run(("select setval(pg_get_serial_sequence('removal_subject', 'id'), (select max(id) from removal_subject))",), {})
    for number, name in enumerate(names):
        # Sealed before anybody opted out: its own step would do so as of now.
        _run((SEAL,), {"release": releases[number], "sealed_at": now - HISTORY - timedelta(days=31)})
        for character in CAST:
            if number in character.releases:
                ledger.record_disclosure(
                    actor=ACTOR, release=name, partner=character.slug, reference=f"shipment-{number + 1}",
                    disclosed_at=now - HISTORY - timedelta(days=30), usages=("all",), now=now,
                )  # fmt: skip
    planning.plan(budget=timedelta(minutes=1))  # of nothing yet: the handovers are known


@whole_step
def _run(statements: Sequence[str], values: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement, values)


# --- requests and notices ---

STAGE = """
create temporary table sample_holder (
    release_no int, partner_id bigint, disclosure_id bigint, width int, place int,
    answered_through bigint, told_through bigint, answers_within interval, word text, is_partial bool);
create temporary table sample_stage (started_at timestamptz, step interval)
"""


def _set_stage(requests: int, now: datetime) -> None:
    """Note who holds what, and how each behaves, where the statements below can read it."""
    with connection.cursor() as cursor:
        cursor.execute(STAGE)
        stage: list[Any] = [now - HISTORY, HISTORY / requests]
        cursor.execute("insert into sample_stage values (%s, %s)", stage)
        for character in CAST:
            for place, release in enumerate(character.releases, start=1):
                handover = Disclosure.objects.get(partner__slug=character.slug, reference=f"shipment-{release + 1}")
                holder: list[Any] = [
                    release, handover.partner_id, handover.pk, len(character.releases), place,
                    int(requests * character.answered), int(requests * character.told), character.answers_within,
                    character.word, character.is_partial,
                ]  # fmt: skip
                cursor.execute("insert into sample_holder values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", holder)


REQUESTS = """
insert into removal_removalrequest (
    id, public_id, kind, reason, usages, jurisdiction, received_at, recorded_at, respond_by, source, idempotency_key,
    body_digest, state, outcome, closed_at, round)
select i, '01' || upper(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || lpad(to_hex(i), 12, '0')),
       case when i %% 20 = 0 then 'deletion' else 'opt_out' end,
       case when i %% 20 = 0 then 'account_deleted' when i %% 9 = 0 then 'made_private' else 'user_request' end,
       case when i %% 7 = 0 then array['train-ai'] else array['all'] end,
       (array['eu', 'us-ca', ''])[1 + i %% 3], at, at + interval '1 second', at + interval '1 month', 'platform',
       'sample-' || i, sha256(('sample ' || i)::bytea),
       case when i <= h.answered_through then 'closed' else 'planned' end,
       case when i > h.answered_through then ''
            when h.is_partial and (i %% 10 = 7 or i %% 33 = 5) then 'partially_fulfilled' else 'fulfilled' end,
       case when i <= h.answered_through
            then least(at + h.answers_within + (%(batch)s / h.width + 2) * 6 * s.step, %(now)s) end, (i - 1) / 500 + 1
  from generate_series(%(first)s::bigint, %(last)s) i
  cross join sample_stage s
  cross join lateral (select s.started_at + i * s.step - interval '10 minutes' as at) t
  join (select release_no, min(answered_through) answered_through, max(answers_within) answers_within,
               min(width) width, bool_or(is_partial) is_partial
          from sample_holder group by 1) h on h.release_no = (i - 1) %% 6
"""
TARGETS = """
insert into removal_requesttarget (subject_id, request_id)
select i, i from generate_series(%(first)s::bigint, %(last)s) i
"""
PREFERENCES = """
insert into removal_preference (subject_id, usage, value, source, valid_from, request_id)
select r.id, r.usages[1], 'disallow', 'explicit', r.received_at, r.id
  from removal_removalrequest r where r.id between %(first)s and %(last)s and r.kind = 'opt_out'
"""
# Of the requests that a partner is told of, in their order: so many a turn of six, its own place within the turn. What
# one message holds is answered at once, some time after the turn of its last notice.
NOTICES = """
insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round, planned_at,
                            send_by, respond_by, handling, acknowledged_at)
select h.partner_id, 1, n.sequence, r.id, r.kind, array[h.disclosure_id], 2, r.round,
       r.recorded_at, r.recorded_at + interval '24 hours', r.recorded_at + interval '30 days', a.handling,
       case when a.handling <> 'none'
            then least(s.started_at + (((n.batch_no + 1) * %(batch)s - 1) / h.width + 1) * 6 * s.step
                       + h.answers_within * (20 + n.batch_no %% 80) / 100, %(now)s) end
  from removal_removalrequest r
  cross join sample_stage s
  join sample_holder h on h.release_no = (r.id - 1) %% 6
  cross join lateral (select (r.id - 1) / 6 * h.width + h.place as sequence) q
  cross join lateral (select q.sequence, (q.sequence - 1) / %(batch)s batch_no) n
  cross join lateral (
      select case when r.id <= h.answered_through and h.is_partial and r.id %% 10 = 7 then 'partially_completed'
                  when r.id <= h.answered_through and h.is_partial and r.id %% 33 = 5 then 'rejected'
                  when r.id <= h.answered_through then 'completed'
                  when r.id <= h.told_through and h.word = 'in_progress' then 'in_progress'
                  else 'none' end handling) a
 where r.id between %(first)s and %(last)s
"""
# The next request and the next round of anybody come after these.
NUMBERED = """
select setval(pg_get_serial_sequence('removal_removalrequest', 'id'), max(id)),
       setval('removal_planner_round', max(round))
  from removal_removalrequest where id between %(first)s and %(last)s
"""
# What is past is in the log; of a large sample only the newest, which somebody may look at.
LOGGED = """
insert into removal_logentry (actor, action, about, at)
select 'api:sample', 'request_recorded', jsonb_build_object('request', r.id), r.recorded_at
  from removal_removalrequest r where r.id between %(first)s and %(last)s and r.received_at > now() - interval '30 days'
"""


RECORDED = (REQUESTS, TARGETS, PREFERENCES, NOTICES, NUMBERED)


# --- what each partner was sent, and said ---

STREAMS = """
update removal_stream s
   set head = (select coalesce(max(sequence), 0) from removal_notice where stream_id = s.partner_id),
       packed_through = (select coalesce(max(sequence), 0) from removal_notice
                          where stream_id = s.partner_id and request_id <= %(told)s)
 where s.partner_id = %(partner)s
"""
# Every 37th message failed once before it arrived.
DELIVERIES = """
insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, failures,
                              created_at, due_at, delivered_at, delivered_by, suspect, body_digest)
select (lpad(to_hex((extract(epoch from n.planned_at) * 1000)::bigint), 12, '0') || lpad(to_hex(s.partner_id), 8, '0')
        || lpad(to_hex(first), 12, '0'))::uuid,
       s.partner_id, 1, first, n.sequence, 'delivered', t.tries, t.tries, t.tries - 1, n.planned_at, n.planned_at,
       n.planned_at + interval '1 second' + (t.tries - 1) * interval '7 seconds', 'response', false,
       coalesce(k.digest, sha256(('sample ' || first)::bytea))
  from removal_stream s
  cross join generate_series(1, s.packed_through, %(batch)s) first
  join removal_notice n
    on n.stream_id = s.partner_id and n.epoch = 1 and n.sequence = least(first + %(batch)s - 1, s.packed_through)
  cross join lateral (select case when first / %(batch)s %% 37 = 5 then 2 else 1 end tries) t
  left join unnest(%(firsts)s::bigint[], %(digests)s::bytea[]) k(first, digest) using (first)
 where s.partner_id = %(partner)s
"""
BODIES = """
insert into removal_deliverybody (delivery_id, body)
select d.id, k.body
  from unnest(%(firsts)s::bigint[], %(bodies)s::bytea[]) k(first, body)
  join removal_delivery d on d.stream_id = %(partner)s and d.epoch = 1 and d.first_sequence = k.first
"""
ATTEMPTS = """
insert into removal_attempt (delivery_id, number, url, key_ids, started_at, finished_at, outcome, status, reason,
                             latency_ms, response_excerpt, late_outcome)
select d.id, n, e.url, array['key_1'], a.at, a.at + interval '90 milliseconds',
       case when n = d.fence then 'delivered' else 'refused' end, case when n = d.fence then 200 else 503 end,
       case when n = d.fence then '' else 'answered 503; its server is not available now' end,
       20 + d.first_sequence %% 400, case when n = d.fence then '{}' else 'upstream restarting' end, ''
  from removal_delivery d
  join partners_endpoint e on e.partner_id = d.stream_id
  cross join generate_series(1, d.fence) n
  cross join lateral (select d.created_at + (n - 1) * interval '7 seconds' as at) a
 where d.stream_id = %(partner)s
"""
# A line "through N" for each message that is answered as a whole.
ANSWERS = """
with answered as (
    select coalesce(max(sequence), 0) through from removal_notice
     where stream_id = %(partner)s and request_id <= %(answered)s),
line as (
    select first, least(first + %(batch)s - 1, a.through) last
      from answered a cross join generate_series(1, a.through, %(batch)s) first),
said as (
    insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason, amends,
                                         outcomes, attestations, channel, key_prefix, text_digest, received_at)
    select %(partner)s, 1, line.first, line.last, 'completed', '', false, '{}',
           '[{"claim": "removed_from_corpus"}, {"claim": "excluded_from_future_training"}]', 'api', 'rk_sample',
           sha256(convert_to(t.text, 'UTF8')), n.acknowledged_at
      from line
      join removal_notice n on n.stream_id = %(partner)s and n.epoch = 1 and n.sequence = line.last
      cross join lateral (select format('{"through": %%s, "status": "completed"}', line.last) as text) t
    returning id, last_sequence)
insert into removal_acknowledgementtext (acknowledgement_id, text)
select id, format('{"through": %%s, "status": "completed"}', last_sequence) from said
"""
# Beside them a line for each that was answered otherwise, and one for what is under way.
EXCEPTIONS = """
insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason, amends,
                                     outcomes, attestations, channel, key_prefix, text_digest, received_at)
select stream_id, 1, sequence, sequence, handling, case handling when 'rejected' then 'legal_obligation' else '' end,
       false, case handling when 'rejected' then '{}' else '{"removed": 1, "exempt": 1}' end::jsonb, '[]', 'api',
       'rk_sample', sha256('sample'), acknowledged_at
  from removal_notice where stream_id = %(partner)s and handling in ('partially_completed', 'rejected')
"""
UNDER_WAY = """
insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason, amends,
                                     outcomes, attestations, channel, key_prefix, text_digest, received_at)
select stream_id, 1, min(sequence), max(sequence), 'in_progress', '', false, '{}', '[]', 'api', 'rk_sample',
       sha256('sample'), max(acknowledged_at)
  from removal_notice where stream_id = %(partner)s and handling = 'in_progress'
 group by stream_id, (sequence - 1) / %(batch)s
"""
RECEIVED = """
with said as (
    insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason, amends,
                                         outcomes, attestations, channel, key_prefix, text_digest, received_at)
    select partner_id, 1, 1, packed_through, 'received', '', false, '{}', '[]', 'api', 'rk_sample', sha256('sample'),
           now()
      from removal_stream where partner_id = %(partner)s and packed_through > 0)
update removal_stream set received_through = packed_through where partner_id = %(partner)s
"""
# The next messages of a partner that cannot be reached: each was tried nine times.
FAILING = """
with message as (
    select gen_random_uuid() id, first, least(first + %(batch)s - 1, s.head) last, n.planned_at
      from removal_stream s
      cross join generate_series(s.packed_through + 1, least(s.head, s.packed_through + %(batch)s * %(messages)s),
                                 %(batch)s) first
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = 1 and n.sequence = first
     where s.partner_id = %(partner)s),
made as (
    insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, failures,
                                  created_at, due_at, delivered_by, suspect, body_digest)
    select id, %(partner)s, 1, first, last, 'waiting', 9, 9, 9, planned_at, now() + interval '7 hours', '', false,
           sha256('sample') from message),
tried as (
    insert into removal_attempt (delivery_id, number, url, key_ids, started_at, finished_at, outcome, status, reason,
                                 latency_ms, response_excerpt, late_outcome)
    select m.id, n, e.url, array['key_1'], a.at, a.at + interval '40 milliseconds', %(outcome)s, %(status)s, %(reason)s,
           40, '', ''
      from message m join partners_endpoint e on e.partner_id = %(partner)s
      cross join generate_series(1, 9) n
      cross join lateral (select m.planned_at + (now() - interval '1 hour' - m.planned_at) * (n - 1) / 8 as at) a),
incident as (
    insert into removal_incident (stream_id, kind, opened_at)
    select %(partner)s, %(incident)s, min(planned_at) from message having count(*) > 0)
update removal_stream s
   set packed_through = greatest(s.packed_through, (select max(last) from message)), failures = 9,
       probe_at = now() + interval '10 minutes'
 where s.partner_id = %(partner)s
"""


def _tell(character: Character, requests: int, now: datetime) -> None:
    partner = Partner.objects.get(slug=character.slug)
    batch = _batch(requests)
    values: dict[str, Any] = {
        "partner": partner.pk,
        "batch": batch,
        "told": int(requests * character.told),
        "answered": int(requests * character.answered),
    }
    _run((STREAMS,), values)
    values |= _newest_messages(partner.pk, batch=batch, now=now)
    statements = [DELIVERIES, BODIES, ATTEMPTS, ANSWERS, EXCEPTIONS]
    statements += {"in_progress": [UNDER_WAY], "received": [RECEIVED]}.get(character.word, [])
    _run(statements, values)
    if character.state == "paused":
        partnerships.set_paused(actor=ACTOR, slug=character.slug, paused=True)
    elif character.state == "suspended":
        said = "answered 410; the endpoint is gone for good"
        _run((FAILING,), {**values, "messages": 1, "outcome": "refused", "status": 410, "reason": said,
                          "incident": "http_410"})  # fmt: skip
        Endpoint.objects.filter(partner=partner).update(
            state=Endpoint.State.SUSPENDED, state_reason="It answered 410 Gone.", changed_at=now
        )
    elif character.state == "tls":
        said = "tls: its certificate has expired"
        _run((FAILING,), {**values, "messages": WINDOW, "outcome": "unreachable", "status": None, "reason": said,
                          "incident": "tls"})  # fmt: skip


def _batch(requests: int) -> int:
    """Choose how many notices a message holds: few where there are few, so that there is something to see."""
    return 100 if requests >= 100_000 else 10


def _newest_messages(partner_id: int, *, batch: int, now: datetime) -> dict[str, list[Any]]:
    """Put together the newest messages of a partner whose stream is filled: the bytes it was sent."""
    stream = Stream.objects.select_related("partner").get(pk=partner_id)
    through = stream.packed_through
    first = max((through - 1) // batch - WITH_BODY, 0) * batch + 1
    envelope = payload.Envelope(stream.partner.slug, 1, stream.head, now)
    messages = payload.read_messages(
        stream_id=partner_id, first=first, last=through, max_notices=batch, envelope=envelope
    )
    return {
        "firsts": [message.first for message in messages],
        "bodies": [message.body for message in messages],
        "digests": [sha256(message.body).digest() for message in messages],
    }


# --- what is done through the product itself ---


def _take_the_desks_work(now: datetime) -> None:
    """Record a few wishes of the other kinds, as platforms do."""
    with connection.cursor() as cursor:
        cursor.execute("drop table sample_holder, sample_stage")
        newest = RemovalRequest.objects.order_by("-pk").values_list("pk", flat=True)[0]
        cursor.execute(LOGGED, {"first": max(1, newest - BLOCK), "last": newest})
    wishes = [
        intake.Wish(idempotency_key=f"sample-{kind}-{number}", kind=kind, subject=f"site:{number}", reason=reason)
        for kind, reason, numbers in (
            ("reinstatement", "user_request", (3, 8, 21)),
            ("deletion", "legal_takedown", (newest + 1, newest + 2)),
            ("opt_out", "user_request", (newest + 7,)),
        )
        for number in numbers
    ]
    intake.record_requests(source="platform", actor=ACTOR, wishes=wishes, now=now)
    planning.plan(budget=timedelta(minutes=5))
