"""The keys in force: what signs now, beside what, until when; and that none is readable at rest."""

import threading
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners import keys
from partners.encryption import CannotDecrypt
from partners.models import ApiKey, Secret
from tests.factories import make_partner

pytestmark = pytest.mark.django_db(transaction=True)


def algorithms(partner_id: int, *, after: timedelta = timedelta(0)) -> list[str]:
    signer = keys.signer_for(partner_id=partner_id, now=timezone.now() + after)
    return sorted(key.version for key in signer.keys)


def test_messages_are_signed_with_v1_and_v1a_side_by_side() -> None:
    partner = make_partner().partner
    make_partner()
    assert algorithms(partner.pk) == ["v1", "v1a"]


def test_a_rotated_secret_signs_beside_its_successor_until_the_overlap_is_over() -> None:
    partner = make_partner().partner
    keys.rotate_secret(partner=partner, now=timezone.now(), overlap=timedelta(hours=1))
    assert algorithms(partner.pk) == ["v1", "v1", "v1a"]
    assert algorithms(partner.pk, after=timedelta(minutes=61)) == ["v1", "v1a"]


def test_a_revoked_secret_signs_no_more() -> None:
    partner = make_partner().partner
    Secret.objects.filter(partner=partner).update(revoked_at=timezone.now())
    assert algorithms(partner.pk) == ["v1a"]


def test_two_callers_at_once_make_one_service_key() -> None:
    def call() -> None:
        try:
            keys.ensure_service_key()
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Secret.objects.filter(partner=None).count() == 1
    assert len(keys.published_keys(now=timezone.now())) == 1


def test_secrets_at_rest_are_encrypted_and_api_keys_only_hashed(settings: Settings) -> None:
    made = make_partner()
    with connection.cursor() as cursor:
        cursor.execute("select string_agg(s::text, ' ') from partners_secret s")
        secrets = cursor.fetchone()[0]
        cursor.execute("select string_agg(k::text, ' ') from partners_apikey k")
        api_keys = cursor.fetchone()[0]
    assert made.secret not in secrets
    assert "whsec_" not in secrets
    assert made.api_key not in api_keys
    assert ApiKey.objects.get(digest=ApiKey.digest_of(made.api_key)).partner == made.partner

    old = settings.ENCRYPTION_KEYS
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *old]
    assert Secret.objects.get(partner=made.partner).key == made.secret
    settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[:1]
    with pytest.raises(CannotDecrypt):
        Secret.objects.get(partner=made.partner)


def test_no_secret_stands_in_a_representation() -> None:
    made = make_partner()
    secret = Secret.objects.get(partner=made.partner)
    signer = keys.signer_for(partner_id=made.partner.pk, now=timezone.now())
    shown = f"{secret!r} {secret} {signer!r} {ApiKey.objects.get()!r}"
    assert made.secret.removeprefix("whsec_") not in shown
    assert made.api_key not in shown
