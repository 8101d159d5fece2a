"""The API's description, and the page that shows it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.staticfiles import finders

from tests.removal.api.conftest import Caller


@pytest.fixture
def described(stranger: Caller) -> dict[str, Any]:
    response = stranger.get("/openapi.json")
    assert response.status_code == 200
    description: dict[str, Any] = response.json()
    return description


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_the_description_names_every_path(described: dict[str, Any]) -> None:
    assert described["openapi"] == "3.1.0"
    operations = {f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods}
    assert operations == {
        "POST /v1/requests",
        "GET /v1/requests",
        "POST /v1/requests/bulk",
        "GET /v1/requests/{public_id}",
        "POST /v1/requests/{public_id}/extension",
        "POST /v1/requests/{public_id}/withdraw",
        "POST /v1/recalls",
        "POST /v1/releases",
        "GET /v1/releases/{name}",
        "PUT /v1/releases/{name}/manifest",
        "PUT /v1/releases/{name}/manifest/parts/{number}",
        "GET /v1/holders",
        "GET /v1/partners/{slug}/holdings",
        "GET /v1/requests/{public_id}/window",
        "GET /v1/requests/{public_id}/releases",
        "POST /v1/releases/{name}/seal",
        "POST /v1/releases/{name}/disclosures",
        "POST /v1/releases/{name}/gate",
        "POST /v1/preferences",
        "GET /v1/preferences/{subject}",
        "PUT /v1/subjects/{subject}/label",
        "POST /v1/acknowledgements",
        "GET /v1/stream",
        "GET /v1/stream/statement",
        "GET /v1/stream/{sequence}",
        "GET /v1/stream/{sequence}/items",
        "GET /v1/partner/identifiers",
        "GET /v1/partner",
        "POST /v1/partner/verify",
        "PUT /v1/partner/endpoint",
        "POST /v1/partner/secrets",
        "POST /v1/partner/signing-keys",
        "DELETE /v1/partner/signing-keys/{key_id}",
        "GET /.well-known/removal-notices",
    }


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    missing = {
        reference
        for reference in references(described)
        if reference.removeprefix("#/components/schemas/") not in schemas
    }
    assert missing == set()


def test_every_operation_says_who_may_call_it_and_how_errors_look(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == path.startswith("/v1/"), path
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
    assert described["components"]["securitySchemes"] == {
        "PlatformKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "A platform's key: records requests, fills the ledger.",
        },
        "PartnerKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "A partner's key: reads its own stream, acknowledges.",
        },
    }


def test_headers_that_sign_are_described(described: dict[str, Any]) -> None:
    signed = ["webhook-id", "webhook-timestamp", "webhook-signature"]
    statement = described["paths"]["/v1/stream/statement"]["get"]["responses"]["200"]
    assert list(statement["headers"]) == signed
    assert "schema" in statement["content"]["application/json"]
    answers = described["paths"]["/v1/acknowledgements"]["post"]["parameters"]
    assert [(each["name"], each["in"], each["required"]) for each in answers] == [
        (name, "header", False) for name in signed
    ]


def test_unknown_fields_are_errors_in_every_body(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    taken = {
        reference.rpartition("/")[2]
        for methods in described["paths"].values()
        for operation in methods.values()
        for reference in references(operation.get("requestBody", {}))
    }
    assert taken == {
        "NewRequest",
        "BulkRequest",
        "RecallLine",
        "PreferenceLine",
        "CandidateLine",
        "NewRelease",
        "Sealing",
        "ManifestLine",
        "NewDisclosure",
        "NewExtension",
        "AcknowledgementLine",
        "NewEndpoint",
        "NewLabel",
        "NewSigningKey",
        "ExtensionLine",
    }
    assert {name for name in taken if schemas[name].get("additionalProperties") is not False} == set()


def test_the_page_needs_no_other_host(stranger: Caller) -> None:
    response = stranger.get("/docs")
    assert response.status_code == 200
    page = response.content.decode()
    assert re.findall(r"(?:https?:)?//[^\s\"']+", page) == []
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert [finders.find(path.removeprefix("/static/")) for path in loaded if not path.startswith("/static/")] == []
    assert all(finders.find(path.removeprefix("/static/")) for path in loaded)
    assert '"validatorUrl": null' in page
