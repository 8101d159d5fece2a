"""The digest that anyone can compute from the files is the one that the database seals with."""

import random
import tracemalloc
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from removal import ledger, uploads
from removal.digests import content_digest, join_lines
from removal.formats import Digested, Format, read_manifest
from removal.ledger import Entry
from tests.factories import make_release


def digest(*files: Path) -> str:
    out = StringIO()
    call_command("digest_manifest", *map(str, files), stdout=out)
    return out.getvalue().strip()


def rows(entries: list[Entry]) -> bytes:
    """Write entries as CSV, the rows of each subject far apart."""
    items = [(f"{entry.subject},{item}") for entry in entries for item in entry.items]
    random.Random(1).shuffle(items)
    return "\n".join(["subject,item", *items]).encode()


@pytest.mark.django_db(transaction=True)
def test_the_files_of_a_sealed_release_give_its_digest(tmp_path: Path) -> None:
    entries = [Entry(n, f"site:ü{n}", [f"post:{item}😀" for item in range(n % 7 + 1, 0, -1)]) for n in range(2000)]
    parts = {1: tmp_path / "1.csv", 2: tmp_path / "2.csv"}
    parts[1].write_bytes(rows(entries[:1200]))
    parts[2].write_bytes(rows(entries[1200:]))
    make_release("r", contents={}, sealed=False)
    for number, file in parts.items():
        body = Digested([file.read_bytes()])
        uploads.put_part(
            actor="test",
            name="r",
            number=number,
            entries=read_manifest(body, form=Format.CSV),
            digest=body.digest,
            one_line_each=False,
        )
    sealed = ledger.seal_release(actor="test", name="r", parts=2).release

    assert digest(parts[2], parts[1]) == bytes(sealed.digest or b"").hex()
    assert content_digest(reversed(entries)).hex() == digest(*parts.values())
    assert digest(parts[1]) != digest(*parts.values())


def test_lines_of_a_subject_are_joined_wherever_they_stand() -> None:
    entries = [Entry(1, "a", ["1"]), Entry(2, "b", ["1"]), Entry(3, "a", ["2"])]
    assert sorted(join_lines(entries), key=lambda entry: entry.line) == [
        Entry(1, "a", ["1", "2"]),
        Entry(2, "b", ["1"]),
    ]


def test_memory_stays_flat() -> None:
    peaks = []
    for size in (5000, 20_000):
        tracemalloc.start()
        content_digest(Entry(n, f"site:{n}", ["post:1"]) for n in range(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What grows is one file's hashes: a sixty-fourth of all.
    assert peaks[1] - peaks[0] < 15_000 * 150 / 64


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("m.csv", b"subject,item\na,1\na,1\n", "An item stands twice"),
        ("m.ndjson", b"{\n", "Line 1: It is not JSON"),
        ("m.txt", b"", "Choose one of"),
    ],
)
def test_a_file_that_cannot_be_read_gives_no_digest(tmp_path: Path, name: str, body: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(body)
    with pytest.raises(CommandError, match=said):
        digest(file)
    with pytest.raises(CommandError, match="cannot be read"):
        digest(tmp_path / "nothing.csv")
