"""Let a partner's endpoint prove itself, and let what was proved take effect: going live, a new URL.

A verification is: lease it (commit) -> send the samples, with no transaction open -> record it and what follows
(commit), if the URL and the keys that were tried are still those in force. Samples carry epoch 0: they are in no
stream, oblige nobody and name nothing real.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import cast

import structlog
from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from partners import onboarding, webhook
from partners.keys import Signer, lasting, signer_for
from partners.models import Endpoint, Partner, Verification
from partners.onboarding import Check
from partners.signing import SigningKey
from removal import hints, partnerships, payload
from removal.models import Incident, LogEntry, Stream
from removal.statements import read_response
from removal.transactions import whole_step
from removal.why import UNSAID, Why

log = structlog.get_logger()

# Longer than the suite can take, so that only the dead lose it.
LEASE = onboarding.TIME_LIMIT + timedelta(seconds=30)
# A partner may ask for one verification in this time: each is ten messages and may hold a thread for a minute.
GAP = timedelta(minutes=1)

INCIDENT = "verification"

Effect = Verification.Effect


class CannotVerify(Exception):
    """Not now: another verification of this partner runs, or the last one was a moment ago. Try after ``wait``."""

    def __init__(self, message: str, *, wait: timedelta) -> None:
        super().__init__(message)
        self.wait_seconds = max(1, ceil(wait.total_seconds()))


class Underway(CannotVerify):
    """One verification of a partner at a time."""


class TooSoon(CannotVerify):
    """The partner asks more often than once in ``GAP``."""


class NothingToWaive(Exception):
    """The partner is live on the URL that it has, or the waiver gives no reason."""


@dataclass(frozen=True)
class _Trial:
    """What is tried, and until when nobody else may."""

    slug: str
    url: str
    signer: Signer
    lasting_keys: Sequence[SigningKey]
    epoch: int
    head: int
    started_at: datetime
    lease: datetime


def verify(
    *, actor: str, slug: str, url: str | None = None, gap: timedelta | None = None, why: Why = UNSAID
) -> Verification:
    """Run the checks against a partner's endpoint, or against the new ``url`` first proposed, and record the result.

    Passing makes a partner in onboarding live, puts a pending URL in use and opens a suspended endpoint. Failing stops
    nobody: a URL in use that fails opens an incident. Takes up to ``onboarding.TIME_LIMIT``; opens its own
    transactions. Raises UnknownPartner, InvalidPartner (the URL), Underway, and TooSoon when the last one began less
    than ``gap`` ago.
    """
    trial = _begin(actor=actor, slug=slug, url=url, gap=gap, why=why)
    with webhook.Line(
        allow_http=settings.PARTNER_ALLOW_HTTP,
        allowed_networks=settings.PARTNER_ALLOWED_NETWORKS,
        own_places=settings.OWN_PLACES,
    ) as line:
        checks = onboarding.run(
            line=line,
            url=trial.url,
            keys=trial.signer.keys,
            lasting_keys=trial.lasting_keys,
            samples=make_samples(slug=slug, epoch=trial.epoch, head=trial.head, now=trial.started_at),
            deadline=settings.DELIVERY_DEADLINE,
        )
    verification = _finish(actor=actor, trial=trial, checks=checks)
    _hint(verification)
    return verification


@whole_step
def _begin(*, actor: str, slug: str, url: str | None, gap: timedelta | None, why: Why) -> _Trial:
    partner = partnerships.lock_partner(slug)
    endpoint = _lock_endpoint(partner)
    now = _clock()
    if endpoint.verifying_until and endpoint.verifying_until > now:
        message = f"A verification of {slug} is under way; it takes a minute at most. Try again after it."
        raise Underway(message, wait=endpoint.verifying_until - now)
    if gap:
        last = Verification.objects.filter(partner=partner, waived_because="").order_by("-id").first()
        if last and last.started_at > now - gap:
            message = f"The last verification of {slug} was a moment ago. Look at its result, then try again."
            raise TooSoon(message, wait=last.started_at + gap - now)
    if url is not None:
        _propose(actor, partner, endpoint, url, why)
    endpoint.verifying_until = now + LEASE
    endpoint.save(update_fields=["verifying_until"])
    signer = signer_for(partner_id=partner.pk, now=now)
    stream = Stream.objects.get(partner=partner)
    return _Trial(
        slug=slug,
        url=endpoint.pending_url or endpoint.url,
        signer=signer,
        lasting_keys=lasting(signer, partner_id=partner.pk),
        epoch=stream.epoch,
        head=stream.head,
        started_at=now,
        lease=endpoint.verifying_until,
    )


def _propose(actor: str, partner: Partner, endpoint: Endpoint, url: str, why: Why = UNSAID) -> None:
    """Keep a new URL beside the one in use. Nothing is sent to a partner in onboarding: its URL is replaced."""
    partnerships.checked_url(url)
    if partner.state == Partner.State.ONBOARDING:
        endpoint.url, endpoint.pending_url = url, ""
    else:
        is_in_use = url == endpoint.url and endpoint.state == Endpoint.State.OPEN
        endpoint.pending_url = "" if is_in_use else url
    endpoint.changed_at = _clock()
    endpoint.save(update_fields=["url", "pending_url", "changed_at"])
    partnerships.log_change(actor, "endpoint_proposed", partner, **why.as_ids())


@whole_step
def _finish(*, actor: str, trial: _Trial, checks: Sequence[Check]) -> Verification:
    partner, endpoint = _lock_all(trial.slug)
    now = _clock()
    passed = onboarding.has_passed(checks)
    holds_lease = endpoint.verifying_until == trial.lease
    in_force = signer_for(partner_id=partner.pk, now=now).key_ids == trial.signer.key_ids
    if not (holds_lease and in_force and trial.url == (endpoint.pending_url or endpoint.url)):
        effect = Effect.STALE
    elif passed:
        effect = _take_effect(partner, endpoint, now=now)
        endpoint.verify_due_at = None
    else:
        effect = Effect.NONE
        if partner.state != Partner.State.ONBOARDING and not endpoint.pending_url:
            _open_incident(partner)
            effect = Effect.INCIDENT
    if endpoint.verify_due_at and endpoint.verify_due_at <= trial.started_at:
        endpoint.verify_due_at = None
    if holds_lease:
        endpoint.verifying_until = None
    endpoint.save()
    verification = Verification.objects.create(
        partner=partner,
        url=trial.url,
        key_ids=list(trial.signer.key_ids),
        started_at=trial.started_at,
        finished_at=now,
        passed=passed,
        effect=effect,
        checks=[asdict(check) for check in checks],
        asked_by=actor,
    )
    _log(actor, "verification_passed" if passed else "verification_failed", verification)
    return verification


def waive(*, actor: str, slug: str, reason: str, url: str | None = None) -> Verification:
    """Let a partner, or its new URL, through without the checks, on a named person's word and for a reason.

    Has the effect of a passing verification. Raises UnknownPartner, InvalidPartner (the URL), and NothingToWaive.
    """
    if not reason.strip():
        raise NothingToWaive("A waiver needs a reason: it stands in the place of a proof.")
    verification = _waive(actor, slug, reason.strip(), url)
    _hint(verification)
    return verification


@whole_step
def _waive(actor: str, slug: str, reason: str, url: str | None) -> Verification:
    partner, endpoint = _lock_all(slug)
    now = _clock()
    if url is not None:
        _propose(actor, partner, endpoint, url)
    has_incident = _incidents(partner).exists()
    tried = endpoint.pending_url or endpoint.url
    effect = _take_effect(partner, endpoint, now=now)
    if effect == Effect.NONE and not has_incident:
        raise NothingToWaive(f"{slug} needs no waiver: it is {partner.state}, and {endpoint.url} is in use.")
    endpoint.save()
    verification = Verification.objects.create(
        partner=partner,
        url=tried,
        key_ids=list(signer_for(partner_id=partner.pk, now=now).key_ids),
        started_at=now,
        finished_at=now,
        passed=False,
        effect=effect,
        checks=[],
        asked_by=actor,
        waived_because=reason,
    )
    _log(actor, "verification_waived", verification)
    return verification


def _take_effect(partner: Partner, endpoint: Endpoint, *, now: datetime) -> Effect:
    """Put what was proved, or waived, in use. Needs all three rows locked; the endpoint is the caller's to save."""
    effect = Effect.NONE
    if endpoint.state == Endpoint.State.SUSPENDED:
        effect = Effect.OPENED
    if endpoint.pending_url and endpoint.pending_url != endpoint.url:
        effect = Effect.URL
    if partner.state == Partner.State.ONBOARDING:
        effect = Effect.LIVE
        partner.state = Partner.State.LIVE
        partner.save(update_fields=["state"])
    if effect != Effect.NONE:
        endpoint.url = endpoint.pending_url or endpoint.url
        endpoint.state, endpoint.state_reason, endpoint.changed_at = Endpoint.State.OPEN, "", now
        partnerships.make_due(partner)
    endpoint.pending_url = ""
    _incidents(partner).update(closed_at=now)
    return effect


DUE = """
select p.slug
  from partners_endpoint e join partners_partner p on p.id = e.partner_id and p.state = 'live'
 where e.verify_due_at <= clock_timestamp()
   and (e.verifying_until is null or e.verifying_until <= clock_timestamp())
 order by e.verify_due_at, e.id limit 1
"""


def next_due() -> str | None:
    """Name the partner whose verification has been due longest, after a change of keys, if there is one."""
    with connection.cursor() as cursor:
        cursor.execute(DUE)
        row = cursor.fetchone()
    return str(row[0]) if row else None


def make_samples(*, slug: str, epoch: int, head: int, now: datetime) -> onboarding.Samples:
    """Make a ping about the partner's stream, and a notice in epoch 0: one to the partner, one to somebody else."""
    ping = {
        "type": "removal.ping",
        "version": "1",
        "timestamp": payload.as_time(now),
        "data": {"partner": slug, "epoch": epoch, "head": head},
    }
    return onboarding.Samples(
        ping=json.dumps(ping, separators=(",", ":")).encode(),
        notice=_sample(slug, now=now),
        to_another=_sample(f"another-{secrets.token_hex(4)}", now=now),
        read_receipt=_read_receipt,
    )


def _sample(slug: str, *, now: datetime) -> bytes:
    notice = {
        "sequence": 1,
        "kind": "opt_out",
        "reason": "user_request",
        "request": "0" * 26,
        "subject": "sample:verification",
        "usages": ["all"],
        "items_total": 1,
        "held": [{"release": "sample", "items_total": 1, "items": ["sample:1"]}],
        "received_at": payload.as_time(now),
        "respond_by": payload.as_time(now + settings.NOTICE_RESPOND_WITHIN),
    }
    envelope = payload.Envelope(partner=slug, epoch=0, head=1, now=now)
    [message] = payload.pack([json.dumps(notice).encode()], first=1, max_notices=1, envelope=envelope)
    return message.body


def _read_receipt(answer: bytes) -> object:
    """Read which numbers an answer acknowledges, and how: nothing, unless it is an acknowledgement of number 1."""
    if not read_response(answer, epoch=0, first=1, last=1):
        return None
    body = json.loads(answer)
    return [
        (line.get("sequence", line.get("through")), line["status"]) for line in body.get("acknowledgements", [body])
    ]


def _hint(verification: Verification) -> None:
    if verification.effect not in {Effect.NONE, Effect.STALE}:
        hints.hint_stream(partner_id=verification.partner_id)


def _lock_all(slug: str) -> tuple[Partner, Endpoint]:
    """Lock a partner, its stream and its endpoint: the last two in the order of whoever records what was sent."""
    partner = partnerships.lock_partner(slug)
    Stream.objects.select_for_update(no_key=True).get(partner=partner)
    return partner, _lock_endpoint(partner)


def _lock_endpoint(partner: Partner) -> Endpoint:
    return Endpoint.objects.select_for_update(no_key=True).get(partner=partner)


def _clock() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        (now,) = cursor.fetchone()
    return cast(datetime, now)


def _incidents(partner: Partner) -> QuerySet[Incident]:
    return Incident.objects.filter(stream_id=partner.pk, kind=INCIDENT, closed_at=None)


def _open_incident(partner: Partner) -> None:
    if not _incidents(partner).exists():
        Incident.objects.create(stream_id=partner.pk, kind=INCIDENT)
        log.warning("incident_opened", partner_id=partner.pk, kind=INCIDENT)


def _log(actor: str, action: str, verification: Verification) -> None:
    about = {"partner": verification.partner_id, "verification": verification.pk, "effect": verification.effect}
    LogEntry.objects.create(actor=actor, action=action, about=about)
