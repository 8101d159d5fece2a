"""What each outcome means for its message: the table of design §7."""

from datetime import timedelta

import pytest

from partners.connection import Reason
from partners.webhook import Delivered, Outcome, Refused, Unreachable
from removal.verdict import Verdict, judge

QUICK = timedelta(milliseconds=10)
FIRST_DELAY = timedelta(seconds=5)


def refused(status: int) -> Refused:
    return Refused(status=status, answer=b"", latency=QUICK)


def unreachable(reason: Reason) -> Unreachable:
    return Unreachable(reason=reason, detail="", latency=QUICK)


@pytest.mark.parametrize(
    ("outcome", "notices", "verdict"),
    [
        (Delivered(status=204, answer=b"", latency=QUICK), 5, Verdict("delivered", is_answer=True)),
        *((refused(status), 2, Verdict("split", is_answer=True)) for status in (400, 413, 422)),
        *(
            (refused(status), 1, Verdict("waiting", FIRST_DELAY, suspect=True, is_answer=True))
            for status in (400, 413, 422)
        ),
        *((refused(status), 2, Verdict("waiting", FIRST_DELAY)) for status in (408, 425, 429, 500, 503, 599)),
        *(
            (refused(status), 2, Verdict("waiting", FIRST_DELAY, incident=f"http_{status}"))
            for status in (301, 302, 307, 401, 403, 404, 405, 409, 418)
        ),
        (refused(410), 2, Verdict("waiting", FIRST_DELAY, incident="http_410", suspends=True)),
        (unreachable("timeout"), 2, Verdict("waiting", FIRST_DELAY)),
        (unreachable("connection"), 2, Verdict("waiting", FIRST_DELAY)),
        (unreachable("dns"), 2, Verdict("waiting", FIRST_DELAY)),
        (unreachable("tls"), 2, Verdict("waiting", FIRST_DELAY, incident="tls")),
        (unreachable("address_refused"), 2, Verdict("waiting", FIRST_DELAY, incident="address_refused")),
    ],
)
def test_every_outcome_has_its_verdict(outcome: Outcome, notices: int, verdict: Verdict) -> None:
    assert judge(outcome, notices=notices, attempt=1, jitter=0) == verdict
