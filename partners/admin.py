"""What staff see of keys, and the read-only base of every page of the admin.

The base stands here because both apps build on it, and ``partners`` never imports ``removal``.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Page, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import SimpleTemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timesince import timesince

from partners.models import ApiKey, Secret, Verification

# A list counts and pages through this many rows at most: no page reads a table of millions to print a number.
MOST_LISTED = 2_000
# A text is shown up to here; a statement may be as long as 64 MiB.
MOST_CHARACTERS = 1_000_000
# Characters that make what follows read in another order (Unicode UAX #9 §2), and control characters other than tab
# and line end: they stand there by name.
UNSEEN = (
    *(code for code in range(0x20) if code not in {0x09, 0x0A, 0x0D}),
    *range(0x7F, 0xA0),
    0x061C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
)
REORDERING = re.compile("[" + "".join(f"\\u{code:04x}" for code in UNSEEN) + "]")


@lru_cache(maxsize=1_000)
def badge(word: str, tone: str) -> SafeString:
    """Show a state as a word on a colour; ``tone`` is good, wait, bad or calm. Lists say the same few over and over."""
    return format_html('<span class="badge badge-{}">{}</span>', tone, word)


def link(row: Model, text: str = "") -> SafeString:
    """Link to the page of a row, under its own name or ``text``."""
    return format_html('<a href="{}">{}</a>', page_url(row), text or str(row))


def page_url(row: Model) -> str:
    """Give the address of a row's page."""
    before, after = _around_key(str(row._meta.app_label), str(row._meta.model_name))
    return f"{before}{quote(row.pk)}{after}"


@lru_cache
def _around_key(app: str, model: str) -> tuple[str, str]:
    """Give a page's address around the row's key: a list has hundreds of links, and each look-up takes a while."""
    before, _, after = reverse(f"admin:{app}_{model}_change", args=[0]).rpartition("0")
    return before, after


def shorten(text: str, *, most: int = 80) -> str:
    """Shorten a text of any length for a list."""
    return Truncator(text).chars(most)


def verbatim(text: str, *, length: int | None = None) -> SafeString:
    """Show a text as it is, line by line. ``length`` is that of the whole, where ``text`` is its beginning only."""
    hidden = max(length or len(text), len(text)) - MOST_CHARACTERS
    more = f"\n… and {hidden} more characters" if hidden > 0 else ""
    return format_html('<pre class="verbatim">{}{}</pre>', text[:MOST_CHARACTERS], more)


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # generic only in the stubs
    """Pages of the first ``MOST_LISTED`` rows. What lies behind them is found by search and filters."""

    @cached_property
    def keys(self) -> list[Any]:
        """Read the rows' keys, once for the count and the page, without a list's extra columns.

        In the order of the list: along the index that the list itself is read by. In any order, the whole table might
        be read for a few rows at its end.
        """
        rows: Any = self.object_list
        return list(rows.values_list("pk", flat=True)[:MOST_LISTED])

    @cached_property
    def count(self) -> int:
        return len(self.keys)

    def page(self, number: Any) -> Page[Any]:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        rows: Any = self.object_list
        return Page(rows.filter(pk__in=self.keys[start : start + self.per_page]), number, self)

    @property
    def is_capped(self) -> bool:
        return self.count == MOST_LISTED


class ListByKeys(ChangeList):
    """A list whose rows are searched through once, by ``CappedPaginator``, and in its own order.

    Whatever the address asks for: another order would sort the whole table.
    """

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        self.params.pop(ORDER_VAR, None)
        return super().get_ordering(request, queryset)

    def url_for_result(self, result: Model) -> str:
        return page_url(result)

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.multi_page:
            self.result_list = self.paginator.page(1).object_list


class ReadOnly:
    """Nobody adds, changes or deletes here, a superuser included: rows come from step functions, and history stays."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]  # generic only in the stubs
    """A list and a page per row, to look at. Name what the page shows in ``fields`` or ``fieldsets``: no more is shown.

    ``explanation`` stands above the list, ``when_empty`` in its place: what to do so that there are rows.
    """

    explanation = ""
    when_empty = ""

    list_per_page = 50
    show_full_result_count = False
    preserve_filters = False  # for pages that save, and lead back to their list
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator
    ordering = ("-pk",)
    sortable_by = ()  # no column's heading offers another order: see ListByKeys
    # Newest first, but for filters whose index has another order: parameter in the address -> order. The first that is
    # set counts.
    orders: Mapping[str, tuple[str, ...]] = {}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ListByKeys

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return next((order for name, order in self.orders.items() if request.GET.get(name)), self.ordering)

    def action_checkbox(self, obj: Model) -> SafeString:
        """Make a row's box as Django does, without a template for each: that was a third of a list's time."""
        box = '<input type="checkbox" name="{}" value="{}" class="action-select" aria-label="Choose {}">'
        return format_html(box, ACTION_CHECKBOX_NAME, obj.pk, obj)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow what the page's own filters send. Others in the address could probe columns that no page shows."""
        names = [getattr(each, "parameter_name", each) for each in self.list_filter]
        sent = {f"{name}{ending}" for name in names for ending in ("", "__exact", "__isnull", "__id__exact")}
        return lookup in sent and "\0" not in value

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        action = request.POST.get("action")
        if action and action not in self.get_actions(request):
            raise PermissionDenied  # Django would answer as if none had been chosen
        try:
            for pk in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.to_python(pk)
        except ValidationError as error:
            raise PermissionDenied from error  # no box of the list has such a key
        return super().changelist_view(request, extra_context)

    def page_context(self, row: Any) -> dict[str, Any]:
        """Give a row's page what its template shows beside the fields."""
        return {}

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        return super().render_change_form(request, context | self.page_context(obj), add, change, form_url, obj)


def name_reordering(response: HttpResponseBase) -> HttpResponseBase:
    """Keep a partner's text from turning the page's own words around, wherever on the page it stands.

    The site does this with each of its pages; files that are downloaded stay as they are.
    """
    if isinstance(response, SimpleTemplateResponse):
        response.add_post_render_callback(_translate)
    return response


def _translate(response: HttpResponse) -> None:
    text = response.content.decode()
    response.content = REORDERING.sub(lambda found: f"[U+{ord(found[0]):04X}]", text).encode()


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    explanation = "A key is shown once, when it is made. Its first letters are all that tells one from another here."
    when_empty = "No key yet. Make one with: manage.py apikey"
    list_display = ("prefix", "state", "scope", "holder", "created_at", "revoked_at")
    list_filter = ("scope",)
    list_select_related = ("partner",)
    search_fields = ("prefix__exact", "source__exact")
    search_help_text = "The first letters that the list shows, or a source: exactly."
    fields = ("prefix", "state", "scope", "partner", "source", "created_at", "revoked_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("digest")

    @admin.display
    def state(self, key: ApiKey) -> SafeString:
        return badge("revoked", "calm") if key.revoked_at else badge("in force", "good")

    @admin.display(description="partner or source")
    def holder(self, key: ApiKey) -> str:
        return link(key.partner) if key.partner else key.source


@admin.register(Secret)
class SecretAdmin(ReadOnlyAdmin):
    explanation = "The keys that sign messages. Their text is shown once, when they are made, and never here."
    when_empty = "No key yet. Adding a partner makes its first one: manage.py partner add"
    list_display = ("key_id", "state", "holder", "direction", "algorithm", "age", "retire_at")
    list_filter = ("direction", "algorithm", "partner")
    list_select_related = ("partner",)
    fields = (
        "key_id",
        "state",
        "partner",
        "direction",
        "algorithm",
        "age",
        "created_at",
        "active_from",
        "retire_at",
        "revoked_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # Not even decrypted: these pages work, too, while a key is missing from ENCRYPTION_KEYS.
        return super().get_queryset(request).defer("key")

    @admin.display
    def state(self, secret: Secret) -> SafeString:
        return badge(*state_of(secret, now=timezone.now()))

    @admin.display(description="partner")
    def holder(self, secret: Secret) -> str:
        return link(secret.partner) if secret.partner else "all (service-wide)"

    @admin.display
    def age(self, secret: Secret) -> str:
        return timesince(secret.active_from)


def state_of(secret: Secret, *, now: datetime) -> tuple[str, str]:
    """Say in a word, with its tone, whether a secret signs at ``now`` (as ``SecretQuerySet.active`` decides)."""
    if secret.revoked_at:
        return "revoked", "calm"
    if secret.retire_at and secret.retire_at <= now:
        return "retired", "calm"
    if secret.active_from > now:
        return "not yet in force", "wait"
    return ("retiring", "wait") if secret.retire_at else ("in force", "good")


@admin.register(Verification)
class VerificationAdmin(ReadOnlyAdmin):
    explanation = "What an endpoint proved before it was used, or who let it through without, and why."
    when_empty = "No verification yet. Run one with: manage.py partner verify, or on a partner's page."
    list_display = ("finished_at", "holder", "result", "followed", "url_text", "asked_by")
    list_filter = ("passed", "effect", "partner")
    list_select_related = ("partner",)
    fields = (
        "partner",
        "result",
        "followed",
        "url_text",
        "key_ids",
        "started_at",
        "finished_at",
        "asked_by",
        "waived_because",
        "table",
    )

    @admin.display(description="partner")
    def holder(self, verification: Verification) -> SafeString:
        return link(verification.partner)

    @admin.display
    def result(self, verification: Verification) -> SafeString:
        return result_badge(verification)

    @admin.display(description="what followed")
    def followed(self, verification: Verification) -> str:
        return verification.get_effect_display()

    @admin.display(description="URL")
    def url_text(self, verification: Verification) -> str:
        return shorten(verification.url)  # never a link: a partner chooses this text

    @admin.display(description="checks")
    def table(self, verification: Verification) -> SafeString:
        return checks_table(verification)


def result_badge(verification: Verification) -> SafeString:
    if verification.waived_because:
        return badge("waived", "wait")
    return badge("passed", "good") if verification.passed else badge("failed", "bad")


_WORDS = {True: ("passed", "good"), False: ("failed", "bad"), None: ("not run", "calm")}


def checks_table(verification: Verification) -> SafeString:
    """Show each check: what was sent, what came back, what to fix."""
    rows = (
        (
            check["name"],
            badge(*_WORDS[check["passed"]]),
            check["sent"],
            check["came_back"],
            format_html(" ({})", check["detail"]) if check["detail"] else "",
            check["fix"] or "-",
        )
        for check in verification.checks
    )
    return format_html(
        '<table><thead><tr><th scope="col">Check</th><th scope="col">Result</th><th scope="col">Sent</th>'
        '<th scope="col">Came back</th><th scope="col">To fix</th></tr></thead><tbody>{}</tbody></table>',
        format_html_join("", "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td></tr>", rows),
    )
