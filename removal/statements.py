"""What a partner says, and which sayings stand: pure rules (design §5, §10)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# How far each word takes a notice; it never goes back. The database has the same in removal_handling_rank.
RANK = {"none": 0, "received": 1, "in_progress": 2, "completed": 3, "partially_completed": 3, "rejected": 3}
TERMINAL = frozenset(word for word, rank in RANK.items() if rank == 3)
SAID = tuple(word for word in RANK if word != "none")

OUTCOMES = ("removed", "suppressed", "already_removed", "not_found", "exempt", "cannot_comply")
# With items of these an answer is not complete.
INCOMPLETE_OUTCOMES = frozenset({"exempt", "cannot_comply"})
REASONS = (
    "no_match",
    "insufficient_identification",
    "not_covered",
    "outside_jurisdiction",
    "legal_obligation",
    "legal_claims",
    "licence_dispute",
    "technically_infeasible",
    "disproportionate_effort",
    "other",
)
# A label alone is not enough for these (11 CCR 7022(b)(3) for the first two).
REASONS_NEEDING_DETAIL = frozenset({"technically_infeasible", "disproportionate_effort", "other"})


@dataclass(frozen=True)
class Statement:
    """One line of a partner's answer. Exactly one of ``sequence`` and ``through`` is set.

    ``text`` is the line word for word. ``outcomes`` counts items by outcome; empty means not said.
    """

    status: str
    text: str
    sequence: int | None = None
    through: int | None = None
    reason: str = ""
    detail: str = ""
    completed_at: datetime | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    attestations: Sequence[dict[str, Any]] = ()
    amends: bool = False

    @property
    def number(self) -> int | None:
        return self.sequence if self.through is None else self.through

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True)
class Refusal:
    """Why one line changed nothing."""

    sequence: int | None
    code: str
    message: str


@dataclass
class Answer:
    """What became of the lines of a request: each is counted in exactly one of the three."""

    accepted: int = 0
    unchanged: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def add(self, part: "Answer") -> None:
        """Count what became of more lines."""
        self.accepted += part.accepted
        self.unchanged += part.unchanged
        self.refused += part.refused


def refuse_unknown(statement: Statement) -> Refusal:
    return Refusal(statement.number, "unknown_sequence", "Your stream has no such number.")


def refuse_alone(statement: Statement) -> Refusal | None:
    """Say why a statement cannot stand whatever it is about, if it cannot."""
    if statement.status == "rejected":
        if statement.reason not in REASONS:
            message = f"A rejection needs a reason, one of: {', '.join(REASONS)}."
            return Refusal(statement.number, "reason_needed", message)
        if statement.reason in REASONS_NEEDING_DETAIL and not statement.detail.strip():
            message = f"{statement.reason} needs the facts: say them in detail."
            return Refusal(statement.number, "detail_needed", message)
    kept = sum(statement.outcomes.get(outcome, 0) for outcome in INCOMPLETE_OUTCOMES)
    if statement.status == "completed" and kept > 0:
        message = "Items that are exempt or cannot comply make it partially_completed."
        return Refusal(statement.number, "not_complete", message)
    if statement.through is not None and statement.outcomes:
        message = "Outcomes are about one notice: answer it by its sequence."
        return Refusal(statement.number, "outcomes_need_a_sequence", message)
    return None


def refuse(statement: Statement, *, handling: str, items: int) -> Refusal | None:
    """Say why a statement cannot stand for a notice about so many items, whose word so far is ``handling``."""
    refusal = refuse_alone(statement)
    if refusal:
        return refusal
    corrects = statement.amends and statement.detail.strip()
    if handling in TERMINAL and statement.is_terminal and statement.status != handling and not corrects:
        message = f'You answered {handling} before; that stands. To correct it, send "amends": true and a detail.'
        return Refusal(statement.number, "already_answered", message)
    total = sum(statement.outcomes.values())
    if statement.outcomes and total != items:
        message = f"The outcomes count {total} items; this notice is about {items}. Give each item one outcome."
        return Refusal(statement.number, "outcomes_do_not_add_up", message)
    return None


def repeats(statement: Statement, *, handling: str) -> bool:
    """Whether a statement that may stand says nothing new: the same, or something that the notice is past already."""
    corrects = statement.amends and statement.is_terminal and statement.status != handling
    return not corrects and RANK[statement.status] <= RANK[handling]


def read_response(answer: bytes, *, first: int, last: int) -> Sequence[int]:
    """List, in order, which numbers of a message its response acknowledges: one object, or a list of them.

    Empty when any part of the response is not an acknowledgement: what cannot be read whole is not believed in part.
    """
    try:
        body = json.loads(answer.decode())
    except (ValueError, RecursionError):
        return ()
    lines = body.get("acknowledgements", [body]) if isinstance(body, dict) else []
    named: set[int] = set()
    for line in lines if isinstance(lines, list) else []:
        if not isinstance(line, dict) or line.get("status") not in SAID:
            return ()
        number = line.get("sequence", line.get("through"))
        if type(number) is not int or not first <= number <= last:  # True is an int, too
            return ()
        named.update(range(first, number + 1) if "through" in line else (number,))
    whole = range(first, last + 1)
    return whole if len(named) == len(whole) else sorted(named)
