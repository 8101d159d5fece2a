"""The keys that are in force: what signs our messages, and what the world checks them with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from partners import models
from partners.encryption import decrypt
from partners.identifiers import IdentifierKey
from partners.models import Partner, Secret, SecretQuerySet
from partners.signing import Ed25519PrivateKey, Ed25519PublicKey, HmacSecret, SigningKey

# Beside one or two service-wide keys: a receiver looks at eight signatures at most.
MAX_SECRETS = 6

_SERVICE_KEY_LOCK = 0x4B455953  # "KEYS"


class TooManySecrets(Exception):
    """So many of the partner's secrets sign already that one more would be a signature that nobody looks at."""


class RotationUnderway(Exception):
    """The service-wide key is being rotated already: receivers need not know three."""


@dataclass(frozen=True)
class Signer:
    """The keys that sign one partner's messages now, and their public names for the attempt's record."""

    key_ids: tuple[str, ...]
    keys: tuple[SigningKey, ...]


# As SecretQuerySet.active; said here in SQL, since every claim asks.
SIGNING = """
select id, algorithm, key from partners_secret
 where (partner_id = %(partner)s or partner_id is null) and direction = 'outbound'
   and active_from <= %(now)s and (retire_at is null or retire_at > %(now)s) and revoked_at is null
 order by active_from desc, id desc
"""


def signer_for(*, partner_id: int, now: datetime) -> Signer:
    """Read the partner's active outbound secrets and the service-wide Ed25519 key: ``v1`` and ``v1a`` side by side."""
    with connection.cursor() as cursor:
        cursor.execute(SIGNING, {"partner": partner_id, "now": now})
        found = [_opened(*row) for row in cursor.fetchall()]
    return Signer(tuple(key_id for key_id, _ in found), tuple(key for _, key in found))


def lasting(signer: Signer, *, partner_id: int) -> tuple[SigningKey, ...]:
    """List the signer's keys that still sign when a rotation is over: the newest secret, and the service's key."""
    retiring = Secret.objects.filter(Q(partner_id=partner_id) | Q(partner=None), retire_at__isnull=False)
    going = {secret.key_id for secret in retiring.defer("key")}
    kept = tuple(key for key_id, key in zip(signer.key_ids, signer.keys, strict=True) if key_id not in going)
    return kept if any(isinstance(key, HmacSecret) for key in kept) else signer.keys


@lru_cache(maxsize=1000)
def _opened(secret_id: int, algorithm: str, encrypted: str) -> tuple[str, SigningKey]:
    """Decrypt a key once for all messages that this process signs with it."""
    secret = Secret(pk=secret_id, algorithm=algorithm, key=decrypt(encrypted))
    return secret.key_id, open_key(secret)


def open_key(secret: Secret) -> SigningKey:
    if secret.algorithm == Secret.Algorithm.HMAC:
        return HmacSecret.from_text(secret.key)
    return Ed25519PrivateKey.from_text(secret.key)


def verifying_keys(*, partner_id: int, now: datetime) -> Sequence[Secret]:
    """List the keys that the partner's signatures are checked with now: public ones of its own, newest first."""
    return list(
        Secret.objects.active(now=now)
        .filter(partner_id=partner_id, direction=Secret.Direction.INBOUND, algorithm=Secret.Algorithm.ED25519)
        .order_by("-active_from", "-id")
    )


def open_public_key(secret: Secret) -> Ed25519PublicKey:
    """Read a key from ``verifying_keys``."""
    return Ed25519PublicKey.from_text(secret.key)


def published_keys(*, now: datetime) -> Sequence[Secret]:
    """List the service-wide keys that a receiver may meet: active ones, and those that will be."""
    keys = Secret.objects.in_force(now=now).filter(partner=None, algorithm=Secret.Algorithm.ED25519)
    return list(keys.order_by("active_from", "id"))


@transaction.atomic
def ensure_service_key() -> None:
    """Make the service-wide Ed25519 key if there is none. Two callers at once make one."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", [_SERVICE_KEY_LOCK])
    service_keys = Secret.objects.in_force(now=Now()).filter(partner=None, algorithm=Secret.Algorithm.ED25519)
    if not service_keys.exists():
        Secret.objects.create(
            direction=Secret.Direction.OUTBOUND,
            algorithm=Secret.Algorithm.ED25519,
            key=Ed25519PrivateKey.generate().to_text(),
        )


@transaction.atomic
def rotate_service_key(*, now: datetime, lead: timedelta, overlap: timedelta) -> Secret:
    """Make the next service-wide key: published at once, signing after ``lead``, alone when ``overlap`` is over too.

    So a receiver that asks for our keys now and then knows it before it meets it. Raises RotationUnderway.
    """
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", [_SERVICE_KEY_LOCK])
    known = published_keys(now=now)
    if len(known) > 1:
        raise RotationUnderway(f"{known[0].key_id} has not retired yet. Wait for it, or revoke it.")
    Secret.objects.filter(pk__in=[secret.pk for secret in known]).update(retire_at=now + lead + overlap)
    return Secret.objects.create(
        direction=Secret.Direction.OUTBOUND,
        algorithm=Secret.Algorithm.ED25519,
        key=Ed25519PrivateKey.generate().to_text(),
        active_from=now + lead,
    )


def secrets_in_force(*, partner: Partner, now: datetime) -> int:
    """Count the secrets of a partner's own that sign messages to it."""
    return _own_secrets(partner).active(now=now).count()


@transaction.atomic
def rotate_secret(*, partner: Partner, now: datetime, overlap: timedelta) -> str:
    """Give the partner a new outbound secret and return its text, to be shown once.

    The old ones go on signing beside it until ``overlap`` is over, so that a receiver that knows either key verifies.
    Raises TooManySecrets.
    """
    own = _own_secrets(partner)
    if overlap and own.active(now=now).count() >= MAX_SECRETS:
        message = f"{MAX_SECRETS} secrets of {partner.slug} sign already. Wait until one retires, or revoke one."
        raise TooManySecrets(message)
    old = own.select_for_update().filter(Q(retire_at=None) | Q(retire_at__gt=now + overlap))
    old.update(retire_at=now + overlap)
    text = HmacSecret.generate().to_text()
    Secret.objects.create(
        partner=partner, direction=Secret.Direction.OUTBOUND, algorithm=Secret.Algorithm.HMAC, key=text
    )
    return text


def _own_secrets(partner: Partner) -> SecretQuerySet:
    return Secret.objects.filter(
        partner=partner, direction=Secret.Direction.OUTBOUND, algorithm=Secret.Algorithm.HMAC, revoked_at=None
    )


def identifier_keys(*, partner_id: int) -> Sequence[IdentifierKey]:
    """Read the keys of a partner's hashed identifiers: the one in force first, then those before it."""
    rows = models.IdentifierKey.objects.filter(partner_id=partner_id).order_by("-id")
    return [IdentifierKey.from_text(row.key) for row in rows]


def make_identifier_key(*, partner: Partner) -> IdentifierKey:
    """Make a key for a partner's identifiers, which is in force from now on."""
    key = IdentifierKey.generate()
    models.IdentifierKey.objects.create(partner=partner, key=key.to_text())
    return key
