"""What is done to partners: add, pause, resume, give and end keys. Each leaves a log entry.

Whether a partner may be sent to is decided in removal.verification.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models.functions import Now

from partners import addresses, keyring, keys
from partners.models import ApiKey, Endpoint, Partner, Secret, slug_validator
from removal.models import Delivery, LogEntry, Stream
from removal.models.subjects import USAGES
from removal.transactions import whole_step
from removal.why import UNSAID, Why


class InvalidPartner(Exception):
    """A partner with these details cannot be. The message says which, and what to do."""


class UnknownPartner(Exception):
    """No partner has this slug."""


class UnknownKey(Exception):
    """No API key has this prefix."""


class StillOnboarding(Exception):
    """A partner that is not live yet has nothing to pause: nothing is sent to it before it has passed the checks."""


@dataclass(frozen=True)
class NewPartner:
    """A partner with the two secrets that are shown once: ours that signs, theirs that calls.

    ``identifier_key`` is empty unless its identifiers are hashed.
    """

    partner: Partner
    secret: str
    api_key: str
    identifier_key: str = ""


@whole_step
def add_partner(
    *,
    actor: str,
    slug: str,
    name: str,
    url: str,
    now: datetime,
    usages: Sequence[str] = ("all",),
    identifiers: str = Partner.Identifiers.RAW,
    **limits: int,
) -> NewPartner:
    """Make a partner, licensed for ``usages``, with its endpoint, stream, signing secret and API key.

    It is in onboarding: what it must be told is planned, and sent once its endpoint has passed the checks. ``limits``
    are those of Endpoint: window, max_notices, rate_per_second. Raises InvalidPartner.
    """
    unknown = [usage for usage in usages if usage not in USAGES]
    if unknown or not usages:
        raise InvalidPartner(f"There is no usage {', '.join(unknown)}. Write one of: {', '.join(USAGES)}.")
    partner = Partner(slug=slug, name=name or slug, usages=list(dict.fromkeys(usages)), identifiers=identifiers)
    endpoint = Endpoint(partner=partner, url=checked_url(url), **limits)
    try:
        partner.full_clean()
        endpoint.full_clean(exclude=["partner"])
    except ValidationError as error:
        raise InvalidPartner("; ".join(error.messages)) from error
    partner.save()
    endpoint.save()
    Stream.objects.create(partner=partner)
    keys.ensure_service_key()
    secret = keys.rotate_secret(partner=partner, now=now, overlap=timedelta(0))
    _, api_key = ApiKey.create(partner=partner)
    hashed = identifiers == Partner.Identifiers.HMAC
    identifier_key = keys.make_identifier_key(partner=partner).to_text() if hashed else ""
    log_change(actor, "partner_added", partner)
    return NewPartner(partner, secret, api_key, identifier_key)


@whole_step
def set_paused(*, actor: str, slug: str, paused: bool, why: Why = UNSAID) -> bool:
    """Stop or resume the messages to a partner; returns whether that changed anything.

    Obligations stay open and age while it is paused. A message that is on its way may still arrive. Raises
    StillOnboarding.
    """
    partner = lock_partner(slug)
    if partner.state == Partner.State.ONBOARDING:
        message = f"{slug} is in onboarding: nothing is sent to it before its endpoint has passed the checks."
        raise StillOnboarding(message)
    state = Partner.State.PAUSED if paused else Partner.State.LIVE
    if partner.state == state:
        return False
    partner.state = state
    partner.save(update_fields=["state"])
    if not paused:
        make_due(partner)
    log_change(actor, "partner_paused" if paused else "partner_resumed", partner, **why.as_ids())
    return True


@whole_step
def rotate_secret(*, actor: str, slug: str, now: datetime, overlap: timedelta | None = None, why: Why = UNSAID) -> str:
    """Give a partner a new signing secret, to be shown once; the old one signs beside it until ``overlap`` is over.

    That is SECRET_OVERLAP unless said. Halfway through, a worker verifies that the partner knows the new one. Raises
    keys.TooManySecrets.
    """
    partner = lock_partner(slug)
    overlap = settings.SECRET_OVERLAP if overlap is None else overlap
    secret = keys.rotate_secret(partner=partner, now=now, overlap=overlap)
    _let_verify(partner, after=overlap / 2)
    log_change(actor, "secret_rotated", partner, **why.as_ids())
    return secret


@whole_step
def choose_identifiers(*, actor: str, slug: str, identifiers: str, new_key: bool = False) -> str:
    """Choose how a partner's messages name things from the next one on; returns the key in force, empty when raw.

    Messages that exist keep their bytes. The first key is made here; ``new_key`` makes another, because the one in
    force is known to somebody else: every identifier is another one then. Choosing the same again changes nothing.
    """
    partner = lock_partner(slug)
    known = keys.identifier_keys(partner_id=partner.pk)
    is_hashed = identifiers == Partner.Identifiers.HMAC
    if is_hashed and (new_key or not known):
        known = [keys.make_identifier_key(partner=partner), *known]
        log_change(actor, "identifier_key_made", partner)
    if partner.identifiers != identifiers:
        partner.identifiers = identifiers
        partner.save(update_fields=["identifiers"])
        LogEntry.objects.create(
            actor=actor, action="identifiers_chosen", about={"partner": partner.pk, "identifiers": identifiers}
        )
    return known[0].to_text() if is_hashed else ""


@whole_step
def revoke_secret(*, actor: str, slug: str, key_id: str, now: datetime, replace: bool = False) -> str:
    """End a signing secret at once: every try from now on, also of older messages, is signed without it.

    With ``replace`` the partner is given a new one, whose text is returned. A try that a worker holds already may still
    carry the signature. Raises keyring.UnknownKey, and without ``replace`` keyring.LastSecret.
    """
    partner = lock_partner(slug)
    text = keys.rotate_secret(partner=partner, now=now, overlap=settings.SECRET_OVERLAP) if replace else ""
    keyring.revoke(partner=partner, key_id=key_id, direction=Secret.Direction.OUTBOUND)
    _let_verify(partner, after=timedelta(0))
    log_change(actor, "secret_revoked", partner, key=key_id)
    return text


@whole_step
def register_signing_key(*, actor: str, slug: str, public_key: str, now: datetime) -> Secret:
    """Add a public key of a partner's, which its answers may be signed with. Raises keyring.KeyRefused."""
    partner = lock_partner(slug)
    key, is_new = keyring.register(partner=partner, public_key=public_key, now=now)
    if is_new:
        log_change(actor, "signing_key_registered", partner, key=key.key_id)
    return key


@whole_step
def revoke_signing_key(*, actor: str, slug: str, key_id: str) -> None:
    """End a partner's public key at once: no answer is believed because of it. Raises keyring.UnknownKey."""
    partner = lock_partner(slug)
    keyring.revoke(partner=partner, key_id=key_id, direction=Secret.Direction.INBOUND)
    log_change(actor, "signing_key_revoked", partner, key=key_id)


@whole_step
def rotate_service_key(*, actor: str, now: datetime, lead: timedelta, overlap: timedelta) -> Secret:
    """Make the next key that signs for all partners; see ``keys.rotate_service_key``. Raises keys.RotationUnderway."""
    key = keys.rotate_service_key(now=now, lead=lead, overlap=overlap)
    _let_all_verify(after=lead + overlap / 2)
    LogEntry.objects.create(actor=actor, action="service_key_rotated", about={"key": key.key_id})
    return key


@whole_step
def revoke_service_key(*, actor: str, key_id: str, now: datetime) -> None:
    """End a key that signs for all partners, at once, and have another one in its place. Raises keyring.UnknownKey."""
    keyring.revoke_service_key(key_id=key_id, now=now)
    _let_all_verify(after=timedelta(0))
    LogEntry.objects.create(actor=actor, action="service_key_revoked", about={"key": key_id})


def _let_all_verify(*, after: timedelta) -> None:
    proved = Endpoint.objects.exclude(partner__state=Partner.State.ONBOARDING)
    proved.update(verify_due_at=Now() + after)


def _let_verify(partner: Partner, *, after: timedelta) -> None:
    """Have a worker run the checks of a partner that is sent to; one in onboarding runs them when it is ready."""
    if partner.state != Partner.State.ONBOARDING:
        Endpoint.objects.filter(partner=partner).update(verify_due_at=Now() + after)


@whole_step
def create_api_key(*, actor: str, source: str = "", slug: str | None = None, why: Why = UNSAID) -> tuple[ApiKey, str]:
    """Make a key for a platform's ``source`` or for a partner; returns it with its text, which is not kept.

    Raises UnknownPartner, or ValidationError for a source that is no slug.
    """
    if slug is None:
        slug_validator(source)
        key, text = ApiKey.create(source=source)
    else:
        key, text = ApiKey.create(partner=lock_partner(slug))
    LogEntry.objects.create(actor=actor, action="api_key_created", about={"api_key": key.pk, **why.as_ids()})
    return key, text


@whole_step
def revoke_api_key(*, actor: str, prefix: str, why: Why = UNSAID) -> bool:
    """End a key at once; returns whether that changed anything. Raises UnknownKey."""
    key = ApiKey.objects.select_for_update().filter(prefix=prefix).first()
    if key is None:
        raise UnknownKey(prefix)
    if key.revoked_at:
        return False
    ApiKey.objects.filter(pk=key.pk).update(revoked_at=Now())
    LogEntry.objects.create(actor=actor, action="api_key_revoked", about={"api_key": key.pk, **why.as_ids()})
    return True


def checked_url(url: str) -> str:
    """Return the address if messages may go there. Raises InvalidPartner with what is wrong."""
    try:
        addresses.check_url(
            url,
            allow_http=settings.PARTNER_ALLOW_HTTP,
            allowed_networks=settings.PARTNER_ALLOWED_NETWORKS,
            own_places=settings.OWN_PLACES,
        )
    except addresses.UrlRefused as error:
        raise InvalidPartner(str(error)) from error
    return url


def make_due(partner: Partner) -> None:
    """Try again now what waits for another try: it may have waited for just this."""
    stream = Stream.objects.select_for_update(no_key=True).filter(partner=partner)
    stream.first()
    stream.update(failures=0, probe_at=None, allowance=1)
    Delivery.objects.filter(stream_id=partner.pk, state=Delivery.State.WAITING).update(due_at=Now())


def find_partner(slug: str) -> Partner:
    """Find a partner by its slug. Raises UnknownPartner."""
    partner = Partner.objects.filter(slug=slug).first()
    if partner is None:
        raise UnknownPartner(slug)
    return partner


def lock_partner(slug: str) -> Partner:
    """Lock a partner's row. Needs an open transaction. Raises UnknownPartner."""
    partner = Partner.objects.select_for_update(no_key=True).filter(slug=slug).first()
    if partner is None:
        raise UnknownPartner(slug)
    return partner


def log_change(actor: str, action: str, partner: Partner, **ids: str) -> None:
    LogEntry.objects.create(actor=actor, action=action, about={"partner": partner.pk, **ids})
