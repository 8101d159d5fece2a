"""``manage.py reencrypt``: after it only the first key is needed, and whatever an older one had encrypted goes on."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from partners import keys, reencryption, signing
from partners.identifiers import IdentifierKey
from partners.models import Secret
from removal import partnerships
from removal.models import LogEntry
from tests.factories import make_partner
from tests.receivers import Received, listening
from tests.removal.admin.story import owe, send

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def keys_new_and_old(settings: Settings) -> list[str]:
    """Two keys: the second one encrypts for now, the first will."""
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    return [Fernet.generate_key().decode(), *settings.ENCRYPTION_KEYS]


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("reencrypt", *arguments, stdout=out)
    return out.getvalue()


def stored() -> list[tuple[int, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select id, key from partners_secret union select id, key from partners_identifierkey order by 2"
        )
        rows: list[tuple[int, str]] = cursor.fetchall()
    return rows


def logged() -> list[Any]:
    return list(LogEntry.objects.filter(action="values_reencrypted").order_by("id").values_list("about", flat=True))


def published() -> Any:
    return Client().get("/.well-known/removal-notices").json()["keys"]


def verified(message: Received, key: signing.VerifyingKey) -> bool:
    return bool(signing.verify(headers=message.headers, body=message.body, keys=[key], now=timezone.now()))


@pytest.mark.usefixtures("loopback_partners")
def test_everything_goes_on_with_the_new_key_alone(settings: Settings, keys_new_and_old: list[str]) -> None:
    now = timezone.now()
    with listening() as receiver:
        made = make_partner("acme", url=receiver.url, identifiers="hmac_sha256")
        text = keys.rotate_secret(partner=made.partner, now=now, overlap=timedelta(hours=1))
        theirs = signing.Ed25519PrivateKey.generate().public_key.to_text()
        partnerships.register_signing_key(actor="test", slug="acme", public_key=theirs, now=now)
        keys_published = published()
        owe(made.partner, subject="site:1")
        send(made.partner)  # this process has the keys open from now on

        settings.ENCRYPTION_KEYS = keys_new_and_old
        assert run() == "partners_identifierkey.key: 1 of 1 re-encrypted\npartners_secret.key: 4 of 4 re-encrypted\n"
        settings.ENCRYPTION_KEYS = keys_new_and_old[:1]
        assert "Only the first of ENCRYPTION_KEYS is needed." in run("--check")
        owe(made.partner, subject="site:2")
        send(made.partner)

    named = IdentifierKey.from_text(made.identifier_key)
    assert published() == keys_published
    [service_key] = [signing.Ed25519PublicKey.from_text(key["public_key"]) for key in keys_published]
    assert len(receiver.received) == 2
    for n, message in enumerate(receiver.received, start=1):
        assert message.data["notices"][0]["subject"] == named.subject(f"site:{n}")
        for key in (signing.HmacSecret.from_text(made.secret), signing.HmacSecret.from_text(text), service_key):
            assert verified(message, key)
    [inbound] = keys.verifying_keys(partner_id=made.partner.pk, now=timezone.now())
    assert inbound.key == theirs
    assert [(about["column"], about["values"]) for about in logged()] == [
        ("partners_identifierkey.key", 1),
        ("partners_secret.key", 4),
    ]


def test_it_is_done_once_and_the_check_says_what_is_left(settings: Settings, keys_new_and_old: list[str]) -> None:
    make_partner()
    assert run("--check") == (
        "partners_identifierkey.key: 0 of 0 need an older key\npartners_secret.key: 0 of 2 need an older key\n"
        "Only the first of ENCRYPTION_KEYS is needed.\n"
    )
    before = stored()
    settings.ENCRYPTION_KEYS = keys_new_and_old
    make_partner(identifiers="hmac_sha256")  # encrypted with the new key already
    with pytest.raises(CommandError, match="2 values need an older key") as said:
        run("--check")
    assert said.value.returncode == 1
    assert set(before) < set(stored())
    assert "partners_secret.key: 2 of 3 re-encrypted" in run()
    after = stored()
    assert set(before) & set(after) == set()
    assert "partners_secret.key: 0 of 3 re-encrypted" in run()
    assert "partners_secret.key: 0 of 3 need an older key" in run("--check")
    assert stored() == after
    assert len(logged()) == 1


def test_a_value_that_no_key_opens_is_named_and_its_step_changes_nothing(
    settings: Settings, keys_new_and_old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    partner = make_partner().partner
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]  # which is then lost
    lost = Secret.objects.create(partner=partner, direction="outbound", algorithm="hmac-sha256", key="lost")
    settings.ENCRYPTION_KEYS = keys_new_and_old
    before = stored()
    for arguments in ([], ["--check"]):
        with pytest.raises(CommandError, match=f"opens partners_secret.key of row {lost.pk}.") as said:
            run(*arguments)
        assert said.value.returncode == 1
        assert not any(value in str(said.value) for _, value in before)
    assert stored() == before
    assert logged() == []

    monkeypatch.setattr(reencryption, "STEP", 2)
    with pytest.raises(CommandError, match=f"row {lost.pk}"):
        run()
    [about] = logged()
    assert (about["column"], about["values"]) == ("partners_secret.key", 2)
    assert {row for row in before if row not in stored()} == {row for row in before if row[0] != lost.pk}


def test_many_values_go_in_steps_with_an_entry_each(
    settings: Settings, keys_new_and_old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencryption, "STEP", 2)
    secrets = {made.partner.pk: made.secret for made in (make_partner() for _ in range(4))}
    settings.ENCRYPTION_KEYS = keys_new_and_old
    assert "partners_secret.key: 5 of 5 re-encrypted" in run()
    assert [about["values"] for about in logged()] == [2, 2, 1]
    settings.ENCRYPTION_KEYS = keys_new_and_old[:1]
    assert {secret.partner_id: secret.key for secret in Secret.objects.exclude(partner=None)} == secrets


def test_every_column_that_is_encrypted_is_found() -> None:
    assert [str(column) for column in reencryption.columns()] == ["partners_identifierkey.key", "partners_secret.key"]
