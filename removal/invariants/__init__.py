"""What must always be true, as questions that the database answers: `manage.py invariants` (design §9).

Each line counts what breaks one promise, so that 0 is the only good answer. The questions are written from the design's
words and not from the code that keeps the promises, which would share its mistakes. They are in one module for each
thing that is promised about.

They read every row there is and load none, and want fresh statistics. A question about ranges (packed numbers, answers)
sorts them once and carries the furthest end seen so far; a join on "lies between" would compare everything with
everything.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from removal.invariants import answers, deliveries, history, notices, releases, requests, streams

# Planning takes well under a second, or minutes for a recall of a million: what waits longer, nobody plans.
UNPLANNED_FOR = timedelta(minutes=10)
# Every worker frees leases that are over: one that has been over for so many times its length, nobody frees.
LEASES = 10

GROUPS = (requests, notices, streams, releases, deliveries, answers, history)
INVARIANTS = tuple(sorted((line for group in GROUPS for line in group.INVARIANTS), key=lambda line: line.promise))


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
