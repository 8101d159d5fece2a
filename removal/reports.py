"""Questions over several tables. Read only."""

from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from removal.models import RemovalRequest

# A line per notice of a request. The delivery state is that of the message which carries its number; a number that is
# in no message yet waits, and a paused partner's messages are held.
PARTNER_LINES = """
select p.slug, n.sequence, n.kind,
       case when n.withdrawn_at is not null and d.id is null then 'withdrawn'
            when coalesce(d.state, 'waiting') = 'waiting' and p.state = 'paused' then 'held'
            else coalesce(d.state, 'waiting') end,
       coalesce(d.attempts, 0), d.delivered_at,
       case when n.handling = 'none' and n.sequence <= s.received_through and n.epoch = s.epoch then 'received'
            else n.handling end,
       n.acknowledged_at, n.respond_by, n.item_count
  from removal_notice n
  join removal_stream s on s.partner_id = n.stream_id
  join partners_partner p on p.id = n.stream_id
  left join lateral (
      select * from removal_delivery d
       where d.stream_id = n.stream_id and d.epoch = n.epoch and d.first_sequence <= n.sequence and d.state <> 'split'
       order by d.first_sequence desc limit 1) d on d.last_sequence >= n.sequence
 where n.request_id = %s
 order by p.slug, n.sequence
"""


@dataclass(frozen=True)
class PartnerLine:
    """Where one partner stands with one request. ``delivery`` is our state, ``handling`` is the partner's word."""

    partner: str
    sequence: int
    kind: str
    delivery: str
    attempts: int
    delivered_at: datetime | None
    handling: str
    acknowledged_at: datetime | None
    respond_by: datetime
    item_count: int


def partner_lines(request: RemovalRequest) -> list[PartnerLine]:
    """List where each partner stands with a request; one that only repeats an earlier one has that one's lines."""
    with connection.cursor() as cursor:
        cursor.execute(PARTNER_LINES, [request.repeats_id or request.pk])
        return [PartnerLine(*row) for row in cursor.fetchall()]
