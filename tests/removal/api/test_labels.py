"""``PUT /v1/subjects/{subject}/label``."""

import json
from typing import Any

import pytest

from removal.models import Subject
from tests.factories import make_release
from tests.removal.api.conftest import Caller, problem_of

pytestmark = pytest.mark.django_db(transaction=True)


def put(caller: Caller, subject: str, body: Any) -> Any:
    return caller.client.put(f"/v1/subjects/{subject}/label", json.dumps(body), "application/json")


def test_a_label_is_set_and_erased(platform: Caller) -> None:
    make_release(contents={"site:1/a": ["post:1"]})
    assert put(platform, "site:1/a", {"label": "https://blog.example"}).status_code == 204
    assert Subject.objects.get().label == "https://blog.example"
    assert put(platform, "site:1/a", {"label": None}).status_code == 204
    assert Subject.objects.get().label == ""


def test_a_subject_must_be_known(platform: Caller) -> None:
    assert problem_of(put(platform, "site:1", {"label": "x"}))[:2] == (404, "unknown_subject")


@pytest.mark.parametrize(
    "body", [{}, {"label": ""}, {"label": "x" * 501}, {"label": "a\0"}, {"label": 1}, {"name": "x"}]
)
def test_a_label_is_1_to_500_characters_or_null(platform: Caller, body: Any) -> None:
    assert problem_of(put(platform, "site:1", body))[0] in {400, 422}


def test_partners_have_no_business_here(partner: Caller) -> None:
    assert problem_of(put(partner, "site:1", {"label": "x"}))[:2] == (403, "wrong_scope")
