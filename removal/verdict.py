"""What an attempt's outcome means for its message: pure rules, one table (design §7)."""

from dataclasses import dataclass
from datetime import timedelta

from partners.webhook import Delivered, Outcome, Refused, Unreachable
from removal import schedule

# The only answers that can be about what a message says.
ABOUT_CONTENT = frozenset({400, 413, 422})
# The partner is there and says "later".
LATER = frozenset({408, 425, 429})
GONE = 410


@dataclass(frozen=True)
class Verdict:
    """``state`` is the delivery's next one; ``delay`` counts when that is ``waiting``.

    ``suspect`` asks for ``quarantined``, which is granted only if another message has arrived meanwhile: until then
    the endpoint may be at fault. ``incident`` names a fault of the endpoint; ``suspends`` stops sending to it.
    ``is_answer`` tells that the endpoint is there and reads what it is sent.
    """

    state: str
    delay: timedelta = timedelta(0)
    suspect: bool = False
    incident: str = ""
    suspends: bool = False
    is_answer: bool = False


def judge(outcome: Outcome, *, notices: int, attempt: int, jitter: float) -> Verdict:
    """Decide what follows attempt number ``attempt`` at a message of ``notices`` notices. Nothing is ever given up."""
    if isinstance(outcome, Delivered):
        return Verdict("delivered", is_answer=True)
    retry_after = outcome.retry_after if isinstance(outcome, Refused) else None
    delay = schedule.delay_before(attempt=attempt + 1, retry_after=retry_after, jitter=jitter)
    if isinstance(outcome, Unreachable):
        about_endpoint = outcome.reason in {"tls", "address_refused"}
        return Verdict("waiting", delay, incident=outcome.reason if about_endpoint else "")
    status = outcome.status
    if status in ABOUT_CONTENT:
        if notices > 1:
            return Verdict("split", is_answer=True)
        return Verdict("waiting", delay, suspect=True, is_answer=True)
    if status in LATER or status >= 500:
        return Verdict("waiting", delay)
    return Verdict("waiting", delay, incident=f"http_{status}", suspends=status == GONE)
