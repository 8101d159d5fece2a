"""``load_manifest`` takes a file whole or lists what is broken in it."""

import gzip
import io
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from removal.models import Dataset, LogEntry, ManifestEntry, Release
from tests.factories import make_release

pytestmark = pytest.mark.django_db(transaction=True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def load(file: Path, *options: str, errors: io.StringIO | None = None) -> str:
    out = io.StringIO()
    call_command("load_manifest", str(file), "--release", "r", *options, stdout=out, stderr=errors or io.StringIO())
    return out.getvalue()


def write(folder: Path, name: str, body: bytes) -> Path:
    file = folder / name
    file.write_bytes(body)
    return file


def manifest() -> dict[str, list[str]]:
    return {entry.subject.key: entry.items for entry in ManifestEntry.objects.all()}


GOOD = b'{"subject": "site:1", "items": ["post:1", "post:2"]}\n'


def test_a_file_becomes_the_manifest_of_a_new_release(tmp_path: Path) -> None:
    said = load(write(tmp_path, "m.ndjson.gz", gzip.compress(GOOD)), "--dataset", "posts", "--seal")
    release = Release.objects.get()
    assert said == f"r: 1 subjects, 2 items\nsealed with digest {bytes(release.digest or b'').hex()}\n"
    assert (release.dataset.name, release.source, release.state) == ("posts", "file:m.ndjson.gz", "sealed")
    assert manifest() == {"site:1": ["post:1", "post:2"]}


def test_parts_in_several_formats_are_sealed_with_the_last(tmp_path: Path) -> None:
    load(write(tmp_path, "1.ndjson", GOOD), "--dataset", "posts", "--part", "1")
    rows = write(tmp_path, "2.txt", b"subject,item\nsite:2,b\nsite:2,a\n")
    with pytest.raises(CommandError, match="r was filled and not sealed"):
        load(rows, "--format", "csv", "--part", "3", "--seal")
    load(write(tmp_path, "3.ndjson", GOOD.replace(b"site:1", b"site:3")), "--part", "2")
    load(rows, "--format", "csv", "--part", "3", "--seal")
    assert Release.objects.get().state == "sealed"
    assert manifest() == {"site:1": ["post:1", "post:2"], "site:2": ["a", "b"], "site:3": ["post:1", "post:2"]}


BROKEN = GOOD + b'{"subject": "site:2"}\n' + b'{"subject": "caf\xe9", "items": ["a"]}\n' * 3 + GOOD


def test_broken_lines_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    errors = io.StringIO()
    with pytest.raises(CommandError, match=r"has broken lines\. Nothing was loaded\."):
        load(write(tmp_path, "m.ndjson", BROKEN), "--dataset", "posts", errors=errors)
    assert errors.getvalue().splitlines() == [
        'Line 2: Write an object with the fields "subject" and "items", and no others.',
        *(f"Line {n}: It is not UTF-8 from byte 17 on." for n in (3, 4, 5)),
    ]
    assert manifest() == {}


def test_no_more_broken_lines_are_listed_than_asked_for(tmp_path: Path) -> None:
    errors = io.StringIO()
    with pytest.raises(CommandError, match="has broken lines"):
        load(write(tmp_path, "m.ndjson", BROKEN), "--dataset", "posts", "--max-errors", "2", errors=errors)
    assert [line.partition(":")[0] for line in errors.getvalue().splitlines()] == ["Line 2", "Line 3"]


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("m.ndjson", GOOD * 2, "Line 2: Its subject stands on line 1 already. Join the two lines. Nothing was loaded."),
        ("m.ndjson.gz", gzip.compress(GOOD, mtime=0)[:-3], "Its gzip ends early. Send all of it. Nothing was loaded."),
        ("m.ndjson.gz", gzip.compress(bytes(80 << 20), mtime=0), "more than 200 times larger"),
        ("m.txt", GOOD, "Its name does not say what it is. Choose one of: ndjson, csv, wxr, parquet."),
        ("m.csv", b"a,b\n", "Line 1: The first line must be: subject,item. Nothing was loaded."),
    ],
)
def test_a_file_that_cannot_be_taken_says_why(tmp_path: Path, name: str, body: bytes, said: str) -> None:
    with pytest.raises(CommandError, match=said.replace(".", r"\.")):
        load(write(tmp_path, name, body), "--dataset", "posts")
    assert manifest() == {}


FAILING = {
    "a broken line": BROKEN,
    "a subject that stands twice": GOOD * 2,
    "an end that comes early": gzip.compress(GOOD, mtime=0)[:-3],
}


def name_of(why: str) -> str:
    return "m.ndjson.gz" if "end" in why else "m.ndjson"


@pytest.mark.parametrize("part", [[], ["--part", "1"]], ids=["whole", "part"])
@pytest.mark.parametrize("why", FAILING)
def test_a_failed_load_leaves_no_new_release_behind(tmp_path: Path, why: str, part: list[str]) -> None:
    file = write(tmp_path, name_of(why), FAILING[why])
    with pytest.raises(CommandError, match="Nothing was loaded"):
        load(file, "--dataset", "posts", *part)
    assert (Release.objects.count(), Dataset.objects.count()) == (0, 0)
    assert list(LogEntry.objects.order_by("id").values_list("action", flat=True)) == [
        "release_created",
        "release_discarded",
    ]
    load(write(tmp_path, "m.ndjson", GOOD), "--dataset", "posts", *part)
    assert manifest() == {"site:1": ["post:1", "post:2"]}


@pytest.mark.parametrize("why", FAILING)
def test_a_failed_load_leaves_a_release_that_was_there_as_it_was(tmp_path: Path, why: str) -> None:
    make_release("r", contents={"site:9": ["post:9"]}, sealed=False)
    with pytest.raises(CommandError, match="Nothing was loaded"):
        load(write(tmp_path, name_of(why), FAILING[why]), "--dataset", "posts")
    assert Release.objects.get().state == "building"
    assert manifest() == {"site:9": ["post:9"]}


def test_a_failed_load_leaves_a_dataset_that_was_there(tmp_path: Path) -> None:
    make_release("other", contents={"site:9": ["post:9"]})
    with pytest.raises(CommandError, match="Nothing was loaded"):
        load(write(tmp_path, "m.ndjson", BROKEN), "--dataset", "posts")
    assert list(Release.objects.values_list("name", flat=True)) == ["other"]


def test_a_release_that_is_filled_but_not_sealed_stays(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="r was filled and not sealed"):
        load(write(tmp_path, "m.ndjson", GOOD), "--dataset", "posts", "--part", "2", "--seal")
    assert Release.objects.get().state == "building"
    assert manifest() == {"site:1": ["post:1", "post:2"]}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Name its dataset with --dataset to make it"):
        load(write(tmp_path, "m.ndjson", GOOD))
    with pytest.raises(CommandError, match="cannot be read: No such file or directory"):
        load(tmp_path / "nothing.ndjson", "--dataset", "posts")


def test_a_sealed_release_takes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "m.ndjson", GOOD)
    load(file, "--dataset", "posts", "--seal")
    with pytest.raises(CommandError, match="Release r is sealed and never changes"):
        load(file)


def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    file = write(tmp_path, "m.ndjson", GOOD)
    load(file, "--dataset", "posts", errors=terminal)
    load(file, errors=pipe)
    assert terminal.getvalue().startswith("\r100%, 1 lines, ")
    assert terminal.getvalue().endswith(" MB/s; loading\n")
    assert pipe.getvalue() == ""
