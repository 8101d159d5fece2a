"""Requests: what was asked, what it is about, and where each partner stands with it."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import path
from django.utils import timezone
from django.utils.safestring import SafeString

from partners.admin import badge, link, shorten
from removal import intake
from removal.admin import exact, timelines
from removal.admin.actions import Act, ActingAdmin, Action, Failed, one_by_one
from removal.admin.exports import EXPORT_REQUESTS
from removal.admin.filters import DayFilter
from removal.admin.questions import answers_about
from removal.admin.streams import standing
from removal.admin.words import as_hex, handling_badge, moment, state_badge
from removal.intake import InvalidWish
from removal.labels import requests_named
from removal.models import Notice, RemovalRequest, RequestTarget
from removal.prolonging import CannotExtend, extend_request
from removal.prospects import what_next
from removal.reports import PartnerLine, partner_lines, prospects

MOST_TARGETS = 100


def _withdraw(act: Act) -> str:
    def step(row: RemovalRequest) -> None:
        intake.withdraw_request(source=row.source, actor=act.actor, public_id=row.public_id)

    return one_by_one(act, step, done="withdrawn", errors=(intake.CannotWithdraw,))


WITHDRAW = Action(
    name="withdraw",
    label="Withdraw: the wish was taken back",
    permission="removal.withdraw",
    run=_withdraw,
    is_dangerous=True,
    applies=lambda row: row.withdrawn_at is None,
    explanation="Notices that were not sent are told as withdrawn; what partners were asked already stands.",
)


@dataclass(frozen=True)
class Row:
    """A partner's line as the page shows it: states as badges, the number as a link to its notice."""

    line: PartnerLine
    number: str
    delivery: SafeString
    handling: SafeString
    closed: str
    standing: str
    next: str
    exact_id: int


class LateFilter(admin.SimpleListFilter):
    title = "lateness"
    parameter_name = "late"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("overdue", "overdue"), ("due_soon", "due soon")]

    def queryset(self, request: HttpRequest, requests: Any) -> Any:
        match self.value():
            case "overdue":
                return requests.overdue(now=timezone.now())
            case "due_soon":
                return requests.due_soon(now=timezone.now())
        return requests


class ExtensionForm(forms.Form):
    reason = forms.CharField(label="Why more time is needed", max_length=1000)
    person_told_at = forms.DateTimeField(
        label="When the person was told", required=False, help_text="UTC, such as 2026-11-24 09:30."
    )


def _extend(act: Act) -> str:
    def step(row: RemovalRequest) -> None:
        try:
            extend_request(actor=act.actor, public_id=row.public_id, **act.said)
        except (CannotExtend, InvalidWish) as error:
            raise Failed(f"{row.public_id} keeps its date. {error}") from error

    return one_by_one(act, step, done="extended", errors=(Failed,))


class ReceivedFilter(DayFilter):
    title = "day received"
    parameter_name = "received"
    column = "received_at"


class ClosedFilter(DayFilter):
    title = "day closed"
    parameter_name = "closed"
    column = "closed_at"


EXTEND = Action(
    name="extend",
    label="Extend: take more time, once",
    permission="removal.extend",
    run=_extend,
    preview=lambda rows: [
        f"{row.public_id}: due {moment(row.respond_by)}, extended {moment(row.extendable_to)}"
        if row.extendable_to
        else f"{row.public_id}: due {moment(row.respond_by)}; its policy gives no more time"
        for row in rows
    ],
    form=ExtensionForm,
    explanation="The person must have been told, and why, before the first date (GDPR Art. 12(3)).",
)


@admin.register(RemovalRequest)
class RequestAdmin(ActingAdmin):
    acts = (EXPORT_REQUESTS, EXTEND, WITHDRAW)
    when_empty = "No request yet. Platforms send them to /v1/requests."
    list_display = ("public_id", "kind", "standing", "received_at", "respond_by", "reason", "source")
    list_filter = (LateFilter, "state", "kind", "outcome", ReceivedFilter, ClosedFilter)
    orders = {
        "late": ("respond_by", "pk"),  # what is late longest comes first
        "received": ("-received_at", "-pk"),
        "closed": ("-closed_at", "-pk"),
    }
    search_fields = ("public_id",)
    search_help_text = (
        "A request's id or a subject's key, whole; or a subject's label (its address, its title), or how it begins."
    )
    fieldsets = (
        (None, {"fields": ("public_id", ("kind", "reason", "usages"), "standing", ("received_at", "respond_by"))}),
        (
            "More",
            {
                "classes": ("collapse",),
                "fields": (
                    ("source", "idempotency_key"),
                    ("jurisdiction", "partner", "release_ids"),
                    ("deadline_policy", "confirm_by", "extendable_to", "tells_person"),
                    ("recorded_at", "round", "closed_at"),
                    ("repeats", "withdrawn_at"),
                    ("ended_by", "ended_at"),
                    "digest",
                ),
            },
        ),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look up the request with this id, and those about a subject with this key or label."""
        return (queryset.filter(pk__in=requests_named(search_term)) if search_term else queryset), False

    def get_urls(self) -> list[Any]:
        timeline = self.admin_site.admin_view(timelines.show_timeline)
        earlier = path("<int:request_id>/timeline/", timeline, name="removal_timeline")
        return [earlier, *exact.pages(self.admin_site), *super().get_urls()]

    def page_context(self, row: Any) -> dict[str, Any]:
        # The template calls them for those who may see handovers, and what happened.
        answers, timeline = partial(answers_about, row), partial(timelines.page_of, row)
        return {"rows": _rows(row, now=timezone.now()), "answers": answers, "timeline": timeline, **_targets(row)}

    @admin.display(description="state")
    def standing(self, request: RemovalRequest) -> SafeString:
        if request.outcome:
            return state_badge(request.outcome, f"closed: {request.get_outcome_display()}")
        if request.repeats_id:
            return badge("repeats an earlier one", "calm")
        return state_badge(request.state)

    @admin.display(description="SHA-256 of what was asked")
    def digest(self, request: RemovalRequest) -> str:
        return as_hex(request.body_digest)


def _rows(request: RemovalRequest, *, now: datetime) -> list[Row]:
    told = Notice.objects.filter(request_id=request.repeats_id or request.pk).select_related("stream__partner")
    # By epoch, so that of a number that was given again after a restore the newest counts.
    notices = {(notice.stream.partner.slug, notice.sequence): notice for notice in told.order_by("epoch", "pk")}
    rows = []
    lines = partner_lines(request)
    coming = prospects(request, lines)
    for line in lines:
        notice = notices.get((line.partner, line.sequence))  # none: planned in this moment
        late = standing(
            handling=line.handling,
            delivery=line.delivery,
            respond_by=line.respond_by,
            withdrawn_at=notice.withdrawn_at if notice else None,
            closed_at=line.closed_at,
            now=now,
        )
        rows.append(
            Row(
                line=line,
                number=link(notice, str(line.sequence)) if notice else str(line.sequence),
                delivery=state_badge(line.delivery),
                handling=handling_badge(line.handling),
                closed=badge("closed by hand", "calm") if line.closed_at else "",
                standing=state_badge(late) if late else "",
                next=what_next(coming[line.notice_id], now=now) if line.notice_id in coming else "",
                exact_id=line.notice_id,
            )
        )
    return rows


def _targets(request: RemovalRequest) -> dict[str, Any]:
    """List a request's first subjects, each with its number of items (None: all), and say how many more there are.

    Each comes with its label, and with the query that asks the page "Who holds what" about it.
    """
    targets = RequestTarget.objects.filter(request=request)
    # The database counts the items: a target may name a million.
    columns = ("subject__key", "subject__label", "items__len")
    first = list(targets.order_by("subject_id").values_list(*columns)[: MOST_TARGETS + 1])
    more = targets.count() - MOST_TARGETS if len(first) > MOST_TARGETS else 0
    return {
        "targets": [
            (shorten(key, most=200), shorten(label, most=200), items, urlencode({"subject": key}))
            for key, label, items in first[:MOST_TARGETS]
        ],
        "more_targets": more,
    }
