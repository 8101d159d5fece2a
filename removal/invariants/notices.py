"""Promises 2 and 9: every holder is told, and nobody else."""

from removal.invariants.invariant import Invariant

# Which request is about which handover: the release holds a target of it, for a usage that both name. Two lines below
# are each other's converse over this: every pair has its notice, and every notice has its pair.
PAIR = """
select t.request_id, d.id disclosure_id
  from removal_requesttarget t
  join removal_manifestentry m on m.subject_id = t.subject_id
   and (t.items is null or removal_items_meet(m.items, t.items))
  join removal_removalrequest r on r.id = t.request_id
   and (r.release_ids is null or m.release_id = any(r.release_ids))
  join removal_disclosure d on d.release_id = m.release_id
   and (r.partner_id is null or d.partner_id = r.partner_id)
   and (r.usages && d.usages or 'all' = any(r.usages) or 'all' = any(d.usages))
union all
-- an offboarding is about everything that its partner was given
select r.id, d.id from removal_removalrequest r join removal_disclosure d on d.partner_id = r.partner_id
 where r.kind = 'offboarding'
"""

INVARIANTS = (
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
             where r.round is not null and not r.is_matching and r.kind <> 'reinstatement' and r.withdrawn_at is null
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
    # A partner that was told to remove is told, after it, when the person opted back in.
    Invariant(
        "every_reinstatement_is_told_last",
        2,
        """
        select count(distinct e.id)
          from removal_removalrequest e
          join removal_removalrequest o on o.ended_by_id = e.id
          join removal_notice n on n.request_id = o.id
         where e.kind = 'reinstatement' and e.round is not null
           and not exists (select from removal_notice k
                            where k.request_id = e.id and k.stream_id = n.stream_id and k.epoch = n.epoch
                              and k.sequence > n.sequence)
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
             + (select count(*) from removal_notice where disclosures = '{}' and kind <> 'reinstatement')
        """.replace("<PAIR>", PAIR),
    ),
)
