"""What a partner asks and changes about itself: its endpoint, its keys, and the checks that prove both."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from django.conf import settings
from django.utils import timezone
from ninja import Path, Router, Status
from pydantic import Field

from partners import keyring
from partners.models import Partner, Secret, Verification
from removal import partnerships, verification
from removal.api import schemas
from removal.api.answers import Answered
from removal.api.auth import KeyRequest, PartnerKey, actor, partner_id
from removal.api.problems import Problem

router = Router(auth=PartnerKey(), tags=["your own affairs"])

# A verification keeps a thread of the web server for up to a minute: so many at once leave room for everybody else.
VERIFICATIONS_AT_ONCE = 2
_slots = threading.BoundedSemaphore(VERIFICATIONS_AT_ONCE)


class OwnEndpoint(Answered):
    """``pending_url`` is used once it has passed the checks. A suspended endpoint answered 410, and may pass them."""

    url: str
    pending_url: str
    state: str
    window: int
    max_notices: int
    rate_per_second: int


class OwnKey(Answered):
    """A key of yours that is in force: outbound ones sign our messages, inbound ones check your answers."""

    id: str = Field(validation_alias="key_id")
    direction: str
    algorithm: str
    public_key: str | None = Field(None, description="Of inbound Ed25519 keys. Secrets are never shown again.")
    created_at: datetime
    active_from: datetime
    retire_at: datetime | None


class EndpointCheck(Answered):
    """One check. ``passed`` null: it was not run. ``fix`` is advice too where it passed."""

    name: str
    passed: bool | None
    sent: str
    came_back: str
    fix: str


class OwnVerification(Answered):
    """What your endpoint proved.

    ``effect``: ``live``, ``url``, ``opened``, ``incident`` (staff see it), ``none`` or ``stale`` (run it again).
    """

    passed: bool
    effect: str
    url: str
    key_ids: list[str]
    started_at: datetime
    finished_at: datetime
    checks: list[EndpointCheck] = Field(description="Empty where the platform's staff let it through without.")


class OwnPartner(Answered):
    slug: str
    name: str
    state: str
    usages: list[str]
    endpoint: OwnEndpoint
    keys: list[OwnKey]
    verification: OwnVerification | None


class NewSecret(Answered):
    secret: str
    others_retire_at: datetime


@router.get("/partner", response=OwnPartner)
def show_partner(request: KeyRequest) -> OwnPartner:
    """Show yourself as the service knows you: state, endpoint, limits, keys by id and age, the last verification."""
    partner = _partner(request)
    last = Verification.objects.filter(partner=partner).order_by("-id").first()
    return OwnPartner(
        slug=partner.slug,
        name=partner.name,
        state=partner.state,
        usages=partner.usages,
        endpoint=OwnEndpoint.model_validate(partner.endpoint),
        keys=[_key(secret) for secret in keyring.in_force(partner=partner, now=timezone.now())],
        verification=OwnVerification.model_validate(last) if last else None,
    )


@router.post("/partner/verify", response=OwnVerification)
def verify_partner(request: KeyRequest) -> Verification:
    """Run the checks against your endpoint: about ten messages, a minute at most. Passing makes you live.

    Once in a minute (429 before). Samples carry epoch 0: answer them, and do nothing.
    """
    with _slot():
        return verification.verify(actor=actor(request), slug=_partner(request).slug, gap=verification.GAP)


@router.put("/partner/endpoint", response=OwnVerification)
def move_endpoint(request: KeyRequest, body: schemas.NewEndpoint) -> Verification:
    """Propose another URL and run the checks against it. It is used once it has passed; until then, the old one is."""
    with _slot():
        return verification.verify(
            actor=actor(request), slug=_partner(request).slug, url=body.url, gap=verification.GAP
        )


@router.post("/partner/secrets", response={201: NewSecret})
def rotate_secret(request: KeyRequest) -> Status[NewSecret]:
    """Take a new signing secret: it is shown this once. The older ones sign beside it until ``others_retire_at``.

    Halfway there, the service checks that your endpoint knows the new one.
    """
    now = timezone.now()
    secret = partnerships.rotate_secret(actor=actor(request), slug=_partner(request).slug, now=now)
    return Status(201, NewSecret(secret=secret, others_retire_at=now + settings.SECRET_OVERLAP))


@router.post("/partner/signing-keys", response={201: OwnKey})
def register_signing_key(request: KeyRequest, body: schemas.NewSigningKey) -> Status[OwnKey]:
    """Register the public half of an Ed25519 key that you sign acknowledgements with: at most four, safe to repeat."""
    key = partnerships.register_signing_key(
        actor=actor(request), slug=_partner(request).slug, public_key=body.public_key, now=timezone.now()
    )
    return Status(201, _key(key))


@router.delete("/partner/signing-keys/{key_id}", response={204: None})
def revoke_signing_key(request: KeyRequest, key_id: Path[schemas.KeyId]) -> Status[None]:
    """End a key of yours at once: no acknowledgement signed with it is believed any more."""
    partnerships.revoke_signing_key(actor=actor(request), slug=_partner(request).slug, key_id=key_id)
    return Status(204, None)


def _partner(request: KeyRequest) -> Partner:
    return Partner.objects.select_related("endpoint").get(pk=partner_id(request))


def _key(secret: Secret) -> OwnKey:
    key = OwnKey.model_validate(secret)
    if secret.direction == Secret.Direction.INBOUND and secret.algorithm == Secret.Algorithm.ED25519:
        key.public_key = secret.key
    return key


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(blocking=False):
        raise Problem(
            503, "busy", "Other verifications are running. Try again in a minute.", headers={"Retry-After": "60"}
        )
    try:
        yield
    finally:
        _slots.release()
