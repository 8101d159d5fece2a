"""Partners: who is told, where, and whether messages leave."""

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from partners.admin import ReadOnly, ReadOnlyAdmin, badge, checks_table, link, result_badge, shorten, state_of
from partners.models import Endpoint, Partner, Secret, Verification
from removal import verification
from removal.admin.questions import holdings_of
from removal.admin.words import state_badge
from removal.partnerships import StillOnboarding, set_paused

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
class PartnerAdmin(ReadOnlyAdmin):
    explanation = (
        "While a partner is paused, or in onboarding, its messages are held: nothing is sent, and what it is owed gets "
        "older. It leaves onboarding by proving that its endpoint verifies what it takes."
    )
    when_empty = "No partner yet. Add the first one with: manage.py partner add"
    list_display = ("slug", "full_name", "standing", "address", "endpoint_standing", "created_at")
    list_filter = ("state",)
    list_select_related = ("endpoint",)
    ordering = ("slug",)
    search_fields = ("slug", "name")
    search_help_text = "A part of the slug or the name."
    fields = ("slug", "name", "standing", "identifiers", "stream", "created_at")
    inlines = (EndpointInline,)
    actions = ("pause", "resume")

    def page_context(self, row: Any) -> dict[str, Any]:
        return {
            "holdings": partial(holdings_of, row),  # the template calls it for those who may see any of it
            "proof": partial(_proof_of, row),
            "own_keys": partial(_keys_of, row),
        }

    def get_urls(self) -> list[URLPattern]:
        own = [
            path("<int:pk>/verify/", self.admin_site.admin_view(require_POST(self.verify)), name="partner_verify"),
            path("<int:pk>/waive/", self.admin_site.admin_view(require_POST(self.waive)), name="partner_waive"),
        ]
        return [*own, *super().get_urls()]

    def verify(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Run the checks against a partner's endpoint: the page waits for them, a minute at most."""
        if not self.has_pause_permission(request):
            raise PermissionDenied
        partner = Partner.objects.get(pk=pk)
        try:
            result = verification.verify(actor=f"staff:{request.user.pk}", slug=partner.slug)
        except verification.CannotVerify as error:
            self.message_user(request, str(error), messages.WARNING)
        else:
            word = "passed" if result.passed else "did not pass"
            followed = result.get_effect_display()
            level = messages.SUCCESS if result.passed else messages.WARNING
            self.message_user(request, f"{partner.slug} {word}. What followed: {followed}.", level)
        return redirect("admin:partners_partner_change", pk)

    def waive(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let a partner, or its pending URL, through without the checks, for the reason that was typed."""
        if not request.user.has_perm("partners.waive_verification"):
            raise PermissionDenied
        partner = Partner.objects.get(pk=pk)
        reason = request.POST.get("reason", "")
        try:
            result = verification.waive(actor=f"staff:{request.user.pk}", slug=partner.slug, reason=reason)
        except verification.NothingToWaive as error:
            self.message_user(request, str(error), messages.WARNING)
        else:
            followed = result.get_effect_display()
            self.message_user(request, f"Waived for {partner.slug}. What followed: {followed}.", messages.SUCCESS)
        return redirect("admin:partners_partner_change", pk)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """The actions ask for the right to change partners, though no field can be edited here."""
        return request.user.has_perm("partners.change_partner")

    @admin.action(description="Pause: hold messages to the selected partners", permissions=["pause"])
    def pause(self, request: HttpRequest, partners: QuerySet[Partner]) -> None:
        changed, same = self._set_paused(request, partners, paused=True)
        self.message_user(request, f"{changed} paused; {same} had been paused before.", _level(changed))

    @admin.action(description="Resume: send messages to the selected partners again", permissions=["pause"])
    def resume(self, request: HttpRequest, partners: QuerySet[Partner]) -> None:
        changed, same = self._set_paused(request, partners, paused=False)
        self.message_user(request, f"{changed} resumed; {same} had not been paused.", _level(changed))

    def _set_paused(self, request: HttpRequest, partners: QuerySet[Any], *, paused: bool) -> tuple[int, int]:
        """Pause or resume partners, one by one; returns how many changed and how many were so already."""
        answers = []
        for partner in partners:
            try:
                answers.append(set_paused(actor=f"staff:{request.user.pk}", slug=partner.slug, paused=paused))
            except StillOnboarding as error:
                self.message_user(request, str(error), messages.WARNING)
        return answers.count(True), answers.count(False)

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


def _level(changed: int) -> int:
    return messages.SUCCESS if changed else messages.WARNING
