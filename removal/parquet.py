"""A program of its own: reads Parquet, writes NDJSON, a line a row. removal.formats runs it.

    python -P parquet.py MAX_LINE_BYTES <manifest.parquet >manifest.ndjson

Some hundred bytes of Parquet can stand for gigabytes, and the library takes them before anybody sees a row: a row may
be a list of any length, a page may unpack to 2 GiB. So it works in a process that has a limit for its memory.

Nothing of this project is imported here, and keys are not checked: whoever reads the lines does that. When it cannot
go on, its last line on standard error is the row, a space and the reason, and it exits with 1.
"""

import json
import resource
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MEMORY_BYTES = 1024 * 1024 * 1024
BUFFER_BYTES = 1024 * 1024  # or each column of a row group would be read whole
ROWS_AT_ONCE = 1_000
ITEMS_AT_ONCE = 10_000

SHAPES = "Its columns must be subject: string and item: string, or subject: string and items: list of string."


class Refused(Exception):
    """The rest cannot be read. ``row`` counts from 1."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"{row} {reason}")


def write_lines(source: BinaryIO, out: BinaryIO, *, max_line_bytes: int) -> None:
    """Write all rows. A line that becomes too long is ended as soon as it has, whatever it says. Raises Refused."""
    row = 0
    try:
        # Few writers add checksums of pages; one that is there must be right.
        file = pq.ParquetFile(source, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
        items = _find_items(file.schema_arrow)
        for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
            for pieces in _as_lines(batch.column("subject"), batch.column(items)):
                _write_line(out, pieces, max_line_bytes)
                row += 1
    except BrokenPipeError:  # also an OSError: nobody reads any more
        raise
    except MemoryError as error:
        reason = f"This or one of the next rows takes more than {MEMORY_BYTES >> 20} MiB. Write smaller rows and pages."
        raise Refused(row + 1, reason) from error
    except (pa.ArrowException, OSError) as error:
        reason = "From here on it is damaged or encrypted." if row else "It is not Parquet, or is damaged or encrypted."
        raise Refused(row + 1, reason) from error


def _find_items(schema: Any) -> str:
    """Tell the name of the column of items. Raises Refused."""
    types = {field.name: field.type for field in schema}
    if len(schema) == 2 and _is_text(types.get("subject")):
        if _is_text(types.get("item")):
            return "item"
        if _is_list(types.get("items")) and _is_text(types["items"].value_type):
            return "items"
    raise Refused(1, SHAPES)


def _is_text(kind: Any) -> bool:
    if isinstance(kind, pa.DictionaryType):  # a category of pandas
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_list(kind: Any) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType)


def _as_lines(subjects: Any, items: Any) -> Iterator[Iterable[str]]:
    """Give each row's line in pieces, so that a long one is never held."""
    if _is_list(items.type):
        starts = items.offsets.to_pylist()
        there = items.is_valid().to_pylist()
        for place, subject in enumerate(_texts(subjects)):
            if there[place]:
                yield _long_line(subject, items.values.slice(starts[place], starts[place + 1] - starts[place]))
            else:
                yield [_as_json({"subject": subject, "items": None})]
    else:
        for subject, item in zip(_texts(subjects), _texts(items), strict=True):
            yield [_as_json({"subject": subject, "items": [item]})]


def _long_line(subject: str | None, items: Any) -> Iterator[str]:
    yield f'{{"subject":{_as_json(subject)},"items":['
    for start in range(0, len(items), ITEMS_AT_ONCE):
        yield ("," if start else "") + _as_json(_texts(items.slice(start, ITEMS_AT_ONCE)))[1:-1]
    yield "]}"


def _texts(array: Any) -> list[str | None]:
    if isinstance(array.type, pa.DictionaryType):
        array = array.dictionary_decode()
    try:
        return array.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    except UnicodeDecodeError:
        # What is not UTF-8 goes into the line as it is, to be refused there as in every other format.
        keys = array.cast(pa.large_binary()).to_pylist()
        return [key if key is None else key.decode(errors="surrogateescape") for key in keys]


_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _write_line(out: BinaryIO, pieces: Iterable[str], max_line_bytes: int) -> None:
    size = 0
    for piece in pieces:
        size += out.write(piece.encode(errors="surrogateescape"))
        if size > max_line_bytes:
            break
    out.write(b"\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        write_lines(sys.stdin.buffer, sys.stdout.buffer, max_line_bytes=int(sys.argv[1]))
        sys.stdout.buffer.flush()
    except Refused as error:
        sys.stdout.buffer.flush()
        sys.exit(str(error))
