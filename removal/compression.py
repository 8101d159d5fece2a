"""Unpacks gzip (RFC 1952) and Zstandard (RFC 8878) as the bytes come, and stops what grows without end. Pure."""

import zlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Protocol

import zstandard

# Up to here anything goes; after that, what becomes so many times larger than it came is a bomb. Manifests become
# some ten times larger.
FREE_BYTES = 64 * 1024 * 1024
MAX_RATIO = 200

# Unpacked at once. Even the worst slice stays below 32 MiB: a block of Zstandard takes 4 bytes and yields 128 KiB.
SLICE_BYTES = 1024
WINDOW_BYTES = 128 * 1024 * 1024  # what zstd itself takes without being asked for more


class CannotUnpack(Exception):
    """The bytes are not what they should be, end early, or become too many. What came before must not be used."""


class Packing(StrEnum):
    """How a body is packed, as Content-Encoding names it (RFC 9110 §8.4.1)."""

    NONE = "identity"
    GZIP = "gzip"
    ZSTD = "zstd"


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def unpack(chunks: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    """Unpack what comes in pieces of any size. Raises CannotUnpack, also after the last piece."""
    return iter(chunks) if packing is Packing.NONE else _unpack(chunks, packing)


def _unpack(chunks: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    unpacker = _begin(packing)
    packed = unpacked = 0
    for data in _slices(chunks):
        packed += len(data)
        while data:
            if unpacker.eof:
                unpacker = _begin(packing)  # several packed files one behind the other are one file
            try:
                piece = unpacker.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise CannotUnpack(f"It is not {packing}, or is damaged. Pack it again.") from error
            unpacked += len(piece)
            if unpacked > FREE_BYTES and unpacked > packed * MAX_RATIO:
                raise CannotUnpack(f"It becomes more than {MAX_RATIO} times larger. Send it unpacked.")
            if piece:
                yield piece
            data = unpacker.unused_data
    if not unpacker.eof:
        raise CannotUnpack(f"Its {packing} ends early. Send all of it.")


def _slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    return (chunk[start : start + SLICE_BYTES] for chunk in chunks for start in range(0, len(chunk), SLICE_BYTES))


def _begin(packing: Packing) -> _Unpacker:
    if packing is Packing.GZIP:
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
