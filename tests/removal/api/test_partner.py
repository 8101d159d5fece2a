"""What partners call."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import intake, planning
from removal.models import (
    Acknowledgement,
    AcknowledgementText,
    Notice,
    Release,
    RemovalRequest,
    RequestTarget,
    Stream,
    Subject,
)
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.removal.api.conftest import Caller, fields_of, lines_of, ndjson, problem_of, rows

PATH = "/v1/acknowledgements"
BUDGET = timedelta(seconds=5)


def owe(partner: Partner, *, notices: int, sent: int | None = None) -> None:
    """Put notices about two items each into a partner's stream, of which so many (or all) were sent."""
    release = make_release(contents={f"site:{n}": ["post:1", "post:2"] for n in range(notices)})
    disclose(release, partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    Stream.objects.filter(partner=partner).update(packed_through=notices if sent is None else sent)


def handlings(partner: Partner) -> list[str]:
    return list(Notice.objects.filter(stream_id=partner.pk).order_by("sequence").values_list("handling", flat=True))


# Acknowledgements


def test_one_object_is_an_acknowledgement(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    line = {
        "sequence": 1,
        "status": "completed",
        "completed_at": "2026-11-24T10:00:00Z",
        "outcomes": {"removed": 1, "not_found": 1},
        "items": [{"item": "post:2", "outcome": "not_found"}],
        "attestations": [{"claim": "removed_from_corpus", "detail": "corpus v7"}, {"claim": "model_unchanged"}],
    }
    text = json.dumps(line, indent=2)

    response = partner.post(PATH, text.encode())

    assert (response.status_code, response.json()) == (200, {"accepted": 1, "unchanged": 0, "refused": []})
    stored = Acknowledgement.objects.get()
    assert (stored.first_sequence, stored.last_sequence, stored.status) == (1, 1, "completed")
    assert stored.outcomes == {"removed": 1, "not_found": 1}
    assert stored.attestations == line["attestations"]
    assert stored.completed_at == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert stored.key_prefix == holder.api_key[:11]
    assert AcknowledgementText.objects.get().text == text
    assert handlings(holder.partner) == ["completed"]


def test_a_list_is_taken_line_by_line(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=3)
    response = partner.post(
        PATH,
        {
            "acknowledgements": [
                {"through": 2, "status": "received"},
                {"sequence": 2, "status": "in_progress"},
                {"sequence": 9, "status": "received"},
                {"sequence": 3, "status": "rejected", "reason": "no_match"},
            ]
        },
    )
    assert (response.status_code, response.json()) == (
        207,
        {
            "accepted": 4,
            "unchanged": 0,
            "refused": [{"sequence": 9, "code": "unknown_sequence", "message": "Your stream has no such number."}],
        },
    )
    assert handlings(holder.partner) == ["none", "in_progress", "rejected"]
    assert Stream.objects.get(partner=holder.partner).received_through == 2


def test_ndjson_keeps_each_line_word_for_word(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2)
    lines = [
        b'{"sequence": 1,  "status":"received"}',
        '{"sequence":2,"status":"received","detail":"für später"}'.encode(),
    ]
    response = partner.post_lines(PATH, *lines)
    assert (response.status_code, response.json()) == (200, {"accepted": 2, "unchanged": 0, "refused": []})
    assert list(AcknowledgementText.objects.order_by("pk").values_list("text", flat=True)) == [
        line.decode() for line in lines
    ]


def test_a_repeat_is_unchanged(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    line = {"sequence": 1, "status": "completed", "outcomes": {"removed": 2}}
    partner.post(PATH, line)
    before = rows()
    assert partner.post(PATH, line).json() == {"accepted": 0, "unchanged": 1, "refused": []}
    assert rows() == before


def test_no_partner_can_answer_for_another(partner: Caller, holder: NewPartner) -> None:
    other = make_partner("other").partner
    owe(other, notices=1)
    response = partner.post(PATH, {"sequence": 1, "status": "completed"})
    assert [refusal["code"] for refusal in response.json()["refused"]] == ["unknown_sequence"]
    assert handlings(other) == ["none"]


def test_a_number_that_was_not_sent_cannot_be_answered(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2, sent=1)
    response = partner.post_lines(PATH, {"sequence": 1, "status": "received"}, {"sequence": 2, "status": "received"})
    assert response.status_code == 207
    assert [(line["sequence"], line["code"]) for line in response.json()["refused"]] == [(2, "not_yet_sent")]


WRONG_LINES: list[tuple[Any, int | None, str, str]] = [
    (b"{", None, "unreadable", "It is not JSON at character 2: Expecting property name enclosed in double quotes."),
    (b'{"sequence": NaN}', None, "unreadable", "NaN is not a JSON number."),
    (b"[" * 100_000, None, "unreadable", "It is nested too deep."),
    (
        b'{"sequence": 1, "sequence": 2, "status": "received"}',
        None,
        "unreadable",
        "A field stands twice in one object. Keep one of the two.",
    ),
    (b'{"sequence": ' + b"1" * 5000 + b"}", None, "unreadable", "A number in it has too many digits."),
    ([], None, "invalid", "body: It must be a JSON object."),
    ({"status": "received"}, None, "invalid", "body: Name either a sequence or a through."),
    ({"sequence": 1, "through": 1, "status": "received"}, 1, "invalid", "body: Name either a sequence or a through."),
    ({"sequence": 1}, 1, "invalid", "status: This field is required."),
    ({"sequence": 0, "status": "received"}, 0, "invalid", "sequence: Input should be greater than or equal to 1"),
    (
        {"sequence": 2**70, "status": "received"},
        2**70,
        "invalid",
        "sequence: Input should be less than or equal to 9223372036854775807",
    ),
    ({"sequence": True, "status": "received"}, None, "invalid", "sequence: Input should be a valid integer"),
    ({"sequence": "1", "status": "received"}, None, "invalid", "sequence: Input should be a valid integer"),
    ({"sequence": 1.5, "status": "received"}, None, "invalid", "sequence: Input should be a valid integer"),
    (
        {"sequence": 1, "status": "done"},
        1,
        "invalid",
        "status: Input should be 'received', 'in_progress', 'completed', 'partially_completed' or 'rejected'",
    ),
    (
        {"through": 1, "status": "received", "sequences": [1]},
        1,
        "invalid",
        "sequences: There is no such field. Check its spelling, or leave it out.",
    ),
    (
        {"sequence": 1, "status": "completed", "outcomes": {"removed": -1}},
        1,
        "invalid",
        "outcomes.removed: Input should be greater than or equal to 0",
    ),
    (
        {"sequence": 1, "status": "completed", "outcomes": {"erased": 2}},
        1,
        "invalid",
        "outcomes.erased.[key]: Write one of: removed, suppressed, already_removed, not_found, exempt, cannot_comply.",
    ),
    (
        {"sequence": 1, "status": "completed", "items": [{"item": "post:1"}]},
        1,
        "invalid",
        "items.0.outcome: This field is required.",
    ),
    (
        {"sequence": 1, "status": "completed", "attestations": [{"claim": "magic"}]},
        1,
        "invalid",
        (
            "attestations.0.claim: Write one of: removed_from_corpus, derived_data_removed,"
            " excluded_from_future_training, sub_recipients_notified, backups_expire_by, model_retrained_without,"
            " model_unchanged."
        ),
    ),
    (
        {"sequence": 1, "status": "completed", "attestations": [{"claim": "model_unchanged", "detail": "\0"}]},
        1,
        "invalid",
        "attestations.0.detail: It must not hold NUL characters.",
    ),
    (
        {"sequence": 1, "status": "received", "detail": "x" * 4001},
        1,
        "invalid",
        "detail: String should have at most 4000 characters",
    ),
    (
        {"sequence": 1, "status": "completed", "completed_at": "2026-11-24"},
        1,
        "invalid",
        "completed_at: Write a time with its offset, such as 2026-11-24T00:20:00Z.",
    ),
    ({"sequence": 1, "status": "received", "amends": "yes"}, 1, "invalid", "amends: Input should be a valid boolean"),
    (
        {"sequence": 1, "extend_until": "2027-01-01T00:00:00Z"},
        1,
        "invalid",
        "reason: This field is required.",
    ),
]


@pytest.mark.parametrize(
    ("line", "sequence", "code", "message"), WRONG_LINES, ids=[str(number) for number in range(len(WRONG_LINES))]
)
def test_a_wrong_line_is_refused_and_the_others_stand(
    partner: Caller, holder: NewPartner, line: Any, sequence: int | None, code: str, message: str
) -> None:
    owe(holder.partner, notices=3)
    response = partner.post_lines(
        PATH, {"sequence": 2, "status": "received"}, line, {"sequence": 3, "status": "received"}
    )
    assert (response.status_code, response.json()) == (
        207,
        {
            "accepted": 2,
            "unchanged": 0,
            "refused": [{"sequence": sequence, "code": code, "message": f"Line 2: {message}"}],
        },
    )
    assert handlings(holder.partner) == ["none", "received", "received"]


def test_a_wrong_line_in_a_list_is_refused_like_one_in_ndjson(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    response = partner.post(PATH, {"acknowledgements": [{"sequence": 1}, 7, {"sequence": 1, "status": "received"}]})
    assert response.json() == {
        "accepted": 1,
        "unchanged": 0,
        "refused": [
            {"sequence": 1, "code": "invalid", "message": "Line 1: status: This field is required."},
            {"sequence": None, "code": "invalid", "message": "Line 2: body: It must be a JSON object."},
        ],
    }


def test_a_single_wrong_object_is_a_refused_line(partner: Caller, holder: NewPartner) -> None:
    response = partner.post(PATH, {"sequence": 1, "status": "done"})
    assert (response.status_code, response.json()["accepted"]) == (207, 0)
    assert [(line["sequence"], line["code"]) for line in response.json()["refused"]] == [(1, "invalid")]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "unreadable"),
        (b"", "application/json", 400, "unreadable"),
        (b"", "application/x-ndjson", 400, "unreadable"),
        (b"\n\n", "application/x-ndjson", 400, "unreadable"),
        (b"{\n}\n", "application/x-ndjson", 400, "unreadable"),
        (b"[]", "application/json", 422, "invalid_field"),
        (b"7", "application/json", 422, "invalid_field"),
        (b'{"acknowledgements": []}', "application/json", 422, "invalid_field"),
        (b'{"acknowledgements": {}}', "application/json", 422, "invalid_field"),
        (b'{"acknowledgements": [{}], "more": 1}', "application/json", 422, "invalid_field"),
        (b" " * 10_000_000, "application/json", 413, "body_too_large"),
    ],
)
def test_when_nothing_can_be_read_there_is_a_problem(
    partner: Caller, body: bytes, content_type: str, status: int, code: str
) -> None:
    before = rows()
    response = partner.post(PATH, body, content_type=content_type)
    assert problem_of(response)[:2] == (status, code)
    assert rows() == before


def test_a_json_body_of_unknown_length_is_refused(partner: Caller) -> None:
    response = partner.client.generic("POST", PATH, headers={"Transfer-Encoding": "chunked"})
    assert problem_of(response)[:2] == (411, "length_needed")


def test_more_lines_than_a_block_are_all_answered(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    lines = [{"sequence": n, "status": "received"} for n in range(1, 1202)]
    answer = partner.post_lines(PATH, *lines).json()
    assert (answer["accepted"], len(answer["refused"])) == (1, 1200)


# Item lists


def items_of(partner: Caller, path: str) -> tuple[list[tuple[str, list[str]]], str | None]:
    """Fetch a page; returns its lines, and the path of the next one."""
    response = partner.get(path)
    assert (response.status_code, response["Content-Type"]) == (200, "application/x-ndjson")
    link = response.headers.get("Link")
    return [(line["subject"], line["items"]) for line in lines_of(response)], link and link[1 : link.index(">")]


def recall(partner: Partner, contents: Mapping[str, list[str]], *, targets: dict[str, list[str] | None]) -> None:
    """Send a partner one notice about several subjects of its release: what intake cannot record yet."""
    release = make_release(contents=dict(contents))
    disclosure = disclose(release, partner)
    request = record(make_wish("unrelated"))
    RequestTarget.objects.filter(request=request).delete()
    for subject, items in targets.items():
        row, _ = Subject.objects.get_or_create(key=subject)
        RequestTarget.objects.create(request=request, subject=row, items=items)
    Notice.objects.create(
        stream_id=partner.pk,
        epoch=1,
        sequence=1,
        request=request,
        kind="recall",
        disclosures=[disclosure.pk],
        item_count=0,
        round=1,
        respond_by=timezone.now(),
    )
    Stream.objects.filter(partner=partner).update(head=1, packed_through=1)


def test_items_are_the_targeted_ones_of_every_release_the_partner_got(partner: Caller, holder: NewPartner) -> None:
    for name, items in (("2024-02", ["post:1", "post:2"]), ("2025-01", ["post:2", "post:3", "post:4"])):
        disclose(make_release(name, contents={"site:1": items, "site:2": ["post:1"]}), holder.partner)
    make_release("2026-01", contents={"site:1": ["post:5"]})  # nobody got it
    record(make_wish("site:1", kind="deletion", items=("post:1", "post:2", "post:3", "post:5")))
    planning.plan(budget=BUDGET)
    Stream.objects.update(packed_through=1)

    assert items_of(partner, "/v1/stream/1/items") == ([("site:1", ["post:1", "post:2", "post:3"])], None)
    assert Notice.objects.get().item_count == 3


def test_items_of_a_whole_subject_are_all_that_the_partner_holds(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2)
    assert items_of(partner, "/v1/stream/2/items") == ([("site:1", ["post:1", "post:2"])], None)


def test_items_come_page_by_page(partner: Caller, holder: NewPartner) -> None:
    contents = {f"site:{n}": [f"post:{n}"] for n in range(5)}
    recall(holder.partner, contents | {"site:other": ["post:1"]}, targets=dict.fromkeys([*contents, "site:gone"]))
    found: list[tuple[str, list[str]]] = []
    path: str | None = "/v1/stream/1/items?limit=2"
    pages = 0
    while path:
        page, path = items_of(partner, path)
        assert len(page) <= 2
        found += page
        pages += 1
    assert pages == 3
    assert sorted(found) == list(contents.items())


def test_a_subject_whose_targeted_items_the_partner_does_not_hold_is_left_out(
    partner: Caller, holder: NewPartner
) -> None:
    recall(
        holder.partner,
        {"site:1": ["post:1"], "site:2": ["post:2", "post:3"]},
        targets={"site:1": ["post:9"], "site:2": ["post:3"], "site:3": None},
    )
    assert items_of(partner, "/v1/stream/1/items?limit=1") == ([("site:2", ["post:3"])], None)


def test_a_page_ends_early_when_its_subjects_hold_much(
    partner: Caller, holder: NewPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("removal.reports.PAGE_ITEMS", 4)
    contents = {f"site:{n}": [f"post:{n}-{m}" for m in range(3)] for n in range(3)}
    recall(holder.partner, contents, targets=dict.fromkeys(contents))
    first, path = items_of(partner, "/v1/stream/1/items")
    assert len(first) == 2
    assert path
    second, path = items_of(partner, path)
    assert (len(second), path) == (1, None)


def test_a_withdrawn_notice_has_no_items(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2, sent=1)
    request = RemovalRequest.objects.get(notices__sequence=2)
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    Stream.objects.update(packed_through=2)
    assert items_of(partner, "/v1/stream/2/items") == ([], None)


@pytest.mark.parametrize("sequence", [0, 2, 3, 10**30])
def test_unsent_and_unknown_numbers_look_the_same(partner: Caller, holder: NewPartner, sequence: int) -> None:
    owe(holder.partner, notices=2, sent=1)
    assert problem_of(partner.get(f"/v1/stream/{sequence}/items")) == (
        404,
        "unknown_sequence",
        "You have been sent no notice with this number.",
    )


def test_another_partners_stream_is_not_seen(partner: Caller, holder: NewPartner) -> None:
    owe(make_partner("other").partner, notices=1)
    assert problem_of(partner.get("/v1/stream/1/items"))[:2] == (404, "unknown_sequence")


def test_a_number_of_an_earlier_epoch_is_gone(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    Stream.objects.update(epoch=2)
    assert problem_of(partner.get("/v1/stream/1/items"))[0] == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("after=1", "after"),
        ("after=%C3%A9", "after"),
        ("after=gAAAAABk", "after"),
        ("before=1", "before"),
    ],
)
def test_a_wrong_parameter_is_named(partner: Caller, holder: NewPartner, query: str, field: str) -> None:
    owe(holder.partner, notices=1)
    response = partner.get(f"/v1/stream/1/items?{query}")
    assert problem_of(response)[:2] == (400, "invalid_field")
    assert fields_of(response) == [field]


def test_a_secret_of_ours_is_no_cursor(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    with connection.cursor() as cursor:
        cursor.execute("select key from partners_secret limit 1")
        (encrypted,) = cursor.fetchone()
    assert fields_of(partner.get(f"/v1/stream/1/items?after={encrypted}")) == ["after"]


def test_a_release_that_was_sent_twice_is_listed_once(partner: Caller, holder: NewPartner) -> None:
    release: Release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, holder.partner)
    disclose(release, holder.partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    Stream.objects.update(packed_through=1)
    assert items_of(partner, "/v1/stream/1/items") == ([("site:1", ["post:1"])], None)
    assert ndjson({"subject": "site:1", "items": ["post:1"]}) == ndjson(*lines_of(partner.get("/v1/stream/1/items")))
