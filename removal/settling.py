"""End the sending of what its partner has, or need not have: every number was answered, pulled or closed by hand.

Both functions need an open transaction with the stream's row locked (design §7).
"""

from django.db.backends.utils import CursorWrapper

STEP = 10_000

# Messages that wait, or stand in quarantine, and whose numbers all were. What a person asked for again goes out anyway.
SETTLE = """
update removal_delivery d
   set state = 'delivered', delivered_at = clock_timestamp(),
       delivered_by = (
           select case when bool_or(not s.pulled @> n.sequence) then 'closed'
                       when count(*) > 0 then 'pulled' else 'acknowledged' end
             from removal_notice n
            where n.stream_id = d.stream_id and n.epoch = d.epoch
              and n.sequence between d.first_sequence and d.last_sequence
              and n.handling = 'none' and n.sequence > s.received_through)
  from removal_stream s
 where s.partner_id = %(stream)s and d.epoch = s.epoch
   and d.id in (select id from removal_delivery where stream_id = %(stream)s and state = 'waiting' and not resent
                   and first_sequence is not null
                union all
                select id from removal_delivery where stream_id = %(stream)s and state = 'quarantined' and not resent)
   and not exists (select from removal_notice n
                    where n.stream_id = d.stream_id and n.epoch = d.epoch
                      and n.sequence between d.first_sequence and d.last_sequence
                      and n.handling = 'none' and n.sequence > s.received_through
                      and not s.pulled @> n.sequence and n.closed_at is null)
"""

# Numbers that are in no message yet, up to the first that is still to be sent. They go into messages that have ended,
# without bytes and without a try: every packed number lies in one.
PACK_PULLED = """
with
ahead as materialized (
    select n.sequence, s.packed_through, s.pulled @> n.sequence pulled,
           n.handling <> 'none' or n.sequence <= s.received_through answered
      from removal_stream s
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch
       and n.sequence > s.packed_through and n.sequence <= s.packed_through + %(step)s
     where s.partner_id = %(stream)s),
ended as (
    select * from ahead
     where sequence < (select coalesce(min(sequence), 9223372036854775807) from ahead where not (pulled or answered))),
packed as (
    insert into removal_delivery (id, stream_id, epoch, first_sequence, last_sequence, state, fence, attempts, failures,
                                  abandoned, created_at, due_at, delivered_at, delivered_by, suspect, resent)
    select gen_random_uuid(), s.partner_id, s.epoch, m.first, m.last, 'delivered', 0, 0, 0, 0, clock_timestamp(),
           clock_timestamp(), clock_timestamp(), case when m.answered then 'acknowledged' else 'pulled' end,
           false, false
      from removal_stream s
      join partners_endpoint p on p.partner_id = s.partner_id
      cross join lateral (
          select min(sequence) first, max(sequence) last, bool_and(answered) answered
            from ended group by (sequence - s.packed_through - 1) / p.max_notices) m
     where s.partner_id = %(stream)s
    returning last_sequence)
update removal_stream s set packed_through = x.last
  from (select max(last_sequence) last, (select min(packed_through) from ended) before from packed) x
 where s.partner_id = %(stream)s and x.last is not null
returning s.packed_through, x.before
"""


def settle_deliveries(cursor: CursorWrapper, *, stream_id: int) -> None:
    """End the messages whose every number the partner has answered or pulled, or a person closed."""
    cursor.execute(SETTLE, {"stream": stream_id})


def pack_pulled(cursor: CursorWrapper, *, stream_id: int) -> int | None:
    """Count numbers as told that need no sending any more; returns what the stream is packed through, if it moved.

    Only numbers that a pull has handed out can be so: for a stream without such, the question is not worth its time.
    """
    packed_through = None
    while True:
        cursor.execute(PACK_PULLED, {"stream": stream_id, "step": STEP})
        moved = cursor.fetchone()
        if moved is None:
            return packed_through
        packed_through, before = moved
        if packed_through < before + STEP:
            return int(packed_through)
