"""What a publisher takes back: one request about any number of subjects and items."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import pydantic
from django.utils import timezone
from ninja import Header, Query, Router, Status

from removal import recall
from removal.api import answers, fields, schemas
from removal.api.auth import KeyRequest, PlatformKey, actor
from removal.api.problems import check_parameters, field_errors
from removal.api.streams import NDJSON, open_body
from removal.ledger import InvalidManifest
from removal.manifests import MAX_LINE_BYTES, Unreadable, read_json, split_lines

router = Router(auth=PlatformKey())

IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", pattern=fields.IDEMPOTENCY_KEY_PATTERN)]
BODY = {
    "requestBody": {
        "required": True,
        "description": "A line a subject, with its items, or null for all of them. Of any length.",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/RecallLine"}}},
    }
}


@router.post(
    "/recalls", tags=["requests"], response=dict.fromkeys((201, 200), answers.RecalledRequest), openapi_extra=BODY
)
def record_recall(
    request: KeyRequest,
    idempotency_key: IdempotencyKey,
    release: Annotated[list[fields.Name], Query(min_length=1, max_length=100)],
    reason: Annotated[fields.Reason | None, Query(description="Default: shared_in_error.")] = None,
) -> Status[recall.Recalled]:
    """Take back subjects and items of named releases, shared in error: NDJSON in. Only their holders are told.

    Lines that were never in the releases are refused and listed; the others become one request. Send it again with the
    same key and body until there is an answer.
    """
    check_parameters(request, "release", "reason", repeatable={"release"})
    done = recall.record_recall(
        source=request.auth.source,
        actor=actor(request),
        recall=recall.Recall(
            idempotency_key=idempotency_key, releases=tuple(release), reason=reason or "shared_in_error"
        ),
        lines=_read_lines(open_body(request)),
        now=timezone.now(),
    )
    return Status(201 if done.created else 200, done)


def _read_lines(chunks: Iterable[bytes]) -> Iterator[recall.Line]:
    for number, text in split_lines(chunks):
        if text is None:
            raise InvalidManifest(number, f"It is longer than {MAX_LINE_BYTES >> 20} MiB. Name fewer items on it.")
        try:
            said = schemas.RecallLine.model_validate(read_json(text))
        except Unreadable as error:
            raise InvalidManifest(number, str(error)) from error
        except pydantic.ValidationError as error:
            [first, *_] = field_errors(error)
            raise InvalidManifest(number, f"{first.field}: {first.message}") from error
        yield recall.Line(number, said.subject, said.items)
