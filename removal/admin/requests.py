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
from removal.admin.actions import Act, ActingAdmin, Action, Failed, WhyForm, one_by_one
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


def _stands(request: RemovalRequest) -> str:
    """Say where a request stands: once it is closed, with what outcome, and whether the wish was taken back then."""
    if not request.outcome:
        return request.get_state_display()
    is_after = request.withdrawn_at and request.outcome != RemovalRequest.Outcome.WITHDRAWN
    return f"closed: {request.get_outcome_display()}" + (", withdrawn later" if is_after else "")


class WithdrawForm(WhyForm):
    reasons = (
        ("person_asked", "the person took it back"),
        ("platform_asked", "the platform asked for it"),
        ("recorded_in_error", "it was recorded by mistake"),
    )


def _withdraw(act: Act) -> str:
    def step(row: RemovalRequest) -> None:
        intake.withdraw_request(source=row.source, actor=act.actor, public_id=row.public_id, why=act.why)

    return one_by_one(act, step, done="withdrawn", errors=(intake.CannotWithdraw,))


WITHDRAW = Action(
    name="withdraw",
    label="Withdraw: the wish was taken back",
    permission="removal.withdraw",
    run=_withdraw,
    preview=lambda rows: [f"{row.public_id}: {row.get_kind_display()}, {_stands(row)}" for row in rows],
    form=WithdrawForm,
    is_dangerous=True,
    applies=lambda row: row.withdrawn_at is None,
    why_not=lambda row: f"{row.public_id} was withdrawn before.",
    explanation=(
        "Notices that were not sent are told as withdrawn; what partners were asked already stands, and a request that "
        "is closed keeps its outcome. What the subject had said before an opt-out holds again. It cannot be taken back."
    ),
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
    list_display = ("public_id", "kind", "standing", "respond_by", "received_at", "reason", "source")
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
            return state_badge(request.outcome, _stands(request))
        if request.repeats_id:
            return badge("repeats an earlier one", "calm")
        return state_badge(request.state)

    @admin.display(description="SHA-256 of what was asked")
    def digest(self, request: RemovalRequest) -> str:
        return as_hex(request.body_digest)


def _rows(request: RemovalRequest, *, now: datetime) -> list[Row]:
    rows = []
    lines = partner_lines(request)
    coming = prospects(request, lines)
    for line in lines:
        late = standing(
            handling=line.handling,
            delivery=line.delivery,
            respond_by=line.respond_by,
            receive_by=coming[line.notice_id].receive_by if line.notice_id in coming else None,
            withdrawn_at=line.withdrawn_at,
            closed_at=line.closed_at,
            now=now,
        )
        rows.append(
            Row(
                line=line,
                number=link(Notice(pk=line.notice_id), str(line.sequence)),
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
    more = request.target_count - MOST_TARGETS if len(first) > MOST_TARGETS else 0
    return {
        "targets": [
            (shorten(key, most=200), shorten(label, most=200), items, urlencode({"subject": key}))
            for key, label, items in first[:MOST_TARGETS]
        ],
        "more_targets": more,
    }
