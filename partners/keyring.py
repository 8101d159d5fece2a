"""Change the keys of one partner: end one at once, and register the public keys that its answers are signed with."""

from datetime import datetime

from django.db import connection, transaction
from django.db.models.functions import Now

from partners import keys
from partners.models import Partner, Secret
from partners.signing import Ed25519PublicKey, KeyUnusable

MAX_SIGNING_KEYS = 4  # of one partner, at a time


class UnknownKey(Exception):
    """This partner has no such key, or it was revoked already."""


class LastSecret(Exception):
    """Without this secret, nothing would sign for the partner."""


class KeyRefused(Exception):
    """This public key cannot be registered; the message says why."""


def in_force(*, partner: Partner, now: datetime) -> list[Secret]:
    """List a partner's own keys of both directions that sign, or will, oldest first."""
    return list(Secret.objects.in_force(now=now).filter(partner=partner).order_by("id"))


def revoke(*, partner: Partner, key_id: str, direction: Secret.Direction) -> None:
    """End a key at once: no message is signed with it any more, nor any answer believed. Needs the partner locked.

    Where all secrets that are left would retire, the newest of them stays: what took its place is what is ended here.
    Raises UnknownKey, and LastSecret where no other secret would sign for the partner.
    """
    own = Secret.objects.filter(partner=partner, direction=direction, revoked_at=None)
    number = key_id.removeprefix("key_")
    secret = own.filter(pk=int(number)).first() if number.isdecimal() and len(number) < 19 else None
    if secret is None:
        raise UnknownKey(f"{partner.slug} has no key {key_id} of this kind that is still in force.")
    others = own.active(now=Now()).exclude(pk=secret.pk)
    if direction == Secret.Direction.OUTBOUND:
        newest = others.order_by("-active_from", "-pk").first()
        if newest is None:
            raise LastSecret(f"{key_id} is the last secret that signs for {partner.slug}. Give it a new one with it.")
        if not others.filter(retire_at=None).exists():
            Secret.objects.filter(pk=newest.pk).update(retire_at=None)
    Secret.objects.filter(pk=secret.pk).update(revoked_at=Now())


@transaction.atomic
def revoke_service_key(*, key_id: str, now: datetime) -> None:
    """End a service-wide key at once; the next one signs from now on, and is made if there is none.

    Receivers that checked ``v1a`` alone believe nothing until they have asked for our keys again. Raises UnknownKey.
    """
    with connection.cursor() as cursor:  # a rotation that is under way has made the key that is to sign instead
        cursor.execute("select pg_advisory_xact_lock(%s)", [keys._SERVICE_KEY_LOCK])
    known = {secret.key_id: secret for secret in keys.published_keys(now=now)}
    if key_id not in known:
        raise UnknownKey(f"There is no service-wide key {key_id} in force.")
    Secret.objects.filter(pk=known.pop(key_id).pk).update(revoked_at=Now())
    Secret.objects.filter(pk__in=[secret.pk for secret in known.values()]).update(active_from=now, retire_at=None)
    keys.ensure_service_key()


def register(*, partner: Partner, public_key: str, now: datetime) -> tuple[Secret, bool]:
    """Add a public key (``whpk_…``) that this partner's answers may be signed with. Needs the partner locked.

    Returns it, and whether it is new: one that is active already stays as it is. Raises KeyRefused for what is no key,
    one that is ours, another partner's, or was ended, and for the fifth.
    """
    try:
        text = Ed25519PublicKey.from_text(public_key).to_text()
    except KeyUnusable as error:
        raise KeyRefused(f"It cannot be used: {error}.") from error
    ours = Secret.objects.filter(partner=None, algorithm=Secret.Algorithm.ED25519)
    if any(keys.open_key(secret).public_key.to_text() == text for secret in ours):  # type: ignore[union-attr]
        raise KeyRefused("It is a key of this service. Register the public half of a key of your own.")
    # Encrypted with a salt each, so that they are compared one by one: they are a handful per partner.
    known = Secret.objects.filter(direction=Secret.Direction.INBOUND, algorithm=Secret.Algorithm.ED25519)
    for secret in known.order_by("id"):
        if secret.key != text:
            continue
        if secret.partner_id != partner.pk:
            raise KeyRefused("Somebody else registered it, so that it proves nothing. Make a key pair of your own.")
        if secret.revoked_at or (secret.retire_at and secret.retire_at <= now):
            raise KeyRefused("It was ended before, and stays so. Make a new key pair.")
        return secret, False
    if known.filter(partner=partner).active(now=now).count() >= MAX_SIGNING_KEYS:
        raise KeyRefused(f"You have {MAX_SIGNING_KEYS} keys already. Delete one that you no longer use.")
    made = Secret.objects.create(
        partner=partner, direction=Secret.Direction.INBOUND, algorithm=Secret.Algorithm.ED25519, key=text
    )
    return made, True
