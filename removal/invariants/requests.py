"""Promise 1: a request that got its 2xx is never lost, and never doubled by a repeat with the same key."""

from removal.invariants.invariant import Invariant

INVARIANTS = (
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
)
