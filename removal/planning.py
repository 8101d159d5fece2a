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

LOCK = 0x52454D4F  # "REMO": the planner's advisory lock, for it and for whoever must not run beside it

# Requests about more subjects than this are matched in pieces (removal.large), so that a round stays short.
LARGE = 10_000
# Of the others, so many share a round as come before this many subjects are reached.
MOST_TARGETS = LARGE

# Which entries of the ledger a round is about. Requests with one number in "apart" have their holders in common.
MATCH_NEW = """
-- (request, entry) whose later member is in this round: new requests with all entries …
select * from (
    -- "offset 0" makes it a look-up by subject, however little the database knows yet of what was just loaded: its cost
    -- must not grow with the number of disclosures.
    select r.id request_id, r.usages, r.ended_at, 0 apart, m.release_id, m.subject_id, m.wanted, m.item_count,
           m.is_alike
      from new_request r
      cross join lateral (
          select subject_id, items from removal_requesttarget where request_id = r.id offset 0) t
      cross join lateral (
          -- is_alike: all entries of the subject list the same, as those of somebody who published nothing in between
          select m.release_id, m.subject_id, t.items wanted, {counts} item_count,
                 count(*) over () = 1 or min(m.items) over () = max(m.items) over () is_alike
            from removal_manifestentry m
           where m.subject_id = t.subject_id
             and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m
     where {about}) met
union all
-- … and new disclosures, where there are any, with the requests planned before
select r.id, r.usages, r.ended_at, 1, m.release_id, m.subject_id, m.wanted, m.item_count, false
  from (select distinct release_id from new_disclosure) l
  cross join lateral (
      select m.release_id, m.subject_id, t.items wanted, t.request_id, {counts} item_count
        from removal_manifestentry m
        join removal_requesttarget t on t.subject_id = m.subject_id
          and (t.items is null or removal_items_meet(m.items, t.items))
       where m.release_id = l.release_id offset 0) m
  join planned_request r on r.id = m.request_id
 where {about}
"""
# New requests are about all disclosures, those planned before about new ones.
MEET_NEW = "d.is_new or r.apart = 0"

MATCH_MISSED = """
-- planned on both sides, and yet no notice names the pair: must always be empty
select distinct r.id request_id, r.usages, r.ended_at, r.id apart, m.release_id, m.subject_id, t.items wanted,
                {counts} item_count, false is_alike
  from planned_request r
  join removal_requesttarget t on t.request_id = r.id
  join removal_manifestentry m on m.subject_id = t.subject_id
    and (t.items is null or removal_items_meet(m.items, t.items))
  join planned_disclosure d on d.release_id = m.release_id
 where {about} and {reaches} and not r.is_matching
   and not exists (select from removal_notice n
                    where n.request_id = r.id and n.stream_id = d.partner_id and d.id = any(n.disclosures))
"""
MEET_MISSED = """not exists (select from removal_notice n
                    where n.request_id = r.apart and n.stream_id = d.partner_id and d.id = any(n.disclosures))"""

# Whether a request is about an entry of a release. A reinstatement asks for no removal.
ABOUT = """r.kind <> 'reinstatement'
   and (r.release_ids is null or m.release_id = any(r.release_ids))"""

# Whether it is about what a disclosure of that release handed over.
REACHES = """(r.usages @> '{all}' or d.usages @> '{all}' or r.usages && d.usages)
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

# What was planned before.
PLANNED = """
planned_disclosure as not materialized (
    select d.id, d.release_id, d.partner_id, d.usages, d.disclosed_at
      from removal_disclosure d join removal_planneddisclosure p on p.disclosure_id = d.id),
planned_request as not materialized (
    select id, kind, usages, release_ids, partner_id, ended_at, is_matching from removal_removalrequest
     where round is not null and withdrawn_at is null)"""

# What a round is about. Rounds only have to grow; a gap after a rollback means nothing.
ROUND = f"""
this as materialized (select nextval('removal_planner_round') as round, clock_timestamp() planned_at),
next_request as materialized (
    select id, kind, usages, release_ids, partner_id, ended_at, is_matching, target_count from removal_removalrequest
     where round is null and repeats_id is null and withdrawn_at is null and target_count <= %(large)s
     order by id limit %(limit)s for no key update skip locked),
new_request as materialized (
    -- The first, and others while those before have few targets together. What is left is locked until this round
    -- is over, and has the next.
    select id, kind, usages, release_ids, partner_id, ended_at, is_matching
      from (select *, sum(target_count) over (order by id rows between unbounded preceding and 1 preceding) before
              from next_request) x
     where coalesce(before, 0) < %(most_targets)s),
new_disclosure as materialized (
    select id, release_id, partner_id, usages, disclosed_at from removal_disclosure d
     where not exists (select from removal_planneddisclosure p where p.disclosure_id = d.id)
     order by id limit %(limit)s),
{PLANNED},
"""

# Several parts of what one partner is told of one request, put together: their disclosures, and the sum of their items.
TOGETHER = """
    select request_id, partner_id, array_agg(distinct x order by x) disclosures, max(items) items
      from (select request_id, partner_id, disclosures, sum(items) over (partition by request_id, partner_id) items
              from {parts}) p
      cross join unnest(p.disclosures) x
     group by 1, 2"""

# From entries to one notice for each (request, partner), with its distinct items. Who holds what is found once for all
# subjects that are in the same releases, as most are.
TELL = f"""
met as materialized ({{match}}),
offboarded as materialized ({{offboard}}),
listed as materialized (
    -- where a subject is, and how much of it
    select request_id, usages, coalesce(ended_at, 'infinity') ended_at, apart, subject_id, wanted,
           array_agg(release_id order by release_id) releases, array_agg(item_count order by release_id) counts,
           bool_and(is_alike) is_alike, count(*) over (partition by request_id) = 1 is_alone
      from met group by 1, 2, 3, 4, 5, 6),
holder as materialized (
    select r.releases, r.usages, r.ended_at, r.apart, d.partner_id,
           array_agg(distinct d.release_id order by d.release_id) given,
           array_agg(distinct d.id order by d.id) disclosures
      from (select distinct releases, usages, ended_at, apart from listed) r
      cross join unnest(r.releases) x(release_id)
      join (select *, false is_new from planned_disclosure union all select *, true from new_disclosure) d
        on d.release_id = x.release_id
     where {{reaches}} and ({{meet}})
     group by 1, 2, 3, 4, 5),
given as materialized (
    -- who was given the same; carried along from here on
    select releases, usages, ended_at, apart, given, array_agg(partner_id) partner_ids,
           array_agg(disclosures::text) disclosures
      from holder group by 1, 2, 3, 4, 5),
counted as materialized (
    -- An item counts once, though it is in several releases; and it is counted once for all who hold the same. No set
    -- is without its subjects: the join is a full one since such a one is no nested loop, however few rows of each side
    -- the database expects. Subjects that nobody was given fall away below.
    select l.request_id, h.partner_ids, h.disclosures, bool_and(l.is_alone) is_alone,
           sum(case when l.is_alike then l.counts[1]
                    when cardinality(h.given) = 1 then l.counts[array_position(l.releases, h.given[1])]
                    else (select count(distinct i.item)
                            from removal_manifestentry m
                           cross join unnest(coalesce(removal_items_in_both(m.items, l.wanted), m.items)) i(item)
                           where m.subject_id = l.subject_id and m.release_id = any(h.given)) end) items
      from listed l full join given h using (releases, usages, ended_at, apart)
     group by l.request_id, l.releases, l.usages, l.ended_at, l.apart, h.given, h.partner_ids, h.disclosures),
part as (
    select c.request_id, h.partner_id, h.disclosures::bigint[] disclosures, c.items, c.is_alone
      from counted c cross join unnest(c.partner_ids, c.disclosures) h(partner_id, disclosures)),
removed as materialized (
    select request_id, partner_id, disclosures, items from part where is_alone
    union all
    {TOGETHER.format(parts="part where not is_alone")}
    union all
    -- an offboarding is about whole releases: their counts are added up
    select request_id, partner_id, array_agg(distinct disclosure_id order by disclosure_id),
           (select sum(l.item_count) from removal_release l where l.id = any(array_agg(o.release_id)))
      from offboarded o group by 1, 2),
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
    union all select request_id, partner_id, '{{{{}}}}', 0 from undone),
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
-- Only whoever has the planner's lock gives numbers, so a stream's head stands still while this reads it.
numbered as (
    insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round,
                                planned_at, send_by, receive_by, respond_by, handling)
    select t.partner_id, s.epoch, s.head + row_number() over (partition by t.partner_id order by t.request_id),
           t.request_id, a.kind, t.disclosures, t.items, this.round, this.planned_at,
           coalesce(c.send_by, %(send_by)s), coalesce(c.receive_by, %(receive_by)s),
           coalesce(c.respond_by, case a.kind when 'offboarding' then %(offboarded_by)s::timestamptz
                                              else %(now)s + %(respond_within)s end), 'none'
      from told t
      join removal_stream s on s.partner_id = t.partner_id
      join asked a on a.request_id = t.request_id
      left join dated c on c.kind = a.kind and c.jurisdiction = a.jurisdiction and c.partner_id = t.partner_id
      cross join this
    returning 1),
matched as (
    update removal_removalrequest q
       set round = (select round from this), is_matching = false,
           (state, outcome, closed_at) = (
               select case when n.is_told then 'planned' else 'closed' end,
                      case when n.is_told then '' else 'nothing_disclosed' end,
                      case when n.is_told then null else clock_timestamp() end
                 from (select q.id in (select request_id from asked)
                              or exists (select from removal_notice o where o.request_id = q.id) is_told offset 0) n)
     -- no join: "any" makes it a look-up by key, however few requests there are yet
     where q.id = any(array(select id from new_request)) returning 1),
-- Streams are locked in order of partner, as everywhere; and last, for what sends and answers waits for them meanwhile.
locked as materialized (
    select s.partner_id from removal_stream s
     where s.partner_id in (select partner_id from needed)
       and (select count(*) from numbered) + (select count(*) from matched) > 0
     order by s.partner_id for no key update),
heads as (
    update removal_stream s set head = s.head + n.notices from needed n join locked l using (partner_id)
     where s.partner_id = n.partner_id
    returning s.partner_id, s.head - n.notices + 1 first, s.head last),
-- A late disclosure opens its requests again, whatever state this statement sees them in: a last answer may be closing
-- one at this moment, and cannot see the new notice. Behind the streams' locks they are as such an answer left them.
standing as materialized (
    select id, public_id, outcome, closed_at from removal_removalrequest
     where id = any(array(select request_id from asked except select id from new_request))
       and exists (select from locked)
     order by id for no key update),
reopened as (
    update removal_removalrequest q set state = 'planned', outcome = '', closed_at = null
     where q.id = any(array(select id from standing))),
-- … and what their rows do not say any more is in the log
remembered as (
    insert into removal_logentry (actor, action, about)
    select 'planner', 'request_reopened',
           jsonb_build_object('request', public_id, 'outcome', outcome, 'closed_at', closed_at)
      from standing where closed_at is not null order by id),
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


def statement(*, match: str, meet: str, offboard: str) -> str:
    """Put a planning statement together from how pairs are found."""
    match = match.format(about=ABOUT, reaches=REACHES, counts=COUNTS)
    return "with" + ROUND + TELL.format(match=match, reaches=REACHES, meet=meet, offboard=offboard) + NUMBER


PLAN_NEW = statement(match=MATCH_NEW, meet=MEET_NEW, offboard=OFFBOARD_NEW)
PLAN_MISSED = statement(match=MATCH_MISSED, meet=MEET_MISSED, offboard=OFFBOARD_MISSED)

SOMETHING_NEW = """
select exists (select from removal_removalrequest
                where round is null and repeats_id is null and withdrawn_at is null and target_count <= %s)
    or exists (select from removal_disclosure d
                where not exists (select from removal_planneddisclosure p where p.disclosure_id = d.id))
"""
# Counted and not only looked for, since the database would expect to find one soon.
MISSED = f"""
with {PLANNED}
select (select count(*) from ({MATCH_MISSED.format(about=ABOUT, reaches=REACHES, counts=COUNTS)}) m)
     + (select count(*) from ({OFFBOARD_MISSED}) o)
"""


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
    """Match up to ``limit`` requests and as many disclosures, or return None while another planner runs.

    A round of requests about many subjects has fewer of them.
    """
    with connection.cursor() as cursor:
        if not try_lock(cursor):
            return None
        cursor.execute(SOMETHING_NEW, [LARGE])
        if not cursor.fetchone()[0]:
            return Round(0, 0, 0, ())
        return run(cursor, PLAN_NEW, action="planned", limit=limit)


def plan(*, budget: timedelta, tell: Callable[[Round], None] = lambda done: None) -> set[int]:
    """Plan rounds until nothing is left or ``budget`` is spent; returns the partners whose streams grew.

    ``tell`` is called after each round: its notices need not wait for the next one.
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
            tell(done)
    return grown


def reconcile() -> Round:
    """Plan pairs that a round should have matched and did not. There are none; if there are, this is an alert.

    They are looked for while planning goes on, since that takes the longer the more was ever planned: pairs are planned
    and their notices written in one commit. Raises OperationalError where something was missed and planners are at work
    for five seconds.
    """
    with connection.cursor() as cursor:
        cursor.execute(MISSED)
        (missed,) = cursor.fetchone()
    return _plan_missed() if missed else Round(0, 0, 0, ())


@whole_step
def _plan_missed() -> Round:
    with connection.cursor() as cursor:
        wait_for_lock(cursor)
        found = run(cursor, PLAN_MISSED, action="reconciled")
    if found.notices:
        log.error("planner_missed_pairs", notices=found.notices, partner_ids=found.partner_ids)
    return found


def try_lock(cursor: CursorWrapper) -> bool:
    """Become the planner until the transaction ends, if nobody else is.

    A statement of its own, before the planning statement: see the module's docstring.
    """
    cursor.execute("select pg_try_advisory_xact_lock(%s)", [LOCK])
    return bool(cursor.fetchone()[0])


def wait_for_lock(cursor: CursorWrapper) -> None:
    """Have no planner beside the rest of the transaction. Raises OperationalError when that takes five seconds."""
    cursor.execute("set local lock_timeout = '5s'")
    cursor.execute("select pg_advisory_xact_lock(%s)", [LOCK])


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
        "now": now,
        "limit": limit,
        "large": LARGE,
        "most_targets": MOST_TARGETS,
        "action": action,
        **notice_rules(now=now),
    }
