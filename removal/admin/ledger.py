"""The ledger: datasets, their releases with what is in them, and who received which."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from partners.admin import ReadOnlyAdmin, link, shorten
from removal.admin.filters import LastWeekFilter
from removal.admin.questions import who_holds
from removal.admin.words import as_hex, state_badge
from removal.models import Alarm, Dataset, Disclosure, ManifestEntry, Preference, Release, Subject

MOST_ENTRIES = 100


@admin.register(Dataset)
class DatasetAdmin(ReadOnlyAdmin):
    when_empty = "No dataset yet. The first release of one makes it: POST /v1/releases"
    list_display = ("name",)
    ordering = ("name",)
    search_fields = ("name",)
    search_help_text = "A part of its name."
    fields = ("name", "releases")

    @admin.display
    def releases(self, dataset: Dataset) -> SafeString:
        url = reverse("admin:removal_release_changelist")
        return format_html('<a href="{}?dataset__id__exact={}">its releases</a>', url, dataset.pk)


@admin.register(Release)
class ReleaseAdmin(ReadOnlyAdmin):
    explanation = "Versions of datasets. Building: may still change, and nobody is given it. Sealed: fixed for ever."
    when_empty = "No release yet. Make one with: POST /v1/releases"
    list_display = ("name", "of_dataset", "standing", "subject_count", "item_count", "created_at", "sealed_at")
    list_filter = ("state", "dataset")
    list_select_related = ("dataset",)
    search_fields = ("name__exact",)
    search_help_text = "Its name, exactly."
    fields = (
        "name",
        "dataset",
        "standing",
        "source",
        "usages",
        "created_at",
        "sealed_at",
        "subject_count",
        "item_count",
        "content_digest",
        "handovers",
    )

    def page_context(self, row: Any) -> dict[str, Any]:
        return _entries(row)

    @admin.display(description="dataset")
    def of_dataset(self, release: Release) -> SafeString:
        return link(release.dataset)

    @admin.display(description="state")
    def standing(self, release: Release) -> SafeString:
        return state_badge(release.state)

    @admin.display(description="digest of its content")
    def content_digest(self, release: Release) -> str:
        return as_hex(release.digest)

    @admin.display(description="handed to")
    def handovers(self, release: Release) -> SafeString:
        url = reverse("admin:removal_disclosure_changelist")
        return format_html('<a href="{}?q={}">its disclosures</a>', url, release.name)


def _entries(release: Release) -> dict[str, Any]:
    """List a release's first subjects with their number of items, and say how many more there are."""
    entries = ManifestEntry.objects.filter(release=release)
    first = list(entries.order_by("subject_id").values_list("subject__key", "item_count")[: MOST_ENTRIES + 1])
    more = 0
    if len(first) > MOST_ENTRIES:
        total = entries.count() if release.subject_count is None else release.subject_count
        more = total - MOST_ENTRIES
    return {
        "entries": [(shorten(key, most=200), items) for key, items in first[:MOST_ENTRIES]],
        "more_entries": more,
    }


@admin.register(Disclosure)
class DisclosureAdmin(ReadOnlyAdmin):
    explanation = "Who received which release, and when: one row for each handover, never changed."
    when_empty = "No handover yet. Record one with: POST /v1/releases/{name}/disclosures"
    list_display = ("disclosed_at", "of_release", "to_partner", "purposes", "name", "recorded_at")
    list_filter = ("partner",)
    list_select_related = ("release", "partner")
    search_fields = ("release__name__exact", "reference__exact")
    search_help_text = "A release's name, or a handover's reference: exactly."
    fields = ("release", "partner", "disclosed_at", "usages", "reference", "recorded_at")

    def get_urls(self) -> list[Any]:
        page = path("who-holds/", self.admin_site.admin_view(who_holds), name="removal_who_holds")
        return [page, *super().get_urls()]

    @admin.display(description="release")
    def of_release(self, disclosure: Disclosure) -> SafeString:
        return link(disclosure.release)

    @admin.display(description="partner")
    def to_partner(self, disclosure: Disclosure) -> SafeString:
        return link(disclosure.partner)

    @admin.display(description="usages")
    def purposes(self, disclosure: Disclosure) -> str:
        return shorten(", ".join(disclosure.usages))

    @admin.display(description="reference")
    def name(self, disclosure: Disclosure) -> str:
        return shorten(disclosure.reference)


@admin.register(Preference)
class PreferenceAdmin(ReadOnlyAdmin):
    explanation = "What each source says a subject allows. Those without an end are in force; the gate asks them."
    when_empty = "Nobody has said anything yet. Platforms send preferences to /v1/preferences."
    list_display = ("of_subject", "usage", "value", "source", "valid_from", "valid_to", "said_by")
    # No filter: each has a few values for millions of rows. Whoever looks, looks for a subject.
    list_select_related = ("subject", "request")
    search_fields = ("subject",)
    search_help_text = "A subject's key, exactly."
    fields = ("of_subject", "usage", "value", "source", "valid_from", "valid_to", "said_by")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look a subject's preferences up, by the index of those in force and by that of the others."""
        if not search_term:
            return queryset, False
        of_subject = Preference.objects.filter(subject__in=Subject.objects.filter(key=search_term))
        found = [of_subject.filter(valid_to__isnull=is_open).values("pk") for is_open in (True, False)]
        return queryset.filter(pk__in=found[0].union(found[1])), False

    @admin.display(description="subject")
    def of_subject(self, preference: Preference) -> str:
        return shorten(preference.subject.key)

    @admin.display(description="request")
    def said_by(self, preference: Preference) -> SafeString | str:
        return link(preference.request) if preference.request else "-"


class RaisedFilter(LastWeekFilter):
    column = "raised_at"


@admin.register(Alarm)
class AlarmAdmin(ReadOnlyAdmin):
    explanation = "Removed content that came back among the candidates for a release. It was kept out; mend its feed."
    when_empty = "Nothing that was removed has come back."
    list_display = ("raised_at", "of_subject", "items", "feed_name", "for_release", "by_request")
    list_filter = (RaisedFilter, "release")
    list_select_related = ("subject", "release", "request")
    search_fields = ("feed", "subject")
    search_help_text = "A feed or a subject's key, exactly."
    fields = ("raised_at", "of_subject", "items", "feed_name", "for_release", "by_request")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look up, by an index each, the alarms of a feed and those about the subject with this key."""
        if not search_term:
            return queryset, False
        of_feed = Alarm.objects.filter(feed=search_term).values("pk")
        about = Alarm.objects.filter(subject__in=Subject.objects.filter(key=search_term)).values("pk")
        return queryset.filter(pk__in=of_feed.union(about)), False

    @admin.display(description="subject")
    def of_subject(self, alarm: Alarm) -> str:
        return shorten(alarm.subject.key)

    @admin.display(description="feed")
    def feed_name(self, alarm: Alarm) -> str:
        return shorten(alarm.feed)

    @admin.display(description="release")
    def for_release(self, alarm: Alarm) -> SafeString:
        return link(alarm.release)

    @admin.display(description="removed by")
    def by_request(self, alarm: Alarm) -> SafeString:
        return link(alarm.request)
