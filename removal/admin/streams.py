"""Streams and what is in them: each partner's numbered notices, and what is wrong with its endpoint."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from removal.models import Delivery, Notice

Handling = Notice.Handling

MOST_STATEMENTS = 50
MOST_DISCLOSURES = 50

# "Received" may be said by the stream's watermark alone; the rows under it are spared the update.
HEARD_BY_WATERMARK = Q(handling=Handling.NONE, epoch=F("stream__epoch"), sequence__lte=F("stream__received_through"))


def standing(
    *, handling: str, delivery: str, respond_by: datetime, withdrawn_at: datetime | None, now: datetime
) -> str:
    """Say whether a notice is ``silent`` (delivered, and no word by its date) or ``overdue``; else an empty word."""
    if withdrawn_at or handling in Notice.TERMINAL or now <= respond_by:
        return ""
    return "silent" if delivery == Delivery.State.DELIVERED and handling == Handling.NONE else "overdue"


def handling_of(notice: Notice) -> str:
    """Read the partner's word on a notice whose stream is loaded, the watermark included."""
    stream = notice.stream
    is_covered = notice.epoch == stream.epoch and notice.sequence <= stream.received_through
    return Handling.RECEIVED if notice.handling == Handling.NONE and is_covered else notice.handling


class LateFilter(admin.SimpleListFilter):
    title = "lateness"
    parameter_name = "late"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("overdue", "overdue"), ("silent", "overdue and silent")]

    def queryset(self, request: HttpRequest, notices: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"overdue", "silent"}:
            return notices
        overdue = Notice.objects.open().filter(respond_by__lt=timezone.now()).values("pk")
        late = notices.filter(pk__in=overdue)
        if self.value() == "silent":
            late = late.filter(handling=Handling.NONE, message_state=Delivery.State.DELIVERED).exclude(
                HEARD_BY_WATERMARK
            )
        return late


class HandlingFilter(admin.SimpleListFilter):
    title = "handling"
    parameter_name = "handling"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(choice.value, choice.label) for choice in Handling]

    def queryset(self, request: HttpRequest, notices: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == Handling.NONE:
            return notices.filter(handling=Handling.NONE).exclude(HEARD_BY_WATERMARK)
        if self.value() == Handling.RECEIVED:
            return notices.filter(Q(handling=Handling.RECEIVED) | HEARD_BY_WATERMARK)
        return notices.filter(handling=self.value()) if self.value() else notices
