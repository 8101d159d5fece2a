"""What platforms call: requests, and the ledger."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import ApiKey
from removal import planning
from removal.models import Disclosure, LogEntry, ManifestEntry, Preference, Release, RemovalRequest, RequestTarget
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release
from tests.removal.api.conftest import Caller, fields_of, ndjson, problem_of, rows

OPT_OUT = {"kind": "opt_out", "subject": "site:123"}
MISSING = "01M86BTCEFW2R8X0GXZ4QF1E07"  # an id as they look, which no request has
BUDGET = timedelta(seconds=5)


def record(caller: Caller, key: str = "key-1", **said: Any) -> Any:
    return caller.post("/v1/requests", OPT_OUT | said, Idempotency_Key=key)


def test_a_request_is_extended_once_and_its_status_shows_the_new_date(platform: Caller) -> None:
    asked_at = timezone.now() - timedelta(days=1)
    public_id = record(platform, jurisdiction="eu", received_at=asked_at.isoformat()).json()["id"]
    address, told_at = f"/v1/requests/{public_id}/extension", timezone.now().replace(microsecond=0)
    said = {"reason": "Many sites.", "person_told_at": told_at.isoformat()}
    before = platform.get(f"/v1/requests/{public_id}").json()["respond_by"]
    assert problem_of(platform.post(address, {"reason": "Many sites."}))[:2] == (422, "invalid_field")
    response = platform.post(address, said)
    assert response.status_code == 200
    answer = response.json()
    assert answer.keys() == {"first_respond_by", "respond_by", "reason", "person_told_at", "extended_at"}
    assert (answer["first_respond_by"], answer["reason"]) == (before, "Many sites.")
    assert platform.get(f"/v1/requests/{public_id}").json()["respond_by"] == answer["respond_by"] > before
    assert platform.post(address, said).json() == answer
    assert problem_of(platform.post(address, said | {"reason": "More."}))[:2] == (409, "cannot_extend")
    assert problem_of(platform.post(f"/v1/requests/{MISSING}/extension", said))[:2] == (404, "unknown_request")


def fill(platform: Caller, name: str = "2024-02", *lines: Any) -> None:
    """Make a release that is still building."""
    assert platform.post("/v1/releases", {"name": name, "dataset": "posts"}).status_code == 201
    assert platform.put(f"/v1/releases/{name}/manifest", ndjson(*lines)).status_code == 200


# Requests


def test_a_request_is_recorded_with_everything_that_was_said(platform: Caller) -> None:
    response = platform.post(
        "/v1/requests",
        {
            "kind": "deletion",
            "reason": "made_private",
            "subject": "site:123",
            "items": ["post:9", "post:12"],
            "usages": ["train-ai", "search"],
            "received_at": "2026-01-31T01:20:00+02:00",
            "jurisdiction": "eu-de",
        },
        Idempotency_Key="key-1",
    )

    request = RemovalRequest.objects.get()
    status_url = f"http://testserver/v1/requests/{request.public_id}"
    assert response.status_code == 201
    assert response["Location"] == status_url
    assert response.json() == {"id": request.public_id, "state": "received", "status_url": status_url}
    assert (request.kind, request.reason, request.usages, request.jurisdiction, request.source) == (
        "deletion",
        "made_private",
        ["train-ai", "search"],
        "eu-de",
        "blogs",
    )
    assert request.received_at == datetime(2026, 1, 30, 23, 20, tzinfo=UTC)
    assert request.respond_by == datetime(2026, 2, 28, 22, 59, 59, tzinfo=UTC)  # when the day ends in Brussels
    target = RequestTarget.objects.select_related("subject").get()
    assert (target.subject.key, target.items) == ("site:123", ["post:9", "post:12"])
    assert LogEntry.objects.get().actor == f"api:{ApiKey.objects.get().prefix}"


def test_a_repeat_gets_the_same_answer_and_makes_nothing(platform: Caller) -> None:
    first = record(platform)
    before = rows()
    again = record(platform)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert rows() == before


def test_a_repeat_after_the_state_has_moved_gets_the_same_answer(platform: Caller) -> None:
    first = record(platform)
    planning.plan(budget=BUDGET)
    assert record(platform).json() == first.json()


def test_one_instant_in_two_time_zones_is_a_repeat(platform: Caller) -> None:
    assert record(platform, received_at="2026-11-01T12:00:00Z").status_code == 201
    assert record(platform, received_at="2026-11-01T14:00:00.000+02:00").status_code == 200


def test_a_time_in_nanoseconds_is_kept_to_the_microsecond(platform: Caller) -> None:
    record(platform, received_at="2026-11-01T12:00:00.123456789Z")
    assert RemovalRequest.objects.get().received_at == datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


def test_a_key_with_another_body_is_a_conflict(platform: Caller) -> None:
    first = record(platform)
    before = rows()
    assert problem_of(record(platform, subject="site:124")) == (
        409,
        "key_reused",
        (
            f"The Idempotency-Key was used for request {first.json()['id']} with another body. "
            "Send the same body, or a new key."
        ),
    )
    assert rows() == before


@pytest.mark.parametrize("key", ["x" * 255, "!~", "a-b:c/d"])
def test_any_visible_ascii_is_a_key(platform: Caller, key: str) -> None:
    assert record(platform, key).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "k\xe9y", "a\tb"])
def test_any_other_key_is_refused(platform: Caller, key: str) -> None:
    response = record(platform, key)
    assert problem_of(response)[:2] == (400, "invalid_field")
    assert fields_of(response) == ["Idempotency-Key"]
    assert rows() == {}


def test_a_request_needs_a_key(platform: Caller) -> None:
    assert problem_of(platform.post("/v1/requests", OPT_OUT)) == (
        400,
        "invalid_field",
        "Idempotency-Key: This field is required.",
    )
    assert rows() == {}


WRONG_FIELDS: list[tuple[str, Any]] = [
    ("kind", "recall"),  # exists, and is not a platform's to ask for
    ("kind", "nonsense"),
    ("kind", None),
    ("reason", "bored"),
    ("subject", ""),
    ("subject", "x" * 513),
    ("subject", "ä" * 257),
    ("subject", "site:\0"),
    ("subject", "site:\ud800"),
    ("subject", 123),
    ("subject", ["site:123"]),
    ("items", "post:1"),
    ("items", {"post:1": True}),
    ("usages", []),
    ("usages", "all"),
    ("usages", ["search", "search"]),
    ("received_at", "2026-11-01T12:00:00"),  # where?
    ("received_at", "2026-11-01"),
    ("received_at", "1793000000"),
    ("received_at", 1793000000),
    ("received_at", "2026-02-30T12:00:00Z"),
    ("received_at", "2026-11-01T23:59:60Z"),
    ("received_at", "0001-01-01T00:00:00+14:00"),
    ("received_at", "9999-12-31T23:59:59-14:00"),
    ("received_at", "1969-12-31T23:59:59Z"),
    ("jurisdiction", "EU"),
    ("jurisdiction", "eu\n"),
    ("jurisdiction", ""),
    ("notice", "please"),
]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_a_wrong_field_is_named_and_nothing_is_written(platform: Caller, field: str, value: Any) -> None:
    response = record(platform, **{field: value})
    assert problem_of(response)[:2] == (422, "invalid_field")
    assert fields_of(response) == [field]
    assert rows() == {}


@pytest.mark.parametrize(
    ("said", "field", "message"),
    [
        ({"items": ["post:1"]}, "items", "An opt-out is about a whole subject: leave items out, or send a deletion."),
        ({"kind": "deletion", "items": []}, "items", "Name at least one item, or leave items out to mean all of them."),
        ({"kind": "deletion", "items": ["post:1", "\0"]}, "items.1", "It must not hold NUL characters."),
        ({"usages": ["train"]}, "usages.0", "Write one of: all, train-ai, search, bulk-dataset."),
        ({"sbject": "site:1"}, "sbject", "There is no such field. Check its spelling, or leave it out."),
        ({"subject": None}, "subject", "Name the subject; only an offboarding names a partner instead."),
        ({"subject": 7}, "subject", "Input should be a valid string"),
        ({"kind": "delete"}, "kind", "Input should be 'opt_out', 'deletion', 'reinstatement' or 'offboarding'"),
    ],
)
def test_an_error_says_what_to_do(platform: Caller, said: dict[str, Any], field: str, message: str) -> None:
    response = record(platform, **said)
    assert problem_of(response) == (422, "invalid_field", f"{field}: {message}")
    assert response.json()["errors"] == [{"field": field, "message": message}]
    assert rows() == {}


def test_a_request_from_the_future_is_refused(platform: Caller) -> None:
    ahead = (timezone.now() + timedelta(minutes=6)).isoformat()
    response = record(platform, received_at=ahead)
    assert problem_of(response)[1:] == (
        "invalid_field",
        "received_at: It lies in the future; send when the person asked.",
    )
    assert rows() == {}


def test_a_clock_may_be_a_little_fast(platform: Caller) -> None:
    assert record(platform, received_at=(timezone.now() + timedelta(minutes=4)).isoformat()).status_code == 201


def test_a_request_names_at_most_100_000_items(platform: Caller) -> None:
    response = record(platform, kind="deletion", items=["1"] * 100_001)
    assert fields_of(response) == ["items"]
    assert rows() == {}


def test_many_wrong_items_do_not_make_a_huge_answer(platform: Caller) -> None:
    response = record(platform, kind="deletion", items=[""] * 1000)
    assert len(response.json()["errors"]) == 20


UNREADABLE: list[tuple[bytes, str]] = [
    (b"{", "It is not JSON at character 2: Expecting property name enclosed in double quotes."),
    (b"", "The body is empty."),
    (b"\xff", "It is not UTF-8 from byte 1 on."),
    ("{}".encode("utf-16"), "It is not UTF-8 from byte 1 on."),
    (b'{"subject": "site:1", "subject": "site:2"}', "A field stands twice in one object. Keep one of the two."),
    (b'{"items": NaN}', "NaN is not a JSON number."),
    (b'{"items": -Infinity}', "-Infinity is not a JSON number."),
    (b'{"items": ' + b"9" * 5000 + b"}", "A number in it has too many digits."),
    (b"[" * 200_000, "It is nested too deep."),
    (b'{"a": "\x01"}', "It is not JSON at character 8: Invalid control character at."),
]


@pytest.mark.parametrize(("body", "detail"), UNREADABLE, ids=[str(number) for number in range(len(UNREADABLE))])
def test_what_is_not_json_is_refused(platform: Caller, body: bytes, detail: str) -> None:
    assert problem_of(platform.post("/v1/requests", body, Idempotency_Key="a")) == (400, "unreadable", detail)
    assert rows() == {}


@pytest.mark.parametrize("body", [[], [OPT_OUT], "site:1", 1, None])
def test_a_body_that_is_no_object_is_refused(platform: Caller, body: object) -> None:
    assert problem_of(platform.post("/v1/requests", body, Idempotency_Key="a"))[:2] == (422, "invalid_field")
    assert rows() == {}


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/releases", "/v1/releases/2024-02/disclosures"])
def test_a_body_of_10_megabytes_is_refused(platform: Caller, path: str) -> None:
    body = json.dumps(OPT_OUT | {"items": ["x" * 100] * 100_000}).encode()
    assert len(body) > 10_000_000
    assert problem_of(platform.post(path, body, Idempotency_Key="a"))[:2] == (413, "body_too_large")
    assert rows() == {}


def test_the_status_of_a_new_request(platform: Caller) -> None:
    public_id = record(platform, usages=["search"], received_at="2026-11-01T12:00:00Z").json()["id"]
    assert platform.get(f"/v1/requests/{public_id}").json() == {
        "id": public_id,
        "kind": "opt_out",
        "reason": "user_request",
        "subject": "site:123",
        "usages": ["search"],
        "received_at": "2026-11-01T12:00:00Z",
        "respond_by": "2026-12-01T12:00:00Z",
        "state": "received",
        "outcome": None,
        "repeats": None,
        "withdrawn_at": None,
        "closed_at": None,
        "partners": [],
    }


def test_the_status_shows_where_each_partner_stands(platform: Caller, holder: NewPartner) -> None:
    disclose(make_release(contents={"site:123": ["post:9", "post:12"]}), holder.partner)
    public_id = record(platform).json()["id"]
    planning.plan(budget=BUDGET)
    status = platform.get(f"/v1/requests/{public_id}").json()
    assert (status["state"], status["outcome"]) == ("planned", None)
    respond_by = status["partners"][0].pop("respond_by")
    assert datetime.fromisoformat(respond_by) > timezone.now() + timedelta(days=29)
    assert status["partners"] == [
        {
            "partner": "acme",
            "sequence": 1,
            "kind": "opt_out",
            "delivery": "waiting",
            "attempts": 0,
            "delivered_at": None,
            "handling": "none",
            "acknowledged_at": None,
            "items_total": 2,
            "closed_at": None,
            "closed_reason": "",
        }
    ]


def test_a_repeated_wish_shows_where_the_earlier_one_stands(platform: Caller, holder: NewPartner) -> None:
    disclose(make_release(contents={"site:123": ["post:9"]}), holder.partner)
    first = record(platform, "key-1").json()["id"]
    second = record(platform, "key-2").json()["id"]
    assert first != second
    planning.plan(budget=BUDGET)

    status = platform.get(f"/v1/requests/{second}").json()

    assert (status["id"], status["repeats"], status["state"]) == (second, first, "planned")
    assert [line["partner"] for line in status["partners"]] == ["acme"]


def test_a_withdrawn_repeat_stands_for_itself(platform: Caller, holder: NewPartner) -> None:
    disclose(make_release(contents={"site:123": ["post:9"]}), holder.partner)
    record(platform, "key-1")
    second = record(platform, "key-2").json()["id"]
    planning.plan(budget=BUDGET)
    platform.post(f"/v1/requests/{second}/withdraw")
    status = platform.get(f"/v1/requests/{second}").json()
    assert (status["state"], status["outcome"], status["partners"]) == ("closed", "withdrawn", [])


@pytest.mark.parametrize("public_id", [MISSING, "x", "x%00", "%ff", MISSING + "%0a", "0" * 27])
@pytest.mark.parametrize("action", ["", "/withdraw"])
def test_an_unknown_request_is_not_found(platform: Caller, public_id: str, action: str) -> None:
    path = f"/v1/requests/{public_id}{action}"
    response = platform.post(path) if action else platform.get(path)
    assert problem_of(response) == (404, "unknown_request", "You have recorded no request with this id.")


def test_another_sources_request_is_as_unknown_as_none(make_platform: Callable[[str], Caller]) -> None:
    public_id = record(make_platform("shops")).json()["id"]
    blogs = make_platform("blogs")
    assert blogs.get(f"/v1/requests/{public_id}").content == blogs.get(f"/v1/requests/{MISSING}").content
    assert problem_of(blogs.post(f"/v1/requests/{public_id}/withdraw"))[0] == 404
    assert blogs.get("/v1/requests").json() == {"requests": [], "next": None}
    assert RemovalRequest.objects.get().withdrawn_at is None


def test_a_withdrawn_request_says_so(platform: Caller) -> None:
    public_id = record(platform).json()["id"]
    withdrawn = platform.post(f"/v1/requests/{public_id}/withdraw")
    assert withdrawn.status_code == 200
    status = withdrawn.json()
    assert (status["state"], status["outcome"]) == ("closed", "withdrawn")
    assert status["withdrawn_at"] == status["closed_at"] is not None
    assert platform.post(f"/v1/requests/{public_id}/withdraw").json() == status
    assert Preference.objects.filter(valid_to=None).count() == 0


def test_a_request_that_was_ended_cannot_be_withdrawn(platform: Caller) -> None:
    public_id = record(platform).json()["id"]
    RemovalRequest.objects.update(ended_at=timezone.now())
    assert problem_of(platform.post(f"/v1/requests/{public_id}/withdraw")) == (
        409,
        "cannot_withdraw",
        "It was ended by a later request; that one stands.",
    )


def test_requests_are_listed_page_by_page(platform: Caller) -> None:
    recorded = {record(platform, f"key-{n}", subject=f"site:{n}").json()["id"] for n in range(5)}
    listed: list[str] = []
    path, pages = "/v1/requests?limit=2", 0
    while path:
        page = platform.get(path).json()
        listed += [request["id"] for request in page["requests"]]
        path, pages = page["next"], pages + 1
    assert pages == 3
    assert listed == sorted(recorded)


def test_a_full_last_page_has_no_next(platform: Caller) -> None:
    record(platform, "key-1")
    record(platform, "key-2", subject="site:2")
    assert platform.get("/v1/requests?limit=2").json()["next"] is None


def test_requests_are_found_by_subject_and_state(platform: Caller) -> None:
    first = record(platform, "key-1", subject="site:1 & others").json()["id"]
    planning.plan(budget=BUDGET)
    second = record(platform, "key-2", subject="site:2").json()["id"]
    repeat = record(platform, "key-3", subject="site:1 & others").json()["id"]

    def found(query: str) -> list[str]:
        return [request["id"] for request in platform.get(f"/v1/requests?{query}").json()["requests"]]

    assert found("subject=site:1%20%26%20others") == [first, repeat]
    assert found("state=received") == [second]
    assert found("state=closed") == [first, repeat]
    assert found("subject=site:2&state=closed") == []
    assert platform.get("/v1/requests?subject=site:1%20%26%20others&limit=1").json()["next"] == (
        f"http://testserver/v1/requests?subject=site%3A1+%26+others&after={first}&limit=1"
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("state=open", "state"),
        ("after=1", "after"),
        ("subject=", "subject"),
        ("subject=%00", "subject"),
        ("subjct=site:1", "subjct"),
        ("state=closed&state=received", "state"),
    ],
)
def test_a_wrong_parameter_is_named(platform: Caller, query: str, field: str) -> None:
    response = platform.get(f"/v1/requests?{query}")
    assert problem_of(response)[:2] == (400, "invalid_field")
    assert fields_of(response) == [field]


def test_a_list_takes_as_many_queries_for_three_requests_as_for_one(platform: Caller) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            platform.get("/v1/requests")
        return len(captured)

    record(platform, "key-1")
    for_one = queries()
    record(platform, "key-2", subject="site:2")
    record(platform, "key-3", subject="site:2")
    assert queries() == for_one


# The ledger


def test_a_release_is_made_filled_sealed_and_handed_over(platform: Caller, holder: NewPartner) -> None:
    made = platform.post("/v1/releases", {"name": "2024-02", "dataset": "posts", "source": "main database"})
    building = {
        "name": "2024-02",
        "dataset": "posts",
        "source": "main database",
        "usages": ["all"],
        "state": "building",
        "subjects": None,
        "items": None,
        "digest": None,
        "sealed_at": None,
        "uploaded": None,
    }
    assert (made.status_code, made.json()) == (201, building)
    assert platform.get("/v1/releases/2024-02").json() == building

    filled = platform.put(
        "/v1/releases/2024-02/manifest",
        ndjson({"subject": "site:1", "items": ["post:1", "post:2"]}, {"subject": "site:2", "items": ["post:1"]}),
    )
    assert (filled.status_code, filled.json()) == (200, {"subjects": 2, "items": 3})

    sealed = platform.post("/v1/releases/2024-02/seal")
    release = Release.objects.get()
    shown = platform.get("/v1/releases/2024-02").json()
    assert (sealed.status_code, sealed.json()) == (200, shown | {"subjects_dropped": 0, "dropped": []})
    assert shown | {"sealed_at": None} == building | {
        "state": "sealed",
        "subjects": 2,
        "items": 3,
        "digest": bytes(release.digest or b"").hex(),
    }

    handover = {
        "partner": "acme",
        "reference": "shipment-1",
        "disclosed_at": "2024-02-29T12:00:00Z",
        "usages": ["train-ai"],
    }
    first = platform.post("/v1/releases/2024-02/disclosures", handover)
    again = platform.post("/v1/releases/2024-02/disclosures", handover)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == {"release": "2024-02", **handover}
    disclosure = Disclosure.objects.get()
    assert (disclosure.release, disclosure.partner, disclosure.usages) == (release, holder.partner, ["train-ai"])


def test_a_handover_without_a_time_is_now_and_for_all_usages(platform: Caller, holder: NewPartner) -> None:
    fill(platform, "2024-02", {"subject": "site:1", "items": ["post:1"]})
    platform.post("/v1/releases/2024-02/seal")
    made = platform.post("/v1/releases/2024-02/disclosures", {"partner": "acme", "reference": "shipment-1"}).json()
    assert made["usages"] == ["all"]
    assert abs(datetime.fromisoformat(made["disclosed_at"]) - timezone.now()) < timedelta(minutes=1)


def test_a_taken_name_is_refused(platform: Caller) -> None:
    assert platform.post("/v1/releases", {"name": "2024-02", "dataset": "posts"}).status_code == 201
    before = rows()
    again = platform.post("/v1/releases", {"name": "2024-02", "dataset": "pages"})
    assert problem_of(again) == (409, "release_exists", "The name is taken. Choose another.")
    assert rows() == before


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"name": "../etc"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\n"}, "name"),
        ({"dataset": None}, "dataset"),
        ({"source": "x" * 201}, "source"),
        ({"source": "\0"}, "source"),
        ({"state": "sealed"}, "state"),
    ],
)
def test_a_wrong_field_of_a_release_is_named(platform: Caller, said: dict[str, Any], field: str) -> None:
    response = platform.post("/v1/releases", {"name": "2024-02", "dataset": "posts"} | said)
    assert fields_of(response) == [field]
    assert rows() == {}


@pytest.mark.parametrize("name", ["missing", "x%00", "-"])
def test_an_unknown_release_is_not_found(platform: Caller, holder: NewPartner, name: str) -> None:
    before = rows()
    path = f"/v1/releases/{name}"
    for response in (
        platform.get(path),
        platform.put(f"{path}/manifest", ndjson({"subject": "site:1", "items": ["post:1"]})),
        platform.post(f"{path}/seal"),
        platform.post(f"{path}/disclosures", {"partner": "acme", "reference": "shipment-1"}),
    ):
        assert problem_of(response)[:2] == (404, "unknown_release")
    assert rows() == before


def test_a_manifest_replaces_the_one_before(platform: Caller) -> None:
    fill(platform, "2024-02", {"subject": "site:1", "items": ["post:1"]}, {"subject": "site:2", "items": ["post:1"]})
    again = platform.put("/v1/releases/2024-02/manifest", ndjson({"subject": "site:2", "items": ["post:7"]}))
    assert again.json() == {"subjects": 1, "items": 1}
    assert [entry.items for entry in ManifestEntry.objects.all()] == [["post:7"]]


def test_a_manifest_line_holds_a_million_items(platform: Caller) -> None:
    items = [f"post:{n}" for n in range(1_000_000)]
    platform.post("/v1/releases", {"name": "2024-02", "dataset": "posts"})
    response = platform.put("/v1/releases/2024-02/manifest", ndjson({"subject": "site:1", "items": items}))
    assert response.json() == {"subjects": 1, "items": 1_000_000}
    assert ManifestEntry.objects.values_list("item_count", flat=True).get() == 1_000_000


GOOD_LINE = {"subject": "site:1", "items": ["post:1"]}


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"{", "Line 2: It is not JSON at character 2: Expecting property name enclosed in double quotes."),
        (
            {"subject": "site:1", "items": ["post:7"]},
            "Line 2: Its subject stands on line 1 already. Join the two lines.",
        ),
        (
            {"subject": "site:2", "items": ["post:1", "post:1"]},
            "Line 2: An item stands twice in it. Name each item once.",
        ),
        (
            {"subject": "site:2", "items": []},
            "Line 2: items must be a list of at least one item. Leave out a subject that has none.",
        ),
        ({"subject": "site:\0", "items": ["post:1"]}, "Line 2: subject: It must not hold NUL characters."),
        (
            {"subject": "site:2", "items": ["post:1", "\ud800"]},
            "Line 2: items[1]: It must not hold half of a surrogate pair.",
        ),
        (
            {"subject": "site:2", "items": ["post:1"], "item": 1},
            'Line 2: Write an object with the fields "subject" and "items", and no others.',
        ),
    ],
)
def test_nothing_of_a_wrong_manifest_is_kept(platform: Caller, line: Any, detail: str) -> None:
    fill(platform, "2024-02", {"subject": "site:9", "items": ["post:9"]})
    before = rows()
    response = platform.put("/v1/releases/2024-02/manifest", ndjson(GOOD_LINE, line))
    assert problem_of(response) == (422, "invalid_manifest", detail)
    assert rows() == before
    assert [entry.items for entry in ManifestEntry.objects.all()] == [["post:9"]]


def test_nothing_of_a_manifest_that_was_cut_off_is_kept(platform: Caller) -> None:
    fill(platform, "2024-02", {"subject": "site:9", "items": ["post:9"]})
    before = rows()
    body = ndjson(GOOD_LINE)
    response = platform.client.put(
        "/v1/releases/2024-02/manifest", body, "application/x-ndjson", CONTENT_LENGTH=str(len(body) + 1)
    )
    assert problem_of(response) == (400, "body_cut_off", "The body ended early. Send it again.")
    assert rows() == before


def test_a_release_is_sealed_once(platform: Caller) -> None:
    fill(platform, "2024-02", GOOD_LINE)
    platform.post("/v1/releases/2024-02/seal")
    first = platform.get("/v1/releases/2024-02").json()
    before = rows()
    again = platform.post("/v1/releases/2024-02/seal")
    assert problem_of(again) == (409, "release_is_sealed", "A sealed release never changes. Make a new one.")
    assert platform.get("/v1/releases/2024-02").json() == first
    assert rows() == before


def test_a_sealed_release_is_not_changed(platform: Caller) -> None:
    fill(platform, "2024-02", GOOD_LINE)
    platform.post("/v1/releases/2024-02/seal")
    before = rows()
    response = platform.put("/v1/releases/2024-02/manifest", ndjson({"subject": "site:2", "items": ["post:1"]}))
    assert problem_of(response)[:2] == (409, "release_is_sealed")
    assert rows() == before


def test_an_empty_release_is_not_sealed(platform: Caller) -> None:
    fill(platform, "2024-02")
    response = platform.post("/v1/releases/2024-02/seal")
    assert problem_of(response) == (409, "empty_manifest", "The release has no content. PUT its manifest first.")
    assert Release.objects.get().state == "building"


def test_only_a_sealed_release_is_handed_over(platform: Caller, holder: NewPartner) -> None:
    fill(platform, "2024-02", GOOD_LINE)
    before = rows()
    response = platform.post("/v1/releases/2024-02/disclosures", {"partner": "acme", "reference": "shipment-1"})
    assert problem_of(response)[:2] == (409, "release_is_not_sealed")
    assert rows() == before


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"partner": "nobody"}, "partner"),
        ({"partner": ""}, "partner"),
        ({"reference": ""}, "reference"),
        ({"reference": "x" * 201}, "reference"),
        ({"reference": None}, "reference"),
        ({"usages": []}, "usages"),
        ({"disclosed_at": "yesterday"}, "disclosed_at"),
        ({"disclosed_at": "9998-01-01T00:00:00Z"}, "disclosed_at"),
        ({"price": 1}, "price"),
    ],
)
def test_a_wrong_field_of_a_handover_is_named(
    platform: Caller, holder: NewPartner, said: dict[str, Any], field: str
) -> None:
    make_release("2024-02", contents={"site:1": ["post:1"]})
    before = rows()
    handover = {"partner": "acme", "reference": "shipment-1"} | said
    response = platform.post("/v1/releases/2024-02/disclosures", handover)
    assert problem_of(response)[0] == 422
    assert fields_of(response) == [field]
    assert rows() == before


def test_a_reference_names_one_handover(platform: Caller) -> None:
    make_partner("acme")
    make_release("2024-02", contents={"site:1": ["post:1"]})
    path, handover = "/v1/releases/2024-02/disclosures", {"partner": "acme", "reference": "shipment-1"}
    platform.post(path, handover)
    before = rows()
    assert fields_of(platform.post(path, handover | {"usages": ["search"]})) == ["reference"]
    assert rows() == before
