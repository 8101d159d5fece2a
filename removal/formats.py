"""The ways to write a manifest: NDJSON, CSV, a WordPress export, or Parquet; each as it is, or packed.

    ndjson   {"subject": "site:123", "items": ["post:9", "post:12"]}     a line a subject
    csv      site:123,post:9                                             a line an item, below the header subject,item
    wxr      what is public in one site's export                         removal.wxr
    parquet  subject: string, items: list<string>                        a row a subject
             subject: string, item: string                               a row an item

All are read from bytes in pieces of any size, and give entries one by one.
"""

import csv
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path, PurePath
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import IO

from removal import wxr
from removal.compression import FREE_BYTES, MAX_RATIO, CannotUnpack, Packing, unpack
from removal.ledger import Entry, InvalidManifest
from removal.manifests import MAX_LINE_BYTES, OnFault, check_key, read_ndjson, refuse, split_lines

HEADER = ["subject", "item"]
MAX_ROW_BYTES = 64 * 1024  # two quoted keys and to spare
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # what spreadsheets put before UTF-8


class UnknownFormat(Exception):
    """Nothing here reads this. The message says what can be read."""


class Format(StrEnum):
    NDJSON = "ndjson"
    CSV = "csv"
    WXR = "wxr"
    PARQUET = "parquet"

    @property
    def one_line_each(self) -> bool:
        """Whether all items of a subject stand in one entry."""
        return self not in (Format.CSV, Format.PARQUET)


MEDIA_TYPES = {
    "text/csv": Format.CSV,
    "application/xml": Format.WXR,
    "text/xml": Format.WXR,
    "application/rss+xml": Format.WXR,
    "application/vnd.apache.parquet": Format.PARQUET,
}
SUFFIXES = {
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".csv": Format.CSV,
    ".xml": Format.WXR,
    ".wxr": Format.WXR,
    ".parquet": Format.PARQUET,
}
PACKED_SUFFIXES = {".gz": Packing.GZIP, ".zst": Packing.ZSTD}


def format_of_media_type(media_type: str) -> Format:
    """Tell the format of a body. Whatever is not known is taken for NDJSON, whose reader refuses all that is not."""
    return MEDIA_TYPES.get(media_type, Format.NDJSON)


def packing_of_encoding(encoding: str) -> Packing:
    """Tell how a body is packed from its Content-Encoding. Raises UnknownFormat."""
    try:
        return Packing(encoding.strip().lower() or Packing.NONE)
    except ValueError as error:
        raise UnknownFormat("Send it as it is, or with Content-Encoding gzip or zstd.") from error


def packing_of_file(name: str) -> Packing:
    return PACKED_SUFFIXES.get(PurePath(name).suffix.lower(), Packing.NONE)


def format_of_file(name: str) -> Format:
    """Tell the format of a file, packed or not, from its name. Raises UnknownFormat."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise UnknownFormat(f"Its name does not say what it is. Choose one of: {', '.join(Format)}.")
    return SUFFIXES[suffixes[-1]]


class Digested:
    """Pieces that pass through, and the SHA-256 of those that have passed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        return self._hash.digest()


def read_manifest(
    chunks: Iterable[bytes], *, form: Format, packing: Packing = Packing.NONE, on_fault: OnFault = refuse
) -> Iterator[Entry]:
    """Read a manifest in any format. A line that cannot be taken is told to ``on_fault``.

    What cannot be read on from raises: CannotUnpack, or InvalidManifest for a file that is something else. Raises
    UnknownFormat where Parquet cannot be read.
    """
    chunks = unpack(chunks, packing)
    match form:
        case Format.NDJSON:
            return read_ndjson(chunks, on_fault)
        case Format.CSV:
            return read_csv(chunks, on_fault)
        case Format.WXR:
            return read_wxr(chunks)
        case Format.PARQUET:
            return read_parquet(chunks, on_fault)


# --- CSV (RFC 4180) ---


def read_csv(chunks: Iterable[bytes], on_fault: OnFault = refuse) -> Iterator[Entry]:
    """Read rows ``subject,item`` below that header, an entry a row. A key with a line break in it has no place here."""
    lines = split_lines(chunks, limit=MAX_ROW_BYTES)
    _check_header(next(lines, None))
    for number, line in lines:
        try:
            subject, item = _read_row(line)
            entry = Entry(number, subject, [item])
        except ValueError as error:
            on_fault(InvalidManifest(number, str(error)))
        else:
            yield entry


def _check_header(first: tuple[int, bytes | None] | None) -> None:
    number, line = first or (1, b"")
    fault = f"The first line must be: {','.join(HEADER)}."
    try:
        fields = _fields((line or b"").removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        raise InvalidManifest(number, fault) from error
    if fields != HEADER:
        raise InvalidManifest(number, fault)


def _read_row(line: bytes | None) -> tuple[str, str]:
    if line is None:
        raise ValueError(f"It is longer than {MAX_ROW_BYTES >> 10} KiB. Write a row an item.")
    fields = _fields(line)
    if len(fields) != len(HEADER):
        raise ValueError(f"It has {len(fields)} columns, and a row has two: {','.join(HEADER)}.")
    for name, key in zip(HEADER, fields, strict=True):
        try:
            check_key(key)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    subject, item = fields
    return subject, item


def _fields(line: bytes) -> list[str]:
    try:
        text = line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"It is not UTF-8 from byte {error.start + 1} on.") from error
    if '"' not in text:
        return text.split(",")
    try:
        # Line by line, so that a quote that is never closed does not swallow the rest of the file.
        [fields] = csv.reader([text], strict=True)
    except csv.Error as error:
        raise ValueError(f"It is not CSV: {error}. A quote in a quoted field is written twice.") from error
    return fields


# --- WXR ---


class _Stream:
    """Pieces as a stream, for the parser; it does not mind their size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._pieces = filter(None, chunks)

    def read(self, _size: int, /) -> bytes:
        return next(self._pieces, b"")


def open_wxr(chunks: Iterable[bytes]) -> wxr.Export:
    """Read the head of an export that comes in pieces. Raises wxr.Unreadable, from here or from its entries."""
    return wxr.read(_Stream(chunks))


def read_wxr(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """Read what is public in an export: one entry, or none. It comes when the export has been read to its end."""
    try:
        export = open_wxr(chunks)
        public = [entry.item for entry in export.entries if isinstance(entry, wxr.Public)]
    except wxr.Unreadable as error:
        raise InvalidManifest(error.line, error.reason) from error
    if public:
        yield Entry(1, export.subject, public)


# --- Parquet ---

PARQUET_READER = Path(__file__).with_name("parquet.py")
PIECE_BYTES = 64 * 1024


def read_parquet(chunks: Iterable[bytes], on_fault: OnFault = refuse) -> Iterator[Entry]:
    """Read rows, an entry a row; ``line`` is the row. Raises UnknownFormat at once if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UnknownFormat("Parquet is read with pyarrow, which is not installed here: pip install pyarrow.")
    return read_ndjson(_parquet_as_ndjson(chunks), on_fault)


def _parquet_as_ndjson(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Have Parquet written as lines by removal.parquet. Its end, which must be read first, waits in a temporary file.

    Raises CannotUnpack, or InvalidManifest, in place of a last line that may be half of one.
    """
    with TemporaryFile() as file, TemporaryFile() as errors:
        file.writelines(chunks)
        size = file.tell()
        file.seek(0)
        # Not with -m, which would have all of this package's imports too; and the folder of a program is not for
        # imports (-P), since a name in this one may be that of a library.
        command = [sys.executable, "-P", str(PARQUET_READER), str(MAX_LINE_BYTES)]
        with Popen(command, stdin=file, stdout=PIPE, stderr=errors) as reader:
            try:
                assert reader.stdout  # noqa: S101 (for mypy: it is a pipe)
                written = 0
                while piece := reader.stdout.read(PIECE_BYTES):
                    written += len(piece)
                    if written > FREE_BYTES and written > size * MAX_RATIO:
                        raise CannotUnpack(f"It becomes more than {MAX_RATIO} times larger. Send it as NDJSON.")
                    yield piece
                if reader.wait():
                    raise _why_it_stopped(errors)
            finally:
                reader.kill()  # does nothing once it has ended


def _why_it_stopped(errors: IO[bytes]) -> Exception:
    errors.seek(0)
    last = errors.read().decode(errors="replace").rstrip().rpartition("\n")[2]
    row, _, reason = last.partition(" ")
    if row.isdecimal():
        return InvalidManifest(int(row), reason)
    # The library itself broke down.
    return CannotUnpack("It cannot be read as Parquet. Write it anew, or send it as NDJSON.")
