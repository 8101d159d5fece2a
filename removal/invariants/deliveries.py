"""Promises 5 and 7: what is sent is on record, and never stuck."""

from removal.invariants.invariant import Invariant

INVARIANTS = (
    # --- 5: a message is sent only with a lease recorded before, and its outcome is known or marked unknown ---
    Invariant(
        "every_attempt_is_counted",
        5,
        """
        select count(*)
          from removal_delivery d
          left join (select delivery_id, count(*) tries from removal_attempt group by 1) a on a.delivery_id = d.id
         where d.attempts <> coalesce(a.tries, 0)
        """,
    ),
    Invariant(
        "nothing_is_sent_twice_under_one_fence",
        5,
        """
        select count(*) from (
            select from removal_attempt group by delivery_id, number having count(*) > 1) doubled
        """,
    ),
    Invariant(
        "a_message_under_way_has_one_open_attempt",
        5,
        """
        select count(*) from removal_delivery d
         where d.state = 'sending'
           and (select count(*) from removal_attempt a
                 where a.delivery_id = d.id and a.number = d.fence and a.finished_at is null) <> 1
        """,
    ),
    Invariant(
        "only_a_message_under_way_has_an_open_attempt",
        5,
        """
        select count(*) from removal_attempt a join removal_delivery d on d.id = a.delivery_id
         where a.finished_at is null and (d.state <> 'sending' or a.number <> d.fence)
        """,
    ),
    Invariant(
        "a_message_delivered_by_its_response_got_a_2xx",
        5,
        """
        select count(*) from removal_delivery d
         where d.delivered_by = 'response'
           and not exists (select from removal_attempt a
                            where a.delivery_id = d.id and a.outcome = 'delivered' and a.status between 200 and 299)
        """,
    ),
    Invariant(
        "a_message_ended_by_answers_has_one_for_each_number",
        5,
        """
        select count(*)
          from removal_delivery d
          join removal_stream s on s.partner_id = d.stream_id and s.epoch = d.epoch
         where d.delivered_by = 'acknowledged'
           and exists (select from removal_notice n
                        where n.stream_id = d.stream_id and n.epoch = d.epoch
                          and n.sequence between d.first_sequence and d.last_sequence
                          and n.handling = 'none' and n.sequence > s.received_through)
        """,
    ),
    Invariant(
        "a_message_ended_by_a_pull_was_pulled_or_answered",
        5,
        """
        select count(*)
          from removal_delivery d
          join removal_stream s on s.partner_id = d.stream_id and s.epoch = d.epoch
         where d.delivered_by = 'pulled'
           and exists (select from removal_notice n
                        where n.stream_id = d.stream_id and n.epoch = d.epoch
                          and n.sequence between d.first_sequence and d.last_sequence
                          and n.handling = 'none' and n.sequence > s.received_through
                          and not s.pulled @> n.sequence)
        """,
    ),
    Invariant(
        "a_message_ended_by_hand_has_nothing_open",
        5,
        """
        select count(*)
          from removal_delivery d
          join removal_stream s on s.partner_id = d.stream_id and s.epoch = d.epoch
         where d.delivered_by = 'closed'
           and exists (select from removal_notice n
                        where n.stream_id = d.stream_id and n.epoch = d.epoch
                          and n.sequence between d.first_sequence and d.last_sequence
                          and n.handling = 'none' and n.closed_at is null and n.sequence > s.received_through
                          and not s.pulled @> n.sequence)
        """,
    ),
    # --- 7: losing any worker, or any one connection, delays and never loses ---
    # … or a connection: an answer that was cut off ends nothing, so what was never handed out cannot have been pulled.
    Invariant(
        "nothing_is_pulled_that_was_not_served",
        7,
        "select count(*) from removal_stream where not served @> pulled",
    ),
    Invariant(
        "no_lease_is_long_over",
        7,
        """
        select count(*) from removal_delivery
         where state = 'sending' and lease_until < clock_timestamp() - %(long_over)s
        """,
    ),
    # Streams for which some worker should have done something by now: a message long due, or a number that could be
    # put into one. Not of a partner that is paused, or whose endpoint is suspended. One that is down is tried with a
    # message at a time, so the others are late; and what is sent again waits behind all that is new, while some of it
    # arrives. Messages whose content was refused keep nothing new from being packed, unless one was made of late, or
    # others arrive one by one.
    Invariant(
        "no_stream_is_left_standing",
        7,
        """
        select count(*)
          from removal_stream s
          join partners_partner p on p.id = s.partner_id and p.state = 'live'
          join partners_endpoint e on e.partner_id = s.partner_id and e.state = 'open'
         where exists (select from removal_delivery d
                        where d.stream_id = s.partner_id and d.state = 'waiting'
                          and d.due_at < clock_timestamp() - %(long_over)s
                          and (s.probe_at is null or s.probe_at < clock_timestamp() - %(long_over)s)
                          and not (d.resent and exists (
                              select from removal_attempt a join removal_delivery o on o.id = a.delivery_id
                               where o.stream_id = s.partner_id and o.resent
                                 and a.started_at > clock_timestamp() - %(long_over)s)))
            or not exists (select from removal_delivery d
                            where d.stream_id = s.partner_id and d.state in ('waiting', 'sending')
                              and (d.state = 'sending' or not d.suspect
                                or d.created_at > clock_timestamp() - %(long_over)s
                                or exists (select from removal_delivery o
                                            where o.stream_id = s.partner_id and o.state = 'delivered'
                                              and o.delivered_at > clock_timestamp() - %(long_over)s)))
           and exists (select from removal_notice n
                        where n.stream_id = s.partner_id and n.epoch = s.epoch and n.sequence = s.packed_through + 1
                          and n.planned_at < clock_timestamp() - %(long_over)s)
        """,
    ),
)
