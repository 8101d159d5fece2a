"""Bodies of any length, read and written piece by piece. Memory stays flat."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from django.http import HttpRequest

NDJSON = "application/x-ndjson"
PIECE_BYTES = 64 * 1024


class BodyCutOff(Exception):
    """The connection ended before the body did: what came is not what was meant."""


class LengthNeeded(Exception):
    """This server cannot tell where a body without Content-Length ends."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def open_body(request: HttpRequest) -> Iterator[bytes]:
    """Read a request's body in pieces, past the limit on bodies that are held in memory.

    Raises LengthNeeded at once, and BodyCutOff when the last piece should come and does not.
    """
    length = request.META.get("CONTENT_LENGTH")
    if length:
        return _read_counted(request, int(length))
    if request.META.get("wsgi.input_terminated"):
        # Django takes a chunked body for an empty one. Where the server promises that its own stream ends with the
        # body (gunicorn does), that one is right.
        return _read_to_the_end(request.META["wsgi.input"])
    if has_untold_length(request):
        raise LengthNeeded
    return iter(())


def has_untold_length(request: HttpRequest) -> bool:
    """Whether there is a body of which only its own chunks say how long it is; to Django it looks empty."""
    return "HTTP_TRANSFER_ENCODING" in request.META and not request.META.get("CONTENT_LENGTH")


def _read_counted(request: HttpRequest, length: int) -> Iterator[bytes]:
    missing = length
    while missing:
        piece = _read(request, min(PIECE_BYTES, missing))
        if not piece:
            raise BodyCutOff
        missing -= len(piece)
        yield piece


def _read_to_the_end(stream: _Readable) -> Iterator[bytes]:
    while piece := _read(stream, PIECE_BYTES):
        yield piece


def _read(stream: _Readable, size: int) -> bytes:
    try:
        return stream.read(size)
    except Exception as error:
        # A lost connection is an OSError; of a broken chunk each server says so with an error of its own.
        raise BodyCutOff from error


def as_ndjson(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)
