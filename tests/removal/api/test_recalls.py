"""POST /v1/recalls, and the kinds of request beside opt-outs and deletions."""

import pytest
from django.test import Client

from partners.models import ApiKey
from removal.models import RemovalRequest, RequestTarget
from tests.factories import make_partner, make_release
from tests.removal.api.conftest import ndjson

pytestmark = pytest.mark.django_db(transaction=True)

NDJSON = "application/x-ndjson"


@pytest.fixture
def key() -> dict[str, str]:
    _, text = ApiKey.create(source="blogs")
    return {"Authorization": f"Bearer {text}", "Idempotency-Key": "k-1"}


def test_a_recall_lists_what_it_took_and_what_it_refused(client: Client, key: dict[str, str]) -> None:
    make_release("2025-01", contents={"site:1": ["post:1"], "site:2": ["post:1"], "site:3": ["post:1"]})
    body = ndjson(
        {"subject": "site:1", "items": ["post:1"]},
        {"subject": "site:2", "items": None},
        {"subject": "site:9", "items": None},
        {"subject": "site:3"},
    )
    for status in (201, 200):
        answer = client.post("/v1/recalls?release=2025-01", body, content_type=NDJSON, headers=key)
        assert answer.status_code == status
    request = RemovalRequest.objects.get()
    first = client.post(
        "/v1/recalls?release=2025-01", body, content_type=NDJSON, headers={**key, "Idempotency-Key": "2"}
    )
    assert first.json() == {
        "id": RemovalRequest.objects.exclude(pk=request.pk).get().public_id,
        "accepted": 3,
        "accepted_lines": [[1, 2], [4, 4]],
        "refused": 1,
        "refused_lines": [{"line": 3, "code": "not_in_these_releases"}],
    }
    assert RequestTarget.objects.filter(request=request).count() == 3


@pytest.mark.parametrize(
    ("query", "lines", "status", "said"),
    [
        ("", [{"subject": "site:1"}], 400, "release"),
        ("?release=nope", [{"subject": "site:1"}], 422, "There is no release nope"),
        ("?release=r&reason=whim", [{"subject": "site:1"}], 400, "reason"),
        ("?release=r&more=1", [{"subject": "site:1"}], 400, "more"),
        ("?release=r", [{"subject": "site:1", "items": []}], 422, "Line 1"),
        ("?release=r", [{"subject": "site:1"}, {"subject": "site:1", "x": 1}], 422, "Line 2"),
        ("?release=r", [{"subject": "site:7"}], 422, "lines can be taken"),
        ("?release=r", [], 422, "It has no lines"),
    ],
)
def test_a_recall_that_cannot_be_is_refused_whole(
    client: Client, key: dict[str, str], query: str, lines: list[object], status: int, said: str
) -> None:
    make_release("r", contents={"site:1": ["post:1"]})
    answer = client.post(f"/v1/recalls{query}", ndjson(*lines), content_type=NDJSON, headers=key)
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json")
    assert said in answer.content.decode()
    assert RemovalRequest.objects.count() == 0


def test_an_item_named_twice_is_recalled_once(client: Client, key: dict[str, str]) -> None:
    make_release("r", contents={"site:1": ["post:1", "post:2"]})
    lines = ndjson({"subject": "site:1", "items": ["post:1", "post:1"]})
    answer = client.post("/v1/recalls?release=r", lines, content_type=NDJSON, headers=key)
    assert (answer.status_code, answer.json()["refused"]) == (201, 0)
    assert RequestTarget.objects.get().items == ["post:1"]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "reinstatement", "subject": "site:1"},
        {"kind": "offboarding", "partner": "acme", "reason": "licence_ended"},
    ],
)
def test_other_kinds_are_recorded_and_shown(client: Client, key: dict[str, str], body: dict[str, str]) -> None:
    make_partner("acme")
    answer = client.post("/v1/requests", body, content_type="application/json", headers=key)
    assert answer.status_code == 201
    shown = client.get(f"/v1/requests/{answer.json()['id']}", headers=key).json()
    assert (shown["kind"], shown["subject"]) == (body["kind"], body.get("subject"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "opt_out"}, "subject"),
        ({"kind": "offboarding", "subject": "site:1"}, "partner"),
        ({"kind": "offboarding", "partner": "nobody"}, "partner"),
        ({"kind": "reinstatement", "subject": "site:1", "items": ["post:1"]}, "usages"),
        ({"kind": "recall", "subject": "site:1"}, "kind"),
    ],
)
def test_kinds_that_contradict_their_fields_are_refused(
    client: Client, key: dict[str, str], body: dict[str, object], field: str
) -> None:
    answer = client.post("/v1/requests", body, content_type="application/json", headers=key)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert RemovalRequest.objects.count() == 0
