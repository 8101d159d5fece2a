"""What happens next, for each way that a notice may stand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from removal.prospects import Prospect, what_next

NOW = datetime(2026, 11, 24, 14, 0, tzinfo=UTC)
DAY = timedelta(days=1)
OWED = Prospect("delivered", "received", planned_at=NOW, respond_by=NOW + 30 * DAY)
WAITING = replace(OWED, delivery="waiting", handling="none")


@pytest.mark.parametrize(
    ("prospect", "said"),
    [
        (replace(WAITING, due_at=NOW + timedelta(minutes=20), attempts=4), "Next try 2026-11-24 14:20 (attempt 5)."),
        (replace(WAITING, due_at=NOW - DAY), "Next try now (attempt 1)."),
        (WAITING, "Next try now (attempt 1)."),
        (
            replace(WAITING, due_at=NOW, probe_at=NOW + timedelta(minutes=5), attempts=7),
            "The endpoint seems to be down: one message is tried 2026-11-24 14:05 (attempt 8).",
        ),
        (replace(WAITING, is_packed=False, ahead=3), "Waits behind 3 numbers of its stream."),
        (replace(WAITING, is_packed=False, ahead=1), "Waits behind 1 number of its stream."),
        (replace(WAITING, is_packed=False), "Goes with the next message."),
        (replace(WAITING, delivery="held", partner="paused"), "Held: the partner is paused."),
        (replace(WAITING, delivery="held", partner="onboarding"), "Held: the partner is not live yet."),
        (
            replace(WAITING, is_endpoint_open=False),
            "Held: its endpoint said that it is gone, until its address is set anew.",
        ),
        (
            replace(WAITING, delivery="held", partner="paused", respond_by=NOW - DAY),
            "Held: the partner is paused. Overdue since 2026-11-23 14:00.",
        ),
        (replace(WAITING, delivery="sending", attempts=2), "On its way now (attempt 2)."),
        (
            replace(WAITING, delivery="quarantined"),
            "Quarantined: the partner refuses it and takes others; a person must look.",
        ),
        (OWED, "Answer due 2026-12-24 14:00; reminder at half time, on 2026-12-09 14:00."),
        (
            replace(OWED, planned_at=NOW - 20 * DAY, respond_by=NOW + 10 * DAY),
            "Answer due 2026-12-04 14:00; reminder at 80 %, on 2026-11-28 14:00.",
        ),
        (
            replace(OWED, planned_at=NOW - 29 * DAY, respond_by=NOW + DAY),
            "Answer due 2026-11-25 14:00; reminder at the end, on 2026-11-25 14:00.",
        ),
        (
            replace(OWED, handling="none", receive_by=NOW + DAY),
            "Receipt due 2026-11-25 14:00, answer due 2026-12-24 14:00; reminder at half time, on 2026-12-09 14:00.",
        ),
        (
            replace(OWED, handling="none", receive_by=NOW - DAY),
            (
                "Silent: its receipt was due 2026-11-23 14:00; the answer is due 2026-12-24 14:00; "
                "reminder at half time, on 2026-12-09 14:00."
            ),
        ),
        (
            replace(OWED, respond_by=NOW - DAY),
            "Overdue since 2026-11-23 14:00: nothing more happens by itself.",
        ),
        (
            replace(OWED, handling="none", respond_by=NOW - DAY),
            "Silent, and overdue since 2026-11-23 14:00: nothing more happens by itself.",
        ),
        (
            replace(OWED, respond_by=NOW - DAY, asked_until=NOW + DAY),
            (
                "Staff decide on its wish for time until 2026-11-25 14:00. "
                "Overdue since 2026-11-23 14:00: nothing more happens by itself."
            ),
        ),
        # acknowledged before our own POST returned
        (replace(OWED, delivery="waiting"), "Answer due 2026-12-24 14:00; reminder at half time, on 2026-12-09 14:00."),
        (replace(OWED, handling="completed", respond_by=NOW - DAY), "Nothing: completed."),
        (replace(OWED, handling="partially_completed"), "Nothing: completed in part."),
        (replace(OWED, handling="rejected"), "Nothing: rejected, with a reason."),
        (replace(WAITING, is_closed=True), "Nothing: closed by hand."),
        (replace(WAITING, delivery="withdrawn", is_withdrawn=True), "Nothing: withdrawn."),
    ],
)
def test_what_happens_next(prospect: Prospect, said: str) -> None:
    assert what_next(prospect, now=NOW) == said
