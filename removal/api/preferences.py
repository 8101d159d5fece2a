"""What subjects allow: recorded many at a time, and shown with its history."""

from collections.abc import Sequence
from typing import Annotated, Any

from django.http import StreamingHttpResponse
from django.utils import timezone
from ninja import Path, Router

from removal import preferences
from removal.api import answers, bulk, fields, schemas
from removal.api.auth import KeyRequest, PlatformKey, actor
from removal.api.problems import FieldError
from removal.api.streams import NDJSON, open_body
from removal.preferences import Answer, Choice

router = Router(auth=PlatformKey())

DESCRIPTION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Of any length. A line has at most 64 MiB.",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/PreferenceLine"}}},
    },
    "responses": {200: {"content": {NDJSON: {"schema": bulk.lines_of("PreferenceAnswer", "BodyEnd")}}}},
}
CONFLICTS = {
    Answer.OPT_OUT_STANDS: "An opt-out that partners are told about stands. Send a reinstatement request.",
    Answer.TOO_LATE: "Something newer of the same source is in force. Leave valid_from out to change it from now on.",
}


@router.post("/preferences", tags=["preferences"], openapi_extra=DESCRIPTION)
def record_preferences(request: KeyRequest) -> StreamingHttpResponse:
    """Record what subjects allow: NDJSON in, and NDJSON out, a line for each that is not blank, in order.

    Each source has its own history; docs/decisions/0007-who-prevails.md says which prevails. A preference keeps content
    out of future releases only: to have past copies removed, send an opt-out request. Sending a file again is safe.
    """

    def record(choices: list[Choice]) -> Sequence[bulk.Answer]:
        recorded = preferences.record_preferences(actor=actor(request), choices=choices, now=timezone.now())
        return [_say(answer) for answer in recorded]

    answers = bulk.answer_lines(open_body(request), read=_read_choice, record=record)
    return StreamingHttpResponse(bulk.after_the_body(answers), content_type=NDJSON)


def _read_choice(line: bytes | None) -> Choice:
    choice = bulk.read_line(line, schemas.PreferenceLine).as_choice()
    try:
        preferences.check_valid_from(choice, now=timezone.now())
    except preferences.InvalidChoice as error:
        raise bulk.refuse(FieldError(error.field, str(error))) from error
    return choice


def _say(answer: Answer) -> bulk.Answer:
    if answer in CONFLICTS:
        return {"status": "conflict", "error": {"code": answer.value, "message": CONFLICTS[answer]}}
    return {"status": answer.value}


@router.get("/preferences/{path:subject}", tags=["preferences"], response=answers.Preferences)
def show_preferences(request: KeyRequest, subject: Annotated[fields.Key, Path()]) -> preferences.Standing:
    """Show what a subject allows for each usage and why, what is in force, and what was, the newest first."""
    return preferences.find_preferences(subject=subject)
