"""Partners: who is told, where, and whether messages leave."""

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from partners.admin import ReadOnly, ReadOnlyAdmin, link, shorten
from partners.models import Endpoint, Partner
from removal.admin.questions import holdings_of
from removal.admin.words import state_badge
from removal.partnerships import set_paused


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
class PartnerAdmin(ReadOnlyAdmin):
    explanation = "While a partner is paused, its messages are held: nothing is sent, and what it is owed gets older."
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
        return {"holdings": partial(holdings_of, row)}  # the template calls it for those who may see any of it

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """The actions ask for the right to change partners, though no field can be edited here."""
        return request.user.has_perm("partners.change_partner")

    @admin.action(description="Pause: hold messages to the selected partners", permissions=["pause"])
    def pause(self, request: HttpRequest, partners: QuerySet[Partner]) -> None:
        changed, same = _set_paused(request, partners, paused=True)
        self.message_user(request, f"{changed} paused; {same} had been paused before.", _level(changed))

    @admin.action(description="Resume: send messages to the selected partners again", permissions=["pause"])
    def resume(self, request: HttpRequest, partners: QuerySet[Partner]) -> None:
        changed, same = _set_paused(request, partners, paused=False)
        self.message_user(request, f"{changed} resumed; {same} had not been paused.", _level(changed))

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


def _set_paused(request: HttpRequest, partners: QuerySet[Any], *, paused: bool) -> tuple[int, int]:
    """Pause or resume partners, one by one; returns how many changed and how many were so already."""
    actor = f"staff:{request.user.pk}"
    answers = [set_paused(actor=actor, slug=partner.slug, paused=paused) for partner in partners]
    return answers.count(True), answers.count(False)


def _level(changed: int) -> int:
    return messages.SUCCESS if changed else messages.WARNING
