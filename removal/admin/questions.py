"""What the ledger answers (removal.holdings), on pages: who holds a subject, what a partner holds, what was missed.

Read only. Each answer takes the same few queries however many rows it has; lists are cut, and say how much is missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from partners.admin import badge, link, shorten
from partners.models import Partner
from removal import holdings, labels
from removal.admin.words import state_badge
from removal.holdings import COUNTED_TARGETS, HeldRelease, Holder, ReleaseWith
from removal.manifests import check_key
from removal.models import Release, RemovalRequest, Subject

MOST_HOLDERS = 500
MOST_ITEMS = 20
MOST_RELEASES = 100
MOST_HANDOVERS = 20

# Whoever asks sees handovers, releases and partners.
NEEDED = ("removal.view_disclosure", "removal.view_release", "partners.view_partner")

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """The first rows of a list, and how many ``more`` there are."""

    rows: list[Any]
    more: int


def cut(rows: Iterable[T], most: int) -> Cut:
    every = list(rows)
    return Cut(every[:most], max(0, len(every) - most))


def release_links(names: Iterable[str]) -> dict[str, SafeString]:
    """Link to the pages of releases, by name, in one query."""
    return {release.name: link(release, release.name) for release in Release.objects.filter(name__in=set(names))}


def partner_links(slugs: Iterable[str]) -> dict[str, SafeString]:
    return {partner.slug: link(partner, partner.slug) for partner in Partner.objects.filter(slug__in=set(slugs))}


# --- who holds what of a subject ---


class WhoHoldsForm(forms.Form):
    subject = forms.CharField(
        strip=False,  # a key is what it is
        help_text="Its key, such as site:123, whole; its label (an address) or how it begins; or a request's id.",
        error_messages={"required": "Write the key or the label of a subject."},
    )
    as_of = forms.DateTimeField(
        label="As of",
        required=False,
        help_text="A past moment in UTC, such as 2026-11-24 00:20. Empty means now.",
        error_messages={"invalid": "Write a date and a time, such as 2026-11-24 00:20."},
    )

    def clean_subject(self) -> str:
        try:
            return check_key(self.cleaned_data["subject"])
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def clean_as_of(self) -> datetime | None:
        as_of: datetime | None = self.cleaned_data["as_of"]
        if as_of is None:
            return None
        try:
            as_of = as_of.astimezone(UTC)
        except OverflowError as error:
            raise ValidationError("Nothing was recorded so long ago.") from error
        if as_of > timezone.now():
            raise ValidationError("It lies in the future, which nobody knows. Leave it empty to ask about now.")
        return as_of


@dataclass(frozen=True)
class HolderRow:
    """One handover as the page shows it."""

    holder: Holder
    partner: str
    release: str
    reference: str
    usages: str
    items: Cut
    standing: SafeString


@require_safe
def who_holds(request: HttpRequest) -> HttpResponse:
    """Show the form, and below it who had received what of the subject by the moment that it names."""
    if not request.user.has_perms(NEEDED):
        raise PermissionDenied
    form = WhoHoldsForm(request.GET if "subject" in request.GET else None)
    context = {**admin.site.each_context(request), "title": "Who holds what", "form": form}
    if form.is_valid():
        term, as_of = form.cleaned_data["subject"], form.cleaned_data["as_of"]
        match labels.subjects_meant(term):
            case [one]:
                context |= _holders(one.key, as_of, label=one.label)
            case []:
                context |= _holders(term, as_of)
            case several:
                context |= _choices(several, request.GET.get("as_of", ""))
    return TemplateResponse(request, "admin/removal/who_holds.html", context)


def _choices(subjects: Sequence[Subject], as_of: str) -> dict[str, Any]:
    """List the subjects of which one is meant, each with the query that asks about it."""
    rows = [
        (shorten(one.key, most=200), shorten(one.label, most=200), urlencode({"subject": one.key, "as_of": as_of}))
        for one in subjects
    ]
    return {"choices": rows, "most_choices": labels.MOST_NAMED}


def _holders(subject: str, as_of: datetime | None, *, label: str = "") -> dict[str, Any]:
    found = holdings.holders_of(subject=subject, as_of=as_of or timezone.now())
    shown = cut(found, MOST_HOLDERS)
    partners = partner_links(holder.partner for holder in shown.rows)
    releases = release_links(holder.release for holder in shown.rows)
    return {
        "subject": subject,
        "label": label,
        "as_of": as_of,
        "is_known": bool(found) or Subject.objects.filter(key=subject).exists(),
        "holders": Cut([_holder_row(holder, partners, releases) for holder in shown.rows], shown.more),
        "holding": len({holder.partner for holder in found if holder.removed_at is None}),
    }


def _holder_row(holder: Holder, partners: dict[str, SafeString], releases: dict[str, SafeString]) -> HolderRow:
    return HolderRow(
        holder=holder,
        partner=partners.get(holder.partner, holder.partner),
        release=releases.get(holder.release, holder.release),
        reference=shorten(holder.reference),
        usages=shorten(", ".join(holder.usages)),
        items=Cut([shorten(item) for item in holder.items[:MOST_ITEMS]], max(0, holder.items_total - MOST_ITEMS)),
        standing=badge("removed", "good") if holder.removed_at else badge("holds it", "wait"),
    )


# --- what a partner holds ---


@dataclass(frozen=True)
class HeldRow:
    held: HeldRelease
    name: str
    standing: SafeString


@dataclass(frozen=True)
class PartnerHoldings:
    """``items`` counts those of each of the ``count`` releases; those shown are the newest."""

    count: int
    items: int
    releases: Cut


def holdings_of(partner: Partner) -> PartnerHoldings:
    """Sum up what a partner was given in all, for its page."""
    held = holdings.releases_of(partner_id=partner.pk)
    # The newest first: what is cut is old.
    shown = cut(sorted(held, key=lambda release: release.last_disclosed_at, reverse=True), MOST_RELEASES)
    links = release_links(release.release for release in shown.rows)
    rows = [
        HeldRow(release, links.get(release.release, release.release), state_badge(release.state))
        for release in shown.rows
    ]
    return PartnerHoldings(len(held), sum(release.items for release in held), Cut(rows, shown.more))


# --- what slipped through, and where the content is ---


@dataclass(frozen=True)
class HandoverRow:
    release: str
    reference: str
    recorded_at: datetime


@dataclass(frozen=True)
class WindowRow:
    """What one partner was given between a request and its effect there."""

    partner: str
    told_at: datetime | None
    handovers: Cut


@dataclass(frozen=True)
class ReleaseRow:
    found: ReleaseWith
    name: str
    standing: SafeString


@dataclass(frozen=True)
class RequestAnswers:
    """``is_sampled``: the request is about so many subjects that some release with a few of them may be missing."""

    windows: list[WindowRow]
    releases: Cut
    is_sampled: bool


def answers_about(request: RemovalRequest) -> RequestAnswers:
    """Find a request's window at each partner, and the releases with its content, for its page."""
    named = {"source": request.source, "public_id": request.public_id}
    windows = [(window, cut(window.handovers, MOST_HANDOVERS)) for window in holdings.window_of(**named)]
    found = cut(holdings.releases_with(**named), MOST_RELEASES)
    names = {handover.release for _, shown in windows for handover in shown.rows}
    releases = release_links(names | {row.release for row in found.rows})
    partners = partner_links(window.partner for window, _ in windows)
    return RequestAnswers(
        windows=[
            WindowRow(
                partner=partners.get(window.partner, window.partner),
                told_at=window.told_at,
                handovers=Cut(
                    [
                        HandoverRow(
                            releases.get(handover.release, handover.release),
                            shorten(handover.reference),
                            handover.recorded_at,
                        )
                        for handover in shown.rows
                    ],
                    shown.more,
                ),
            )
            for window, shown in windows
        ],
        releases=Cut(
            [ReleaseRow(row, releases.get(row.release, row.release), state_badge(row.state)) for row in found.rows],
            found.more,
        ),
        is_sampled=request.target_count > COUNTED_TARGETS,
    )
