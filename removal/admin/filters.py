"""Filters that several lists, and the links of the start page, share."""

from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from removal import desk, health


class DayFilter(admin.SimpleListFilter):
    """Rows of one day (UTC), such as ``2026-11-24``. Set ``parameter_name``, ``title`` and ``column``."""

    column = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        today = timezone.now().astimezone(UTC).date()
        offered = {str(today): "today", str(today - timedelta(days=1)): "yesterday"}
        asked = _as_day(request.GET.get(str(self.parameter_name), ""))
        if asked:
            offered.setdefault(str(asked), str(asked))
        return list(offered.items())

    def queryset(self, request: HttpRequest, rows: Any) -> Any:
        if not self.value():
            return rows
        day = _as_day(str(self.value()))
        if day is None:
            return rows.none()
        start = desk.start_of(day)
        return rows.filter(**{f"{self.column}__gte": start, f"{self.column}__lt": start + timedelta(days=1)})


def _as_day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if date(1970, 1, 1) <= day <= date(9000, 1, 1) else None


class LastWeekFilter(admin.SimpleListFilter):
    """Rows of the last seven days. Set ``column``."""

    title = "when"
    parameter_name = "when"
    column = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("week", "the last 7 days")]

    def queryset(self, request: HttpRequest, rows: Any) -> Any:
        if self.value() != "week":
            return rows
        return rows.filter(**{f"{self.column}__gte": timezone.now() - desk.WEEK})


STANDINGS: dict[str, tuple[str, Callable[[datetime], Collection[int]]]] = {
    "overdue": ("owes overdue answers", lambda now: desk.overdue_partners(now=now)),
    "silent": ("silent", lambda now: health.silent_partners(now=now)),
    "not_told": ("not told", lambda now: desk.partners_not_told(now=now)),
}


class StandingFilter(admin.SimpleListFilter):
    """Partners that somebody has to look at, as the start page counts them."""

    title = "standing"
    parameter_name = "standing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, words) for name, (words, _) in STANDINGS.items()]

    def queryset(self, request: HttpRequest, partners: Any) -> Any:
        if self.value() not in STANDINGS:
            return partners
        _, find = STANDINGS[str(self.value())]
        return partners.filter(pk__in=find(timezone.now()))


CAUSES = {
    "gone": ("410 gone", ["http_410"]),
    "tls": ("TLS", ["tls"]),
    "keys": ("rejects our keys (401, 403)", ["http_401", "http_403"]),
    "verification": ("failed verification", ["verification"]),
}


def name_cause(kind: str) -> str:
    """Say in words what is wrong: the kind of an incident."""
    known = next((words for words, kinds in CAUSES.values() if kind in kinds), "")
    return known or kind.replace("http_", "answers ").replace("_", " ")


class CauseFilter(admin.SimpleListFilter):
    """Incidents by what is wrong."""

    title = "cause"
    parameter_name = "cause"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*((name, words) for name, (words, _) in CAUSES.items()), ("other", "other")]

    def queryset(self, request: HttpRequest, incidents: Any) -> Any:
        if self.value() in CAUSES:
            return incidents.filter(kind__in=CAUSES[str(self.value())][1])
        if self.value() == "other":
            return incidents.exclude(kind__in=[kind for _, kinds in CAUSES.values() for kind in kinds])
        return incidents
