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
