"""The keys in force: what signs now, beside what, until when; and that none is readable at rest."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.db import connection, transaction
from django.utils import timezone
from pytest_django import Settings

from partners import keyring, keys
from partners.encryption import CannotDecrypt
from partners.models import ApiKey, Secret
from partners.signing import HmacSecret
from tests.factories import make_partner
from tests.removal.test_planning import wait_until_somebody_waits

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


def test_the_next_service_key_is_published_before_it_signs_and_the_old_one_retires_after() -> None:
    partner = make_partner().partner
    now = timezone.now()
    hour = timedelta(hours=1)
    [old] = keys.published_keys(now=now)
    new = keys.rotate_service_key(now=now, lead=hour, overlap=hour)
    assert [key.pk for key in keys.published_keys(now=now)] == [old.pk, new.pk]

    def signing(after: timedelta) -> set[str]:
        return {old.key_id, new.key_id} & set(keys.signer_for(partner_id=partner.pk, now=now + after).key_ids)

    assert signing(0 * hour) == {old.key_id}
    assert signing(1.5 * hour) == {old.key_id, new.key_id}
    assert signing(2.5 * hour) == {new.key_id}
    with pytest.raises(keys.RotationUnderway, match=old.key_id):
        keys.rotate_service_key(now=now, lead=hour, overlap=hour)


@pytest.mark.parametrize("rotating", [True, False])
def test_a_revoked_service_key_signs_no_more_and_another_one_does(rotating: bool) -> None:
    partner = make_partner().partner
    now = timezone.now()
    [old] = keys.published_keys(now=now)
    if rotating:
        keys.rotate_service_key(now=now, lead=timedelta(hours=1), overlap=timedelta(hours=1))
    keyring.revoke_service_key(key_id=old.key_id, now=now)
    [new] = keys.published_keys(now=timezone.now())
    assert old.key_id not in keys.signer_for(partner_id=partner.pk, now=timezone.now()).key_ids
    assert new.key_id in keys.signer_for(partner_id=partner.pk, now=timezone.now()).key_ids
    with pytest.raises(keyring.UnknownKey):
        keyring.revoke_service_key(key_id=old.key_id, now=timezone.now())


def test_the_last_secret_is_not_revoked_and_a_second_one_is_at_once() -> None:
    made = make_partner("acme")
    [first] = Secret.objects.filter(partner=made.partner)
    outbound = Secret.Direction.OUTBOUND
    with pytest.raises(keyring.LastSecret, match="last secret that signs for acme"):
        keyring.revoke(partner=made.partner, key_id=first.key_id, direction=outbound)
    keys.rotate_secret(partner=made.partner, now=timezone.now(), overlap=timedelta(hours=1))
    keyring.revoke(partner=made.partner, key_id=first.key_id, direction=outbound)
    assert first.key_id not in keys.signer_for(partner_id=made.partner.pk, now=timezone.now()).key_ids
    other = make_partner("globex").partner
    for key_id in (first.key_id, Secret.objects.get(partner=other).key_id, "key_", "key_x", f"key_{9 * 10**30}"):
        with pytest.raises(keyring.UnknownKey):
            keyring.revoke(partner=made.partner, key_id=key_id, direction=outbound)


def test_what_lasts_of_a_signer_is_its_newest_secret_and_the_services_key() -> None:
    partner = make_partner().partner
    whole = keys.signer_for(partner_id=partner.pk, now=timezone.now())
    assert keys.lasting(whole, partner_id=partner.pk) == whole.keys
    text = keys.rotate_secret(partner=partner, now=timezone.now(), overlap=timedelta(hours=1))
    both = keys.signer_for(partner_id=partner.pk, now=timezone.now())
    lasting = keys.lasting(both, partner_id=partner.pk)
    assert HmacSecret.from_text(text) in lasting
    assert (len(both.keys), len(lasting)) == (3, 2)


def test_of_secrets_that_were_to_retire_the_newest_stays_when_its_successor_is_revoked() -> None:
    partner, hour = make_partner().partner, timedelta(hours=1)
    for _ in range(2):
        keys.rotate_secret(partner=partner, now=timezone.now(), overlap=hour)
    first, second, third = Secret.objects.filter(partner=partner).order_by("pk")
    keyring.revoke(partner=partner, key_id=third.key_id, direction=Secret.Direction.OUTBOUND)
    assert algorithms(partner.pk) == ["v1", "v1", "v1a"]
    later = keys.signer_for(partner_id=partner.pk, now=timezone.now() + 2 * hour).key_ids
    assert (second.key_id in later, first.key_id in later) == (True, False)


def test_with_a_new_secret_in_the_same_step_the_others_retire_as_they_were_to() -> None:
    partner, hour = make_partner().partner, timedelta(hours=1)
    for _ in range(2):  # the second as ``revoke-secret --new`` does it
        keys.rotate_secret(partner=partner, now=timezone.now(), overlap=hour)
    first, second, third = Secret.objects.filter(partner=partner).order_by("pk")
    keyring.revoke(partner=partner, key_id=second.key_id, direction=Secret.Direction.OUTBOUND)
    own = set(keys.signer_for(partner_id=partner.pk, now=timezone.now() + 2 * hour).key_ids)
    assert own & {first.key_id, second.key_id, third.key_id} == {third.key_id}


def test_a_service_key_that_is_revoked_beside_a_rotation_leaves_the_next_one_signing() -> None:
    partner, hour = make_partner().partner, timedelta(hours=1)
    [old] = keys.published_keys(now=timezone.now())

    def revoke() -> None:
        try:
            keyring.revoke_service_key(key_id=old.key_id, now=timezone.now())
        finally:
            connection.close()

    with ThreadPoolExecutor() as pool:
        with transaction.atomic():
            keys.rotate_service_key(now=timezone.now(), lead=hour, overlap=hour)
            revoked = pool.submit(revoke)
            wait_until_somebody_waits()
        revoked.result()
    assert algorithms(partner.pk) == ["v1", "v1a"]
    assert old.key_id not in keys.signer_for(partner_id=partner.pk, now=timezone.now()).key_ids
