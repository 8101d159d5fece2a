"""The messages that we send, described: one JSON Schema for receivers, and OpenAPI's ``webhooks``.

Both are made of the types that ``removal.payload`` builds messages of. A field may be added; none goes, and none
changes its meaning: docs/schemas/ has what was published, and a test compares.
"""

from typing import Any

from django.conf import settings
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from removal import payload

NAME = "notices-v1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# By type: the message, what it is, and one such message (docs/partner-guide.md has the same first one).
MESSAGES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "removal.notices": (
        payload.NoticesMessage,
        "A range of your stream",
        {
            "type": "removal.notices",
            "version": "1",
            "timestamp": "2026-11-24T00:20:00Z",
            "data": {
                "partner": "acme",
                "epoch": 1,
                "first": 1201,
                "last": 1202,
                "head": 5120,
                "acknowledge_url": "https://removal.example/v1/acknowledgements",
                "notices": [
                    {
                        "sequence": 1201,
                        "kind": "opt_out",
                        "request": "01JDEXAMPLE0000000000000A1",
                        "items_total": 2,
                        "reason": "user_request",
                        "usages": ["train-ai"],
                        "subject": "site:123",
                        "held": [
                            {"release": "2024-02", "items_total": 1, "items": ["post:9"]},
                            {"release": "2025-01", "items_total": 2, "items": ["post:9", "post:12"]},
                        ],
                        "received_at": "2026-11-24T00:19:58Z",
                        "respond_by": "2026-12-24T00:19:58Z",
                    },
                    {
                        "sequence": 1202,
                        "kind": "deletion",
                        "request": "01JDEXAMPLE0000000000000A2",
                        "items_total": 0,
                        "withdrawn_at": "2026-11-24T00:19:59Z",
                    },
                ],
            },
        },
    ),
    "removal.ping": (
        payload.PingMessage,
        "Whether you answer",
        {
            "type": "removal.ping",
            "version": "1",
            "timestamp": "2026-11-24T00:20:00Z",
            "data": {"partner": "acme", "epoch": 1, "head": 5120},
        },
    ),
    "removal.reminder": (
        payload.ReminderMessage,
        "What still has no final answer",
        {
            "type": "removal.reminder",
            "version": "1",
            "timestamp": "2026-11-24T00:20:00Z",
            "data": {
                "partner": "acme",
                "epoch": 1,
                "head": 5120,
                "due": [{"sequence": 1201, "respond_by": "2026-12-24T00:19:58Z", "state": "due_soon"}],
                "due_total": 1,
                "acknowledge_url": "https://removal.example/v1/acknowledgements",
            },
        },
    ),
}
_MODE: JsonSchemaMode = "serialization"


def address() -> str:
    """Say where the schema is, which is its ``$id`` too."""
    return f"{settings.PUBLIC_URL}/schemas/{NAME}.json"


def definitions(*, ref_template: str) -> dict[str, Any]:
    """Describe every message and its parts, by name."""
    described = TypeAdapter.json_schemas(
        [(kind, _MODE, TypeAdapter(message)) for kind, (message, *_) in MESSAGES.items()], ref_template=ref_template
    )
    found: dict[str, Any] = described[1]["$defs"]
    return found


def schema() -> dict[str, Any]:
    """Put together the JSON Schema (2020-12) of a message's body. Other fields beside those are allowed: more come."""
    names = "#/$defs/{model}"
    return {
        "$schema": DIALECT,
        "$id": address(),
        "title": "What Removal sends to partners, version 1",
        "description": "Ignore fields that you do not know. Within version 1 fields are added, and never changed.",
        "oneOf": [{"$ref": names.format(model=message.__name__)} for message, *_ in MESSAGES.values()],
        "$defs": definitions(ref_template=names),
    }


def webhooks(*, ref_template: str) -> dict[str, Any]:
    """Describe the messages as OpenAPI 3.1 has it."""
    return {
        kind: {
            "post": {
                "summary": summary,
                "description": "Sent to your endpoint, signed by Standard Webhooks 1.0.0. Any 2xx takes it.",
                "externalDocs": {"description": "JSON Schema of all messages", "url": address()},
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"$ref": ref_template.format(model=message.__name__)},
                            "example": example,
                        }
                    },
                },
                "responses": {"2XX": {"description": "Taken. Every retry has the same webhook-id and bytes."}},
            }
        }
        for kind, (message, summary, example) in MESSAGES.items()
    }
