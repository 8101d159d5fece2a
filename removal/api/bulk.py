"""Many requests in one body: NDJSON in, NDJSON out, a block of lines at a time."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import pydantic
from django.utils import timezone

from removal import intake
from removal.api.problems import FieldError, field_errors, problem_of
from removal.api.schemas import BulkRequest
from removal.api.streams import NDJSON, as_ndjson
from removal.manifests import MAX_LINE_BYTES, Unreadable, read_json, split_lines

# A block is one transaction; it ends with whichever comes first.
BLOCK_LINES = 1000
BLOCK_BYTES = 8 * 1024 * 1024
HELD_IN_MEMORY_BYTES = 1024 * 1024

DESCRIPTION = {
    "requestBody": {
        "required": True,
        "description": "Of any length. A line has at most 64 MiB.",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BulkRequest"}}},
    },
    "responses": {200: {"content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BulkAnswer"}}}}},
}

Block = list[tuple[int, bytes | None]]
Answer = dict[str, Any]


class _Refused(Exception):
    """This line cannot be taken."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(code)
        self.error = {"code": code, "message": message} | ({"field": field} if field else {})


def record_lines(chunks: Iterable[bytes], *, source: str, actor: str) -> Iterator[bytes]:
    """Record a body's lines block by block, and answer each block when it is committed.

    What breaks the whole body is said on the last line, after the answers that stand.
    """
    resume_at_line = 1
    try:
        for block in _blocks(chunks):
            resume_at_line = block[0][0]
            yield as_ndjson(_record_block(block, source=source, actor=actor, now=timezone.now()))
            resume_at_line = block[-1][0] + 1
    except Exception as error:  # noqa: BLE001 (the outermost loop; what nobody foresaw is logged by problem_of)
        problem = problem_of(error)
        last = {"error": {"code": problem.code, "message": problem.detail}, "resume_at_line": resume_at_line}
        yield as_ndjson([last])


def after_the_body(answers: Iterable[bytes]) -> Iterator[bytes]:
    """Hold answers back, on disk when they are many, until the whole body was read.

    Most clients send all before they read anything: answers sent meanwhile would fill the connection and stall both.
    """
    with tempfile.SpooledTemporaryFile(max_size=HELD_IN_MEMORY_BYTES) as held:
        for answer in answers:
            held.write(answer)
        held.seek(0)
        while part := held.read(64 * 1024):
            yield part


def _blocks(chunks: Iterable[bytes]) -> Iterator[Block]:
    block: Block = []
    size = 0
    for number, line in split_lines(chunks):
        block.append((number, line))
        size += len(line or b"")
        if len(block) == BLOCK_LINES or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _record_block(block: Block, *, source: str, actor: str, now: datetime) -> Sequence[Answer]:
    """Record the lines that can be taken, in one transaction, and answer all in their order."""
    answers: list[Answer] = []
    wishes: list[intake.Wish] = []
    waiting: list[Answer] = []  # for what becomes of the wish in the same place
    for number, line in block:
        answer: Answer = {"line": number}
        answers.append(answer)
        try:
            wishes.append(_read_wish(line, now=now))
            waiting.append(answer)
        except _Refused as refusal:
            answer |= {"status": "invalid", "error": refusal.error}
    recorded = intake.record_requests(source=source, actor=actor, wishes=wishes, now=now) if wishes else []
    for answer, result in zip(waiting, recorded, strict=True):
        answer |= {"status": _status(result), "id": result.public_id}
        if result.conflict:
            message = "The idempotency_key came before with another body. Send the same body, or a new key."
            answer["error"] = {"code": "key_reused", "message": message, "field": "idempotency_key"}
    return answers


def _read_wish(line: bytes | None, *, now: datetime) -> intake.Wish:
    if line is None:
        raise _Refused("line_too_long", f"A line has at most {MAX_LINE_BYTES >> 20} MiB.")
    try:
        said = BulkRequest.model_validate(read_json(line))
        wish = said.as_wish(idempotency_key=said.idempotency_key)
        intake.check_received_at(wish, now=now)
    except Unreadable as error:
        raise _Refused("unreadable", str(error)) from error
    except pydantic.ValidationError as error:
        raise _refuse(field_errors(error)[0]) from error
    except intake.InvalidWish as error:
        raise _refuse(FieldError(error.field, str(error))) from error
    return wish


def _refuse(error: FieldError) -> _Refused:
    return _Refused("invalid_field", error.message, error.field)


def _status(recorded: intake.Recorded) -> str:
    if recorded.conflict:
        return "conflict"
    return "created" if recorded.created else "repeated"
