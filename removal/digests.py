"""Computes the content digest of a release from its source files, without a database. ``ledger.SEAL`` defines it.

Memory stays flat: what does not fit waits in temporary files, each for its share of the subjects or of the hashes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from tempfile import TemporaryFile
from typing import BinaryIO

from removal.ledger import Entry

# Of 100 million entries, each file has a million and a half.
FILES = 64
HASH_BYTES = hashlib.sha256().digest_size
BUCKET_BYTES = 2


def content_digest(entries: Iterable[Entry]) -> bytes:
    """Compute the digest of entries in any order, each subject in one of them."""
    with _open_files() as files:
        for entry in entries:
            hashed = _hash_entry(entry.subject, entry.items)
            files[hashed[0] * FILES // 256].write(hashed)
        # A file holds the hashes of one range of first bytes, so sorted one after the other they are all sorted.
        digest = hashlib.sha256()
        for file in files:
            for bucket in _bucket_digests(file):
                digest.update(bucket)
    return digest.digest()


def _hash_entry(subject: str, items: Iterable[str]) -> bytes:
    # Python's order of texts is that of their code points, which is that of their bytes in UTF-8.
    keys = (key.encode() for key in (subject, *sorted(items)))
    return hashlib.sha256(b"".join(b"%d:%b" % (len(key), key) for key in keys)).digest()


def _bucket_digests(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    hashes = sorted(iter(lambda: file.read(HASH_BYTES), b""))
    for _, bucket in groupby(hashes, key=lambda hashed: hashed[:BUCKET_BYTES]):
        yield hashlib.sha256(b"".join(bucket)).digest()


def join_lines(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Join the entries of each subject, which may stand anywhere, into one. Raises ValueError for a repeated item."""
    with _open_files() as files:
        for entry in entries:
            share = hashlib.sha256(entry.subject.encode()).digest()[0] * FILES // 256
            files[share].write(json.dumps([entry.line, entry.subject, entry.items]).encode() + b"\n")
        for file in files:
            file.seek(0)
            joined: dict[str, tuple[int, list[str]]] = {}
            for line, subject, items in map(json.loads, file):
                joined.setdefault(subject, (line, []))[1].extend(items)
            for subject, (line, items) in joined.items():
                yield Entry(line, subject, items)


@contextmanager
def _open_files() -> Iterator[list[BinaryIO]]:
    with ExitStack() as stack:
        yield [stack.enter_context(TemporaryFile()) for _ in range(FILES)]
