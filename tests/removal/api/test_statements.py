"""A plain line is read by a shorter way, to the same end."""

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from removal.api.statements import _read_any, _read_plain, read
from removal.statements import OUTCOMES, SAID, Refusal, Statement, line_text

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)
ITEMS = st.fixed_dictionaries({"item": KEYS, "outcome": st.sampled_from(OUTCOMES)})
LINES = st.fixed_dictionaries(
    {"sequence": st.integers(1, 2**63 - 1), "status": st.sampled_from(SAID)},
    optional={
        "completed_at": st.builds(
            lambda time, zone: f"{time:%Y-%m-%dT%H:%M:%S}{zone}",
            st.datetimes() | st.sampled_from([datetime(9999, 12, 31, 23, 59, 59), datetime(1971, 1, 1)]),
            st.sampled_from(["Z", "+14:00", "-14:00"]),
        ),
        "outcomes": st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 2**63 - 1)),
        "items": st.lists(ITEMS, max_size=5),
        "detail": KEYS,
        "epoch": st.integers(0, 9),
    },
)


@given(LINES, st.booleans())
def test_both_ways_read_the_same(line: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(line, ensure_ascii=ascii_only).encode()
    plain = _read_plain(7, text)
    assert plain is None or plain == _read_any(7, text)


@pytest.mark.parametrize(
    "line",
    [
        b'{"sequence":1,"status":"completed"}',
        b' {"status": "completed", "sequence": 1} ',
        b'{"sequence":1,"status":"completed","completed_at":"2026-11-25T09:00:00Z","outcomes":{"removed":2}}',
        '{"sequence":1,"status":"completed","items":[{"item":"ä","outcome":"removed"}]}'.encode(),
    ],
)
def test_what_most_send_is_plain(line: bytes) -> None:
    plain = _read_plain(1, line)
    assert isinstance(plain, Statement)
    assert plain == _read_any(1, line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"sequence":1,"sequence":1,"status":"completed"}',
        b'{"sequence":1,"status":"received","status":"completed"}',
        b'{"sequence":1,"status":"completed","outcomes":{"removed":1,"removed":1}}',
        b'{"sequence":1,"status":"completed","outcomes":{"removed":1},"outcomes":{"removed":1}}',
        b'{"sequence":1,"status":"completed","items":[{"item":"a","item":"b","outcome":"removed"}]}',
        b'{"sequence":1,"st\\u0061tus":"received","status":"completed"}',
    ],
)
def test_a_field_that_stands_twice_is_not_plain(line: bytes) -> None:
    assert _read_plain(1, line) is None
    assert isinstance(_read_any(1, line), Refusal)


def test_a_time_that_no_clock_shows_is_refused() -> None:
    line = b'{"sequence":1,"status":"completed","completed_at":"9999-12-31T23:59:59-14:00"}'
    assert isinstance(read((1, line)), Refusal)


def test_a_member_that_is_nested_too_deep_is_refused_alone() -> None:
    for depth in range(300, 1500, 7):
        deep: object = []
        for _ in range(depth):
            deep = [deep]
        text = line_text({"sequence": 1, "status": "completed", "detail": deep})
        assert text is None or isinstance(read((1, text)), Refusal)
