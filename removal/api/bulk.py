"""Many lines in one body, each with its answer: NDJSON in, NDJSON out, a block of lines at a time."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pydantic
from django.utils import timezone

from removal import intake
from removal.api.problems import FieldError, field_errors, problem_of
from removal.api.schemas import BulkRequest, Said
from removal.api.streams import NDJSON, as_ndjson
from removal.manifests import MAX_LINE_BYTES, Unreadable, read_json, split_lines

# A block is one transaction; it ends with whichever comes first.
BLOCK_LINES = 1000
BLOCK_BYTES = 8 * 1024 * 1024
HELD_IN_MEMORY_BYTES = 1024 * 1024


def lines_of(*models: str) -> dict[str, Any]:
    """Describe lines that are each one of these."""
    return {"anyOf": [{"$ref": f"#/components/schemas/{model}"} for model in models]}


DESCRIPTION = {
    "requestBody": {
        "required": True,
        "description": "Of any length. A line has at most 64 MiB.",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BulkRequest"}}},
    },
    "responses": {200: {"content": {NDJSON: {"schema": lines_of("BulkAnswer", "BodyEnd")}}}},
}

Block = list[tuple[int, bytes | None]]
Answer = dict[str, Any]


S = TypeVar("S", bound=Said)
T = TypeVar("T")


class Refused(Exception):
    """This line cannot be taken."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(code)
        self.error = {"code": code, "message": message} | ({"field": field} if field else {})


def answer_lines(
    chunks: Iterable[bytes],
    *,
    read: Callable[[bytes | None], T],
    record: Callable[[list[T]], Sequence[Answer]],
) -> Iterator[bytes]:
    """Take a body's lines block by block, and answer each block when it is committed.

    ``read`` understands a line (None is one that was too long) or raises Refused; ``record`` takes what was understood
    of a block in one transaction, and answers in its order. What breaks the whole body is said on the last line, after
    the answers that stand.
    """
    resume_at_line = 1
    try:
        for block in _blocks(chunks):
            resume_at_line = block[0][0]
            yield as_ndjson(_answer_block(block, read, record))
            resume_at_line = block[-1][0] + 1
    except Exception as error:  # noqa: BLE001 (the outermost loop; what nobody foresaw is logged by problem_of)
        problem = problem_of(error)
        last = {"error": {"code": problem.code, "message": problem.detail}, "resume_at_line": resume_at_line}
        yield as_ndjson([last])


def _answer_block(
    block: Block, read: Callable[[bytes | None], T], record: Callable[[list[T]], Sequence[Answer]]
) -> Sequence[Answer]:
    answers: list[Answer] = []
    understood: list[T] = []
    waiting: list[Answer] = []  # for what becomes of what was understood in the same place
    for number, line in block:
        answer: Answer = {"line": number}
        answers.append(answer)
        try:
            understood.append(read(line))
            waiting.append(answer)
        except Refused as refusal:
            answer |= {"status": "invalid", "error": refusal.error}
    for answer, result in zip(waiting, record(understood) if understood else [], strict=True):
        answer |= result
    return answers


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


def read_line(line: bytes | None, schema: type[S]) -> S:
    """Read a line as what it should be. Raises Refused."""
    if line is None:
        raise Refused("line_too_long", f"A line has at most {MAX_LINE_BYTES >> 20} MiB.")
    try:
        return schema.model_validate(read_json(line))
    except Unreadable as error:
        raise Refused("unreadable", str(error)) from error
    except pydantic.ValidationError as error:
        raise refuse(field_errors(error)[0]) from error


def refuse(error: FieldError) -> Refused:
    return Refused("invalid_field", error.message, error.field)


def record_lines(chunks: Iterable[bytes], *, source: str, actor: str) -> Iterator[bytes]:
    """Record a body's wishes, and answer each."""

    def record(wishes: list[intake.Wish]) -> Sequence[Answer]:
        recorded = intake.record_requests(source=source, actor=actor, wishes=wishes, now=timezone.now())
        return [_say(result) for result in recorded]

    return answer_lines(chunks, read=_read_wish, record=record)


def _read_wish(line: bytes | None) -> intake.Wish:
    said = read_line(line, BulkRequest)
    try:
        wish = said.as_wish(idempotency_key=said.idempotency_key)
        intake.check_received_at(wish, now=timezone.now())
        intake.check_partner(wish)
    except intake.InvalidWish as error:
        raise refuse(FieldError(error.field, str(error))) from error
    return wish


def _say(recorded: intake.Recorded) -> Answer:
    if not recorded.conflict:
        return {"status": "created" if recorded.created else "repeated", "id": recorded.public_id}
    message = "The idempotency_key came before with another body. Send the same body, or a new key."
    error = {"code": "key_reused", "message": message, "field": "idempotency_key"}
    return {"status": "conflict", "id": recorded.public_id, "error": error}
