"""Free what dead workers held, and find who is due something, without a hint: what each sweep begins with."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import connection

from removal import delivery
from removal.models.identifiers import new_id
from removal.transactions import whole_step

log = structlog.get_logger()

# Reaped messages go again at once: their worker died, not their partner. But one whose workers die again and again
# waits four times as long each time, and stands aside after the fifth.
AFTER_REAPING = timedelta(seconds=1)
TRIES_BEFORE_ASIDE = 5
# Who waits for an answer for so long waits for a partner that is slow, or is dead itself.
SLOW = timedelta(seconds=1)

REAP = """
with lost as materialized (
    select id, fence, stream_id,
           case when abandoned + 1 < %(tries)s then 'waiting'
                when first_sequence < last_sequence then 'split' else 'quarantined' end next
      from removal_delivery where state = 'sending' and lease_until < clock_timestamp()
     order by lease_until limit 500 for no key update skip locked),
freed as (
    -- The fence grows now, so that a worker that wakes up later has lost already.
    update removal_delivery d
       set state = lost.next, fence = d.fence + 1, lease_until = null, abandoned = d.abandoned + 1,
           due_at = clock_timestamp() + %(soon)s * 4 ^ d.abandoned
      from lost where d.id = lost.id),
abandoned as (
    update removal_attempt a set finished_at = clock_timestamp(), outcome = 'abandoned'
      from lost where a.delivery_id = lost.id and a.number = lost.fence and a.finished_at is null),
logged as (
    insert into removal_logentry (actor, action, about)
    select 'worker', 'attempt_abandoned', jsonb_build_object(
               'partner', stream_id, 'delivery', id, 'attempt', fence, 'delivery_state', next)
      from lost)
select id, next, stream_id from lost
"""


@whole_step
def reap() -> int:
    """Free the messages of workers that are gone; returns how many. Their outcome is marked as unknown.

    One that five workers in a row did not survive is halved; a single notice is quarantined, and needs a person.
    """
    with connection.cursor() as cursor:
        parameters: dict[str, Any] = {"soon": AFTER_REAPING, "tries": TRIES_BEFORE_ASIDE}
        cursor.execute(REAP, parameters)
        lost = cursor.fetchall()
        for delivery_id, state, partner_id in lost:
            if state == "split":
                cursor.execute(delivery.SPLIT, {"parent": delivery_id, "left": new_id(), "right": new_id()})
            elif state == "quarantined":
                log.error("delivery_kills_workers", partner_id=partner_id, delivery=f"msg_{delivery_id.hex}")
    return len(lost)


DUE_PARTNERS = """
select s.partner_id,
       case when s.failures > 0 then 'probe'
            when exists (select from removal_delivery d
                          where d.stream_id = s.partner_id and d.state = 'sending'
                            and d.lease_until < clock_timestamp() + %(slow)s) then 'slow'
            else 'prompt' end
  from removal_stream s
  join partners_partner p on p.id = s.partner_id and p.state = 'live'
  join partners_endpoint e on e.partner_id = s.partner_id and e.state = 'open'
 where (s.probe_at is null or s.probe_at <= clock_timestamp())
   and (exists (select from removal_delivery d
                 where d.stream_id = s.partner_id and d.state = 'waiting' and d.due_at <= clock_timestamp())
     or s.head > s.packed_through
    and e."window" > (select count(*) from removal_delivery d
                       where d.stream_id = s.partner_id
                         and (d.state = 'sending' or d.state = 'waiting' and not d.resent and not d.suspect)))
   -- somebody is probing it
   and not (s.failures > 0 and exists (
            select from removal_delivery d where d.stream_id = s.partner_id and d.state = 'sending'))
 order by s.failures > 0,
          coalesce(s.probe_at, least((select min(d.due_at) from removal_delivery d
                                       where d.stream_id = s.partner_id and d.state = 'waiting' and not d.resent),
                                     (select min(d.due_at) from removal_delivery d
                                       where d.stream_id = s.partner_id and d.state = 'waiting' and d.resent))),
          s.partner_id
"""


@dataclass(frozen=True)
class DuePartner:
    """A partner that is due something.

    ``kind`` is "probe" where it has not answered its last try, and may keep us waiting, "slow" where somebody waits for
    its answer, else "prompt". Hints send to prompt ones alone.
    """

    partner_id: int
    kind: str


def due_partners() -> list[DuePartner]:
    """List the partners that are due something now and have room in their window.

    Last those that have not answered, the longest due first: where there are more than can be probed at once, each has
    its turn.
    """
    parameters: dict[str, Any] = {"slow": settings.DELIVERY_LEASE - SLOW}
    with connection.cursor() as cursor:
        cursor.execute(DUE_PARTNERS, parameters)
        return [DuePartner(*row) for row in cursor.fetchall()]
