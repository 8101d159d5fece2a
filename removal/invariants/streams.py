"""Promise 3: every stream is 1..head, and every packed number lies in one message."""

from removal.invariants.invariant import Invariant

INVARIANTS = (
    # Numbers that are missing. Of an epoch that a restore has ended, the head is the last number there is.
    Invariant(
        "streams_have_no_holes",
        3,
        """
        select coalesce(sum(head - given), 0) from (
            select s.head, (select count(distinct n.sequence) from removal_notice n
                             where n.stream_id = s.partner_id and n.epoch = s.epoch
                               and n.sequence between 1 and s.head) given
              from removal_stream s
             union all
            select max(n.sequence), count(distinct n.sequence)
              from removal_notice n join removal_stream s on s.partner_id = n.stream_id
             where n.epoch < s.epoch group by n.stream_id, n.epoch) stream
        """,
    ),
    Invariant(
        "no_number_is_used_twice",
        3,
        """
        select count(*) from (
            select from removal_notice group by stream_id, epoch, sequence having count(*) > 1) doubled
        """,
    ),
    Invariant(
        "no_number_is_outside_its_stream",
        3,
        """
        select count(*) from removal_notice n join removal_stream s on s.partner_id = n.stream_id
         where n.sequence < 1 or n.epoch > s.epoch or n.epoch = s.epoch and n.sequence > s.head
        """,
    ),
    # In order, each message starts right after all before it, and together they reach what is packed.
    Invariant(
        "every_packed_number_is_in_one_message",
        3,
        """
        with message as (
            select stream_id, epoch, first_sequence first, last_sequence last,
                   coalesce(max(last_sequence) over before, 0) reached
              from removal_delivery where state <> 'split'
            window before as (partition by stream_id, epoch order by first_sequence, last_sequence
                              rows between unbounded preceding and 1 preceding))
        select (select count(*) from message where first <> reached + 1)
             + (select count(*)
                  from removal_stream s
                  left join (select stream_id, epoch, max(last) last from message group by 1, 2) m
                    on m.stream_id = s.partner_id and m.epoch = s.epoch
                 where s.packed_through > coalesce(m.last, 0))
        """,
    ),
    Invariant(
        "no_message_reaches_past_what_is_packed",
        3,
        """
        select count(*) from removal_delivery d join removal_stream s on s.partner_id = d.stream_id
         where d.epoch > s.epoch or d.epoch = s.epoch and d.last_sequence > s.packed_through
        """,
    ),
    Invariant(
        "nothing_is_served_beyond_the_head",
        3,
        "select count(*) from removal_stream where not int8range(1, head + 1) @> served",
    ),
    # Two ranges that begin and end where the whole does, and are as long together, leave no gap and do not overlap.
    Invariant(
        "two_halves_cover_a_split_message",
        3,
        """
        select count(*)
          from removal_delivery d
          cross join lateral (
              select count(*) halves, min(first_sequence) first, max(last_sequence) last,
                     sum(last_sequence - first_sequence + 1) length
                from removal_delivery h
               where h.parent_id = d.id and h.stream_id = d.stream_id and h.epoch = d.epoch) h
         where case d.state when 'split'
               then (h.halves, h.first, h.last, h.length) is distinct from
                    (2, d.first_sequence, d.last_sequence, d.last_sequence - d.first_sequence + 1)
               else h.halves > 0 end
        """,
    ),
)
