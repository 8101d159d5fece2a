"""Requests about very many subjects: matched in pieces, so that an opt-out beside them leaves as quickly as ever.

A large request gets its round under the planner's lock (design §6). From then on it counts as planned: handovers
recorded later are matched with it in rounds of their own. Those planned before its round are a fixed set, and are
matched with its targets piece by piece, each its own transaction outside the lock. What the pieces found is numbered at
the end, under the lock, in one short transaction. Whoever finds the work half done goes on where it stands.
"""

import time
from datetime import timedelta

import structlog
from django.db import connection

from removal import acknowledgement, hints, planning
from removal.transactions import read_along_indexes, whole_step

log = structlog.get_logger()

# A piece has to be over before an opt-out beside it gets impatient: some 30 ms.
PIECE = 2_000  # targets of the request

START = """
update removal_removalrequest set round = nextval('removal_planner_round'), is_matching = true, state = 'planned'
 where id = (select id from removal_removalrequest
              where round is null and repeats_id is null and withdrawn_at is null and target_count > %s
              order by id limit 1 for no key update skip locked)
"""

# The oldest one that nobody is at work on, and where it stands.
TAKE = """
select r.id, coalesce((select max(last_subject_id) from removal_matchedpiece p where p.request_id = r.id), 0)
  from removal_removalrequest r where r.is_matching and r.withdrawn_at is null
 order by r.id limit 1 for no key update of r skip locked
"""

# One piece of targets against the handovers planned before the request's own round. Pieces share no subject, so their
# distinct items add up. A piece that meets nobody leaves a row without a partner: it says how far the work is.
MATCH_PIECE = """
with
piece as materialized (
    select subject_id, items from removal_requesttarget
     where request_id = %(request)s and subject_id > %(after)s order by subject_id limit %(piece)s),
reached as materialized (select max(subject_id) subject_id from piece),
given as materialized (
    select d.id, d.partner_id, d.release_id
      from removal_removalrequest r
      join removal_planneddisclosure pd on pd.round < r.round
      join removal_disclosure d on d.id = pd.disclosure_id
     cross join lateral (select d.release_id) m
     where r.id = %(request)s and {covers}),
-- "offset 0" makes it a look-up by subject, however little the database knows yet of targets just recorded
met as materialized (
    select m.release_id, m.subject_id, t.items wanted, m.items
      from piece t
     cross join lateral (
          select m.release_id, m.subject_id, {counts} items
            from removal_manifestentry m
           where m.subject_id = t.subject_id and m.release_id = any(array(select release_id from given))
             and (t.items is null or removal_items_meet(m.items, t.items)) offset 0) m),
-- what partners hold is counted once for all of them that were given the same releases …
alike as materialized (
    select releases, array_agg(partner_id) partners
      from (select partner_id, array_agg(distinct release_id order by release_id) releases
              from given where release_id in (select release_id from met) group by 1) x
     group by 1),
held as materialized (
    select a.releases, m.subject_id, m.wanted, count(*) entries, sum(m.items) items
      from alike a join met m on m.release_id = any(a.releases) group by 1, 2, 3),
-- … and an item that is in several of them once
counted as (
    select h.releases, sum(case when h.entries = 1 then h.items
                                else (select count(distinct i.item)
                                        from removal_manifestentry m
                                       cross join unnest(coalesce(removal_items_in_both(m.items, h.wanted), m.items))
                                                  i(item)
                                       where m.subject_id = h.subject_id and m.release_id = any(h.releases)) end) items
      from held h group by 1),
found as (
    select p.partner_id, a.releases, c.items
      from alike a join counted c using (releases) cross join unnest(a.partners) p(partner_id))
insert into removal_matchedpiece (request_id, last_subject_id, partner_id, disclosures, item_count)
select %(request)s, r.subject_id, f.partner_id,
       array(select id from given g where g.partner_id = f.partner_id and g.release_id = any(f.releases) order by 1),
       f.items
  from reached r cross join found f
union all
select %(request)s, r.subject_id, null, '{{}}', 0
  from reached r where r.subject_id is not null and not exists (select from found)
""".format(
    counts=planning.COUNTS, covers=f"{planning.ABOUT} and {planning.REACHES}".replace("{", "{{").replace("}", "}}")
)

# Streams before requests, as acknowledgements lock them.
LOCK_STREAMS = """
select from removal_stream
 where partner_id in (select partner_id from removal_matchedpiece where request_id = %s)
 order by partner_id for no key update
"""
STANDS = """
select id from removal_removalrequest where id = %s and is_matching and withdrawn_at is null for no key update
"""

FINISH = (
    """with this as materialized (
    select round, clock_timestamp() planned_at from removal_removalrequest where id = %(request)s),
new_request as (select id from removal_removalrequest where id = %(request)s and is_matching),
new_disclosure as (select id from removal_disclosure where false),
told as materialized ("""
    + planning.TOGETHER.format(
        parts="""(select request_id, partner_id, disclosures, item_count items
                    from removal_matchedpiece where request_id = %(request)s and partner_id is not null) piece"""
    )
    + "),"
    + planning.NUMBER
)


def advance(*, budget: timedelta) -> set[int]:
    """Go on with large requests until nothing is left or ``budget`` is spent; returns the partners told.

    Before each piece it plans a round of what came in meanwhile, and hints at those streams at once: this may be the
    only worker.
    """
    end = time.monotonic() + budget.total_seconds()
    told: set[int] = set()
    while time.monotonic() < end:
        _plan_beside()
        step = _match_piece()
        if step is None:
            if not _start():
                break
            continue
        request_id, is_matched = step
        if is_matched:
            done = _finish(request_id)
            if done is None:
                break  # another planner is at work; the next sweep numbers it
            told.update(done.partner_ids)
    return told


def _plan_beside() -> None:
    if done := planning.plan_round():
        hints.hint_streams(done.partner_ids)


@whole_step
def _start() -> bool:
    """Give the next large request its round; returns whether there is one."""
    with connection.cursor() as cursor:
        if not planning.try_lock(cursor):
            return False  # another planner is at work; the next sweep starts it
        cursor.execute(START, [planning.LARGE])
        return bool(cursor.rowcount)


@whole_step
def _match_piece() -> tuple[int, bool] | None:
    """Match the next piece; returns the request and whether it has no piece left, or None where there is no work."""
    with connection.cursor() as cursor:
        cursor.execute(TAKE)
        found = cursor.fetchone()
        if found is None:
            return None
        request_id, after = found
        read_along_indexes(cursor)
        cursor.execute(MATCH_PIECE, {"request": request_id, "after": after, "piece": PIECE})
        log.info("piece_matched", request_id=request_id, rows=cursor.rowcount)
        return request_id, cursor.rowcount == 0


@whole_step
def _finish(request_id: int) -> planning.Round | None:
    with connection.cursor() as cursor:
        if not planning.try_lock(cursor):
            return None
        cursor.execute(LOCK_STREAMS, [request_id])
        cursor.execute(STANDS, [request_id])
        if cursor.fetchone() is None:
            return planning.Round(0, 0, 0, ())  # withdrawn meanwhile
        done = planning.run(cursor, FINISH, action="planned", request=request_id)
        cursor.execute("delete from removal_matchedpiece where request_id = %s", [request_id])
        # Notices of late handovers may all be answered by now: their answers left it open while it was being matched.
        acknowledgement.close_requests(cursor, request_ids=[request_id])
        return done
