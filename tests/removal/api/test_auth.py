"""Who may call what."""

from collections.abc import Callable

import pytest
from django.utils import timezone

from partners.models import ApiKey
from tests.removal.api.conftest import Caller, problem_of

PLATFORM_PATHS = [
    ("post", "/v1/requests"),
    ("post", "/v1/requests/bulk"),
    ("get", "/v1/requests"),
    ("get", "/v1/requests/01M86BTCEFW2R8X0GXZ4QF1E07"),
    ("post", "/v1/requests/01M86BTCEFW2R8X0GXZ4QF1E07/withdraw"),
    ("post", "/v1/releases"),
    ("get", "/v1/releases/2024-02"),
    ("put", "/v1/releases/2024-02/manifest"),
    ("post", "/v1/releases/2024-02/seal"),
    ("post", "/v1/releases/2024-02/disclosures"),
]
PARTNER_PATHS = [("post", "/v1/acknowledgements"), ("get", "/v1/stream/1/items")]


def call(caller: Caller, method: str, path: str) -> tuple[int, str, str]:
    return problem_of(getattr(caller.client, method)(path))


@pytest.mark.parametrize(("method", "path"), PLATFORM_PATHS + PARTNER_PATHS)
def test_no_path_answers_without_a_key(db: None, stranger: Caller, method: str, path: str) -> None:
    assert call(stranger, method, path)[:2] == (401, "unauthorized")


@pytest.mark.parametrize(("method", "path"), PLATFORM_PATHS)
def test_a_partner_cannot_use_a_platforms_paths(partner: Caller, method: str, path: str) -> None:
    assert call(partner, method, path) == (403, "wrong_scope", "This is a partner key. Use a platform key here.")


@pytest.mark.parametrize(("method", "path"), PARTNER_PATHS)
def test_a_platform_cannot_use_a_partners_paths(platform: Caller, method: str, path: str) -> None:
    assert call(platform, method, path) == (403, "wrong_scope", "This is a platform key. Use a partner key here.")


def test_missing_unknown_and_revoked_keys_get_the_same_answer(db: None, stranger: Caller) -> None:
    revoked, text = ApiKey.create(source="blogs")
    ApiKey.objects.filter(pk=revoked.pk).update(revoked_at=timezone.now())
    answers = [caller.get("/v1/requests") for caller in (stranger, Caller("rk_unknown"), Caller(text))]
    assert [answer["WWW-Authenticate"] for answer in answers] == ["Bearer"] * 3
    assert len({answer.content for answer in answers}) == 1
    assert [answer.status_code for answer in answers] == [401] * 3


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic cms6cms=", "Bearer \xff", "rk_x"])
def test_a_header_that_is_no_bearer_key_is_unauthorized(db: None, stranger: Caller, header: str) -> None:
    assert problem_of(stranger.get("/v1/requests", Authorization=header))[0] == 401


def test_a_new_key_of_the_same_source_continues_its_requests(make_platform: Callable[[str], Caller]) -> None:
    wish = {"kind": "opt_out", "subject": "site:1"}
    first = make_platform("blogs").post("/v1/requests", wish, Idempotency_Key="a")
    again = make_platform("blogs").post("/v1/requests", wish, Idempotency_Key="a")
    other = make_platform("shops").post("/v1/requests", wish, Idempotency_Key="a")
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert first.json() == again.json()
    assert first.json()["id"] != other.json()["id"]
