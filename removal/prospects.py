"""What happens next with one notice, and when: pure rules that put into words what the rest of the code does."""

from dataclasses import dataclass
from datetime import datetime

from removal.deadlines import LEVELS, passes

ENDED = {"completed": "completed", "partially_completed": "completed in part", "rejected": "rejected, with a reason"}


@dataclass(frozen=True)
class Prospect:
    """Where a notice stands, as far as it says what comes next.

    ``delivery`` is that of the partner's line: waiting, sending, delivered, held, quarantined or withdrawn. ``ahead``,
    of one that is in no message yet, counts the numbers before it that are in none either. ``due_at`` is when its
    message is tried, ``probe_at`` when a partner that seems to be down is. ``asked_until`` is an open wish for time.
    """

    delivery: str
    handling: str
    planned_at: datetime
    respond_by: datetime
    receive_by: datetime | None = None
    is_withdrawn: bool = False
    is_closed: bool = False
    partner: str = "live"
    is_endpoint_open: bool = True
    is_packed: bool = True
    ahead: int = 0
    attempts: int = 0
    due_at: datetime | None = None
    probe_at: datetime | None = None
    asked_until: datetime | None = None


def what_next(prospect: Prospect, *, now: datetime) -> str:
    """Say in one or two short sentences what happens next with a notice, and when."""
    if ended := _ended(prospect):
        return f"Nothing: {ended}."
    if prospect.delivery != "delivered" and prospect.handling == "none":
        coming = _sending(prospect, now=now)
        return f"{coming} Overdue since {_at(prospect.respond_by)}." if now > prospect.respond_by else coming
    answer = _answer(prospect, now=now)
    if prospect.asked_until:
        return f"Staff decide on its wish for time until {_at(prospect.asked_until)}. {answer}"
    return answer


def _ended(prospect: Prospect) -> str:
    if prospect.is_withdrawn:
        return "withdrawn"
    if prospect.handling in ENDED:
        return ENDED[prospect.handling]
    return "closed by hand" if prospect.is_closed else ""


def _sending(prospect: Prospect, *, now: datetime) -> str:
    following = prospect.attempts + 1
    match prospect.delivery:
        case "quarantined":
            return "Quarantined: the partner refuses it and takes others; a person must look."
        case "sending":
            return f"On its way now (attempt {max(prospect.attempts, 1)})."
    if prospect.partner != "live":
        return f"Held: the partner is {'paused' if prospect.partner == 'paused' else 'not live yet'}."
    if not prospect.is_endpoint_open:
        return "Held: its endpoint said that it is gone, until its address is set anew."
    if not prospect.is_packed:
        if not prospect.ahead:
            return "Goes with the next message."
        return f"Waits behind {prospect.ahead} {'number' if prospect.ahead == 1 else 'numbers'} of its stream."
    at = max((moment for moment in (prospect.due_at, prospect.probe_at) if moment), default=now)
    if prospect.probe_at:
        return f"The endpoint seems to be down: one message is tried {_when(at, now=now)} (attempt {following})."
    return f"Next try {_when(at, now=now)} (attempt {following})."


def _answer(prospect: Prospect, *, now: datetime) -> str:
    if now > prospect.respond_by:
        word = "Overdue" if prospect.handling != "none" else "Silent, and overdue"
        return f"{word} since {_at(prospect.respond_by)}: nothing more happens by itself."
    if prospect.handling == "none" and prospect.receive_by and now > prospect.receive_by:
        first = f"Silent: its receipt was due {_at(prospect.receive_by)}; the answer is due {_at(prospect.respond_by)}"
    elif prospect.handling == "none" and prospect.receive_by:
        first = f"Receipt due {_at(prospect.receive_by)}, answer due {_at(prospect.respond_by)}"
    else:
        first = f"Answer due {_at(prospect.respond_by)}"
    for level in LEVELS:
        moment = passes(level, start=prospect.planned_at, end=prospect.respond_by)
        if moment > now:
            words = {50: "at half time, ", 100: "at the end, "}.get(level, f"at {level} %, ")
            return f"{first}; reminder {words}on {_at(moment)}."
    return f"{first}."


def _when(at: datetime, *, now: datetime) -> str:
    return "now" if at <= now else _at(at)


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
