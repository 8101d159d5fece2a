"""Promise 6: handling never goes back, and ends only by the partner's word or a named person's reason."""

from removal.invariants.invariant import Invariant

INVARIANTS = (
    # Some statement says of the number what its notice says.
    Invariant(
        "every_handling_is_the_partners_word",
        6,
        """
        with line as (
            select stream_id, epoch, status, first_sequence at, last_sequence through, false is_notice
              from removal_acknowledgement
             union all
            select stream_id, epoch, handling, sequence, null, true from removal_notice where handling <> 'none'),
        said as (
            select is_notice, at, max(through) over (partition by stream_id, epoch, status order by at) through
              from line)
        select count(*) from said where is_notice and coalesce(through, 0) < at
        """,
    ),
    # The converse: no notice is behind the furthest that was said of its number. The watermark stands for "received";
    # that of an epoch which is over is gone.
    Invariant(
        "no_notice_is_behind_what_was_said",
        6,
        """
        with line as (
            select stream_id, epoch, first_sequence at, last_sequence through, null handling,
                   removal_handling_rank(status) rank
              from removal_acknowledgement
             union all
            select stream_id, epoch, sequence, null, handling, null from removal_notice),
        said as (
            select stream_id, epoch, at, handling, max(through) filter (where rank = 3) over earlier ended,
                   max(through) filter (where rank = 2) over earlier begun,
                   max(through) filter (where rank = 1) over earlier received
              from line window earlier as (partition by stream_id, epoch order by at))
        select count(*)
          from said join removal_stream s on s.partner_id = said.stream_id
         where removal_handling_rank(handling) < case
                   when ended >= at then 3
                   when begun >= at then 2
                   when received >= at and said.epoch = s.epoch and at > s.received_through then 1
                   else 0 end
        """,
    ),
    # The watermark, too: statements reach it from 1 without a gap.
    Invariant(
        "every_receipt_is_the_partners_word",
        6,
        """
        with line as (
            select a.stream_id, a.first_sequence first, a.last_sequence last,
                   coalesce(max(a.last_sequence) over before, 0) reached
              from removal_acknowledgement a
              join removal_stream s on s.partner_id = a.stream_id and s.epoch = a.epoch
            window before as (partition by a.stream_id order by a.first_sequence, a.last_sequence
                              rows between unbounded preceding and 1 preceding)),
        said as (
            select stream_id, coalesce(min(reached) filter (where first > reached + 1), max(last)) through
              from line group by 1)
        select count(*)
          from removal_stream s left join said on said.stream_id = s.partner_id
         where s.received_through > coalesce(said.through, 0)
        """,
    ),
    # Nobody answers what it was not told.
    Invariant(
        "only_told_numbers_are_answered",
        6,
        """
        select count(*)
          from removal_notice n join removal_stream s on s.partner_id = n.stream_id and s.epoch = n.epoch
         where n.handling <> 'none' and n.sequence > s.packed_through and not s.served @> n.sequence
        """,
    ),
    # A withdrawn request keeps the notices that were sent before; nobody waits for their answers.
    Invariant(
        "a_closed_request_has_no_open_notice",
        6,
        """
        select count(*) from removal_removalrequest r
         where r.state = 'closed' and r.outcome <> 'withdrawn'
           and exists (select from removal_notice n
                        where n.request_id = r.id and n.withdrawn_at is null and n.closed_at is null
                          and n.handling in ('none', 'received', 'in_progress'))
        """,
    ),
    Invariant(
        "a_planned_request_has_an_open_notice",
        6,
        """
        select count(*) from removal_removalrequest r
         where r.state = 'planned' and not r.is_matching
           and not exists (select from removal_notice n
                            where n.request_id = r.id and n.withdrawn_at is null and n.closed_at is null
                              and n.handling in ('none', 'received', 'in_progress'))
        """,
    ),
    # Only of requests whose notices have all ended: the others are counted two lines above.
    Invariant(
        "an_outcome_says_what_was_answered",
        6,
        """
        select count(*) from (
            select r.outcome,
                   case when count(n.id) = 0 then 'nothing_disclosed'
                        when bool_and(n.handling = 'completed' or n.withdrawn_at is not null) then 'fulfilled'
                        else 'partially_fulfilled' end answered
              from removal_removalrequest r left join removal_notice n on n.request_id = r.id
             where r.state = 'closed' and r.outcome <> 'withdrawn' and r.repeats_id is null
             group by r.id
            having bool_and(n.id is null or n.withdrawn_at is not null or n.closed_at is not null
                            or n.handling in ('completed', 'partially_completed', 'rejected'))) ended
         where outcome <> answered
        """,
    ),
    # Both ways: no notice is closed without a person's reason, and no reason without its notice.
    Invariant(
        "every_closed_notice_has_a_persons_reason",
        6,
        """
        select count(*)
          from removal_notice n full join removal_closing c on c.notice_id = n.id
         where (n.closed_at is null) <> (c.id is null)
        """,
    ),
    # The database refuses one person alone; here it is read again from the rows.
    Invariant(
        "every_waiver_took_two_people",
        6,
        """
        select count(*)
          from removal_closing c left join removal_waiver w on w.id = c.waiver_id
         where c.reason = 'waived' and (w.state is distinct from 'approved' or w.notice_id <> c.notice_id
                                        or w.asked_by_id = w.decided_by_id or c.closed_by_id <> w.decided_by_id)
        """,
    ),
)
