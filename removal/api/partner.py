"""What partners call: acknowledge notices."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic
from ninja import Router, Status

from removal import acknowledgement
from removal.api import answers, schemas
from removal.api.auth import KeyRequest, PartnerKey, partner_id
from removal.api.problems import FieldError, Problem, field_errors, invalid_fields
from removal.api.streams import NDJSON, LengthNeeded, has_untold_length, open_body
from removal.manifests import MAX_LINE_BYTES, Unreadable, read_json, split_lines
from removal.statements import Refusal, Statement

router = Router(auth=PartnerKey(), tags=["partners"])

_LINE = {"$ref": "#/components/schemas/AcknowledgementLine"}
_ACKNOWLEDGEMENTS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        _LINE,
                        {
                            "type": "object",
                            "properties": {"acknowledgements": {"type": "array", "items": _LINE, "minItems": 1}},
                            "required": ["acknowledgements"],
                            "additionalProperties": False,
                        },
                    ]
                }
            },
            NDJSON: {"schema": _LINE},
        },
    }
}

Lines = Iterable[tuple[int, bytes | None]]


@router.post(
    "/acknowledgements",
    response=dict.fromkeys((200, 207), answers.AcknowledgementAnswer),
    openapi_extra=_ACKNOWLEDGEMENTS,
)
def acknowledge(request: KeyRequest) -> Status[answers.AcknowledgementAnswer]:
    """Say what has become of notices: one object, a list under `acknowledgements`, or NDJSON. Safe to repeat.

    Each line is judged by itself: 200 when all stand, 207 when some are in `refused`, 4xx when none could be read.
    """
    lines = split_lines(open_body(request)) if request.content_type == NDJSON else _lines_of_json(request)
    refused: list[Refusal] = []
    answer = acknowledgement.acknowledge(
        partner_id=partner_id(request),
        key_prefix=request.auth.prefix,
        statements=_read_statements(lines, refused),
    )
    refused += answer.refused
    if not (answer.accepted or answer.unchanged) and all(refusal.code == "unreadable" for refusal in refused):
        raise Problem(400, "unreadable", refused[0].message if refused else "The body is empty. Send one line or more.")
    said = answers.AcknowledgementAnswer(
        accepted=answer.accepted,
        unchanged=answer.unchanged,
        refused=[answers.RefusedLine.model_validate(refusal) for refusal in refused],
    )
    return Status(207 if refused else 200, said)


def _lines_of_json(request: KeyRequest) -> Lines:
    """Read a JSON body as the lines that it would have as NDJSON."""
    if has_untold_length(request):
        raise LengthNeeded
    text = request.body
    body = read_json(text)
    if not isinstance(body, dict):
        raise invalid_fields([FieldError("body", "Send one object, or a list of them under acknowledgements.")])
    if "acknowledgements" not in body:
        return [(1, text)]
    lines = body.pop("acknowledgements")
    if body:
        raise invalid_fields([FieldError(name, "Nothing stands beside acknowledgements.") for name in body])
    if not isinstance(lines, list) or not lines:
        raise invalid_fields([FieldError("acknowledgements", "It must be a list of one or more.")])
    return [(number, json.dumps(line).encode()) for number, line in enumerate(lines, start=1)]


def _read_statements(lines: Lines, refused: list[Refusal]) -> Iterator[Statement]:
    """Read lines one by one; those that say nothing understandable go to ``refused``."""
    for number, line in lines:
        statement = _read_statement(number, line)
        if isinstance(statement, Refusal):
            refused.append(statement)
        else:
            yield statement


def _read_statement(number: int, text: bytes | None) -> Statement | Refusal:
    if text is None:
        return Refusal(None, "unreadable", f"Line {number}: A line has at most {MAX_LINE_BYTES >> 20} MiB.")
    try:
        line = read_json(text)
    except Unreadable as error:
        return Refusal(None, "unreadable", f"Line {number}: {error}")
    if isinstance(line, dict) and "extend_until" in line:
        message = "More time cannot be asked for here yet. The date stands; say in_progress while you work on it."
        return Refusal(_sequence_of(line), "not_supported_yet", f"Line {number}: {message}")
    try:
        return schemas.AcknowledgementLine.model_validate(line).as_statement(text=text.decode())
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{fault.field}: {fault.message}" for fault in field_errors(error))
        return Refusal(_sequence_of(line), "invalid", f"Line {number}: {faults}")


def _sequence_of(line: Any) -> int | None:
    """Find which number a line is about, as far as it says so."""
    if not isinstance(line, dict):
        return None
    numbers = (line.get("sequence"), line.get("through"))
    return next((number for number in numbers if type(number) is int), None)  # True is an int, too
