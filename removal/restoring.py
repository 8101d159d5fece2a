"""After the database was restored from a backup: what partners have been told since is unknown here.

Numbers behind the backup's last one were given before and would be given again, for other notices: a partner that has
them would drop the new ones as repeats. So each stream begins anew, in its next epoch, at 1 (design §5).
"""

from dataclasses import dataclass
from typing import Any

from django.db import connection

from removal import planning
from removal.models import LogEntry, Stream
from removal.transactions import whole_step

# From the first number that is still owed an answer on, everything is said again, in its order: a later wish about the
# same must come behind an earlier one, also where it was answered before. Each partner has as long as it had. A notice
# that a person closed is not asked for again, but a reinstatement has to come behind what it undoes.
CARRY = """
with
standing as materialized (
    select n.*, n.handling not in ('completed', 'partially_completed', 'rejected') and n.closed_at is null is_open
      from removal_stream s
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch
      join removal_removalrequest r on r.id = n.request_id
     where s.partner_id = %(partner)s and n.withdrawn_at is null and r.withdrawn_at is null),
carried as materialized (
    select *, row_number() over (order by sequence) number
      from standing
     where (closed_at is null or kind = 'reinstatement')
       and sequence >= (select min(sequence) from standing where is_open)),
this as materialized (select clock_timestamp() at),
told as (
    insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round,
                                planned_at, send_by, receive_by, respond_by, handling)
    select stream_id, epoch + 1, number, request_id, kind, disclosures, item_count, nextval('removal_planner_round'),
           at, at + (send_by - planned_at), at + (receive_by - planned_at), at + (respond_by - planned_at), 'none'
      from carried, this),
over as (
    update removal_notice n set withdrawn_at = this.at from carried c, this where n.id = c.id and c.is_open),
closed as (
    select id, public_id, outcome, closed_at from removal_removalrequest
     where id in (select request_id from carried) and state = 'closed'),
remembered as (
    insert into removal_logentry (actor, action, about)
    select %(actor)s, 'request_reopened',
           jsonb_build_object('request', public_id, 'outcome', outcome, 'closed_at', closed_at)
      from closed order by id),
reopened as (
    update removal_removalrequest set state = 'planned', outcome = '', closed_at = null
     where id in (select id from closed))
update removal_stream
   set epoch = epoch + 1, head = (select count(*) from carried), packed_through = 0, received_through = 0,
       served = '{}', pulled = '{}'
 where partner_id = %(partner)s
returning epoch, head
"""


@dataclass(frozen=True)
class NewEpoch:
    """A stream that has begun anew, with so many notices that are said again."""

    partner: str
    epoch: int
    notices: int


def partners_with_streams() -> list[int]:
    return list(Stream.objects.order_by("pk").values_list("pk", flat=True))


@whole_step
def open_epoch(*, actor: str, partner_id: int) -> NewEpoch:
    """Begin a partner's stream anew, and say again in it what is owed and all that followed.

    The old numbers stand as they were; under those that were open, nothing is asked any more. For after a restore,
    before anything is sent. Raises OperationalError when planners are at work for five seconds.
    """
    with connection.cursor() as cursor:
        planning.wait_for_lock(cursor)
        stream = (
            Stream.objects.select_related("partner").select_for_update(no_key=True, of=("self",)).get(pk=partner_id)
        )
        cursor.execute(CARRY, {"partner": partner_id, "actor": actor})
        epoch, notices = cursor.fetchone()
        about: dict[str, Any] = {"partner": partner_id, "epoch": epoch, "notices": notices}
        LogEntry.objects.create(actor=actor, action="epoch_opened", about=about)
    return NewEpoch(stream.partner.slug, epoch, notices)
