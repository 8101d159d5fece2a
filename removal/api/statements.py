"""Lines of an acknowledgement, read: in the shape that nearly all have with little for each, in any other with care."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
import pydantic
from django.http import HttpRequest

from removal.api import schemas
from removal.api.fields import MAX_NUMBER, TIME_PATTERN
from removal.api.problems import FieldError, field_errors, invalid_fields
from removal.api.streams import NDJSON, LengthNeeded, has_untold_length, open_body
from removal.manifests import MAX_KEY_BYTES, MAX_LINE_BYTES, Unreadable, read_json, split_lines
from removal.statements import OUTCOMES, SAID, NamedItem, Refusal, Said, Statement, line_text

Line = tuple[int, bytes | None]


def split(request: HttpRequest, *, body: bytes | None) -> Iterable[Line]:
    """Cut a body into its lines; a JSON body has those that it would have as NDJSON.

    ``body`` is what was read of it already, if it was. Raises Problem, Unreadable or LengthNeeded.
    """
    if request.content_type == NDJSON:
        return split_lines(open_body(request) if body is None else [body])
    if has_untold_length(request):
        raise LengthNeeded
    text = request.body if body is None else body
    said = read_json(text)
    if not isinstance(said, dict):
        raise invalid_fields([FieldError("body", "Send one object, or a list of them under acknowledgements.")])
    if "acknowledgements" not in said:
        return [(1, text)]
    lines = said.pop("acknowledgements")
    if said:
        raise invalid_fields([FieldError(name, "Nothing stands beside acknowledgements.") for name in said])
    if not isinstance(lines, list) or not lines:
        raise invalid_fields([FieldError("acknowledgements", "It must be a list of one or more.")])
    return ((number, line_text(line)) for number, line in enumerate(lines, start=1))


def read(line: Line) -> Said:
    """Read a line. One that says nothing understandable is a refusal."""
    number, text = line
    if text is None:
        return _refuse(number, None, "unreadable", f"A line has at most {MAX_LINE_BYTES >> 20} MiB.")
    return _read_plain(number, text) or _read_any(number, text)


def _read_any(number: int, text: bytes) -> Said:
    try:
        line = read_json(text)
    except Unreadable as error:
        return _refuse(number, None, "unreadable", str(error))
    try:
        if isinstance(line, dict) and "extend_until" in line:
            return schemas.ExtensionLine.model_validate(line).as_wish(text=text.decode(), line=number)
        return schemas.AcknowledgementLine.model_validate(line).as_statement(text=text.decode(), line=number)
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{fault.field}: {fault.message}" for fault in field_errors(error))
        return _refuse(number, _sequence_of(line), "invalid", faults)


def _refuse(number: int, sequence: int | None, code: str, message: str) -> Refusal:
    return Refusal(sequence, code, f"Line {number}: {message}", number)


def _sequence_of(line: Any) -> int | None:
    """Find which number a line is about, as far as it says so."""
    if not isinstance(line, dict):
        return None
    numbers = (line.get("sequence"), line.get("through"))
    return next((number for number in numbers if type(number) is int), None)  # True is an int, too


# --- the plain shape ---

_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES // 4)]  # a character has up to 4 bytes
_Outcome = Literal[OUTCOMES]  # type: ignore[valid-type]  # the words that there are


class _Item(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    item: _Key
    outcome: _Outcome


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    sequence: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
    status: Literal[SAID]  # type: ignore[valid-type]  # the words that there are
    completed_at: str | None = None
    outcomes: dict[_Outcome, Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]] = {}
    items: list[_Item] = []

    def quotes(self) -> int:
        """How many quotation marks it has in JSON: a name or a value has two."""
        strings = 3 + len(self.outcomes) + 4 * len(self.items)
        return 2 * (strings + (2 if self.completed_at else 0) + bool(self.outcomes) + bool(self.items))


_decode = msgspec.json.Decoder(_Plain).decode


def _read_plain(number: int, text: bytes) -> Statement | None:
    """Read a line as plain as can be, or return None. It takes a fraction of what the others take.

    Of a field that stands twice the decoder takes the last. So no escapes, and as many quotation marks as its fields
    need: one that stands twice has more.
    """
    if b"\\" in text:
        return None
    try:
        plain = _decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    if text.count(b'"') != plain.quotes():
        return None
    completed_at = None
    if plain.completed_at is not None:
        completed_at = _read_time(plain.completed_at)
        if completed_at is None:
            return None
    return Statement(
        status=plain.status,
        text=text.decode(),
        sequence=plain.sequence,
        completed_at=completed_at,
        outcomes=plain.outcomes,
        items=[NamedItem(None, named.item, named.outcome) for named in plain.items],
        line=number,
    )


def _read_time(text: str) -> datetime | None:
    """Read a plain time after 1970; None for one that a closer look is needed at."""
    if not TIME_PATTERN.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time if time.year > 1970 else None
