"""What must always be true, as questions that the database answers: `manage.py invariants` (design §9).

Each line counts what breaks one promise, so that 0 is the only good answer. The questions are written from the design's
words and not from the code that keeps the promises, which would share its mistakes.

They read every row there is and load none. Half a million notices, with all that belongs to them, take half a minute
where autovacuum keeps the statistics fresh. A question about ranges (packed numbers, answers) sorts them once and
carries the furthest end seen so far; a join on "lies between" would compare everything with everything.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from removal.ledger import SEAL

# Planning takes well under a second, or minutes for a recall of a million: what waits longer, nobody plans.
UNPLANNED_FOR = timedelta(minutes=10)
# Every worker frees leases that are over: one that has been over for so many times its length, nobody frees.
LEASES = 10


@dataclass(frozen=True)
class Invariant:
    """A sentence that must hold, the promise it is a part of, and a query for how many rows break it."""

    name: str
    promise: int
    sql: str


# Which request is about which handover: the release holds a target of it, for a usage that both name. Two lines below
# are each other's converse over this: every pair has its notice, and every notice has its pair.
PAIR = """
select t.request_id, d.id disclosure_id
  from removal_requesttarget t
  join removal_manifestentry m on m.subject_id = t.subject_id and (t.items is null or t.items && m.items)
  join removal_removalrequest r on r.id = t.request_id
   and (r.release_ids is null or m.release_id = any(r.release_ids))
  join removal_disclosure d on d.release_id = m.release_id
   and (r.partner_id is null or d.partner_id = r.partner_id)
   and (r.usages && d.usages or 'all' = any(r.usages) or 'all' = any(d.usages))
"""

INVARIANTS = (
    # --- 1: a request that got its 2xx is never lost, and never doubled by a repeat with the same key ---
    Invariant(
        "a_key_makes_one_request",
        1,
        """
        select count(*) from (
            select from removal_removalrequest group by source, idempotency_key having count(*) > 1) doubled
        """,
    ),
    Invariant(
        "every_request_has_a_target",
        1,
        """
        select count(*) from removal_removalrequest r
         where r.kind in ('opt_out', 'deletion')
           and not exists (select from removal_requesttarget t where t.request_id = r.id)
        """,
    ),
    # --- 2: for every active request and every disclosure that holds its content, a notice in that partner's stream ---
    # Of what the planner has marked as matched; what it has not is counted below. A request that has ended still covers
    # what was handed over before; a reinstatement asks for no removal.
    Invariant(
        "every_holder_has_a_notice",
        2,
        """
        with pair as (<PAIR>)
        select count(*) from (
            select distinct p.request_id, p.disclosure_id
              from pair p
              join removal_removalrequest r on r.id = p.request_id
              join removal_disclosure d on d.id = p.disclosure_id
              join removal_planneddisclosure planned on planned.disclosure_id = d.id
             where r.round is not null and r.kind <> 'reinstatement' and r.withdrawn_at is null
               and (r.ended_at is null or d.disclosed_at <= r.ended_at)
               and not exists (select from removal_notice n
                                where n.request_id = r.id and n.stream_id = d.partner_id
                                  and d.id = any(n.disclosures) and n.withdrawn_at is null)) missing
        """.replace("<PAIR>", PAIR),
    ),
    # A wish that only repeats others is not planned: a notice of theirs must say it, for each usage perhaps another's.
    Invariant(
        "every_repeated_wish_is_told",
        2,
        """
        with pair as (<PAIR>)
        select count(*) from (
            select distinct p.request_id, p.disclosure_id
              from pair p
              join removal_removalrequest r on r.id = p.request_id
              join removal_removalrequest earlier on earlier.id = r.repeats_id and earlier.round is not null
              join removal_disclosure d on d.id = p.disclosure_id
              join removal_planneddisclosure planned on planned.disclosure_id = d.id
             where r.withdrawn_at is null and (r.ended_at is null or d.disclosed_at <= r.ended_at)
               and not exists (select from removal_requesttarget mine
                                 join removal_requesttarget same on same.subject_id = mine.subject_id
                                 join removal_notice n on n.request_id = same.request_id
                                where mine.request_id = r.id and n.kind = 'opt_out' and n.withdrawn_at is null
                                  and n.stream_id = d.partner_id and d.id = any(n.disclosures))) missing
        """.replace("<PAIR>", PAIR),
    ),
    Invariant(
        "no_request_waits_unplanned",
        2,
        """
        select count(*) from removal_removalrequest
         where round is null and repeats_id is null and withdrawn_at is null
           and recorded_at < clock_timestamp() - %(unplanned_for)s
        """,
    ),
    Invariant(
        "no_disclosure_waits_unplanned",
        2,
        """
        select count(*) from removal_disclosure d
         where d.recorded_at < clock_timestamp() - %(unplanned_for)s
           and not exists (select from removal_planneddisclosure planned where planned.disclosure_id = d.id)
        """,
    ),
    # --- 3: every stream is 1..head, and every packed number lies in one message ---
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
    # --- 4: no opted-out content leaves; releases are what they were sealed as ---
    # The gate asks the preferences: each usage that a standing opt-out names is refused there.
    Invariant(
        "every_opt_out_is_in_force",
        4,
        """
        select count(*)
          from removal_removalrequest r
          join removal_requesttarget t on t.request_id = r.id
          cross join unnest(r.usages) asked(usage)
         where r.kind = 'opt_out' and r.withdrawn_at is null and r.ended_at is null
           and not exists (select from removal_preference p
                            where p.subject_id = t.subject_id and p.usage in (asked.usage, 'all')
                              and p.valid_to is null and p.value = 'disallow')
        """,
    ),
    Invariant(
        "only_sealed_releases_are_disclosed",
        4,
        """
        select count(*) from removal_disclosure d join removal_release r on r.id = d.release_id
         where r.state = 'building'
        """,
    ),
    Invariant(
        "a_sealed_release_counts_what_it_holds",
        4,
        """
        select count(*)
          from removal_release r
          left join (select release_id, count(*) subjects, sum(cardinality(items)) items
                       from removal_manifestentry group by 1) m on m.release_id = r.id
         where r.state <> 'building'
           and (r.subject_count, r.item_count) is distinct from (coalesce(m.subjects, 0), coalesce(m.items, 0))
        """,
    ),
    # The dearest line: it hashes every manifest anew, by the very statement that sealed it.
    Invariant(
        "a_sealed_release_has_its_digest",
        4,
        """
        select count(*) from removal_release r
         cross join lateral (<SEAL>) held(subjects, items, digest)
         where r.state <> 'building' and r.digest is distinct from held.digest
        """.replace("<SEAL>", SEAL.replace("%(release)s", "r.id")),
    ),
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
    # --- 6: handling never goes back, and ends only by the partner's word ---
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
    # A withdrawn request keeps the notices that were sent before; nobody waits for their answers.
    Invariant(
        "a_closed_request_has_no_open_notice",
        6,
        """
        select count(*) from removal_removalrequest r
         where r.state = 'closed' and r.outcome <> 'withdrawn'
           and exists (select from removal_notice n
                        where n.request_id = r.id and n.withdrawn_at is null
                          and n.handling in ('none', 'received', 'in_progress'))
        """,
    ),
    Invariant(
        "a_planned_request_has_an_open_notice",
        6,
        """
        select count(*) from removal_removalrequest r
         where r.state = 'planned'
           and not exists (select from removal_notice n
                            where n.request_id = r.id and n.withdrawn_at is null
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
                        when bool_and(n.handling = 'completed') then 'fulfilled'
                        else 'partially_fulfilled' end answered
              from removal_removalrequest r left join removal_notice n on n.request_id = r.id
             where r.state = 'closed' and r.outcome <> 'withdrawn'
             group by r.id
            having bool_and(n.id is null or n.withdrawn_at is not null
                            or n.handling in ('completed', 'partially_completed', 'rejected'))) ended
         where outcome <> answered
        """,
    ),
    # --- 7: losing any worker delays and never loses ---
    Invariant(
        "no_lease_is_long_over",
        7,
        """
        select count(*) from removal_delivery
         where state = 'sending' and lease_until < clock_timestamp() - %(long_over)s
        """,
    ),
    # --- 8: what was sent, answered and done by staff cannot be changed without showing it ---
    Invariant(
        "every_log_entry_has_its_digest",
        8,
        """
        select count(*) from removal_logentry
         where digest is distinct from removal_log_digest(at, actor, action, about)
        """,
    ),
    # Bodies and texts are erased when their time is over; those that are there are as they were.
    Invariant(
        "every_sent_body_has_its_digest",
        8,
        """
        select count(*) from removal_deliverybody b join removal_delivery d on d.id = b.delivery_id
         where d.body_digest is distinct from sha256(b.body)
        """,
    ),
    Invariant(
        "every_answer_has_its_digest",
        8,
        """
        select count(*) from removal_acknowledgementtext t join removal_acknowledgement a on a.id = t.acknowledgement_id
         where a.text_digest is distinct from sha256(convert_to(t.text, 'UTF8'))
        """,
    ),
    # --- 9: a partner learns nothing about content it never received ---
    Invariant(
        "no_notice_names_another_partners_handover",
        9,
        """
        select count(*)
          from removal_notice n
          cross join unnest(n.disclosures) named(disclosure_id)
          left join removal_disclosure d on d.id = named.disclosure_id
         where d.partner_id is distinct from n.stream_id
        """,
    ),
    Invariant(
        "every_notice_is_about_content_its_partner_holds",
        9,
        """
        with pair as (<PAIR>)
        select (select count(*)
                  from removal_notice n
                  cross join unnest(n.disclosures) named(disclosure_id)
                  join removal_disclosure d on d.id = named.disclosure_id and d.partner_id = n.stream_id
                 where not exists (select from pair p where p.request_id = n.request_id and p.disclosure_id = d.id))
             + (select count(*) from removal_notice where disclosures = '{}')
        """.replace("<PAIR>", PAIR),
    ),
)


@transaction.atomic(durable=True)
def check() -> dict[str, int]:
    """Count what breaks each promise: every name, in the order of the promises, with 0 where all is well.

    One snapshot, so that the lines speak of the same moment and can be held against each other. As long as it is open,
    the database keeps every old version of a row; on a large ledger, run it where that hurts nobody.
    """
    with connection.cursor() as cursor:
        cursor.execute("set transaction isolation level repeatable read, read only")
        return count_violations(cursor)


def count_violations(cursor: CursorWrapper) -> dict[str, int]:
    """Ask every question in the open transaction, whatever it sees."""
    limits: dict[str, Any] = {"unplanned_for": UNPLANNED_FOR, "long_over": LEASES * settings.DELIVERY_LEASE}
    counts: dict[str, int] = {}
    for invariant in INVARIANTS:
        cursor.execute(invariant.sql, limits)
        (count,) = cursor.fetchone()
        counts[invariant.name] = int(count)
    return counts
