"""The gate over HTTP: a whole answer or a problem, and what must not leave is refused at seal and handover."""

import hashlib
import json
from typing import Any

import pytest
from django.db import OperationalError

from removal import exclusions
from removal.models import Alarm, Disclosure, Preference, Release
from removal.partnerships import NewPartner
from tests.factories import make_release, make_wish, record
from tests.removal.api.conftest import NDJSON, Caller, fields_of, lines_of, ndjson, problem_of

PATH = "/v1/releases/next/gate"

pytestmark = pytest.mark.django_db(transaction=True)


def candidate(subject: str, *items: str, state: str = "public") -> dict[str, Any]:
    return {"subject": subject, "items": list(items) or ["post:1"], "container_state": state}


@pytest.fixture
def release(platform: Caller) -> Release:
    said = {"name": "next", "dataset": "posts", "source": "main database", "usages": ["train-ai"]}
    assert platform.post("/v1/releases", said).status_code == 201
    return Release.objects.get()


@pytest.mark.usefixtures("release")
def test_candidates_that_may_pass_come_first_then_decisions_then_the_end(platform: Caller) -> None:
    request = record(make_wish("site:2", usages=("train-ai",)))
    sent = [candidate("site:1", "post:1", "post:2"), candidate("site:2"), candidate("site:3", state="suspended")]
    response = platform.post_lines(PATH, *sent)
    assert (response.status_code, response["Content-Type"]) == (200, NDJSON)
    reason = {"items": None, "preference": None, "request": None}
    opted_out = {"rule": "explicit", "preference": Preference.objects.get().pk, "request": request.public_id}
    assert lines_of(response) == [
        sent[0],
        {"decision": reason | {"subject": "site:2"} | opted_out},
        {"decision": reason | {"subject": "site:3", "rule": "container_state"}},
        {"end": True, "allowed": 2, "excluded": 2, "digest": hashlib.sha256(ndjson(sent[0])).hexdigest()},
    ]


@pytest.mark.usefixtures("release")
def test_an_answer_of_any_length_is_held_until_it_is_whole(platform: Caller) -> None:
    body = ndjson(*(candidate(f"site:{n}", *(f"post:{i}" for i in range(20))) for n in range(10_000)))
    response = platform.post(PATH, body, content_type=NDJSON)
    answer = b"".join(response.streaming_content)
    assert answer.startswith(body)
    assert json.loads(answer[len(body) :]) == {
        "end": True, "allowed": 200_000, "excluded": 0, "digest": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("state", ["published", "", None])
def test_a_state_that_is_not_known_is_a_problem_and_nothing_else(platform: Caller, state: Any) -> None:
    status, code, detail = problem_of(
        platform.post_lines(PATH, candidate("site:1"), candidate("site:2") | {"container_state": state})
    )
    assert (status, code) == (422, "invalid_candidate")
    assert detail.startswith("Line 2: container_state must be one of: public, private,")
    assert detail.endswith(" Nothing was released.")


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("broken", [b"a\xff", b"\xed\xa0\x80"])
@pytest.mark.parametrize("field", [b"site:2", b"post:1", b"public", b"items"])
def test_a_line_that_is_not_utf_8_is_named(platform: Caller, broken: bytes, field: bytes) -> None:
    body = ndjson(candidate("site:1")) + ndjson(candidate("site:2")).replace(field, broken)
    status, code, detail = problem_of(platform.post(PATH, body, content_type=NDJSON))
    assert (status, code) == (422, "invalid_candidate")
    assert detail.startswith("Line 2: It is not UTF-8")


@pytest.mark.usefixtures("release")
def test_a_body_that_was_cut_off_is_a_problem(platform: Caller) -> None:
    body = ndjson(candidate("site:1"), candidate("site:2"))
    response = platform.client.post(PATH, body, NDJSON, CONTENT_LENGTH=str(len(body) + 1))
    assert problem_of(response)[:2] == (400, "body_cut_off")
    cut = platform.post(PATH, body[:-10], content_type=NDJSON)
    assert problem_of(cut)[:2] == (422, "invalid_candidate")


@pytest.mark.usefixtures("release")
def test_a_database_that_cannot_answer_is_a_problem(platform: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OperationalError

    monkeypatch.setattr(exclusions, "ask_about", fail)
    assert problem_of(platform.post_lines(PATH, candidate("site:1")))[:2] == (503, "unavailable")


def test_a_release_that_is_not_there_is_a_problem(platform: Caller) -> None:
    assert problem_of(platform.post_lines(PATH, candidate("site:1")))[:2] == (404, "unknown_release")


def test_only_platforms_may_ask(partner: Caller, stranger: Caller) -> None:
    assert problem_of(partner.post_lines(PATH, candidate("site:1")))[:2] == (403, "wrong_scope")
    assert problem_of(stranger.post_lines(PATH, candidate("site:1")))[:2] == (401, "unauthorized")


def test_the_feed_is_named_in_the_alarm(platform: Caller, release: Release) -> None:
    record(make_wish("site:1", kind="deletion"))
    lines_of(platform.post_lines(PATH, candidate("site:1")))
    lines_of(platform.post_lines(f"{PATH}?feed=backup", candidate("site:1")))
    found = Alarm.objects.filter(release=release).order_by("id")
    assert [(alarm.subject.key, alarm.feed) for alarm in found] == [("site:1", "main database"), ("site:1", "backup")]
    assert fields_of(platform.post_lines(f"{PATH}?fed=x", candidate("site:1"))) == ["fed"]


# --- seal and disclose ---


def test_a_release_with_opted_out_content_is_not_sealed(platform: Caller) -> None:
    make_release("next", contents={"site:1": ["post:1"], "site:2": ["post:1", "post:2"]}, sealed=False)
    opt_out = record(make_wish("site:1"))
    deletion = record(make_wish("site:2", kind="deletion", items=("post:2",)))
    content = [
        {
            "subject": "site:1",
            "items": None,
            "rule": "explicit",
            "preference": Preference.objects.get().pk,
            "request": opt_out.public_id,
        },
        {
            "subject": "site:2",
            "items": ["post:2"],
            "rule": "deletion",
            "preference": None,
            "request": deletion.public_id,
        },
    ]
    refused = platform.post("/v1/releases/next/seal")
    problem = json.loads(refused.content)
    assert (refused.status_code, refused["Content-Type"]) == (409, "application/problem+json")
    assert (problem["code"], problem["subjects"], problem["content"]) == ("opted_out_content", 2, content)

    sealed = platform.post("/v1/releases/next/seal", {"exclude": True})
    assert sealed.status_code == 200
    answer = sealed.json()
    assert (answer["state"], answer["subjects"], answer["items"]) == ("sealed", 1, 1)
    assert (answer["subjects_dropped"], answer["dropped"]) == (2, content)


def test_a_handover_of_opted_out_content_is_refused_and_a_past_one_recorded(
    platform: Caller, holder: NewPartner
) -> None:
    make_release("next", contents={"site:1": ["post:1"]})
    record(make_wish("site:1"))
    handover = {"partner": "acme", "reference": "shipment-1"}
    refused = platform.post("/v1/releases/next/disclosures", handover)
    problem = json.loads(refused.content)
    assert (refused.status_code, problem["code"], problem["subjects"]) == (409, "opted_out_content", 1)
    assert [line["subject"] for line in problem["content"]] == ["site:1"]
    assert Disclosure.objects.count() == 0

    past = handover | {"disclosed_at": "2024-02-29T12:00:00Z"}
    assert platform.post("/v1/releases/next/disclosures", past).status_code == 201
    assert Disclosure.objects.get().partner == holder.partner


def test_an_unknown_usage_of_a_release_is_refused(platform: Caller) -> None:
    said = {"name": "next", "dataset": "posts", "usages": ["training"]}
    assert fields_of(platform.post("/v1/releases", said)) == ["usages.0"]
