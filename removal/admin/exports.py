"""Exports on pages: CSV to download, the same to print, and the yearly metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import Any

from django import forms
from django.contrib import admin
from django.core.cache import cache
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from partners.admin import ReadOnlyAdmin, badge, shorten
from removal.admin.actions import Act, Action, Failed, confirm
from removal.admin.words import state_badge
from removal.desk import KEPT, MANY
from removal.exports import (
    COLUMNS,
    METRIC_COLUMNS,
    Scope,
    YearlyMetrics,
    as_csv,
    estimate,
    export,
    lines,
    of_partner,
    of_period,
    of_request,
    say_lines,
    yearly_metrics,
)
from removal.models import Export, LogEntry, RemovalRequest

PERMISSION = "removal.export"
# Columns whose values are words of ours: printed as words.
IN_WORDS = ("kind", "reason", "state", "outcome", "delivery", "handling", "closed_by_hand_because")
# A page to print holds so many lines; the file holds all.
MOST_PRINTED = 2000
# One that has not moved for so long was killed, or nobody reads it.
STANDS_STILL_AFTER = timedelta(minutes=2)
EXPLANATION = "Exports name people's content. Who took which is in the log. The file has a line for each notice."


def download(scope: Scope, *, actor: str) -> StreamingHttpResponse:
    """Send an export as a file, while it is read."""
    return as_file(export(scope, actor=actor), name=f"removal-{scope.kind}-{scope.name}")


def as_file(pieces: Iterator[str], *, name: str) -> StreamingHttpResponse:
    """Send CSV under a name of plain letters: nothing that a partner or a person chose gets into a header."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)
    response = StreamingHttpResponse(pieces, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{plain[:100]}.csv"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


class FormatForm(forms.Form):
    as_what = forms.ChoiceField(
        label="As",
        choices=[
            ("csv", "a CSV file, with every line"),
            ("print", f"a page to print, with up to {MOST_PRINTED} lines"),
        ],
        initial="csv",
        widget=forms.RadioSelect,
        help_text="To get a PDF, print the page into one.",
    )


def _deliver(act: Act, scope: Scope) -> HttpResponseBase:
    return download(scope, actor=act.actor) if act.said["as_what"] == "csv" else _printed(act, scope)


def _printed(act: Act, scope: Scope) -> HttpResponse:
    found = list(islice(lines(scope), MOST_PRINTED + 1))
    about = {"kind": scope.kind, **scope.about, "lines": min(len(found), MOST_PRINTED)}
    LogEntry.objects.create(actor=act.actor, action="export_printed", about=about)
    context = {
        **admin.site.each_context(act.request),
        "title": f"Removal: {scope.kind} {scope.name}",
        "columns": [name.replace("_", " ") for name in COLUMNS],
        "rows": [
            [_printable(name, cell) for name, cell in zip(COLUMNS, row, strict=True)] for row in found[:MOST_PRINTED]
        ],
        "is_cut": len(found) > MOST_PRINTED,
        "printed_at": timezone.now(),
        "most": MOST_PRINTED,
    }
    return TemplateResponse(act.request, "admin/removal/print.html", context)


def _printable(name: str, cell: Any) -> Any:
    if name in IN_WORDS:
        return str(cell or "").replace("_", " ")
    return "" if cell is None else shorten(cell, most=120) if isinstance(cell, str) else cell


ONE_AT_A_TIME = "Choose one at a time; for many requests export a period, under Exports."


def _one(act: Act) -> Any:
    if len(act.rows) != 1:
        raise Failed(ONE_AT_A_TIME)
    return act.rows[0]


def _about(scopes: Sequence[Scope]) -> list[str]:
    """Say how long an export will be. Several are not read for it: they are refused."""
    if len(scopes) != 1:
        return [ONE_AT_A_TIME]
    return [f"{scope.kind} {scope.name}: {say_lines(estimate(scope))}" for scope in scopes]


EXPORT_REQUESTS = Action(
    name="export",
    label="Export or print",
    permission=PERMISSION,
    run=lambda act: _deliver(act, of_request(public_id=_one(act).public_id)),
    preview=lambda rows: _about([of_request(public_id=row.public_id) for row in rows[:2]]),
    form=FormatForm,
    is_dangerous=True,
    explanation=EXPLANATION,
    leaves_page=True,
)
EXPORT_PARTNER = Action(
    name="export",
    label="Export or print",
    permission=PERMISSION,
    run=lambda act: _deliver(act, of_partner(slug=_one(act).slug)),
    preview=lambda rows: _about([of_partner(slug=row.slug) for row in rows[:2]]),
    form=FormatForm,
    is_dangerous=True,
    explanation=EXPLANATION,
    leaves_page=True,
)


class PeriodForm(FormatForm):
    first = forms.DateField(label="From", help_text="The first day, in UTC, such as 2026-01-01.")
    last = forms.DateField(label="Through", help_text="The last day, itself included.")

    def clean(self) -> dict[str, Any]:
        first, last = self.cleaned_data.get("first"), self.cleaned_data.get("last")
        if first and last and not date(1970, 1, 1) <= first <= last <= date(9000, 1, 1):
            raise ValidationError("The first day comes before the last, and both lie in our time.")
        return self.cleaned_data


def period_scope(first: date, last: date) -> Scope:
    start, end = (datetime.combine(day, time.min, UTC) for day in (first, last + timedelta(days=1)))
    return of_period(start=start, end=end)


EXPORT_PERIOD = Action(
    name="export-period",
    label="Export or print a period",
    permission=PERMISSION,
    run=lambda act: _deliver(act, period_scope(act.said["first"], act.said["last"])),
    preview=lambda rows: [],
    form=PeriodForm,
    is_dangerous=True,
    explanation=(
        "The requests received in these days. One request, or all that one partner was told, is exported from its own "
        f"page. How far an export has come stands under Removal, Exports. {EXPLANATION}"
    ),
    leaves_page=True,
)


def exports(request: HttpRequest) -> HttpResponseBase:
    """Export or print a period; the page also says where the other exports are."""
    return confirm(request, EXPORT_PERIOD, [], back=reverse("admin:index"))


@admin.register(Export)
class ExportAdmin(ReadOnlyAdmin):
    explanation = "Files that were taken, and how far those under way have come: load this page again to see."
    when_empty = "Nothing was exported yet. A request and a partner have it among their actions; a period: Exports."
    list_display = ("begun_at", "what", "actor", "state_shown", "progress", "seen_at")
    fields = ("what", "actor", "state_shown", "progress", "begun_at", "seen_at")

    @admin.display
    def what(self, export: Export) -> str:
        return f"{export.kind} {export.name}"

    @admin.display(description="state")
    def state_shown(self, export: Export) -> SafeString:
        is_still = export.state == Export.State.RUNNING and timezone.now() - export.seen_at > STANDS_STILL_AFTER
        return badge("stands still", "bad") if is_still else state_badge(export.state)

    @admin.display
    def progress(self, export: Export) -> str:
        if export.state == Export.State.FINISHED:
            return f"{export.lines:,} lines"
        expected = max(export.expected, export.lines, 1)
        return f"{export.lines:,} of about {expected:,} lines ({100 * export.lines // expected} %)"


def _metrics() -> list[YearlyMetrics]:
    """Count five years. Where these have ``MANY`` requests, each process does so every ten minutes."""
    this_year = timezone.now().year
    key = f"yearly_metrics:{this_year}"
    rows: list[YearlyMetrics] | None = cache.get(key)
    if rows is None:
        rows = yearly_metrics(first_year=this_year - 4, last_year=this_year)
        if sum(row.received for row in rows) >= MANY:
            cache.set(key, rows, KEPT.total_seconds())
    return rows


@require_safe
def metrics(request: HttpRequest) -> HttpResponseBase:
    """Show the counts and times that 11 CCR §7102 has large holders publish, or send them as CSV (``?csv``)."""
    if not request.user.has_perm("removal.view_removalrequest"):
        raise PermissionDenied
    rows = _metrics()
    if "csv" in request.GET:
        cells = ([getattr(row, name) for name in METRIC_COLUMNS] for row in rows)
        return as_file(as_csv(cells, METRIC_COLUMNS), name="removal-yearly-metrics")
    context = {
        **admin.site.each_context(request),
        "title": "Yearly metrics",
        "rows": [replace(row, kind=RemovalRequest.Kind(row.kind).label) for row in rows],
        "csv": f"?{urlencode({'csv': 1})}",
    }
    return TemplateResponse(request, "admin/removal/metrics.html", context)
