"""What staff do to partners and their API keys: a question, an effect, a log entry each."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django import forms
from django.utils import timezone

from partners import keys
from partners.admin import shorten
from partners.models import ApiKey, Partner, Verification
from removal import health, hints, partnerships, replay, verification
from removal.admin.actions import Act, Action, Failed, Shown, WhyForm, one_by_one
from removal.admin.words import capped


def _extent_said(act: Act) -> dict[str, Any]:
    return {name: act.said[name] for name in ("first", "last", "since")}


def _what_waits(partners: Sequence[Partner], *, then: str) -> list[str]:
    """Say how much a partner has still to be sent, and what becomes of it."""
    lines = []
    for partner in partners:
        at = health.position_of(partner_id=partner.pk)
        messages = f"{capped(at.waiting + at.again)} messages wait"
        lines.append(f"{partner.slug}: {messages}, {at.unpacked:,} notices are in none yet. {then}")
    return lines


class PauseForm(WhyForm):
    reasons = (
        ("partner_asked", "the partner asked for it"),
        ("planned_work", "planned work, theirs or ours"),
        ("fault", "something is wrong there, and must be looked at first"),
        ("contract", "the contract has ended, or is in question"),
    )


def _set_paused(act: Act, *, paused: bool) -> str:
    def step(partner: Partner) -> None:
        if not partnerships.set_paused(actor=act.actor, slug=partner.slug, paused=paused, why=act.why):
            raise Failed(_why_not(partner))

    return one_by_one(act, step, done="paused" if paused else "resumed", errors=(Failed, partnerships.StillOnboarding))


def _why_not(partner: Partner) -> str:
    """Say why a partner is not paused, or not resumed."""
    partner.refresh_from_db(fields=["state"])
    if partner.state == Partner.State.ONBOARDING:
        return f"{partner.slug} is in onboarding: nothing is sent to it before its endpoint has passed the checks."
    return f"{partner.slug} is {partner.state} already."


PAUSE = Action(
    name="pause",
    label="Pause: hold messages",
    permission="removal.pause",
    run=partial(_set_paused, paused=True),
    preview=partial(_what_waits, then="All of it will be held."),
    form=PauseForm,
    applies=lambda partner: partner.state == Partner.State.LIVE,
    why_not=_why_not,
    explanation="Nothing is sent while it is paused. What it is owed stays owed, and gets older.",
)


class ResumeForm(WhyForm):
    reasons = (
        ("over", "what it was paused for is over"),
        ("partner_asked", "the partner asked for it"),
        ("mistake", "the pause was a mistake"),
    )


RESUME = Action(
    name="resume",
    label="Resume: send messages again",
    permission="removal.pause",
    run=partial(_set_paused, paused=False),
    preview=partial(_what_waits, then="All of it will be sent."),
    form=ResumeForm,
    applies=lambda partner: partner.state == Partner.State.PAUSED,
    why_not=_why_not,
    explanation="What waited is sent, the oldest first.",
)


class RotateForm(WhyForm):
    reasons = (
        ("planned", "it was time for it"),
        ("partner_asked", "the partner asked for it"),
        ("leaked", "somebody else may know the old one"),
    )

    overlap_hours = forms.IntegerField(
        label="The old secret goes on signing for",
        min_value=0,
        max_value=24 * 30,
        initial=24,
        help_text="Hours. 0 when it has leaked: the partner refuses messages until it has the new one.",
    )


def _secrets_of(partner: Partner) -> str:
    number = keys.secrets_in_force(partner=partner, now=timezone.now())
    return f"{number} secret{'' if number == 1 else 's'}"


def _rotate(act: Act) -> Shown:
    partner = _one(act)
    hours: int = act.said["overlap_hours"]
    secret = partnerships.rotate_secret(
        actor=act.actor, slug=partner.slug, now=timezone.now(), overlap=timedelta(hours=hours), why=act.why
    )
    return Shown(f"{partner.slug} has a new signing secret; the old one signs too for {hours} more hours.", secret)


ROTATE = Action(
    name="rotate",
    label="Give a new signing secret",
    permission="partners.add_secret",
    run=_rotate,
    preview=lambda partners: [
        f"{partner.slug} signs with {_secrets_of(partner)} now; one more will" for partner in partners
    ],
    form=RotateForm,
    is_dangerous=True,
    errors=(Failed, keys.TooManySecrets),
    explanation="The partner's engineers need the new one before the old one ends. Send it over a safe channel.",
)


class AddressForm(WhyForm):
    reasons = (
        ("partner_asked", "the partner asked for it"),
        ("gone", "the old one answered 410 Gone"),
        ("mistake", "the old one was a mistake of ours"),
    )

    url = forms.CharField(
        label="New URL",
        max_length=2000,
        help_text="https only. It is tried with samples at once, and used if it passes; until then it is pending.",
    )


def _told(result: Verification) -> str:
    word = "passed" if result.passed else "was let through" if result.waived_because else "did not pass"
    return f"{result.partner.slug} {word}. What followed: {result.get_effect_display()}."


class VerifyForm(WhyForm):
    reasons = (
        ("new", "it is to go live"),
        ("repaired", "the partner says that it is repaired"),
        ("routine", "to see that it still passes"),
    )


def _verify(act: Act) -> str:
    return _told(verification.verify(actor=act.actor, slug=_one(act).slug, url=act.said.get("url"), why=act.why))


VERIFY = Action(
    name="verify",
    label="Verify its endpoint",
    permission="removal.verify",
    run=_verify,
    preview=lambda partners: [f"{partner.slug}, at {shorten(_url_to_prove(partner))}" for partner in partners],
    form=VerifyForm,
    errors=(Failed, verification.CannotVerify),
    explanation="Sends about ten samples to its pending URL, or to the one in use. The page waits, a minute at most.",
)
CHANGE_URL = Action(
    name="change-url",
    label="Change the URL",
    permission="partners.change_endpoint",
    run=_verify,
    preview=lambda partners: [f"{partner.slug}, now at {shorten(partner.endpoint.url)}" for partner in partners],
    form=AddressForm,
    errors=(Failed, partnerships.InvalidPartner, verification.CannotVerify),
    is_dangerous=True,
    explanation="Removal notices name people's content: be sure that the new address is the partner's own.",
)


class WaiverForm(forms.Form):
    reason = forms.CharField(
        label="Why without the checks", max_length=1000, help_text="It is kept and shown, with your name."
    )


def _url_to_prove(partner: Partner) -> str:
    """Name the URL that a verification tries and that a waiver puts in use."""
    return str(partner.endpoint.pending_url or partner.endpoint.url)


def _waive(act: Act) -> str:
    return _told(verification.waive(actor=act.actor, slug=_one(act).slug, reason=act.said["reason"]))


WAIVE_VERIFICATION = Action(
    name="waive-verification",
    label="Let it through without the checks",
    permission="removal.waive_verification",
    run=_waive,
    # In full, and asked again should the partner change it meanwhile: it may not be the address in use.
    effect=lambda act: f"Will send what {_one(act).slug} is owed to {_url_to_prove(_one(act))}.",
    form=WaiverForm,
    errors=(Failed, verification.NothingToWaive),
    is_dangerous=True,
    explanation="Nothing is proved by it: an endpoint that checks no signature takes orders from anybody.",
)


class RangeForm(WhyForm):
    reasons = (
        ("partner_lost", "the partner lost what it had received"),
        ("restored", "the partner went back to a backup"),
        ("repaired", "its receiver did not do what it should, and does now"),
    )

    first = forms.IntegerField(label="From number", min_value=1, initial=1)
    last = forms.IntegerField(label="To number", min_value=1, required=False, help_text="Empty: to the end.")
    since = forms.DateTimeField(
        label="Only what was sent since", required=False, help_text="UTC, such as 2026-11-24 09:30. Empty: all of it."
    )


def _extent(act: Act) -> str:
    extent = replay.extent_of(slug=_one(act).slug, **_extent_said(act))
    return f"Will send {extent} again."


def _resend(act: Act) -> str:
    partner = _one(act)
    extent = replay.send_again(actor=act.actor, slug=partner.slug, why=act.why, **_extent_said(act))
    hints.hint_stream(partner_id=partner.pk)
    return f"Sent again, behind all that is new: {extent}."


RESEND = Action(
    name="resend",
    label="Send again what it had already",
    permission="removal.resend",
    run=_resend,
    preview=lambda partners: [f"{partner.slug}: numbers 1 to {partner.stream.head} so far" for partner in partners],
    effect=_extent,
    form=RangeForm,
    errors=(Failed, replay.NothingSent),
    is_dangerous=True,
    explanation="The same numbers in the same messages, for a partner that lost what it received.",
)


class NewKeyForm(WhyForm):
    reasons = (
        ("first", "it has none yet"),
        ("planned", "it was time for a new one"),
        ("lost", "it lost its own"),
        ("leaked", "somebody else may know its own: end that one, too"),
    )


def _new_key(act: Act) -> Shown:
    partner = _one(act)
    _, text = partnerships.create_api_key(actor=act.actor, slug=partner.slug, why=act.why)
    return Shown(f"A new API key for {partner.slug}. Its other keys stay in force.", text)


NEW_KEY = Action(
    name="new-key",
    label="Give a new API key",
    permission="partners.add_apikey",
    run=_new_key,
    form=NewKeyForm,
    is_dangerous=True,
    explanation="With it the partner reads its notices and answers them.",
)


class RevokeForm(WhyForm):
    reasons = (
        ("replaced", "its holder has another one"),
        ("leaked", "somebody else may know it"),
        ("ended", "its holder has no business here any more"),
    )


def _revoke(act: Act) -> str:
    def step(key: ApiKey) -> None:
        if not partnerships.revoke_api_key(actor=act.actor, prefix=key.prefix, why=act.why):
            raise Failed(f"The key {key.prefix}… was ended before.")

    return one_by_one(act, step, done="ended at once", errors=(Failed,))


REVOKE = Action(
    name="revoke",
    label="End this API key at once",
    permission="partners.change_apikey",
    run=_revoke,
    preview=lambda keys: [f"{key.prefix}… of {key.partner or key.source}" for key in keys],
    form=RevokeForm,
    is_dangerous=True,
    applies=lambda key: key.revoked_at is None,
    explanation="Whoever uses it is refused from now on. It cannot be taken back.",
)


def _one(act: Act) -> Partner:
    """Take the one partner that this can be done to at a time."""
    rows: Sequence[Partner] = act.rows
    if len(rows) != 1:
        raise Failed("Choose one partner at a time for this. Nothing was done.")
    return rows[0]
