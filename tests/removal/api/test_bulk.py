"""Many requests in one body."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from removal import intake
from removal.api import bulk
from removal.models import RemovalRequest, RequestTarget
from tests.removal.api.conftest import Caller, lines_of, ndjson, problem_of, rows

PATH = "/v1/requests/bulk"


def wish(n: int, **said: Any) -> dict[str, Any]:
    return {"idempotency_key": f"key-{n}", "kind": "opt_out", "subject": f"site:{n}"} | said


def ids() -> dict[str, str]:
    return dict(RemovalRequest.objects.values_list("idempotency_key", "public_id"))


def test_each_line_is_recorded_and_answered_in_order(platform: Caller) -> None:
    response = platform.post_lines(
        PATH, wish(1), wish(2, kind="deletion", items=["post:1"], reason="account_deleted"), wish(3)
    )
    assert response.status_code == 200
    assert response["Content-Type"] == "application/x-ndjson"
    answers = lines_of(response)
    assert answers == [{"line": n, "status": "created", "id": ids()[f"key-{n}"]} for n in (1, 2, 3)]
    assert list(RequestTarget.objects.order_by("subject__key").values_list("subject__key", "items")) == [
        ("site:1", None),
        ("site:2", ["post:1"]),
        ("site:3", None),
    ]


def test_sending_a_file_again_changes_nothing(platform: Caller) -> None:
    lines = [wish(1), wish(2)]
    first = lines_of(platform.post_lines(PATH, *lines))
    before = rows()
    assert lines_of(platform.post_lines(PATH, *lines)) == [answer | {"status": "repeated"} for answer in first]
    assert rows() == before


def test_a_key_that_stands_twice_in_a_file_counts_once(platform: Caller) -> None:
    answers = lines_of(platform.post_lines(PATH, wish(1), wish(1), wish(1, subject="site:7")))
    assert [answer["status"] for answer in answers] == ["created", "repeated", "conflict"]
    assert RemovalRequest.objects.count() == 1


def test_one_by_one_and_bulk_share_their_keys(platform: Caller) -> None:
    one = platform.post("/v1/requests", {"kind": "opt_out", "subject": "site:1"}, Idempotency_Key="key-1").json()
    assert lines_of(platform.post_lines(PATH, wish(1))) == [{"line": 1, "status": "repeated", "id": one["id"]}]


def test_a_key_with_another_body_is_a_conflict(platform: Caller) -> None:
    lines_of(platform.post_lines(PATH, wish(1)))
    [answer] = lines_of(platform.post_lines(PATH, wish(1, subject="site:2")))
    assert answer == {
        "line": 1,
        "status": "conflict",
        "id": ids()["key-1"],
        "error": {
            "code": "key_reused",
            "message": "The idempotency_key came before with another body. Send the same body, or a new key.",
            "field": "idempotency_key",
        },
    }


WRONG_LINES: list[tuple[Any, dict[str, str]]] = [
    (
        b"{",
        {
            "code": "unreadable",
            "message": "It is not JSON at character 2: Expecting property name enclosed in double quotes.",
        },
    ),
    (b"\xff", {"code": "unreadable", "message": "It is not UTF-8 from byte 1 on."}),
    (b'{"kind": NaN}', {"code": "unreadable", "message": "NaN is not a JSON number."}),
    (b"[" * 100_000, {"code": "unreadable", "message": "It is nested too deep."}),
    ([], {"code": "invalid_field", "message": "It must be a JSON object.", "field": "body"}),
    (
        wish(9, idempotency_key=None),
        {"code": "invalid_field", "message": "Input should be a valid string", "field": "idempotency_key"},
    ),
    (
        {"kind": "opt_out", "subject": "site:9"},
        {"code": "invalid_field", "message": "This field is required.", "field": "idempotency_key"},
    ),
    (
        wish(9, kind="unknown"),
        {
            "code": "invalid_field",
            "message": "Input should be 'opt_out', 'deletion', 'reinstatement' or 'offboarding'",
            "field": "kind",
        },
    ),
    (
        wish(9, subject="\ud800"),
        {"code": "invalid_field", "message": "It must not hold half of a surrogate pair.", "field": "subject"},
    ),
    (
        wish(9, items=["post:1"]),
        {
            "code": "invalid_field",
            "message": "An opt-out is about a whole subject: leave items out, or send a deletion.",
            "field": "items",
        },
    ),
    (
        wish(9, received_at="9998-01-01T00:00:00Z"),
        {
            "code": "invalid_field",
            "message": "It lies in the future; send when the person asked.",
            "field": "received_at",
        },
    ),
    (
        wish(9, surprise=1),
        {
            "code": "invalid_field",
            "message": "There is no such field. Check its spelling, or leave it out.",
            "field": "surprise",
        },
    ),
]


@pytest.mark.parametrize(("line", "error"), WRONG_LINES, ids=[str(number) for number in range(len(WRONG_LINES))])
def test_a_wrong_line_is_refused_and_the_others_stand(platform: Caller, line: Any, error: dict[str, str]) -> None:
    answers = lines_of(platform.post_lines(PATH, wish(1), line, wish(3)))
    assert answers == [
        {"line": 1, "status": "created", "id": ids()["key-1"]},
        {"line": 2, "status": "invalid", "error": error},
        {"line": 3, "status": "created", "id": ids()["key-3"]},
    ]


def test_a_line_that_names_an_unknown_partner_keeps_no_other_from_being_taken(platform: Caller) -> None:
    unknown = {"idempotency_key": "key-2", "kind": "offboarding", "partner": "nobody"}
    answers = lines_of(platform.post_lines(PATH, wish(1), unknown, wish(3)))
    assert [answer["status"] for answer in answers] == ["created", "invalid", "created"]
    assert (answers[1]["error"]["field"], answers[1]["error"]["message"]) == ("partner", "No partner has this slug.")


def test_a_file_of_wrong_lines_writes_nothing(platform: Caller) -> None:
    answers = lines_of(platform.post_lines(PATH, b"{", b"[]"))
    assert [answer["status"] for answer in answers] == ["invalid", "invalid"]
    assert rows() == {}


def test_a_line_that_is_too_long_is_refused_and_the_others_stand(
    platform: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("removal.manifests.split_lines.__kwdefaults__", {"limit": 1000})
    answers = lines_of(platform.post_lines(PATH, wish(1), b"x" * 300_000, wish(3)))
    assert [answer["status"] for answer in answers] == ["created", "invalid", "created"]
    assert answers[1]["error"] == {"code": "line_too_long", "message": "A line has at most 64 MiB."}


def test_blank_lines_are_counted_and_skipped(platform: Caller) -> None:
    body = b"\n\r\n" + json.dumps(wish(3)).encode() + b"\r\n  \n" + json.dumps(wish(5)).encode()
    answers = lines_of(platform.post(PATH, body))
    assert [(answer["line"], answer["status"]) for answer in answers] == [(3, "created"), (5, "created")]


def test_an_empty_body_is_answered_with_nothing(platform: Caller) -> None:
    assert lines_of(platform.post(PATH, b"")) == []


def test_a_body_of_10_megabytes_is_taken(platform: Caller) -> None:
    items = [f"post:{n:0>100}" for n in range(20)]
    lines = [wish(n, kind="deletion", items=items) for n in range(5000)]
    body = ndjson(*lines)
    assert len(body) > 10_000_000
    answers = lines_of(platform.post(PATH, body))
    assert [(answer["line"], answer["status"]) for answer in answers] == [(n, "created") for n in range(1, 5001)]


def record(chunks: Iterator[bytes]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for block in bulk.record_lines(chunks, source="blogs", actor="test")
        for line in block.splitlines()
    ]


@pytest.mark.django_db
def test_a_block_is_answered_before_the_next_one_is_read() -> None:
    sent: list[int] = []

    def chunks() -> Iterator[bytes]:
        for n in range(2500):
            sent.append(n)
            yield ndjson(wish(n))

    answers = bulk.record_lines(chunks(), source="blogs", actor="test")
    first = next(answers)
    assert len(first.splitlines()) == 1000
    assert len(sent) == 1000
    assert RemovalRequest.objects.count() == 1000
    assert [len(block.splitlines()) for block in answers] == [1000, 500]


@pytest.mark.django_db
def test_long_lines_make_short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BLOCK_BYTES", 250)
    blocks = bulk.record_lines((ndjson(wish(n)) for n in range(10)), source="blogs", actor="test")
    assert [len(block.splitlines()) for block in blocks] == [4, 4, 2]


@pytest.mark.django_db
@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
def test_a_database_that_goes_away_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    recorded = intake.record_requests

    def fail_after_one_block(**said: Any) -> list[intake.Recorded]:
        if RemovalRequest.objects.exists():
            raise error("server closed the connection: DETAIL site:1000")
        return recorded(**said)

    monkeypatch.setattr(intake, "record_requests", fail_after_one_block)
    lines = [b"", *(ndjson(wish(n)) for n in range(1500))]
    answers = record(iter([b"\n", *lines]))
    assert [answer.get("status") for answer in answers] == ["created"] * 1000 + [None]
    assert answers[-1] == {
        "error": {
            "code": "unavailable",
            "message": "The database cannot answer now. Try again; with the same key nothing is recorded twice.",
        },
        "resume_at_line": 1002,
    }
    assert RemovalRequest.objects.count() == 1000


@pytest.mark.django_db
def test_what_nobody_foresaw_ends_the_answer_and_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError(":".join(["site", "1"]))

    monkeypatch.setattr(intake, "record_requests", fail)
    assert record(iter([ndjson(wish(1))])) == [
        {
            "error": {"code": "internal_error", "message": "This is our fault, and has been logged. Try again later."},
            "resume_at_line": 1,
        }
    ]
    assert "ZeroDivisionError" in caplog.text
    assert "site:1" not in caplog.text


def test_a_file_that_was_cut_off_says_where_to_go_on(platform: Caller) -> None:
    body = ndjson(*(wish(n) for n in range(2200)))
    response = platform.client.post(PATH, body, "application/x-ndjson", CONTENT_LENGTH=str(len(body) + 1))
    answers = lines_of(response)
    assert answers[-1] == {
        "error": {"code": "body_cut_off", "message": "The body ended early. Send it again."},
        "resume_at_line": 1001,
    }
    assert len(answers) - 1 == RemovalRequest.objects.count() == 1000


def test_a_body_of_unknown_length_is_refused_before_anything_is_read(platform: Caller) -> None:
    response = platform.client.generic("POST", PATH, headers={"Transfer-Encoding": "chunked"})
    assert problem_of(response) == (411, "length_needed", "Send a Content-Length header with this body.")


def test_times_are_judged_when_their_block_is(platform: Caller) -> None:
    received_at = (timezone.now() + timedelta(minutes=4)).isoformat()
    [answer] = lines_of(platform.post_lines(PATH, wish(1, received_at=received_at)))
    assert answer["status"] == "created"
