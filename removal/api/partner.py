"""What partners call: acknowledge notices, and fetch item lists that were too long for a message."""

from typing import Annotated
from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.http import HttpResponse
from ninja import Path as InPath
from ninja import Query, Router, Status

from partners.encryption import fernet
from removal import acknowledgement, reports
from removal.api import answers, fields, signatures, statements
from removal.api.auth import KeyRequest, PartnerKey, partner_id
from removal.api.problems import FieldError, Problem, check_parameters, invalid_fields
from removal.api.streams import NDJSON, as_ndjson
from removal.payload import items_url

router = Router(auth=PartnerKey(), tags=["partners"])

_LINE = {"anyOf": [{"$ref": f"#/components/schemas/{line}"} for line in ("AcknowledgementLine", "ExtensionLine")]}
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


@router.post(
    "/acknowledgements",
    response=dict.fromkeys((200, 207), answers.AcknowledgementAnswer),
    openapi_extra=_ACKNOWLEDGEMENTS,
    exclude_unset=True,
)
def acknowledge(request: KeyRequest) -> Status[answers.AcknowledgementAnswer]:
    """Say what has become of notices: one object, a list under `acknowledgements`, or NDJSON. Safe to repeat.

    Each line is judged by itself: 200 when all stand, 207 when some are in `refused`, 4xx when none could be read. A
    body may be signed, as your guide says: then it is believed as a whole, or answered 401 and not taken at all.
    """
    signed = signatures.verify(request)
    lines = statements.split(request, body=signed.body if signed else None)
    answer = acknowledgement.acknowledge(
        partner_id=partner_id(request),
        key_prefix=request.auth.prefix,
        statements=map(statements.read, lines),
        signed_answer_id=signed.id if signed else None,
    )
    refused = answer.refused
    if not (answer.accepted or answer.unchanged) and all(refusal.code == "unreadable" for refusal in refused):
        raise Problem(400, "unreadable", refused[0].message if refused else "The body is empty. Send one line or more.")
    said = {"accepted": answer.accepted, "unchanged": answer.unchanged, "refused": refused}
    if answer.unlisted:
        said["refused_total"] = len(refused) + answer.unlisted
    return Status(207 if refused else 200, answers.AcknowledgementAnswer.model_validate(said))


@router.get(
    "/stream/{int:sequence}/items",
    openapi_extra={
        "responses": {
            200: {
                "description": "While more follows, a Link header with rel=next says where.",
                "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/ManifestLine"}}},
            }
        }
    },
)
def list_items(
    request: KeyRequest,
    sequence: Annotated[int, InPath(ge=1, le=fields.MAX_NUMBER)],
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,500}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> HttpResponse:
    """List what a notice is about, a line a subject. Empty when the wish was withdrawn before you were told of it."""
    check_parameters(request, "after", "limit")
    page = reports.notice_items(
        partner_id=partner_id(request),
        sequence=sequence,
        after=_open_cursor(after) if after else 0,
        limit=limit,
    )
    response = HttpResponse(
        as_ndjson({"subject": subject, "items": items} for subject, items in page.entries), content_type=NDJSON
    )
    if page.next_after:
        rest = urlencode({"after": _make_cursor(page.next_after), "limit": limit})
        response["Link"] = f'<{items_url(sequence)}?{rest}>; rel="next"'
    return response


# Encrypted, because it is one of our own row numbers: from their gaps one could count others' content.
_CURSOR = "after subject "


def _make_cursor(subject_id: int) -> str:
    return fernet().encrypt(f"{_CURSOR}{subject_id}".encode()).decode()


def _open_cursor(cursor: str) -> int:
    try:
        return int(fernet().decrypt(cursor).decode().removeprefix(_CURSOR))
    except (InvalidToken, ValueError) as error:
        raise invalid_fields([FieldError("after", "Take it from a Link header, unchanged.")], status=400) from error
