"""The keys that are in force: what signs our messages, and what the world checks them with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Q

from partners.models import Partner, Secret
from partners.signing import Ed25519PrivateKey, Ed25519PublicKey, HmacSecret, SigningKey

# How long a rotated secret still signs beside its successor.
OVERLAP = timedelta(hours=24)

_SERVICE_KEY_LOCK = 0x4B455953  # "KEYS"


@dataclass(frozen=True)
class Signer:
    """The keys that sign one partner's messages now, and their public names for the attempt's record."""

    key_ids: tuple[str, ...]
    keys: tuple[SigningKey, ...]


def signer_for(*, partner_id: int, now: datetime) -> Signer:
    """Read the partner's active outbound secrets and the service-wide Ed25519 key: ``v1`` and ``v1a`` side by side."""
    secrets = (
        Secret.objects.active(now=now)
        .filter(Q(partner_id=partner_id) | Q(partner=None), direction=Secret.Direction.OUTBOUND)
        .order_by("-active_from", "-id")
    )
    found = [(secret.key_id, open_key(secret)) for secret in secrets]
    return Signer(tuple(key_id for key_id, _ in found), tuple(key for _, key in found))


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
    return list(
        Secret.objects.filter(
            Q(retire_at=None) | Q(retire_at__gt=now),
            partner=None,
            algorithm=Secret.Algorithm.ED25519,
            revoked_at=None,
        ).order_by("active_from", "id")
    )


@transaction.atomic
def ensure_service_key() -> None:
    """Make the service-wide Ed25519 key if there is none. Two callers at once make one."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", [_SERVICE_KEY_LOCK])
    service_keys = Secret.objects.filter(partner=None, algorithm=Secret.Algorithm.ED25519, revoked_at=None)
    if not service_keys.exists():
        Secret.objects.create(
            direction=Secret.Direction.OUTBOUND,
            algorithm=Secret.Algorithm.ED25519,
            key=Ed25519PrivateKey.generate().to_text(),
        )


@transaction.atomic
def rotate_secret(*, partner: Partner, now: datetime, overlap: timedelta = OVERLAP) -> str:
    """Give the partner a new outbound secret and return its text, to be shown once.

    The old ones go on signing beside it until ``overlap`` is over, so that a receiver that knows either key verifies.
    """
    old = Secret.objects.select_for_update().filter(
        Q(retire_at=None) | Q(retire_at__gt=now + overlap),
        partner=partner,
        direction=Secret.Direction.OUTBOUND,
        algorithm=Secret.Algorithm.HMAC,
        revoked_at=None,
    )
    old.update(retire_at=now + overlap)
    text = HmacSecret.generate().to_text()
    Secret.objects.create(
        partner=partner, direction=Secret.Direction.OUTBOUND, algorithm=Secret.Algorithm.HMAC, key=text
    )
    return text
