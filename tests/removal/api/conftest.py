"""Callers of the API, each with its key, through Django's test client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from partners.models import ApiKey
from removal import models
from removal.partnerships import NewPartner
from tests.factories import make_partner

NDJSON = "application/x-ndjson"


class Caller:
    """Whoever holds a key. A body that is not bytes is sent as JSON, a list of lines as NDJSON."""

    def __init__(self, key: str | None) -> None:
        self.client = Client(headers={"Authorization": f"Bearer {key}"} if key else {}, raise_request_exception=False)

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers)

    def post(self, path: str, body: Any = b"", *, content_type: str = "application/json", **headers: str) -> Any:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(
            path, sent, content_type, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def put(self, path: str, body: bytes) -> Any:
        return self.client.put(path, body, NDJSON)

    def post_lines(self, path: str, *lines: Any) -> Any:
        return self.post(path, ndjson(*lines), content_type=NDJSON)


def ndjson(*lines: Any) -> bytes:
    """Join lines; those that are bytes go in as they are."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def lines_of(response: Any) -> list[dict[str, Any]]:
    content = b"".join(response.streaming_content) if response.streaming else response.content
    return [json.loads(line) for line in content.splitlines()]


def problem_of(response: Any) -> tuple[int, str, str]:
    """Read a problem's status, code and detail, after checking that it has the shape of one (RFC 9457)."""
    assert response["Content-Type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["status"] == response.status_code
    assert problem.keys() - {"errors"} == {"type", "title", "status", "code", "detail"}
    return problem["status"], problem["code"], problem["detail"]


def fields_of(response: Any) -> list[str]:
    """Name the fields that a problem says are wrong."""
    problem_of(response)
    return [error["field"] for error in json.loads(response.content)["errors"]]


def rows() -> dict[str, int]:
    """Count the rows of every table that a caller of the API can add to, where there are any."""
    counts = {
        model.__name__: model.objects.count()
        for model in (
            models.Acknowledgement,
            models.AcknowledgementText,
            models.Dataset,
            models.Disclosure,
            models.Extension,
            models.LogEntry,
            models.ManifestEntry,
            models.Preference,
            models.Release,
            models.RemovalRequest,
            models.RequestTarget,
            models.SignedAnswer,
            models.SignedAnswerBody,
            models.Subject,
        )
    }
    return {name: count for name, count in counts.items() if count}


@pytest.fixture(autouse=True)
def _static_root(settings: Settings) -> None:
    """The static files' middleware warns where there was no collectstatic, and warnings are errors."""
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def make_platform(db: None) -> Callable[[str], Caller]:
    return lambda source: Caller(ApiKey.create(source=source)[1])


@pytest.fixture
def platform(make_platform: Callable[[str], Caller]) -> Caller:
    return make_platform("blogs")


@pytest.fixture
def stranger() -> Caller:
    return Caller(None)


@pytest.fixture
def holder(db: None) -> NewPartner:
    """A partner that will be given a release."""
    return make_partner("acme")


@pytest.fixture
def partner(holder: NewPartner) -> Caller:
    return Caller(holder.api_key)
