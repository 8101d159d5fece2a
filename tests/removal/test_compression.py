"""What is packed comes out as it was, and nothing grows without end."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from removal.compression import CannotUnpack, Packing, unpack

PACK: dict[Packing, Callable[[bytes], bytes]] = {
    Packing.NONE: bytes,
    Packing.GZIP: gzip.compress,
    Packing.ZSTD: zstandard.compress,
}
packed = pytest.mark.parametrize("packing", [Packing.GZIP, Packing.ZSTD])


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.mark.parametrize("packing", Packing)
@given(parts=st.lists(st.binary(max_size=3000), max_size=3), size=st.integers(1, 5000))
def test_what_was_packed_comes_out_as_it_was(packing: Packing, parts: list[bytes], size: int) -> None:
    """Also when several packed files stand one behind the other."""
    body = b"".join(PACK[packing](part) for part in parts)
    if parts or packing is Packing.NONE:
        assert b"".join(unpack(cut(body, size), packing)) == b"".join(parts)


@packed
@pytest.mark.parametrize("missing", [1, 9, 20])
def test_what_ends_early_is_refused(packing: Packing, missing: int) -> None:
    body = PACK[packing](b"".join(b"%d\n" % n for n in range(1000)))[:-missing]
    with pytest.raises(CannotUnpack, match="ends early"):
        list(unpack([body], packing))


@packed
@pytest.mark.parametrize("body", [b"", b"plain text, not packed at all"])
def test_what_is_not_packed_is_refused(packing: Packing, body: bytes) -> None:
    with pytest.raises(CannotUnpack):
        list(unpack([body], packing))


def gzip_bomb(length: int) -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    piece = bytes(1024 * 1024)
    return b"".join(packer.compress(piece) for _ in range(length >> 20)) + packer.flush()


def zstd_bomb(length: int) -> bytes:
    packer = zstandard.ZstdCompressor(level=9).compressobj()
    piece = bytes(1024 * 1024)
    return b"".join(packer.compress(piece) for _ in range(length >> 20)) + packer.flush()


@pytest.mark.parametrize(("packing", "make"), [(Packing.GZIP, gzip_bomb), (Packing.ZSTD, zstd_bomb)])
def test_a_bomb_is_stopped_soon_after_64_mebibytes(packing: Packing, make: Callable[[int], bytes]) -> None:
    bomb = make(512 << 20)
    unpacked: list[int] = []
    tracemalloc.start()
    try:
        with pytest.raises(CannotUnpack, match="more than 200 times larger"):
            unpacked.extend(map(len, unpack(cut(bomb, 65536), packing)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(unpacked) <= 64 << 20
    assert peak < 160 << 20


@pytest.mark.parametrize(("packing", "make"), [(Packing.GZIP, gzip_bomb), (Packing.ZSTD, zstd_bomb)])
def test_what_stays_small_may_be_packed_as_well_as_it_can(packing: Packing, make: Callable[[int], bytes]) -> None:
    assert sum(map(len, unpack([make(32 << 20)], packing))) == 32 << 20
