"""Requests x ledger -> notices, numbered in each holder's stream (design §6).

A pair (request, disclosure) is matched in the round of its *later* member, whatever the order in which both were
committed. Only one planner runs at a time, and its lock is a statement of its own: the planning statement's snapshot
must be younger than the lock, or pairs are lost (docs/decisions/0003-one-planner.md).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal.policies import MOST_SPECIFIC, notice_rules
from removal.transactions import whole_step

log = structlog.get_logger()

# An offboarded partner has this long to remove everything.
OFFBOARDING_BUSINESS_DAYS = 10

LOCK = 0x52454D4F  # "REMO": the planner's advisory lock, for it and for whoever must not run beside it

# Requests about more subjects than this are matched in pieces (removal.large), so that a round stays short.
LARGE = 10_000

MATCH_NEW = """
-- (request, disclosure, entry) whose later member is in this round: new requests with all disclosures …
select * from (
    -- Looked up first, and "offset 0" makes it a look-up by subject, however little the database knows yet of what was
    -- just loaded: its cost must not grow with the number of disclosures.
    with found as materialized (
        select r.id, r.kind, r.usages, r.release_ids, r.ended_at, m.release_id, m.subject_id, m.items, m.item_count
          from new_request r
          cross join lateral (
              select subject_id, items from removal_requesttarget where request_id = r.id offset 0) t
          cross join lateral (
              select m.release_id, m.subject_id, t.items, {counts} item_count
                from removal_manifestentry m
               where m.subject_id = t.subject_id
                 and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m)
    select r.id request_id, d.id disclosure_id, d.partner_id, m.release_id, m.subject_id, m.items, r.item_count
      from found r
      cross join lateral (select r.release_id, r.subject_id, r.items) m
      join (select * from planned_disclosure union all select * from new_disclosure) d on d.release_id = m.release_id
     where {covers}) met
union all
-- … and new disclosures, where there are any, with the requests planned before
select r.id, d.id, d.partner_id, m.release_id, m.subject_id, m.items, m.item_count
  from (select distinct release_id from new_disclosure) l
  cross join lateral (
      select m.release_id, m.subject_id, t.items, t.request_id, {counts} item_count
        from removal_manifestentry m
        join removal_requesttarget t on t.subject_id = m.subject_id
          and (t.items is null or removal_items_meet(m.items, t.items))
       where m.release_id = l.release_id offset 0) m
  join new_disclosure d on d.release_id = m.release_id
  join planned_request r on r.id = m.request_id
 where {covers}
"""

MATCH_MISSED = """
-- planned on both sides, and yet no notice names the pair: must always be empty
select r.id request_id, d.id disclosure_id, d.partner_id, m.release_id, m.subject_id, t.items, {counts} item_count
  from planned_request r
  join removal_requesttarget t on t.request_id = r.id
  join removal_manifestentry m on m.subject_id = t.subject_id
    and (t.items is null or removal_items_meet(m.items, t.items))
  join planned_disclosure d on d.release_id = m.release_id
 where {covers} and not r.is_matching
   and not exists (select from removal_notice n
                    where n.request_id = r.id and n.stream_id = d.partner_id and d.id = any(n.disclosures))
"""

# Whether a request is about what a disclosure handed over. A reinstatement asks for no removal.
COVERS = """r.kind <> 'reinstatement'
   and (r.release_ids is null or m.release_id = any(r.release_ids))
   and (r.usages @> '{all}' or d.usages @> '{all}' or r.usages && d.usages)
   and (r.ended_at is null or d.disclosed_at <= r.ended_at)"""

# How many items of an entry a request is about; an entry names each item once.
COUNTS = "case when t.items is null then m.item_count else cardinality(removal_items_in_both(m.items, t.items)) end"

# An offboarding has no targets: it is about each handover to its partner as a whole.
OFFBOARD_NEW = """
select r.id request_id, d.id disclosure_id, d.partner_id, d.release_id
  from new_request r
  join (select * from planned_disclosure union all select * from new_disclosure) d on d.partner_id = r.partner_id
union all
select r.id, d.id, d.partner_id, d.release_id
  from planned_request r join new_disclosure d on d.partner_id = r.partner_id
"""
OFFBOARD_MISSED = """
select r.id request_id, d.id disclosure_id, d.partner_id, d.release_id
  from planned_request r join planned_disclosure d on d.partner_id = r.partner_id
 where not exists (select from removal_notice n where n.request_id = r.id and d.id = any(n.disclosures))
"""

# What a round is about. Rounds only have to grow; a gap after a rollback means nothing.
ROUND = """
this as materialized (select nextval('removal_planner_round') as round),
new_request as materialized (
    select id, kind, usages, release_ids, partner_id, ended_at, is_matching from removal_removalrequest
     where round is null and repeats_id is null and withdrawn_at is null and target_count <= %(large)s
     order by id limit %(limit)s for no key update skip locked),
new_disclosure as materialized (
    select id, release_id, partner_id, usages, disclosed_at from removal_disclosure d
     where not exists (select from removal_planneddisclosure p where p.disclosure_id = d.id)
     order by id limit %(limit)s),
planned_disclosure as not materialized (
    select d.id, d.release_id, d.partner_id, d.usages, d.disclosed_at
      from removal_disclosure d join removal_planneddisclosure p on p.disclosure_id = d.id),
planned_request as not materialized (
    select id, kind, usages, release_ids, partner_id, ended_at, is_matching from removal_removalrequest
     where round is not null and withdrawn_at is null),
"""

# From pairs to one notice for each (request, partner), with its distinct items.
TELL = """
member as materialized ({match}),
offboarded as materialized ({offboard}),
paired as (
    select request_id, partner_id, array_agg(distinct disclosure_id order by disclosure_id) disclosures
      from (select request_id, partner_id, disclosure_id from member
            union all select request_id, partner_id, disclosure_id from offboarded) x
     group by 1, 2),
held as (
    -- what a partner holds of a subject, in whichever releases; counted once for all partners that hold the same
    select request_id, subject_id, items, releases, max(item_count) item_count, array_agg(partner_id) partners
      from (select request_id, partner_id, subject_id, items, array_agg(distinct release_id) releases,
                   max(item_count) item_count
              from member group by 1, 2, 3, 4) x
     group by 1, 2, 3, 4),
counted as (
    -- a release handed over twice, or an item in several releases, counts once …
    select h.request_id, p.partner_id, sum(i.items) items
      from held h
      cross join lateral (
          select case when cardinality(h.releases) = 1 then h.item_count
                      else (select count(distinct i.item)
                              from removal_manifestentry m
                             cross join unnest(coalesce(removal_items_in_both(m.items, h.items), m.items)) i(item)
                             where m.subject_id = h.subject_id and m.release_id = any(h.releases)) end items offset 0) i
      cross join unnest(h.partners) p(partner_id)
     group by 1, 2
    union all
    -- … but for an offboarding, which is about whole releases, their counts are added up
    select x.request_id, x.partner_id, sum(l.item_count)
      from (select distinct request_id, partner_id, release_id from offboarded) x
      join removal_release l on l.id = x.release_id
     group by 1, 2),
removed as materialized (
    select request_id, partner_id, disclosures, items from paired join counted using (request_id, partner_id)),
undone as (
    -- a reinstatement is told to every partner that was, or in this very round is, told of what it undoes …
    select r.id request_id, w.partner_id
      from new_request r
      join removal_removalrequest o on o.ended_by_id = r.id
      cross join lateral (select n.stream_id partner_id from removal_notice n where n.request_id = o.id
                          union select x.partner_id from removed x where x.request_id = o.id) w
     where r.kind = 'reinstatement'
    union
    -- … and again behind a late notice of a wish that it ended
    select w.ended_by, x.partner_id
      from (select distinct request_id from removed) d
      cross join lateral (
          select o.id, e.id ended_by
            from removal_removalrequest o
            join removal_removalrequest e on e.id = o.ended_by_id and e.round is not null
           where o.id = d.request_id offset 0) w
      join removed x on x.request_id = w.id),
told as materialized (
    select request_id, partner_id, disclosures, items from removed
    union all select request_id, partner_id, '{{}}', 0 from undone),
"""

# Number what is told at the end of each stream, and mark both sides as planned: one transaction, or nothing.
NUMBER = f"""
needed as materialized (select partner_id, count(*) notices from told group by 1),
-- looked up one by one, or a round would read every request there is
asked as materialized (
    select x.request_id, r.kind, r.jurisdiction
      from (select distinct request_id from told) x
      cross join lateral (select kind, jurisdiction from removal_removalrequest where id = x.request_id offset 0) r),
-- how long a partner has, by the policy that holds; looked for once for all notices that are alike
policy as materialized (
    select * from jsonb_to_recordset(%(policies)s) p(id bigint, partner_id bigint, kinds text[], jurisdictions text[],
                                                     send_by timestamptz, receive_by timestamptz,
                                                     respond_by timestamptz)),
dated as materialized (
    select w.*, c.send_by, c.receive_by, c.respond_by
      from (select distinct a.kind, a.jurisdiction, t.partner_id from told t join asked a using (request_id)
             where exists (select from policy)) w
      cross join lateral ({MOST_SPECIFIC.format(policies="policy")}) c),
-- streams are locked in order of partner, as everywhere
locked as materialized (
    select s.partner_id, s.head, s.epoch from removal_stream s
     where s.partner_id in (select partner_id from needed) order by s.partner_id for no key update),
numbered as (
    insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round,
                                planned_at, send_by, receive_by, respond_by, handling)
    select t.partner_id, l.epoch, l.head + row_number() over (partition by t.partner_id order by t.request_id),
           t.request_id, a.kind, t.disclosures, t.items, this.round, clock_timestamp(),
           coalesce(c.send_by, %(send_by)s), coalesce(c.receive_by, %(receive_by)s),
           coalesce(c.respond_by, case a.kind when 'offboarding' then %(offboarded_by)s::timestamptz
                                              else clock_timestamp() + %(respond_within)s end), 'none'
      from told t
      join locked l on l.partner_id = t.partner_id
      join asked a on a.request_id = t.request_id
      left join dated c on c.kind = a.kind and c.jurisdiction = a.jurisdiction and c.partner_id = t.partner_id
      cross join this
    returning 1),
heads as (
    update removal_stream s set head = s.head + n.notices from needed n where s.partner_id = n.partner_id
    returning s.partner_id, s.head - n.notices + 1 first, s.head last),
matched as (
    update removal_removalrequest q
       set round = this.round, is_matching = false,
           state = case when n.is_told then 'planned' else 'closed' end,
           outcome = case when n.is_told then '' else 'nothing_disclosed' end,
           closed_at = case when n.is_told then null else clock_timestamp() end
      from (select id, id in (select request_id from told)
                       or exists (select from removal_notice o where o.request_id = new_request.id) is_told
              from new_request) n, this
     where q.id = n.id returning 1),
-- A late disclosure opens its requests again, whatever state this statement sees them in: a last answer may be closing
-- one at this moment, and cannot see the new notice.
reopened as (
    update removal_removalrequest q set state = 'planned', outcome = '', closed_at = null
     where q.id = any(array(select request_id from asked except select id from new_request))),
marked as (
    insert into removal_planneddisclosure (disclosure_id, round) select n.id, this.round from new_disclosure n, this
    returning 1),
summary as (
    select (select round from this) round, (select count(*) from matched) requests,
           (select count(*) from marked) disclosures, (select count(*) from numbered) notices,
           coalesce((select array_agg(partner_id) from heads), '{{}}') partner_ids),
logged as (
    insert into removal_logentry (actor, action, about)
    select 'planner', %(action)s, jsonb_build_object(
               'round', round, 'requests', requests, 'disclosures', disclosures, 'notices', notices,
               'streams', (select coalesce(jsonb_agg(jsonb_build_array(partner_id, first, last)), '[]') from heads))
      from summary where requests + disclosures + notices > 0
    returning 1)
select requests, disclosures, notices, partner_ids, (select count(*) from logged) from summary
"""


def statement(*, match: str, offboard: str) -> str:
    """Put a planning statement together from how pairs are found."""
    return "with" + ROUND + TELL.format(match=match.format(covers=COVERS, counts=COUNTS), offboard=offboard) + NUMBER


PLAN_NEW = statement(match=MATCH_NEW, offboard=OFFBOARD_NEW)
PLAN_MISSED = statement(match=MATCH_MISSED, offboard=OFFBOARD_MISSED)


@dataclass(frozen=True)
class Round:
    """What one planner transaction matched; ``partner_ids`` are those whose stream grew."""

    requests: int
    disclosures: int
    notices: int
    partner_ids: tuple[int, ...]

    @property
    def found_nothing(self) -> bool:
        return not (self.requests or self.disclosures or self.notices)


@whole_step
def plan_round(*, limit: int = 1000) -> Round | None:
    """Match up to ``limit`` requests and as many disclosures, or return None while another planner runs."""
    return _run(PLAN_NEW, action="planned", limit=limit)


def plan(*, budget: timedelta, tell: Callable[[int], None] = lambda partner_id: None) -> set[int]:
    """Plan rounds until nothing is left or ``budget`` is spent; returns the partners whose streams grew.

    ``tell`` is called with each of them after each round: its notices need not wait for the next one.
    Where another planner is at work, waits a moment for it: it may have started before the caller's rows were there.
    """
    end = time.monotonic() + budget.total_seconds()
    grown: set[int] = set()
    pauses = iter((0.02, 0.05, 0.1))
    while time.monotonic() < end:
        done = plan_round()
        if done is None:
            pause = next(pauses, None)
            if pause is None:
                break  # whoever holds the lock goes on until nothing is left; the sweep looks again anyway
            time.sleep(pause)
        elif done.found_nothing:
            break
        else:
            grown.update(done.partner_ids)
            for partner_id in done.partner_ids:
                tell(partner_id)
    return grown


@whole_step
def reconcile() -> Round | None:
    """Plan pairs that a round should have matched and did not. There are none; if there are, this is an alert."""
    found = _run(PLAN_MISSED, action="reconciled", limit=0)
    if found and found.notices:
        log.error("planner_missed_pairs", notices=found.notices, partner_ids=found.partner_ids)
    return found


def _run(planning: str, *, action: str, limit: int) -> Round | None:
    with connection.cursor() as cursor:
        if not try_lock(cursor):
            return None
        return run(cursor, planning, action=action, limit=limit)


def try_lock(cursor: CursorWrapper) -> bool:
    """Become the planner until the transaction ends, if nobody else is.

    A statement of its own, before the planning statement: see the module's docstring.
    """
    cursor.execute("select pg_try_advisory_xact_lock(%s)", [LOCK])
    return bool(cursor.fetchone()[0])


def run(cursor: CursorWrapper, planning: str, *, action: str, limit: int = 0, **more: Any) -> Round:
    """Run a planning statement that ends with NUMBER. Needs the planner's lock."""
    cursor.execute("select clock_timestamp()")
    (now,) = cursor.fetchone()
    cursor.execute(planning, parameters(now=now, action=action, limit=limit) | more)
    requests, disclosures, notices, partner_ids, _ = cursor.fetchone()
    return Round(requests, disclosures, notices, tuple(partner_ids))


def parameters(*, now: datetime, action: str, limit: int) -> dict[str, Any]:
    """Give a planning statement what it asks for; notices get the dates that policies give them ``now``."""
    return {
        "limit": limit,
        "large": LARGE,
        "action": action,
        "offboarded_by": business_days_after(now, OFFBOARDING_BUSINESS_DAYS),
        **notice_rules(now=now),
    }


def business_days_after(moment: datetime, days: int) -> datetime:
    """Count business days from ``moment``, Monday to Friday, without holidays."""
    while days:
        moment += timedelta(days=1)
        if moment.weekday() < 5:
            days -= 1
    return moment
