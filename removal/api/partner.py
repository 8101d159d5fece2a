"""What partners call: acknowledge notices."""

from ninja import Router, Status

from removal import acknowledgement
from removal.api import answers, signatures, statements
from removal.api.auth import KeyRequest, PartnerKey, partner_id
from removal.api.problems import Problem
from removal.api.streams import NDJSON

router = Router(auth=PartnerKey(), tags=["partners"])

_LINE = {"anyOf": [{"$ref": f"#/components/schemas/{line}"} for line in ("AcknowledgementLine", "ExtensionLine")]}
# Of a body that is signed. As soon as one is there, all are needed, and must be right.
_SIGNED = {
    "webhook-id": "An id of your own, another for each body.",
    "webhook-timestamp": "Now, in whole seconds since 1970.",
    "webhook-signature": "v1a and the Ed25519 signature of 'acknowledgement.<id>.<timestamp>.<body>', in base64.",
}
_ACKNOWLEDGEMENTS = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in _SIGNED.items()
    ],
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
    },
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
