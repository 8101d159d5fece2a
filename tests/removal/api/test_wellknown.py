"""What anyone may ask."""

from datetime import timedelta

import pytest
from django.db import OperationalError
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from partners import keys
from partners.models import Secret
from partners.signing import Ed25519PrivateKey
from removal.api.wellknown import CACHE_SECONDS
from removal.partnerships import NewPartner
from tests.removal.api.conftest import Caller

PATH = "/.well-known/removal-notices"


def test_our_public_keys_are_published_and_nothing_else(stranger: Caller, holder: NewPartner) -> None:
    secret = Secret.objects.get(partner=None)
    response = stranger.get(PATH)
    assert response.status_code == 200
    assert response["Cache-Control"] == f"public, max-age={CACHE_SECONDS}"
    [key] = response.json()["keys"]
    assert key.pop("active_from").endswith("Z")
    assert response.json() | {"keys": [key]} == {
        "keys": [
            {
                "id": secret.key_id,
                "algorithm": "ed25519",
                "public_key": Ed25519PrivateKey.from_text(secret.key).public_key.to_text(),
                "retire_at": None,
            }
        ],
        "versions": ["1"],
        "schemas": {"1": "http://testserver/openapi.json"},
        "documentation": "http://testserver/docs",
    }
    assert key["public_key"].startswith("whpk_")
    assert secret.key not in response.content.decode()


@pytest.mark.django_db
def test_a_key_is_published_before_it_signs_and_until_it_is_retired(stranger: Caller) -> None:
    now = timezone.now()
    keys.ensure_service_key()
    current = Secret.objects.get()
    times = {"next": (now + timedelta(hours=1), None, None), "retired": (now, now, None), "revoked": (now, None, now)}
    made = {
        name: Secret.objects.create(
            direction="outbound",
            algorithm="ed25519",
            key=Ed25519PrivateKey.generate().to_text(),
            active_from=active_from,
            retire_at=retire_at,
            revoked_at=revoked_at,
        )
        for name, (active_from, retire_at, revoked_at) in times.items()
    }
    published = [key["id"] for key in stranger.get(PATH).json()["keys"]]
    assert published == [current.key_id, made["next"].key_id]


def test_the_process_answers_without_a_database(stranger: Caller) -> None:
    response = stranger.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.django_db
def test_it_is_ready_when_the_database_is(stranger: Caller) -> None:
    response = stranger.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


@pytest.mark.django_db
def test_it_is_not_ready_before_the_migrations_have_run(stranger: Caller) -> None:
    MigrationRecorder.Migration.objects.filter(app="removal").delete()
    response = stranger.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable", "reason": "migrations_pending"})


def test_it_is_not_ready_without_a_database(stranger: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("could not connect to db.internal")

    monkeypatch.setattr("removal.api.wellknown.MigrationExecutor", fail)
    response = stranger.get("/readyz")
    assert (response.status_code, response.json()) == (
        503,
        {"status": "unavailable", "reason": "database_unreachable"},
    )
