"""What happened with a request, on pages: the newest on the request's own, what was before on pages behind it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from partners.admin import link, verbatim
from removal.admin.words import state_badge
from removal.models import RemovalRequest
from removal.timeline import Entry, Place, timeline_of

# Whoever reads it reads what partners and staff wrote.
NEEDED = (
    "removal.view_removalrequest",
    "removal.view_notice",
    "removal.view_attempt",
    "removal.view_acknowledgement",
    "removal.view_logentry",
)


@dataclass(frozen=True)
class Line:
    """An entry as the page shows it."""

    at: datetime
    kind: SafeString
    who: str
    about: str
    text: str
    words: SafeString | str


@dataclass(frozen=True)
class Page:
    lines: list[Line]
    earlier_url: str


def page_of(request: RemovalRequest, before: Place | None = None) -> Page:
    """Read a page of what happened with a request, for those who may see it."""
    found = timeline_of(request, before=before)
    earlier = ""
    if found.earlier:
        at, kind, row_id = found.earlier
        query = urlencode({"at": at.isoformat(), "kind": kind, "id": row_id})
        earlier = f"{reverse('admin:removal_timeline', args=[request.pk])}?{query}"
    return Page([_line(entry, request) for entry in found.entries], earlier)


def _line(entry: Entry, request: RemovalRequest) -> Line:
    about = f"{entry.partner} {entry.sequence}" if entry.partner else "the request"
    return Line(
        at=entry.at,
        kind=state_badge(entry.told.state, entry.told.state.replace("_", " ")),
        who=entry.partner if entry.told.who == "partner" else entry.told.who,
        about=about if entry.row == request else link(entry.row, about),
        text=entry.told.text,
        words=verbatim(entry.told.words) if entry.told.words else "",
    )


@require_safe
def show_timeline(request: HttpRequest, request_id: int) -> HttpResponse:
    """Show what happened before a place in a request's timeline, which the address names; without one, the newest."""
    if not request.user.has_perms(NEEDED):
        raise PermissionDenied
    row = get_object_or_404(RemovalRequest, pk=request_id)
    try:
        before = _place(request.GET)
    except ValueError as error:
        return HttpResponseBadRequest(str(error))
    context = {
        **admin.site.each_context(request),
        "title": f"What happened with request {row.public_id}",
        "original": row,
        "page": page_of(row, before),
        "is_earlier": before is not None,
    }
    return TemplateResponse(request, "admin/removal/timeline.html", context)


def _place(asked: Any) -> Place | None:
    if "at" not in asked:
        return None
    at = parse_datetime(asked["at"])
    if at is None or at.tzinfo is None:
        raise ValueError("The place has no time. Go back to the request's page.")
    words = (asked.get("kind", ""), asked.get("id", ""))
    if any("\0" in word for word in words):
        raise ValueError("The place has letters that no row has. Go back to the request's page.")
    return Place(at, *words)
