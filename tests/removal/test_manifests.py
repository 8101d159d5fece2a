"""Reading NDJSON: lines, strict JSON, manifests."""

import hashlib
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from removal import manifests
from removal.gate import Sifted
from removal.ledger import Entry, InvalidManifest
from removal.manifests import Unreadable, check_key, check_text, read_json, read_ndjson, split_lines


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


# Lines


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20))
def test_how_a_body_is_cut_into_pieces_does_not_matter(parts: list[bytes], size: int) -> None:
    body = b"\n".join(parts)
    lines = list(split_lines(cut(body, size)))
    assert lines == [(n, line) for n, line in enumerate(body.split(b"\n"), start=1) if line.strip()]


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20), st.integers(0, 8))
def test_no_line_is_longer_than_the_limit(parts: list[bytes], size: int, limit: int) -> None:
    body = b"\n".join(parts)
    expected = [
        (n, line if len(line) <= limit else None)
        for n, line in enumerate(body.split(b"\n"), start=1)
        if len(line) > limit or line.strip()
    ]
    assert list(split_lines(cut(body, size), limit=limit)) == expected


def test_a_last_line_needs_no_end() -> None:
    assert list(split_lines([b"a\nb"])) == list(split_lines([b"a\nb\n"])) == [(1, b"a"), (2, b"b")]


def test_a_line_past_the_limit_takes_no_memory() -> None:
    pieces = (b"x" * 65536 for _ in range(1000))
    tracemalloc.start()
    try:
        assert list(split_lines(pieces, limit=1000)) == [(1, None)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# JSON


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_what_python_writes_is_read_as_it_was(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "It is not JSON at character 1: Expecting value."),
        (b"{} {}", "It is not JSON at character 4: Extra data."),
        (b"{'a': 1}", "It is not JSON at character 2: Expecting property name enclosed in double quotes."),
        (b"\xef\xbb\xbf{}", "It is not JSON at character 1: Expecting value."),
        (b'"\xed\xa0\x80"', "It is not UTF-8 from byte 2 on."),
        (b'{"a": {"b": 1, "b": 1}}', "A field stands twice in one object. Keep one of the two."),
        (b"[NaN]", "NaN is not a JSON number."),
        (b"[Infinity]", "Infinity is not a JSON number."),
        (b"9" * 5000, "A number in it has too many digits."),
        (b'{"a":' * 100_000, "It is nested too deep."),
    ],
)
def test_what_readers_would_not_agree_on_is_unreadable(text: bytes, message: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read_json(text)
    assert str(raised.value) == message


# Keys and texts


@pytest.mark.parametrize("key", ["a", "site:123", "ä" * 256, "x" * 512, "😀", "\t"])
def test_a_key_is_kept_as_it_is(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "It must have 1 to 512 bytes in UTF-8."),
        ("x" * 513, "It must have 1 to 512 bytes in UTF-8."),
        ("ä" * 256 + "x", "It must have 1 to 512 bytes in UTF-8."),
        ("a\0", "It must not hold NUL characters."),
        ("\ud83d", "It must not hold half of a surrogate pair."),
        (1, "It must be a string."),
        (None, "It must be a string."),
    ],
)
def test_any_other_key_is_refused(key: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_key(key)


def test_an_error_does_not_quote_the_text() -> None:
    with pytest.raises(ValueError, match="surrogate") as raised:
        check_text("ann@example.org\ud800")
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


# Manifests


def test_a_manifest_is_read_line_by_line() -> None:
    body = b'{"subject": "site:1", "items": ["post:1", "post:2"]}\r\n\n{"items": ["post:1"], "subject": "site:2"}'
    assert list(read_ndjson(cut(body, 7))) == [
        Entry(1, "site:1", ["post:1", "post:2"]),
        Entry(3, "site:2", ["post:1"]),
    ]


FIELDS = 'Write an object with the fields "subject" and "items", and no others.'
NO_ITEMS = "items must be a list of at least one item. Leave out a subject that has none."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "It is not JSON at character 2: Expecting property name enclosed in double quotes."),
        (b"[]", FIELDS),
        (b'"subject"', FIELDS),
        (b'{"subject": "site:1"}', FIELDS),
        (b'{"subject": "site:1", "items": ["post:1"], "name": "Ann"}', FIELDS),
        (b'{"subject": "site:1", "items": []}', NO_ITEMS),
        (b'{"subject": "site:1", "items": null}', NO_ITEMS),
        (b'{"subject": "site:1", "items": "post:1"}', NO_ITEMS),
        (b'{"subject": 1, "items": ["post:1"]}', "subject: It must be a string."),
        (b'{"subject": "", "items": ["post:1"]}', "subject: It must have 1 to 512 bytes in UTF-8."),
        (b'{"subject": "site:1", "items": ["post:1", 2]}', "items[1]: It must be a string."),
        (b'{"subject": "site:1", "items": ["\\u0000"]}', "items[0]: It must not hold NUL characters."),
        (b'{"subject": "site:1", "items": ["\\udc00"]}', "items[0]: It must not hold half of a surrogate pair."),
    ],
)
def test_a_wrong_line_says_which_and_what_to_do(line: bytes, message: str) -> None:
    entries = read_ndjson([b'{"subject": "site:0", "items": ["post:0"]}\n', line])
    assert next(entries) == Entry(1, "site:0", ["post:0"])
    with pytest.raises(InvalidManifest) as raised:
        next(entries)
    assert (raised.value.line, str(raised.value)) == (2, f"Line 2: {message}")


def test_a_line_of_more_than_64_mebibytes_is_refused() -> None:
    piece = b" " * (1024 * 1024)
    body = [b"\n", *([piece] * 64), b" ", b"\n"]
    with pytest.raises(InvalidManifest) as raised:
        list(read_ndjson(body))
    assert str(raised.value) == "Line 2: It is longer than 64 MiB. Put fewer items on it."
    assert manifests.MAX_LINE_BYTES == 64 * 1024 * 1024


def test_a_manifest_of_any_length_takes_the_memory_of_a_line() -> None:
    line = b'{"subject": "site:1", "items": ["post:1"]}\n'
    pieces = (line * 100 for _ in range(200))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_ndjson(pieces)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


# The gate's output


CANDIDATES = (
    b'{"subject": "site:1", "items": ["post:1", "post:2"], "container_state": "public"}\n'
    b'{"container_state":"public","subject":"site:2","items":["post:1"]}\n'
)


def end(lines: bytes, **said: object) -> bytes:
    """Write the last line that the gate writes after ``lines``, or another."""
    allowed = lines.count(b'"post:')
    fields = {"end": True, "allowed": allowed, "excluded": 4, "digest": hashlib.sha256(lines).hexdigest(), **said}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode() + b"\n"


CUT_OFF = 'The gate\'s last line, {"end": true, ...}, is missing after it. Discard all of it, and ask the gate again.'


def faults_of(body: bytes) -> list[str]:
    faults: list[InvalidManifest] = []
    list(read_ndjson(cut(body, 50), faults.append))
    return [str(fault) for fault in faults]


def test_what_the_gate_let_through_is_a_manifest() -> None:
    entries = [Entry(1, "site:1", ["post:1", "post:2"]), Entry(2, "site:2", ["post:1"])]
    assert list(read_ndjson(cut(CANDIDATES + end(CANDIDATES), 7))) == entries
    assert list(read_ndjson([CANDIDATES + end(CANDIDATES) + b"\n \n"])) == entries


def test_the_gate_may_have_let_nothing_through() -> None:
    assert list(read_ndjson([end(b"")])) == []


def test_what_the_gate_writes_is_read_as_it_is() -> None:
    done = Sifted(allowed=3, excluded=0, digest=hashlib.sha256(CANDIDATES).hexdigest())
    assert [entry.subject for entry in read_ndjson([CANDIDATES, done.as_line()])] == ["site:1", "site:2"]


@pytest.mark.parametrize("state", ["private", "Public", "", None, ["public"]])
def test_the_gate_lets_only_public_content_through(state: object) -> None:
    line = json.dumps({"subject": "site:3", "items": ["post:1"], "container_state": state}).encode() + b"\n"
    body = CANDIDATES + line
    assert faults_of(body + end(body)) == [
        "Line 3: container_state must be public: the gate lets nothing else through."
    ]


@pytest.mark.parametrize("body", [CANDIDATES, CANDIDATES.rstrip(b"\n"), CANDIDATES + b"\n\n"])
def test_without_its_last_line_the_gates_output_is_refused(body: bytes) -> None:
    assert faults_of(body) == [f"Line 2: {CUT_OFF}"]
    with pytest.raises(InvalidManifest):
        list(read_ndjson([body]))


FIELDS_OF_END = 'The gate\'s last line has the fields "end", "allowed", "excluded" and "digest".'
OTHER_DIGEST = "Its digest is not that of the lines before it: they were changed. Ask the gate again."


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (end(CANDIDATES, digest="0" * 64), OTHER_DIGEST),
        (end(CANDIDATES, digest=None), OTHER_DIGEST),
        (end(CANDIDATES, allowed=4), "It counts 4 items, and 3 came before it."),
        (end(CANDIDATES, allowed=True), FIELDS_OF_END),
        (end(CANDIDATES, excluded=-1), FIELDS_OF_END),
        (end(CANDIDATES, excluded="none"), FIELDS_OF_END),
        (end(CANDIDATES, end=False), FIELDS_OF_END),
        (end(CANDIDATES, digest=...), FIELDS_OF_END),
        (end(CANDIDATES, subject="site:3"), FIELDS_OF_END),
    ],
)
def test_a_wrong_last_line_is_refused(last: bytes, message: str) -> None:
    assert faults_of(CANDIDATES + last) == [f"Line 3: {message}"]


def test_lines_that_were_changed_after_the_gate_are_refused() -> None:
    for changed in (
        CANDIDATES.replace(b"site:2", b"site:9"),
        CANDIDATES.replace(b'", "', b'","'),
        b"".join(reversed(CANDIDATES.splitlines(keepends=True))),
    ):
        assert faults_of(changed + end(CANDIDATES)) == [f"Line 3: {OTHER_DIGEST}"]


def test_nothing_stands_after_the_last_line() -> None:
    after = "It stands after the gate's last line. Send one output of the gate, and nothing else."
    body = CANDIDATES + end(CANDIDATES)
    assert faults_of(body + b'{"subject": "site:3", "items": ["post:1"]}\n') == [f"Line 4: {after}"]
    assert faults_of(body + end(CANDIDATES)) == [f"Line 4: {after}"]


def test_lines_of_the_gate_do_not_mix_with_others() -> None:
    plain = b'{"subject": "site:0", "items": ["post:0"]}\n'
    mixed = "It is the gate's, and the first line is not. Send the gate's output as it is, by itself."
    assert faults_of(plain + CANDIDATES + end(CANDIDATES)) == [f"Line {n}: {mixed}" for n in (2, 3, 4)]
    assert faults_of(CANDIDATES + plain + end(CANDIDATES)) == [
        'Line 3: Write an object with the fields "subject", "items" and "container_state", and no others.'
    ]


def test_a_broken_line_of_the_gate_is_the_only_fault() -> None:
    body = b'{"container_state": "public"\n' + CANDIDATES
    assert faults_of(body + end(CANDIDATES)) == ["Line 1: It is not JSON at character 29: Expecting ',' delimiter."]
    assert faults_of(CANDIDATES + b'{"end": true') == [
        "Line 3: It is not JSON at character 13: Expecting ',' delimiter.",
        f"Line 3: {CUT_OFF}",
    ]


def test_a_line_of_the_gate_of_more_than_64_mebibytes_is_refused() -> None:
    pieces = [CANDIDATES, *([b" " * (1024 * 1024)] * 64), b" \n", end(CANDIDATES)]
    faults: list[InvalidManifest] = []
    list(read_ndjson(pieces, faults.append))
    assert [str(fault) for fault in faults] == ["Line 3: It is longer than 64 MiB. Put fewer items on it."]


def test_the_gates_output_of_any_length_takes_the_memory_of_a_line() -> None:
    piece = CANDIDATES * 100
    lines = piece * 100
    pieces = [*([piece] * 100), end(lines)]
    del lines
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_ndjson(pieces)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_a_large_piece_of_short_lines_takes_no_more_than_itself() -> None:
    body = b"12\n" * 1_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in split_lines([body])) == 1_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body)
