"""Deliveries: each message, its bytes, and every try at sending it."""

import json
import uuid
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from partners.admin import ReadOnly, ReadOnlyAdmin, link, shorten, verbatim
from removal.admin.words import as_hex, as_json, delivery_word, moment, span, state_badge
from removal.models import Attempt, Delivery, DeliveryBody


class AttemptInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]  # generic only in the stubs
    model = Attempt
    fields = ("number", "started_at", "result", "status", "reason", "latency_ms", "answer")
    readonly_fields = fields
    ordering = ("-number",)
    show_change_link = True

    @admin.display(description="outcome")
    def result(self, attempt: Attempt) -> SafeString:
        return _outcome(attempt)

    @admin.display
    def answer(self, attempt: Attempt) -> str:
        return shorten(attempt.response_excerpt)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    explanation = (
        "Messages. Held: the partner is paused or not live yet, so nothing is sent. Quarantined: the partner refuses "
        "this one notice and takes others; a person must look. Split: two messages carry its notices now."
    )
    when_empty = "No message yet. Workers make one as soon as a partner's stream has a notice."
    list_display = ("webhook_id", "partner", "notices", "standing", "attempts", "due", "delivered_at")
    list_filter = ("state", "stream__partner")
    list_select_related = ("stream__partner",)
    search_fields = ("id",)
    search_help_text = "A webhook-id, as partners see it: msg_ and 32 letters and digits."
    fieldsets = (
        (None, {"fields": ("webhook_id", "partner", "epoch", "notices", "parent")}),
        (
            "Sending",
            {
                "fields": (
                    "standing",
                    "attempts",
                    "created_at",
                    "due",
                    "lease_until",
                    "delivered_at",
                    "delivered_by",
                    "refused",
                )
            },
        ),
    )
    inlines = (AttemptInline,)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Show the message itself to those who may see message bodies: it names subjects and items."""
        if not request.user.has_perm("removal.view_deliverybody"):
            return self.fieldsets
        return (*self.fieldsets, ("Message", {"fields": ("digest", "message")}))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look up a message by its webhook-id."""
        if not search_term:
            return queryset, False
        try:
            return queryset.filter(pk=uuid.UUID(search_term.strip().removeprefix("msg_"))), False
        except ValueError:
            return queryset.none(), False

    @admin.display
    def partner(self, delivery: Delivery) -> SafeString:
        return link(delivery.stream.partner)

    @admin.display
    def notices(self, delivery: Delivery) -> str:
        return span(delivery.first_sequence, delivery.last_sequence)

    @admin.display(description="state")
    def standing(self, delivery: Delivery) -> SafeString:
        return state_badge(delivery_word(delivery.state, delivery.stream.partner))

    @admin.display
    def due(self, delivery: Delivery) -> str:
        """When it is tried next; what does not wait is not due."""
        return moment(delivery.due_at) if delivery.state == Delivery.State.WAITING else "-"

    @admin.display(description="content refused")
    def refused(self, delivery: Delivery) -> str:
        return "yes: quarantined if the partner takes others meanwhile" if delivery.suspect else "no"

    @admin.display(description="SHA-256")
    def digest(self, delivery: Delivery) -> str:
        return as_hex(delivery.body_digest)

    @admin.display(description="what was sent")
    def message(self, delivery: Delivery) -> str:
        stored = DeliveryBody.objects.filter(pk=delivery.pk).first()
        if not stored:
            return "Not packed yet, or erased."
        url = reverse("admin:removal_message_bytes", args=[delivery.pk])
        shown = verbatim(as_json(json.loads(bytes(stored.body))))
        return format_html('{}<a href="{}">Download the bytes as they were sent</a>', shown, url)


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    explanation = (
        "Each try at sending a message, written down before the first byte leaves. Abandoned: its worker is gone, and "
        "whether the message arrived is unknown; it goes again."
    )
    when_empty = "No try yet. Workers write one each time they send a message."
    list_display = ("started_at", "partner", "message", "number", "result", "status", "why", "latency_ms", "answer")
    list_display_links = ("started_at",)
    # By partner there is none: no index has both, and a partner's tries stand with its messages.
    list_filter = ("outcome",)
    list_select_related = ("delivery__stream__partner",)
    fields = (
        "delivery",
        "partner",
        "number",
        "url",
        "key_ids",
        "started_at",
        "finished_at",
        "result",
        "status",
        "reason",
        "latency_ms",
        "words",
        "late_outcome",
    )

    @admin.display
    def partner(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery.stream.partner)

    @admin.display
    def message(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery)

    @admin.display(description="outcome")
    def result(self, attempt: Attempt) -> SafeString:
        return _outcome(attempt)

    @admin.display(description="reason")
    def why(self, attempt: Attempt) -> str:
        return shorten(attempt.reason)

    @admin.display(description="response")
    def answer(self, attempt: Attempt) -> str:
        return shorten(attempt.response_excerpt)

    @admin.display(description="response, its beginning")
    def words(self, attempt: Attempt) -> str:
        return verbatim(attempt.response_excerpt) if attempt.response_excerpt else "-"


def _outcome(attempt: Attempt) -> SafeString:
    return state_badge(attempt.outcome or "sending")
