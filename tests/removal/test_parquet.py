"""Parquet gives the same entries as every other format, and what a few bytes of it unpack to is never all in memory."""

import gzip
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from pytest_django import Settings

from partners.models import ApiKey
from removal import formats
from removal.compression import CannotUnpack, Packing
from removal.formats import Format, UnknownFormat, read_manifest
from removal.ledger import Entry, InvalidManifest
from removal.models import ManifestEntry
from removal.parquet import ROWS_AT_ONCE, write_lines
from tests.factories import make_release

SHAPES = "Its columns must be subject: string and item: string, or subject: string and items: list of string."
TOO_MUCH = "This or one of the next rows takes more than 1024 MiB. Write smaller rows and pages."


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def cut(body: bytes) -> Iterator[bytes]:
    return (body[start : start + 1000] for start in range(0, len(body), 1000))


def read(body: bytes, **options: Any) -> list[Entry]:
    return list(read_manifest(cut(body), form=Format.PARQUET, **options))


def faults_of(body: bytes) -> tuple[list[Entry], list[str]]:
    faults: list[InvalidManifest] = []
    return read(body, on_fault=faults.append), [str(fault) for fault in faults]


def same(value: str, times: int) -> Any:
    """A column that says one thing many times, which takes next to nothing."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), times), [value])


ITEM = {"subject": ["site:1", "site:ü", "site:1"], "item": ["post:1", 'a,"b"\n', "post:2"]}
ITEM_ENTRIES = [Entry(1, "site:1", ["post:1"]), Entry(2, "site:ü", ['a,"b"\n']), Entry(3, "site:1", ["post:2"])]
ITEMS = {"subject": ["site:1", "site:2"], "items": [["post:2", "post:1"], ["post:1"]]}
ITEMS_ENTRIES = [Entry(1, "site:1", ["post:2", "post:1"]), Entry(2, "site:2", ["post:1"])]


# What is read


def test_both_shapes_are_read_packed_or_not() -> None:
    assert read(parquet(ITEM)) == ITEM_ENTRIES
    assert read(parquet(ITEMS, compression="zstd")) == ITEMS_ENTRIES
    assert read(gzip.compress(parquet(ITEMS)), packing=Packing.GZIP) == ITEMS_ENTRIES


def test_every_kind_of_string_and_list_is_read_and_the_order_of_columns_is_free() -> None:
    category = pa.array(["post:1", "post:1"]).dictionary_encode()
    large = pa.array([["post:2", "post:1"], ["post:1"]], pa.large_list(pa.large_string()))
    assert read(parquet({"item": category, "subject": pa.array(["a", "b"], pa.large_string())})) == [
        Entry(1, "a", ["post:1"]),
        Entry(2, "b", ["post:1"]),
    ]
    assert read(parquet({"items": large, "subject": ITEMS["subject"]})) == ITEMS_ENTRIES


def test_rows_are_counted_over_batches_and_row_groups() -> None:
    rows = ROWS_AT_ONCE * 2 + 7
    columns = {"subject": [f"site:{n}" for n in range(rows)], "items": [["a", f"b{n}"] for n in range(rows)]}
    assert read(parquet(columns, row_group_size=700)) == [
        Entry(n + 1, f"site:{n}", ["a", f"b{n}"]) for n in range(rows)
    ]


def test_a_file_without_rows_has_no_entries() -> None:
    assert read(parquet({"subject": pa.array([], pa.string()), "item": pa.array([], pa.string())})) == []


# What is refused


def test_broken_rows_say_which_and_why_and_the_rest_is_read() -> None:
    not_utf8 = pa.array([b"post:1"] * 5 + [b"caf\xe9"]).view(pa.string())
    entries, said = faults_of(parquet({"subject": ["s", None, "", "s\0", "s" * 513, "s"], "item": not_utf8}))
    assert entries == [Entry(1, "s", ["post:1"])]
    assert said == [
        "Line 2: subject: It must be a string.",
        "Line 3: subject: It must have 1 to 512 bytes in UTF-8.",
        "Line 4: subject: It must not hold NUL characters.",
        "Line 5: subject: It must have 1 to 512 bytes in UTF-8.",
        "Line 6: It is not UTF-8 from byte 29 on.",
    ]


def test_broken_lists_say_which_and_why_and_the_rest_is_read() -> None:
    lists = [None, [], ["a", None], ["a", ""], ["a", "a"], ["a"]]
    entries, said = faults_of(parquet({"subject": list("abcdef"), "items": lists}))
    assert entries == [Entry(6, "f", ["a"])]
    assert said == [
        "Line 1: items must be a list of at least one item. Leave out a subject that has none.",
        "Line 2: items must be a list of at least one item. Leave out a subject that has none.",
        "Line 3: items[1]: It must be a string.",
        "Line 4: items[1]: It must have 1 to 512 bytes in UTF-8.",
        "Line 5: An item stands twice in it. Name each item once.",
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"subject": ["s"]},
        {"subject": ["s"], "item": [1]},
        {"subject": ["s"], "item": [b"a"]},
        {"subject": [1], "items": [["a"]]},
        {"subject": ["s"], "items": ["a"]},
        {"subject": ["s"], "items": [[["a"]]]},
        {"subject": ["s"], "item": ["a"], "items": [["a"]]},
        {"Subject": ["s"], "item": ["a"]},
    ],
)
def test_other_columns_are_refused(columns: dict[str, Any]) -> None:
    # Read here and not in the process of its own: eight of those take seconds.
    with pytest.raises(Exception, match=f"^1 {SHAPES}$"):
        write_lines(io.BytesIO(parquet(columns)), io.BytesIO(), max_line_bytes=1000)


@pytest.mark.parametrize("body", [b"", b"PAR1", b'{"subject": "s", "items": ["a"]}\n', parquet(ITEM)[:-9]])
def test_what_is_not_parquet_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidManifest, match=r"^Line 1: It is not Parquet, or is damaged or encrypted\.$"):
        read(body)


def test_damage_in_the_middle_says_from_which_row_on() -> None:
    rows = ROWS_AT_ONCE * 3
    columns = {"subject": [f"site:{n:06}" for n in range(rows)], "item": ["a"] * rows}
    body = bytearray(parquet(columns, row_group_size=ROWS_AT_ONCE, compression="zstd", write_page_checksum=True))
    column = pq.ParquetFile(io.BytesIO(body)).metadata.row_group(1).column(0)
    body[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    entries = []
    with pytest.raises(InvalidManifest, match=r"^Line 1001: From here on it is damaged or encrypted\.$"):
        entries.extend(read(bytes(body)))
    assert entries == []


def test_a_library_that_breaks_down_is_told_and_its_last_words_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = tmp_path / "reader.py"
    reader.write_text('import os\nos.write(1, b\'{"subject":"s","items":["a"]}\\n{"subj\')\nos.abort()\n')
    monkeypatch.setattr(formats, "PARQUET_READER", reader)
    entries = read_manifest([parquet(ITEM)], form=Format.PARQUET)
    assert next(entries) == Entry(1, "s", ["a"])
    with pytest.raises(CannotUnpack, match="It cannot be read as Parquet"):
        next(entries)


# What grows


def test_small_files_that_become_gigabytes_are_refused() -> None:
    long_keys = parquet({"subject": same("x" * 2_000_000, ROWS_AT_ONCE), "item": same("i", ROWS_AT_ONCE)})
    assert len(long_keys) < 200_000
    with pytest.raises(InvalidManifest, match=f"^Line 1: {TOO_MUCH}$"):
        read(long_keys)

    many_rows = parquet({"subject": same("s" * 500, 200_000), "item": same("i" * 500, 200_000)})
    assert len(many_rows) < 30_000
    with pytest.raises(CannotUnpack, match="It becomes more than 200 times larger"):
        read(many_rows)


def test_a_list_that_is_too_long_ends_its_line_and_the_next_is_read() -> None:
    lists = pa.ListArray.from_arrays([0, 1_000_000, 1_000_001], same("item", 1_000_001))
    out = io.BytesIO()
    write_lines(io.BytesIO(parquet({"subject": ["a", "b"], "items": lists})), out, max_line_bytes=10_000)
    long, short = out.getvalue().splitlines()
    assert 10_000 < len(long) < 100_000
    assert short == b'{"subject":"b","items":["item"]}'


def test_whoever_stops_reading_ends_the_reader() -> None:
    entries = read_manifest([parquet({"subject": ["s"] * 300_000, "item": ["i"] * 300_000})], form=Format.PARQUET)
    assert next(entries) == Entry(1, "s", ["i"])
    entries.close()  # type: ignore[attr-defined]  # it is a generator; a process left behind would be a ResourceWarning


# Where it comes in


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = parquet(ITEM)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnknownFormat, match=r"not installed here: pip install pyarrow\."):
        read(body)
    file = tmp_path / "m.parquet"
    file.write_bytes(body)
    with pytest.raises(CommandError, match=r"not installed here: pip install pyarrow\."):
        call_command("digest_manifest", str(file))


def test_names_and_media_type_say_that_it_is_parquet() -> None:
    assert formats.format_of_file("m.parquet") is formats.format_of_file("M.PARQUET.gz") is Format.PARQUET
    assert formats.format_of_media_type("application/vnd.apache.parquet") is Format.PARQUET


def manifest() -> dict[str, list[str]]:
    return {entry.subject.key: sorted(entry.items) for entry in ManifestEntry.objects.all()}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("columns", [ITEM, ITEMS], ids=["item", "items"])
def test_a_file_is_loaded_sealed_and_digested(tmp_path: Path, columns: dict[str, Any]) -> None:
    file = tmp_path / "m.parquet"
    file.write_bytes(parquet(columns))
    loaded, digested = io.StringIO(), io.StringIO()
    call_command("load_manifest", str(file), "--release", "r", "--dataset", "posts", "--seal", stdout=loaded)
    call_command("digest_manifest", str(file), stdout=digested)
    assert loaded.getvalue() == f"r: 2 subjects, 3 items\nsealed with digest {digested.getvalue()}"
    assert len(manifest()) == 2


@pytest.mark.django_db(transaction=True)
def test_broken_rows_are_listed_up_to_the_limit_and_nothing_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "m.parquet"
    file.write_bytes(parquet({"subject": ["s", *[""] * 9], "item": ["i"] * 10}))
    errors = io.StringIO()
    with pytest.raises(CommandError, match="has broken lines"):
        call_command(
            "load_manifest", str(file), "--release", "r", "--dataset", "posts", "--max-errors", "2", stderr=errors
        )
    assert [line.partition(":")[0] for line in errors.getvalue().splitlines()] == ["Line 2", "Line 3"]
    assert manifest() == {}


@pytest.mark.django_db(transaction=True)
def test_the_api_takes_it_whole_and_in_parts(settings: Settings) -> None:
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)  # or the static files' middleware warns
    make_release("r", contents={}, sealed=False)
    client = Client(headers={"Authorization": f"Bearer {ApiKey.create(source='blogs')[1]}"})

    def put(path: str, body: bytes) -> Any:
        return client.put(f"/v1/releases/r/manifest{path}", body, "application/vnd.apache.parquet")

    body = parquet(ITEM)
    part = {"number": 1, "digest": hashlib.sha256(body).hexdigest(), "subjects": 2, "items": 3}
    assert put("/parts/1", body).json() == part | {"changed": True}
    assert put("/parts/1", body).json() == part | {"changed": False}
    assert put("", parquet(ITEMS)).json() == {"subjects": 2, "items": 3}
    refused = put("", parquet({"subject": ["s"], "item": [""]}))
    assert (refused.status_code, refused.json()["code"], refused.json()["detail"]) == (
        422,
        "invalid_manifest",
        "Line 1: items[0]: It must have 1 to 512 bytes in UTF-8.",
    )
    assert manifest() == {"site:1": ["post:1", "post:2"], "site:2": ["post:1"]}
