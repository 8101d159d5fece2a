"""What a partner says, and which sayings stand: pure rules (design §5, §10)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

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
# What a partner may attest. The list grows; no claim here is ever "verified".
CLAIMS = (
    "removed_from_corpus",
    "derived_data_removed",
    "excluded_from_future_training",
    "sub_recipients_notified",
    "backups_expire_by",
    "model_retrained_without",
    "model_unchanged",
)
# These say nothing without a date, YYYY-MM-DD, as their detail.
CLAIMS_OF_A_DATE = frozenset({"backups_expire_by"})

# So many refusals are listed in one answer; the others are only counted.
MAX_LISTED = 10_000


class NamedItem(NamedTuple):
    """An item, and how it ended. ``subject`` is None where the notice has only one."""

    subject: str | None
    item: str
    outcome: str


@dataclass(frozen=True)
class Statement:
    """One line of a partner's answer. Exactly one of ``sequence`` and ``through`` is set.

    ``text`` is the line word for word, and ``line`` its place in what was sent. ``outcomes`` counts items by outcome;
    empty means not said. ``items`` names some or all of them. ``epoch`` is of the stream that it means, if it says so.
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
    items: Sequence[NamedItem] = ()
    epoch: int | None = None
    line: int = 0

    @property
    def number(self) -> int | None:
        return self.sequence if self.through is None else self.through

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def corrects(self) -> bool:
        """Whether it is to take the place of a final word."""
        return self.amends and self.is_terminal and bool(self.detail.strip())


@dataclass(frozen=True)
class Wish:
    """A line that asks for more time with one notice: the date stands until staff grant it."""

    sequence: int
    extend_until: datetime
    reason: str
    text: str
    epoch: int | None = None
    line: int = 0

    @property
    def number(self) -> int:
        return self.sequence


@dataclass(frozen=True)
class Refusal:
    """Why one line changed nothing."""

    sequence: int | None
    code: str
    message: str
    line: int = 0


Said = Statement | Wish | Refusal


@dataclass
class Answer:
    """What became of the lines of a request: each is counted in exactly one of the three.

    Of many refusals only the first ``MAX_LISTED`` are kept; the others are counted in ``unlisted``.
    """

    accepted: int = 0
    unchanged: int = 0
    refused: list[Refusal] = field(default_factory=list)
    unlisted: int = 0

    def add(self, part: "Answer") -> None:
        """Count what became of more lines."""
        self.accepted += part.accepted
        self.unchanged += part.unchanged
        self.refused += part.refused
        self.unlisted += part.unlisted + len(self.refused[MAX_LISTED:])
        del self.refused[MAX_LISTED:]


def line_text(line: Any) -> bytes | None:
    """Write a member of a list as the line that it would be in NDJSON; None for one that is nested too deep."""
    try:
        return json.dumps(line).encode()
    except RecursionError:
        return None


def refuse_unknown(said: Statement | Wish) -> Refusal:
    return Refusal(said.number, "unknown_sequence", "Your stream has no such number.", said.line)


def refuse_epoch(said: Statement | Wish, *, epoch: int) -> Refusal | None:
    """Say why a line does not mean this stream, if it names another epoch."""
    if said.epoch is None or said.epoch == epoch:
        return None
    if said.epoch == 0:
        message = "Epoch 0 is that of samples: they ask for nothing, and no answer to them is kept."
    else:
        message = f"Your stream is at epoch {epoch}. Numbers of another epoch cannot be answered any more."
    return Refusal(said.number, "wrong_epoch", message, said.line)


def refuse_alone(statement: Statement) -> Refusal | None:
    """Say why a statement cannot stand whatever it is about, if it cannot."""
    found = _fault_alone(statement)
    return Refusal(statement.number, *found, statement.line) if found else None


def _fault_alone(statement: Statement) -> tuple[str, str] | None:
    if statement.status == "rejected":
        if statement.reason not in REASONS:
            return "reason_needed", f"A rejection needs a reason, one of: {', '.join(REASONS)}."
        if statement.reason in REASONS_NEEDING_DETAIL and not statement.detail.strip():
            return "detail_needed", f"{statement.reason} needs the facts: say them in detail."
    for attestation in statement.attestations:
        if attestation["claim"] in CLAIMS_OF_A_DATE and not _is_date(attestation.get("detail")):
            return "date_needed", f"{attestation['claim']} needs a date as its detail, such as 2027-01-31."
    if statement.through is not None and (statement.outcomes or statement.items):
        return "outcomes_need_a_sequence", "Outcomes are about one notice: answer it by its sequence."
    named = count_named(statement.items) if statement.items else {}
    if named is None:
        return "item_said_twice", "An item stands there twice, with two outcomes. Say one of them."
    if len({item.subject is None for item in statement.items}) == 2:
        return "subject_needed", "Some items come with their subject and some without. Say it of each."
    if statement.outcomes and any(count > statement.outcomes.get(outcome, 0) for outcome, count in named.items()):
        return "items_contradict_outcomes", "More items are named with an outcome than outcomes counts of it."
    kept = sum((statement.outcomes or named).get(outcome, 0) for outcome in INCOMPLETE_OUTCOMES)
    if statement.status == "completed" and kept > 0:
        return "not_complete", "Items that are exempt or cannot comply make it partially_completed."
    return None


def count_named(items: Sequence[NamedItem]) -> Mapping[str, int] | None:
    """Count items by outcome, one that is named again in the same way once; None if one has two outcomes."""
    outcomes = {(subject, item): outcome for subject, item, outcome in items}
    if len(outcomes) < len(items) and len(set(items)) > len(outcomes):
        return None
    return Counter(outcomes.values())


def _is_date(detail: Any) -> bool:
    try:
        return bool(detail) and date.fromisoformat(detail).isoformat() == detail
    except ValueError:
        return False


def refuse(statement: Statement, *, handling: str, items: int) -> Refusal | None:
    """Say why a statement cannot stand for a notice about so many items, whose word so far is ``handling``."""
    refusal = refuse_alone(statement)
    if refusal:
        return refusal
    if handling in TERMINAL and statement.is_terminal and statement.status != handling and not statement.corrects:
        message = f'You answered {handling} before; that stands. To correct it, send "amends": true and a detail.'
        return Refusal(statement.number, "already_answered", message, statement.line)
    total = sum(statement.outcomes.values())
    if statement.outcomes and total != items:
        message = f"The outcomes count {total} items; this notice is about {items}. Give each item one outcome."
        return Refusal(statement.number, "outcomes_do_not_add_up", message, statement.line)
    return None


def refuse_items(statement: Statement, *, fault: str) -> Refusal:
    """Put into words what ``removal.named_items`` found wrong with a statement's items."""
    return Refusal(statement.number, fault, ITEM_FAULTS[fault], statement.line)


ITEM_FAULTS = {
    "subject_needed": "This notice is not about one subject: name the subject of each item.",
    "unknown_item": "This notice is not about one of the items, or not under this subject.",
    "counts_only": "Hashed items of a notice about several subjects cannot be looked up: say counts in outcomes.",
}


def outcomes_of(statement: Statement, *, items: int) -> dict[str, int]:
    """Count a statement's items by outcome: as it says, or from its list if that names all of them."""
    if statement.outcomes or not statement.items:
        return statement.outcomes
    named = count_named(statement.items) or {}
    return dict(named) if sum(named.values()) == items else {}


def repeats(statement: Statement, *, handling: str, is_said: bool = False) -> bool:
    """Whether a statement that may stand says nothing new: the same, or something that the notice is past already.

    ``is_said``: word for word the same is the last that was said.
    """
    corrects = statement.corrects and not is_said
    return not corrects and RANK[statement.status] <= RANK[handling]


def read_response(answer: bytes, *, epoch: int, first: int, last: int) -> Sequence[int]:
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
        if line.get("epoch", epoch) != epoch or {"sequence", "through"} <= line.keys():
            return ()
        number = line.get("sequence", line.get("through"))
        if type(number) is not int or not first <= number <= last:  # True is an int, too
            return ()
        named.update(range(first, number + 1) if "through" in line else (number,))
    whole = range(first, last + 1)
    return whole if len(named) == len(whole) else sorted(named)
