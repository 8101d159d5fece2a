"""Errors in one shape, which tell nothing that was sent."""

import json
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest
from pytest_django import Settings

from removal import intake, reports
from removal.api import problems
from removal.api.problems import Problem
from tests.removal.api.conftest import Caller, problem_of, rows

SECRET = "ann@example.org"


def test_a_problem_is_written_as_rfc_9457_has_it() -> None:
    problem = Problem(409, "key_reused", "Send a new key.", headers={"Retry-After": "2"})
    response = problem.as_response()
    assert (response.status_code, response["Content-Type"], response["Retry-After"]) == (
        409,
        "application/problem+json",
        "2",
    )
    assert json.loads(response.content) == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "code": "key_reused",
        "detail": "Send a new key.",
    }


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/nothing", "/v1/requests/", "/v1/stream/one/items", "/v1/stream/-1/items", "/.well-known/x"]
)
def test_an_unknown_path_is_a_problem(platform: Caller, path: str) -> None:
    assert problem_of(platform.get(path)) == (
        404,
        "unknown_path",
        "There is nothing at this address. /docs lists what there is.",
    )


def test_an_unknown_path_outside_the_api_is_a_page(platform: Caller) -> None:
    response = platform.get("/nothing")
    assert (response.status_code, response["Content-Type"]) == (404, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/requests", {"GET", "POST"}),
        ("GET", "/v1/acknowledgements", {"POST"}),
        ("POST", "/v1/releases/2024-02/manifest", {"PUT"}),
        ("POST", "/.well-known/removal-notices", {"GET"}),
    ],
)
def test_a_wrong_method_says_which_are_right(platform: Caller, method: str, path: str, allowed: set[str]) -> None:
    response = platform.client.generic(method, path)
    assert problem_of(response)[:2] == (405, "method_not_allowed")
    assert set(response["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
def test_a_database_that_is_away_is_worth_another_try(
    platform: Caller, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(intake, "record_request", raising(error(SECRET)))
    response = platform.post("/v1/requests", {"kind": "opt_out", "subject": SECRET}, Idempotency_Key="a")
    assert problem_of(response)[:2] == (503, "unavailable")
    assert response["Retry-After"] == "2"
    assert SECRET not in response.content.decode()


def test_what_nobody_foresaw_is_logged_without_what_was_sent(
    platform: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intake, "record_request", raising(KeyError(SECRET)))
    response = platform.post("/v1/requests", {"kind": "opt_out", "subject": SECRET}, Idempotency_Key="a")
    assert problem_of(response) == (
        500,
        "internal_error",
        "This is our fault, and has been logged. Try again later.",
    )
    assert "KeyError" in caplog.text
    assert "test_problems.py" in caplog.text  # where it happened
    assert SECRET not in caplog.text + response.content.decode()


def test_an_error_while_the_key_is_looked_up_is_a_problem_too(
    platform: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partners.models.ApiKey.digest_of", raising(OperationalError()))
    assert problem_of(platform.get("/v1/requests"))[:2] == (503, "unavailable")


def raising(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "body",
    [
        {"kind": SECRET, "subject": SECRET, "usages": [SECRET], "received_at": SECRET, "jurisdiction": SECRET},
        {"kind": "deletion", "subject": SECRET + "\ud800", "items": [SECRET + "\0"]},
        f'{{"subject": "{SECRET}", "subject": 1}}'.encode(),
        f'{{"subject": "{SECRET}'.encode(),
        f'{{"subject": {SECRET}}}'.encode(),
        f'"{SECRET}'.encode() + b"\xff",
    ],
)
def test_no_answer_and_no_log_line_repeats_what_was_sent(
    platform: Caller, caplog: pytest.LogCaptureFixture, body: Any
) -> None:
    response = platform.post("/v1/requests", body, Idempotency_Key=SECRET)
    assert problem_of(response)[0] in {400, 422}
    assert SECRET not in response.content.decode() + caplog.text
    assert rows() == {}


def test_a_host_that_is_not_ours_gets_a_problem(platform: Caller, settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["removal.example"]
    assert problem_of(platform.get("/v1/requests"))[:2] == (400, "bad_request")
    assert platform.get("/admin/")["Content-Type"] == "text/html; charset=utf-8"


def test_more_parameters_than_django_reads_are_a_problem(platform: Caller) -> None:
    assert problem_of(platform.get("/v1/requests?" + "a=&" * 1001))[:2] == (400, "bad_request")


def test_an_error_outside_of_the_views_is_a_problem_too(platform: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("removal.api.problems.refuse_method", raising(RuntimeError(SECRET)))
    response = platform.get("/v1/requests")
    assert problem_of(response)[:2] == (500, "internal_error")
    assert SECRET not in response.content.decode()


def test_an_error_outside_of_the_api_is_a_page() -> None:
    request = HttpRequest()
    request.path = "/admin/"
    assert problems.server_error(request)["Content-Type"] == "text/html; charset=utf-8"


def test_every_error_of_the_steps_has_a_code_of_its_own() -> None:
    """None of them may come out as our fault."""
    for error in (intake.UnknownRequest(), intake.KeyReused("…"), intake.CannotWithdraw("…"), reports.UnknownNotice()):
        assert problems.problem_of(error).status in {404, 409}
