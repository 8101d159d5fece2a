"""What may go into a release: candidates in, those that may pass and the reasons for the others out."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

from django.http import StreamingHttpResponse
from ninja import Path, Query, Router

from removal import gate, reports
from removal.api import bulk, fields
from removal.api.auth import KeyRequest, PlatformKey, actor
from removal.api.problems import check_parameters
from removal.api.streams import NDJSON, PIECE_BYTES, open_body
from removal.models.ledger import NAME_PATTERN

router = Router(auth=PlatformKey())

ReleaseName = Annotated[str, Path(pattern=NAME_PATTERN)]
DESCRIPTION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Of any length. A line has at most 64 MiB.",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/CandidateLine"}}},
    },
    "responses": {200: {"content": {NDJSON: {"schema": bulk.lines_of("CandidateLine", "GateAnswer")}}}},
}


@router.post("/releases/{name}/gate", tags=["ledger"], openapi_extra=DESCRIPTION)
def sift_candidates(
    request: KeyRequest, name: ReleaseName, feed: Annotated[fields.Label | None, Query()] = None
) -> StreamingHttpResponse:
    """Ask which candidates may go into a release: NDJSON in, NDJSON out.

    First come the lines that may pass, as they were sent, then `{"decision": …}` for each thing that was kept out, and
    at last `{"end": true, "allowed", "excluded", "digest"}`: counts of items, and the SHA-256 of the lines that may
    pass. Discard an answer without that line. A fault anywhere in the body, or here, is answered with a problem and
    releases nothing. `feed` says where the candidates come from; it is shown to staff when removed content comes back.
    """
    check_parameters(request, "feed")
    release = reports.find_release(name=name)
    with ExitStack() as stack:
        allowed, decisions = (
            stack.enter_context(tempfile.SpooledTemporaryFile(max_size=bulk.HELD_IN_MEMORY_BYTES)) for _ in range(2)
        )
        done = gate.sift(
            actor=actor(request),
            release=release,
            candidates=open_body(request),
            allowed=allowed,  # type: ignore[arg-type]  # a SpooledTemporaryFile is a BinaryIO in all but its type
            decisions=decisions,  # type: ignore[arg-type]
            feed=feed or "",
        )
        held = stack.pop_all()  # the answer closes them when it has been sent
    return StreamingHttpResponse(_answer(held, allowed, decisions, done), content_type=NDJSON)


def _answer(held: ExitStack, allowed: Any, decisions: Any, done: gate.Sifted) -> Iterator[bytes]:
    with held:
        allowed.seek(0)
        while piece := allowed.read(PIECE_BYTES):
            yield piece
        decisions.seek(0)
        for line in decisions:
            yield b'{"decision":' + line.rstrip() + b"}\n"
        yield done.as_line()
