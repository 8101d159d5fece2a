"""Promise 4: no opted-out content leaves; releases are what they were sealed as."""

from removal.invariants.invariant import Invariant
from removal.ledger import SEAL

INVARIANTS = (
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
    # Opt-outs, deletions and recalls that stood at the sealing, and were recorded so long before it that it must have
    # seen them. Preferences without a request are left out: when they were recorded, nobody knows.
    Invariant(
        "no_disclosed_release_was_sealed_with_opted_out_content",
        4,
        """
        select count(*)
          from removal_release l
         where l.state <> 'building' and exists (select from removal_disclosure d where d.release_id = l.id)
           and (exists (select from removal_manifestentry m join removal_preference p on p.subject_id = m.subject_id
                         where m.release_id = l.id and p.request_id is not null and p.value = 'disallow'
                           and (p.usage = 'all' or l.usages && array['all', p.usage::text])
                           and p.valid_from < l.sealed_at - %(unplanned_for)s
                           and (p.valid_to is null or p.valid_to > l.sealed_at))
                or exists (select from removal_manifestentry m
                             join removal_requesttarget t on t.subject_id = m.subject_id
                             join removal_removalrequest r on r.id = t.request_id
                            where m.release_id = l.id and r.kind in ('deletion', 'recall')
                              and (t.items is null or removal_items_meet(m.items, t.items))
                              and r.recorded_at < l.sealed_at - %(unplanned_for)s
                              and (r.withdrawn_at is null or r.withdrawn_at > l.sealed_at)
                              and (r.ended_at is null or r.ended_at > l.sealed_at)))
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
)
