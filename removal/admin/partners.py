"""Partners: who is told, where, and whether messages leave; and what staff do to them."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.utils import timezone
from django.utils.safestring import SafeString

from partners.admin import ApiKeyAdmin, ReadOnly, link, shorten
from partners.models import ApiKey, Endpoint, Partner
from removal import hints, partnerships, replay
from removal.admin.actions import Act, ActingAdmin, Action, Failed, Shown, one_by_one
from removal.admin.exports import EXPORT_PARTNER
from removal.admin.questions import holdings_of
from removal.admin.words import state_badge

# --- what staff do ---


def _set_paused(act: Act, *, paused: bool) -> str:
    same = [
        not partnerships.set_paused(actor=act.actor, slug=partner.slug, paused=paused) for partner in act.rows
    ].count(True)
    word, before = ("paused", "been paused before") if paused else ("resumed", "not been paused")
    return f"{len(act.rows) - same} {word}; {same} had {before}."


PAUSE = Action(
    name="pause",
    label="Pause: hold messages",
    permission="removal.pause",
    run=partial(_set_paused, paused=True),
    applies=lambda partner: partner.state == Partner.State.LIVE,
    explanation="Nothing is sent while it is paused. What it is owed stays owed, and gets older.",
)
RESUME = Action(
    name="resume",
    label="Resume: send messages again",
    permission="removal.pause",
    run=partial(_set_paused, paused=False),
    applies=lambda partner: partner.state == Partner.State.PAUSED,
    explanation="What waited is sent, the oldest first.",
)


class RotateForm(forms.Form):
    overlap_hours = forms.IntegerField(
        label="The old secret goes on signing for",
        min_value=0,
        max_value=24 * 30,
        initial=24,
        help_text="Hours. 0 when it has leaked: the partner refuses messages until it has the new one.",
    )


def _rotate(act: Act) -> Shown:
    partner = _one(act)
    hours: int = act.said["overlap_hours"]
    secret = partnerships.rotate_secret(
        actor=act.actor, slug=partner.slug, now=timezone.now(), overlap=timedelta(hours=hours)
    )
    return Shown(f"{partner.slug} has a new signing secret; the old one signs too for {hours} more hours.", secret)


ROTATE = Action(
    name="rotate",
    label="Give a new signing secret",
    permission="partners.add_secret",
    run=_rotate,
    form=RotateForm,
    is_dangerous=True,
    explanation="The partner's engineers need the new one before the old one ends. Send it over a safe channel.",
)


class AddressForm(forms.Form):
    url = forms.CharField(
        label="New URL", max_length=2000, help_text="https only. Messages go there from the next try on."
    )


def _change_url(act: Act) -> str:
    partner = _one(act)
    partnerships.change_endpoint(actor=act.actor, slug=partner.slug, url=act.said["url"], now=timezone.now())
    return f"{partner.slug} is sent its messages at the new address from the next try on."


CHANGE_URL = Action(
    name="change-url",
    label="Change the URL",
    permission="partners.change_endpoint",
    run=_change_url,
    preview=lambda partners: [f"{partner.slug}, now at {shorten(partner.endpoint.url)}" for partner in partners],
    form=AddressForm,
    errors=(Failed, partnerships.InvalidPartner),
    is_dangerous=True,
    explanation="Removal notices name people's content: be sure that the new address is the partner's own.",
)


class RangeForm(forms.Form):
    first = forms.IntegerField(label="From number", min_value=1, initial=1)
    last = forms.IntegerField(label="To number", min_value=1, required=False, help_text="Empty: to the end.")


def _resend(act: Act) -> str:
    partner = _one(act)
    extent = replay.send_again(actor=act.actor, slug=partner.slug, **act.said)
    hints.hint_stream(partner_id=partner.pk)
    return f"{extent.notices} notices in {extent.messages} messages are sent again, behind all that is new."


RESEND = Action(
    name="resend",
    label="Send again what it had already",
    permission="removal.resend",
    run=_resend,
    preview=lambda partners: [f"{partner.slug}: numbers 1 to {partner.stream.head} so far" for partner in partners],
    form=RangeForm,
    errors=(Failed, replay.NothingSent),
    is_dangerous=True,
    explanation="The same numbers in the same messages, for a partner that lost what it received.",
)


def _new_key(act: Act) -> Shown:
    partner = _one(act)
    _, text = partnerships.create_api_key(actor=act.actor, slug=partner.slug)
    return Shown(f"A new API key for {partner.slug}. Its other keys stay in force.", text)


NEW_KEY = Action(
    name="new-key",
    label="Give a new API key",
    permission="partners.add_apikey",
    run=_new_key,
    is_dangerous=True,
    explanation="With it the partner reads its notices and answers them.",
)


def _revoke(act: Act) -> str:
    return one_by_one(
        act, lambda key: partnerships.revoke_api_key(actor=act.actor, prefix=key.prefix), done="ended at once"
    )


REVOKE = Action(
    name="revoke",
    label="End this API key at once",
    permission="partners.change_apikey",
    run=_revoke,
    preview=lambda keys: [f"{key.prefix}… of {key.partner or key.source}" for key in keys],
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


# --- what staff see ---


class EndpointInline(ReadOnly, admin.StackedInline):  # type: ignore[type-arg]  # generic only in the stubs
    model = Endpoint
    fields = readonly_fields = (
        "url",
        "standing",
        "state_reason",
        "window",
        "max_notices",
        "rate_per_second",
        "changed_at",
    )

    @admin.display(description="state")
    def standing(self, endpoint: Endpoint) -> SafeString:
        return state_badge(endpoint.state)


@admin.register(Partner)
class PartnerAdmin(ActingAdmin):
    acts = (PAUSE, RESUME, CHANGE_URL, ROTATE, NEW_KEY, RESEND, EXPORT_PARTNER)
    explanation = "While a partner is paused, its messages are held: nothing is sent, and what it is owed gets older."
    when_empty = "No partner yet. Add the first one with: manage.py partner add"
    list_display = ("slug", "full_name", "standing", "address", "endpoint_standing", "created_at")
    list_filter = ("state",)
    list_select_related = ("endpoint",)
    ordering = ("slug",)
    search_fields = ("slug", "name")
    search_help_text = "A part of the slug or the name."
    fields = ("slug", "name", "standing", "stream", "created_at")
    inlines = (EndpointInline,)

    def page_context(self, row: Any) -> dict[str, Any]:
        return {"holdings": partial(holdings_of, row)}  # the template calls it for those who may see any of it

    @admin.display(description="name")
    def full_name(self, partner: Partner) -> str:
        return shorten(partner.name)

    @admin.display(description="state")
    def standing(self, partner: Partner) -> SafeString:
        return state_badge(partner.state)

    @admin.display(description="URL")
    def address(self, partner: Partner) -> str:
        # Never a link: a partner chooses this text.
        return shorten(partner.endpoint.url)

    @admin.display(description="endpoint")
    def endpoint_standing(self, partner: Partner) -> str:
        return state_badge(partner.endpoint.state)

    @admin.display
    def stream(self, partner: Partner) -> str:
        return link(partner.stream, f"1 to {partner.stream.head}")


admin.site.unregister(ApiKey)


@admin.register(ApiKey)
class ActingApiKeyAdmin(ActingAdmin, ApiKeyAdmin):
    """As ``partners`` shows them, with what staff do to them."""

    acts = (REVOKE,)
