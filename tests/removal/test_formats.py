"""Every format, however it is packed and cut into pieces, gives the same entries, and says which line is broken."""

import gzip
import hashlib
import io
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from removal import formats
from removal.compression import Packing
from removal.formats import Digested, Format, UnknownFormat, read_csv, read_manifest
from removal.gate import Sifted
from removal.ledger import Entry, InvalidManifest
from removal.manifests import read_ndjson


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


EXPORT = b"""<?xml version="1.0" encoding="UTF-8" ?>
<rss version="2.0" xmlns:wp="http://wordpress.org/export/1.2/"><channel>
<wp:wxr_version>1.2</wp:wxr_version><wp:base_blog_url>https://blog.example</wp:base_blog_url>
<item><wp:post_id>7</wp:post_id><wp:status>publish</wp:status><wp:post_parent>0</wp:post_parent>
<wp:post_type>post</wp:post_type><wp:post_password></wp:post_password></item>
<item><wp:post_id>8</wp:post_id><wp:status>private</wp:status><wp:post_parent>0</wp:post_parent>
<wp:post_type>post</wp:post_type><wp:post_password></wp:post_password></item>
</channel></rss>
"""


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"subject": ["site:blog.example"], "items": [["post:7"]]}), sink)
    return sink.getvalue()


BODIES = {
    Format.NDJSON: b'{"subject": "site:blog.example", "items": ["post:7"]}\n',
    Format.CSV: b"subject,item\r\nsite:blog.example,post:7\r\n",
    Format.WXR: EXPORT,
    Format.PARQUET: parquet(),
}
LINES = {Format.NDJSON: 1, Format.CSV: 2, Format.WXR: 1, Format.PARQUET: 1}
PACK: dict[Packing, Callable[[bytes], bytes]] = {
    Packing.NONE: bytes,
    Packing.GZIP: gzip.compress,
    Packing.ZSTD: zstandard.compress,
}


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("size", [1, 17, 65536])
def test_every_format_is_read_packed_or_not(form: Format, packing: Packing, size: int) -> None:
    body = PACK[packing](BODIES[form])
    entries = list(read_manifest(cut(body, size), form=form, packing=packing))
    assert entries == [Entry(LINES[form], "site:blog.example", ["post:7"])]


def test_an_export_that_is_cut_off_is_refused() -> None:
    with pytest.raises(InvalidManifest, match=r"Line 7: the export ends in the middle\."):
        list(read_manifest([EXPORT[:-40]], form=Format.WXR))


def test_an_export_with_nothing_public_gives_no_entry() -> None:
    body = EXPORT.replace(b"publish", b"draft")
    assert list(read_manifest([body], form=Format.WXR)) == []


@pytest.mark.parametrize("packing", Packing)
def test_what_the_gate_wrote_is_read_packed_or_not(packing: Packing) -> None:
    lines = b'{"subject": "site:blog.example", "items": ["post:7"], "container_state": "public"}\n'
    last = Sifted(allowed=1, excluded=0, digest=hashlib.sha256(lines).hexdigest()).as_line()
    body = PACK[packing](lines + last)
    entries = list(read_manifest(cut(body, 17), form=Format.NDJSON, packing=packing))
    assert entries == [Entry(1, "site:blog.example", ["post:7"])]


# CSV


def test_a_row_of_csv_is_an_item() -> None:
    body = b'subject,item\nsite:1,post:1\n\n"site:2","a,""b"""\r\nsite:1,post:2'
    assert list(read_csv(cut(body, 5))) == [
        Entry(2, "site:1", ["post:1"]),
        Entry(4, "site:2", ['a,"b"']),
        Entry(5, "site:1", ["post:2"]),
    ]


def test_csv_from_a_spreadsheet_may_begin_with_a_byte_order_mark() -> None:
    assert list(read_csv([b'\xef\xbb\xbf"subject","item"\r\nsite:1,post:1'])) == [Entry(2, "site:1", ["post:1"])]


@pytest.mark.parametrize(
    "body", [b"", b"site:1,post:1\n", b"item,subject\n", b"subject;item\n", b"\xff\xfes\0u\0b\0", b'"subject,item\n']
)
def test_csv_without_its_header_is_refused_whatever_follows(body: bytes) -> None:
    with pytest.raises(InvalidManifest, match=r"Line 1: The first line must be: subject,item\."):
        list(read_csv([body], on_fault=lambda fault: None))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"site:1", "It has 1 columns, and a row has two: subject,item."),
        (b"site:1,post:1,post:2", "It has 3 columns, and a row has two: subject,item."),
        (b"site:1,", "item: It must have 1 to 512 bytes in UTF-8."),
        (b",post:1", "subject: It must have 1 to 512 bytes in UTF-8."),
        (b"site:1,caf\xe9", "It is not UTF-8 from byte 11 on."),
        (b"site:1,\0", "item: It must not hold NUL characters."),
        (b'"site:1,post:1', "It is not CSV: unexpected end of data. A quote in a quoted field is written twice."),
        (b"site:1," + b"x" * 70_000, "It is longer than 64 KiB. Write a row an item."),
    ],
)
def test_a_broken_row_says_which_and_why_and_the_rest_is_read(row: bytes, message: str) -> None:
    faults: list[InvalidManifest] = []
    entries = list(read_csv([b"subject,item\n", row, b"\nsite:9,post:9\n"], faults.append))
    assert entries == [Entry(3, "site:9", ["post:9"])]
    assert [(fault.line, str(fault)) for fault in faults] == [(2, f"Line 2: {message}")]


def test_ndjson_goes_on_behind_a_broken_line_too() -> None:
    faults: list[InvalidManifest] = []
    body = b'{\n{"subject": "s", "items": ["a"]}\n{"subject": "s", "items": ["a", "a"]}\n{"subject": "caf\xe9"}\n'
    assert list(read_ndjson([body], faults.append)) == [Entry(2, "s", ["a"])]
    assert [str(fault) for fault in faults] == [
        "Line 1: It is not JSON at character 2: Expecting property name enclosed in double quotes.",
        "Line 3: An item stands twice in it. Name each item once.",
        "Line 4: It is not UTF-8 from byte 17 on.",
    ]


# Which format it is


@pytest.mark.parametrize(
    ("name", "form", "packing"),
    [
        ("m.ndjson", Format.NDJSON, Packing.NONE),
        ("2024-02.part.JSONL.GZ", Format.NDJSON, Packing.GZIP),
        ("m.csv.zst", Format.CSV, Packing.ZSTD),
        ("site.wordpress.xml", Format.WXR, Packing.NONE),
    ],
)
def test_the_name_of_a_file_says_what_it_is(name: str, form: Format, packing: Packing) -> None:
    assert (formats.format_of_file(name), formats.packing_of_file(name)) == (form, packing)


@pytest.mark.parametrize("name", ["manifest", "m.txt", "m.gz", ".csv"])
def test_a_file_with_another_name_is_not_guessed_at(name: str) -> None:
    with pytest.raises(UnknownFormat, match="Choose one of: ndjson, csv, wxr, parquet"):
        formats.format_of_file(name)


def test_a_body_is_what_its_headers_say() -> None:
    assert formats.format_of_media_type("text/csv") is Format.CSV
    assert formats.format_of_media_type("application/x-ndjson") is Format.NDJSON
    assert formats.packing_of_encoding("") is Packing.NONE
    assert formats.packing_of_encoding(" GZIP ") is Packing.GZIP
    with pytest.raises(UnknownFormat, match="gzip or zstd"):
        formats.packing_of_encoding("br")


def test_a_digest_is_of_the_bytes_as_they_came() -> None:
    one, other = Digested([b"ab", b"c"]), Digested([b"a", b"bc"])
    assert b"".join(one) == b"".join(other) == b"abc"
    assert one.digest() == other.digest() != Digested([]).digest()
