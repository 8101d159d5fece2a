"""Partners: who is told, where, and whether messages leave."""

from functools import partial
from typing import Any

from django.contrib import admin
from django.utils import timezone
from django.utils.safestring import SafeString

from partners.admin import ApiKeyAdmin, ReadOnly, badge, checks_table, link, result_badge, shorten, state_of
from partners.models import ApiKey, Endpoint, Partner, Secret, Verification
from removal.admin.actions import ActingAdmin
from removal.admin.contacts import contacts_of
from removal.admin.exports import EXPORT_PARTNER
from removal.admin.filters import StandingFilter
from removal.admin.partner_actions import (
    CHANGE_URL,
    NEW_KEY,
    PAUSE,
    RESEND,
    RESUME,
    REVOKE,
    ROTATE,
    VERIFY,
    WAIVE_VERIFICATION,
)
from removal.admin.partner_page import page_of
from removal.admin.questions import holdings_of
from removal.admin.words import state_badge

MOST_KEYS = 20


class EndpointInline(ReadOnly, admin.StackedInline):  # type: ignore[type-arg]  # generic only in the stubs
    model = Endpoint
    fields = readonly_fields = (
        "url",
        "pending_url",
        "standing",
        "state_reason",
        "window",
        "max_notices",
        "rate_per_second",
        "changed_at",
        "verify_due_at",
    )

    @admin.display(description="state")
    def standing(self, endpoint: Endpoint) -> SafeString:
        return state_badge(endpoint.state)


@admin.register(Partner)
class PartnerAdmin(ActingAdmin):
    acts = (PAUSE, RESUME, VERIFY, WAIVE_VERIFICATION, CHANGE_URL, ROTATE, NEW_KEY, RESEND, EXPORT_PARTNER)
    explanation = (
        "While a partner is paused, or in onboarding, its messages are held: nothing is sent, and what it is owed gets "
        "older. It leaves onboarding by proving that its endpoint verifies what it takes."
    )
    when_empty = "No partner yet. Add the first one with: manage.py partner add"
    list_display = ("slug", "full_name", "standing", "address", "endpoint_standing", "created_at")
    list_filter = (StandingFilter, "state")
    list_select_related = ("endpoint", "stream")
    ordering = ("slug",)
    search_fields = ("slug", "name")
    search_help_text = "A part of the slug or the name."
    fields = ("slug", "name", "standing", "identifiers", "stream", "created_at")
    inlines = (EndpointInline,)

    def page_context(self, row: Any) -> dict[str, Any]:
        return {
            # The template calls each for those who may see it.
            "stands": partial(page_of, row, now=timezone.now()),
            "contacts": partial(contacts_of, row.pk),
            "holdings": partial(holdings_of, row),
            "proof": partial(_proof_of, row),
            "own_keys": partial(_keys_of, row),
        }

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


def _proof_of(partner: Partner) -> dict[str, Any]:
    """Read the last verification of a partner, ready to show."""
    last = Verification.objects.filter(partner=partner).order_by("-id").first()
    return {"last": last, "result": result_badge(last), "table": checks_table(last)} if last else {}


def _keys_of(partner: Partner) -> list[dict[str, Any]]:
    """List a partner's newest keys, without their texts."""
    now = timezone.now()
    secrets = Secret.objects.filter(partner=partner).defer("key").order_by("-id")[:MOST_KEYS]
    return [{"key": link(secret, secret.key_id), "state": badge(*state_of(secret, now=now)), "row": secret}
            for secret in secrets]  # fmt: skip


admin.site.unregister(ApiKey)


@admin.register(ApiKey)
class ActingApiKeyAdmin(ActingAdmin, ApiKeyAdmin):
    """As ``partners`` shows them, with what staff do to them."""

    acts = (REVOKE,)
