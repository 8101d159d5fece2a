"""Promise 8: what was sent, answered and done by staff cannot be changed without showing it."""

from removal.invariants.invariant import Invariant

INVARIANTS = (
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
)
