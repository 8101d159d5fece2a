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

from removal import acknowledgement, planning
from removal.transactions import whole_step

log = structlog.get_logger()

PIECE = 20_000  # targets

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
with piece as materialized (
    select subject_id, items from removal_requesttarget
     where request_id = %(request)s and subject_id > %(after)s order by subject_id limit %(piece)s),
member as (
    select d.partner_id, d.id disclosure_id, m.release_id, m.subject_id, p.items wanted, m.items
      from piece p
      join removal_removalrequest r on r.id = %(request)s
      join removal_manifestentry m on m.subject_id = p.subject_id and (p.items is null or m.items && p.items)
      join removal_disclosure d on d.release_id = m.release_id
      join removal_planneddisclosure pd on pd.disclosure_id = d.id and pd.round < r.round
     where {covers}),
found as (
    select x.partner_id, count(distinct (x.subject_id, i.item)) items
      from (select distinct partner_id, release_id, subject_id, wanted, items from member) x
      cross join unnest(x.items) i(item)
     where x.wanted is null or i.item = any(x.wanted)
     group by 1)
insert into removal_matchedpiece (request_id, last_subject_id, partner_id, disclosures, item_count)
select %(request)s, (select max(subject_id) from piece), f.partner_id,
       array(select distinct disclosure_id from member where partner_id = f.partner_id order by 1), f.items
  from found f where exists (select from piece)
union all
select %(request)s, (select max(subject_id) from piece), null, '{{}}', 0
 where exists (select from piece) and not exists (select from found)
""".format(covers=planning.COVERS.replace("{", "{{").replace("}", "}}"))

STANDS = """
select id from removal_removalrequest where id = %s and is_matching and withdrawn_at is null for no key update
"""

FINISH = (
    """with this as materialized (select round from removal_removalrequest where id = %(request)s),
new_request as (select id from removal_removalrequest where id = %(request)s and is_matching),
new_disclosure as (select id from removal_disclosure where false),
told as materialized (
    select request_id, partner_id, array_agg(distinct x order by x) disclosures, max(items) items
      from (select request_id, partner_id, disclosures,
                   sum(item_count) over (partition by request_id, partner_id) items
              from removal_matchedpiece where request_id = %(request)s and partner_id is not null) p
      cross join unnest(p.disclosures) x
     group by 1, 2),
"""
    + planning.NUMBER
)


def advance(*, budget: timedelta) -> set[int]:
    """Go on with large requests until nothing is left or ``budget`` is spent; returns the partners told."""
    end = time.monotonic() + budget.total_seconds()
    told: set[int] = set()
    while time.monotonic() < end:
        _start()
        step = _match_piece()
        if step is None:
            break
        request_id, is_matched = step
        if is_matched:
            done = _finish(request_id)
            if done is None:
                break  # another planner is at work; the next sweep numbers it
            told.update(done.partner_ids)
    return told


@whole_step
def _start() -> None:
    with connection.cursor() as cursor:
        if planning.try_lock(cursor):
            cursor.execute(START, [planning.LARGE])


@whole_step
def _match_piece() -> tuple[int, bool] | None:
    """Match the next piece; returns the request and whether it has no piece left, or None where there is no work."""
    with connection.cursor() as cursor:
        cursor.execute(TAKE)
        found = cursor.fetchone()
        if found is None:
            return None
        request_id, after = found
        cursor.execute(MATCH_PIECE, {"request": request_id, "after": after, "piece": PIECE})
        log.info("piece_matched", request_id=request_id, rows=cursor.rowcount)
        return request_id, cursor.rowcount == 0


@whole_step
def _finish(request_id: int) -> planning.Round | None:
    with connection.cursor() as cursor:
        if not planning.try_lock(cursor):
            return None
        cursor.execute(STANDS, [request_id])
        if cursor.fetchone() is None:
            return planning.Round(0, 0, 0, ())  # withdrawn meanwhile
        done = planning.run(cursor, FINISH, action="planned", request=request_id)
        cursor.execute("delete from removal_matchedpiece where request_id = %s", [request_id])
        # Notices of late handovers may all be answered by now: their answers left it open while it was being matched.
        acknowledgement.close_requests(cursor, request_ids=[request_id])
        return done
