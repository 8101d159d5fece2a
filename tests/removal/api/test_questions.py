"""The ledger's questions over the API, whatever a key holds."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from removal import planning
from removal.partnerships import NewPartner
from tests.factories import disclose, make_release, make_wish, record
from tests.removal.api.conftest import Caller, problem_of

pytestmark = pytest.mark.django_db(transaction=True)


def ask(caller: Caller, **parameters: str) -> Any:
    return caller.get(f"/v1/holders?{urlencode(parameters)}")


def stamp(time: datetime) -> str:
    """Write a time as answers do: to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize(
    "key",
    [
        "site:1",
        "site:host.example/blog",
        "site:a/holders",
        "/",
        "a//b/",
        "50% off?#x=1&y",
        "ü😀 +",
        "..",
        "a\\b",
        "a\nb",
    ],
)
def test_holders_are_found_for_any_key(platform: Caller, holder: NewPartner, key: str) -> None:
    disclosure = disclose(make_release("r", contents={key: ["post:1"]}), holder.partner)
    answer = ask(platform, subject=key)
    assert answer.status_code == 200
    assert answer.json()["subject"] == key
    assert answer.json()["holders"] == [
        {
            "partner": "acme",
            "release": "r",
            "items_total": 1,
            "items": ["post:1"],
            "usages": ["all"],
            "disclosed_at": stamp(disclosure.disclosed_at),
            "reference": disclosure.reference,
            "removed_at": None,
        }
    ]


def test_holders_as_of_a_past_moment(platform: Caller, holder: NewPartner) -> None:
    disclose(make_release("r", contents={"site:1": ["post:1"]}), holder.partner)
    assert ask(platform, subject="site:1", as_of="2024-02-29T12:00:00Z").json() == {
        "subject": "site:1",
        "as_of": "2024-02-29T12:00:00Z",
        "holders": [],
    }
    assert len(ask(platform, subject="site:1").json()["holders"]) == 1
    assert ask(platform, subject="site:unknown").json()["holders"] == []


@pytest.mark.parametrize(
    "parameters", [{}, {"subject": ""}, {"subject": "site:1", "as_of": "yesterday"}, {"subject": "site:1", "at": "now"}]
)
def test_a_question_that_is_not_understood_is_refused(platform: Caller, parameters: dict[str, str]) -> None:
    assert problem_of(ask(platform, **parameters))[:2] == (400, "invalid_field")


def test_holdings_window_and_releases(platform: Caller, holder: NewPartner) -> None:
    release = make_release("r", contents={"site:1": ["post:1", "post:2"]})
    first = disclose(release, holder.partner)
    request = record(make_wish("site:1"))
    planning.plan(budget=timedelta(seconds=5))

    assert platform.get("/v1/partners/acme/holdings").json() | {"oldest": None} == {
        "partner": "acme",
        "items": 2,
        "releases": [
            {
                "release": "r",
                "state": "sealed",
                "subjects": 1,
                "items": 2,
                "handovers": 1,
                "first_disclosed_at": stamp(first.disclosed_at),
                "last_disclosed_at": stamp(first.disclosed_at),
            }
        ],
        "open_notices": 1,
        "overdue_notices": 0,
        "oldest": None,
    }
    assert platform.get("/v1/partners/acme/holdings").json()["oldest"]["request"] == request.public_id
    assert platform.get(f"/v1/requests/{request.public_id}/window").json() == {
        "partners": [{"partner": "acme", "told_at": None, "handovers": []}]
    }
    assert platform.get(f"/v1/requests/{request.public_id}/releases").json() == {
        "releases": [{"release": "r", "state": "sealed", "subjects": 1, "items": 2}]
    }


def test_what_is_unknown_is_not_found(platform: Caller) -> None:
    missing = "01M86BTCEFW2R8X0GXZ4QF1E07"
    assert problem_of(platform.get("/v1/partners/nobody/holdings"))[:2] == (404, "unknown_partner")
    assert problem_of(platform.get("/v1/partners/No_Body/holdings"))[:2] == (404, "unknown_partner")
    assert problem_of(platform.get(f"/v1/requests/{missing}/window"))[:2] == (404, "unknown_request")
    assert problem_of(platform.get(f"/v1/requests/{missing}/releases"))[:2] == (404, "unknown_request")


def test_questions_are_for_platforms(partner: Caller, stranger: Caller) -> None:
    for path in ("/v1/holders?subject=site:1", "/v1/partners/acme/holdings"):
        assert problem_of(partner.get(path))[:2] == (403, "wrong_scope")
        assert problem_of(stranger.get(path))[:2] == (401, "unauthorized")
