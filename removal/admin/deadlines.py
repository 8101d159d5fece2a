"""Deadline policies and holidays, which staff with the permission may edit; extensions and escalations, to look at."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from partners.admin import ReadOnlyAdmin, badge, link
from removal.models import DeadlinePolicy, Escalation, Holiday, LogEntry, RequestExtension, StaffMessage


class EditableAdmin(ReadOnlyAdmin):
    """A page that those with the model's own permissions may edit: a setting, not history."""

    is_setting = True
    is_deletable = False

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.add_{self.opts.model_name}")

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return self.is_deletable and request.user.has_perm(f"{self.opts.app_label}.delete_{self.opts.model_name}")

    def delete_model(self, request: HttpRequest, row: Any) -> None:
        LogEntry.objects.create(
            actor=f"staff:{request.user.pk}",
            action=f"{self.opts.model_name}_deleted",
            about={self.opts.model_name: row.pk},
        )
        super().delete_model(request, row)

    def save_model(self, request: HttpRequest, row: Any, form: Any, change: bool) -> None:
        super().save_model(request, row, form, change)
        LogEntry.objects.create(
            actor=f"staff:{request.user.pk}",
            action=f"{self.opts.model_name}_{'changed' if change else 'added'}",
            about={self.opts.model_name: row.pk, "fields": sorted(form.changed_data)},
        )


@admin.register(DeadlinePolicy)
class DeadlinePolicyAdmin(EditableAdmin):
    explanation = (
        "How long there is to answer. Of those in force that fit, the most specific holds: a partner's before all, "
        "then the jurisdiction, then the kind, then the newest. A change moves no date that was made before."
    )
    when_empty = "No policy: one calendar month for requests, and NOTICE_RESPOND_WITHIN_DAYS for notices."
    list_display = ("name", "clock", "standing", "kinds", "jurisdictions", "partner", "completed_within", "zone")
    list_filter = ("clock", "in_force")
    list_select_related = ("partner",)
    fieldsets = (
        (None, {"fields": ("name", "clock", "basis", "in_force")}),
        ("For what", {"fields": ("kinds", "jurisdictions", "partner")}),
        (
            "How long",
            {"fields": ("sent_within", "received_within", "completed_within", "extended_within", "tells_person")},
        ),
        ("How days are counted", {"fields": ("zone", "calendar", "rolls_forward")}),
    )

    @admin.display(description="state")
    def standing(self, policy: DeadlinePolicy) -> SafeString:
        return badge("in force", "good") if policy.in_force else badge("not in force", "calm")


@admin.register(Holiday)
class HolidayAdmin(EditableAdmin):
    explanation = "Days off, by calendar. Saturdays and Sundays are off in every calendar, and not listed."
    when_empty = "No holiday: only weekends are off."
    list_display = ("day", "name", "calendar")
    list_filter = ("calendar",)
    ordering = ("-day", "pk")  # type: ignore[assignment]  # the base has one column
    fields = ("calendar", "day", "name")
    is_deletable = True


@admin.register(RequestExtension)
class RequestExtensionAdmin(ReadOnlyAdmin):
    explanation = "Requests that were given more time, once, and why."
    when_empty = "No request has been extended."
    list_display = ("request", "first_respond_by", "respond_by", "person_told_at", "extended_at")
    list_select_related = ("request",)
    fields = ("of_request", "first_respond_by", "respond_by", "reason", "person_told_at", "actor", "extended_at")

    @admin.display(description="request")
    def of_request(self, extension: RequestExtension) -> SafeString:
        return link(extension.request)


@admin.register(Escalation)
class EscalationAdmin(ReadOnlyAdmin):
    explanation = "What came to 50, 80 or 100 % of its time without an answer. Staff are told of each once."
    when_empty = "Nothing has come to half of its time without an answer."
    list_display = ("raised_at", "level", "subject", "notices", "told_at")
    list_filter = ("level",)
    list_select_related = ("request", "stream__partner")
    fields = ("raised_at", "level", "subject", "respond_by", "notices", "sequences", "until", "told_at")

    @admin.display(description="staff told at")
    def told_at(self, escalation: Escalation) -> datetime | str:
        return escalation.bundled_at or "not yet"

    @admin.display
    def subject(self, escalation: Escalation) -> str:
        if escalation.request:
            return link(escalation.request)
        return link(escalation.stream.partner) if escalation.stream else "-"


@admin.register(StaffMessage)
class StaffMessageAdmin(ReadOnlyAdmin):
    explanation = "What staff were sent, by which channel, and what has not gone out yet."
    when_empty = "Nobody was told anything: nothing was late, or no channel is set."
    list_display = ("made_at", "channel", "tries", "sent_at", "fault")
    list_filter = ("channel",)
    fields = ("id", "channel", "made_at", "due_at", "tries", "sent_at", "fault", "body")
    ordering = ("-pk",)
