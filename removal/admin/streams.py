"""Streams and what is in them: each partner's numbered notices, and what is wrong with its endpoint."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, Case, F, Max, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from partners.admin import ReadOnlyAdmin, badge, link, verbatim
from partners.models import Partner
from removal import desk, health
from removal.admin.actions import ActingAdmin
from removal.admin.closings import ASK_WAIVER, CLOSE
from removal.admin.exact import statements_about
from removal.admin.filters import CauseFilter, name_cause
from removal.admin.words import delivery_word, handling_badge, moment, spans, state_badge
from removal.labels import requests_named
from removal.models import Closing, Delivery, Disclosure, Incident, Notice, Stream

Handling = Notice.Handling

MOST_STATEMENTS = 50
MOST_DISCLOSURES = 50

# "Received" may be said by the stream's watermark alone; the rows under it are spared the update.
HEARD_BY_WATERMARK = Q(handling=Handling.NONE, epoch=F("stream__epoch"), sequence__lte=F("stream__received_through"))


def standing(
    *,
    handling: str,
    delivery: str,
    respond_by: datetime,
    receive_by: datetime | None,
    withdrawn_at: datetime | None,
    closed_at: datetime | None,
    now: datetime,
) -> str:
    """Say whether a notice is ``silent`` (delivered, and no word by its date) or ``overdue``; else an empty word."""
    if withdrawn_at or closed_at or handling in Notice.TERMINAL:
        return ""
    is_unheard = delivery == Delivery.State.DELIVERED and handling == Handling.NONE
    if is_unheard and now > min(receive_by or respond_by, respond_by):
        return "silent"
    return "overdue" if now > respond_by else ""


def handling_of(notice: Notice) -> str:
    """Read the partner's word on a notice whose stream is loaded, the watermark included."""
    stream = notice.stream
    is_covered = notice.epoch == stream.epoch and notice.sequence <= stream.received_through
    return Handling.RECEIVED if notice.handling == Handling.NONE and is_covered else notice.handling


class LateFilter(admin.SimpleListFilter):
    title = "lateness"
    parameter_name = "late"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("overdue", "overdue"),
            ("silent", "overdue and silent"),
            ("due_soon", "due soon"),
            ("unsent", "not sent in time"),
            ("open", "open"),
        ]

    def queryset(self, request: HttpRequest, notices: Any) -> Any:
        if self.value() == "due_soon":
            return notices.due_soon(now=timezone.now())
        if self.value() == "unsent":
            partner = request.GET.get("stream__partner__id__exact")
            found = desk.notices_not_sent(now=timezone.now(), partner=partner)
            # As one value: thousands of them in a statement take their time.
            return notices.filter(RawSQL("removal_notice.id = any(%s)", [found], BooleanField()))
        if self.value() == "open":
            return notices.open()
        if self.value() not in {"overdue", "silent"}:
            return notices
        late = notices.open().filter(respond_by__lt=timezone.now())
        if self.value() == "silent":
            # What is in no message is not worth a look for the one that carries it.
            untold = Q(epoch=F("stream__epoch"), sequence__gt=F("stream__packed_through"))
            late = late.filter(handling=Handling.NONE, message_state=Delivery.State.DELIVERED).exclude(
                HEARD_BY_WATERMARK | untold
            )
        return late


class AgeFilter(admin.SimpleListFilter):
    """What is open, by the days since it was planned: along its own index."""

    title = "age, of what is open"
    parameter_name = "age"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("any", "any"), *((str(first), health.name_age(first, last)) for first, last in health.AGES)]

    def queryset(self, request: HttpRequest, notices: Any) -> Any:
        if self.value() == "any":
            return notices.open()
        chosen = [(first, last) for first, last in health.AGES if str(first) == self.value()]
        if not chosen:
            return notices
        after, through = health.edges(*chosen[0], now=timezone.now())
        found = notices.open().filter(planned_at__lte=through)
        return found.filter(planned_at__gt=after) if after else found


class HandlingFilter(admin.SimpleListFilter):
    title = "handling"
    parameter_name = "handling"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        words = {Handling.NONE: "no word yet, and open", Handling.RECEIVED: "received, and open"}
        return [(choice.value, words.get(choice, choice.label)) for choice in Handling]

    def queryset(self, request: HttpRequest, notices: Any) -> Any:
        # What is known by the watermark alone, no index has: it is looked for among what is open.
        if self.value() == Handling.NONE:
            return notices.open().filter(handling=Handling.NONE).exclude(HEARD_BY_WATERMARK)
        if self.value() == Handling.RECEIVED:
            return notices.open().filter(Q(handling=Handling.RECEIVED) | HEARD_BY_WATERMARK)
        return notices.filter(handling=self.value()) if self.value() else notices


@admin.register(Stream)
class StreamAdmin(ReadOnlyAdmin):
    explanation = "Everything a partner must be told, numbered 1, 2, 3 … without holes."
    when_empty = "No stream yet. A partner's stream starts with the partner: manage.py partner add"
    list_display = ("name", "standing", "head", "packed_through", "received_through", "epoch")
    list_select_related = ("partner",)
    list_filter = ("partner__state",)
    ordering = ("partner__slug",)
    search_fields = ("partner__slug",)
    search_help_text = "A part of the partner's slug."
    fields = (
        "partner",
        "standing",
        "head",
        "packed_through",
        "handed_out",
        "pulled_by_it",
        "received_through",
        "epoch",
        "contents",
    )

    @admin.display(description="stream")
    def name(self, stream: Stream) -> str:
        return stream.partner.slug

    @admin.display(description="partner is")
    def standing(self, stream: Stream) -> SafeString:
        return state_badge(stream.partner.state)

    @admin.display(description="handed out by pull")
    def handed_out(self, stream: Stream) -> str:
        return spans(stream.served)

    @admin.display(description="pulled: it came back for what follows")
    def pulled_by_it(self, stream: Stream) -> str:
        return spans(stream.pulled)

    @admin.display
    def contents(self, stream: Stream) -> SafeString:
        lists = [
            (reverse(f"admin:removal_{name}_changelist"), stream.pk, word)
            for name, word in (
                ("notice", "notices"),
                ("delivery", "deliveries"),
                ("acknowledgement", "acknowledgements"),
                ("incident", "incidents"),
            )
        ]
        return format_html_join(" · ", '<a href="{}?stream__partner__id__exact={}">{}</a>', lists)


@admin.register(Notice)
class NoticeAdmin(ActingAdmin):
    acts = (CLOSE, ASK_WAIVER)
    explanation = (
        "Overdue: its date is past and the answer is still owed. Silent: delivered, and no word by the date for its "
        "receipt. Not sent in time: it has not arrived by our own date for that. Held: the partner is paused or not "
        "live yet, so nothing is sent. Closed by hand: a person ended it, for a reason."
    )
    when_empty = "No notice yet. One appears when a request is about something that a partner received."
    list_display = ("number", "partner", "delivery", "handled", "answer_due", "of_request", "kind")
    list_filter = (LateFilter, AgeFilter, HandlingFilter, "kind", "stream__partner")
    orders = {
        "late": ("respond_by", "pk"),  # what is late longest comes first
        "age": ("planned_at", "pk"),
        "stream__partner__id__exact": ("-stream_id", "-epoch", "-sequence"),
    }
    list_select_related = ("stream__partner", "request")
    search_fields = ("sequence",)
    search_help_text = "A slug and a number, such as: acme 1203; or a request's id, a subject's key or its label."
    fieldsets = (
        (None, {"fields": ("number", "partner", "epoch", "request", "kind", "item_count", "handovers")}),
        ("Delivery, by us", {"fields": ("planned_at", "round", "send_by", "delivery", "message", "withdrawn_at")}),
        (
            "Handling, by the partner",
            {
                "fields": ("handled", "acknowledged_at", "receive_by", "answer_due", "statements"),
                "description": "The partner's word. What it says it did is attested by it, and checked by nobody here.",
            },
        ),
        ("Closed by hand, by us", {"fields": ("closed_at", "closed_for", "closed_words")}),
    )

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """List what is open and has at most been received, newest first, along the index of what is open."""
        order = super().get_ordering(request)
        is_early = request.GET.get(HandlingFilter.parameter_name) in {Handling.NONE, Handling.RECEIVED}
        return ("-planned_at", "-pk") if is_early and order == self.ordering else order

    def get_queryset(self, request: HttpRequest) -> Any:
        """Add ``message_state``: that of the message which carries the number, none while no message does."""
        # The last message that starts at or before the number: one look into an index, also where the number has none.
        nearest = (
            Delivery.objects.filter(
                stream=OuterRef("stream"), epoch=OuterRef("epoch"), first_sequence__lte=OuterRef("sequence")
            )
            .exclude(state=Delivery.State.SPLIT)
            .order_by("-first_sequence", "pk")
            .values(
                carries=Case(
                    When(last_sequence__lt=OuterRef("sequence"), then=None),
                    When(delivered_by=Delivery.DeliveredBy.CLOSED, then=Value("ended_by_hand")),
                    default="state",
                )
            )
        )
        return super().get_queryset(request).annotate(message_state=Subquery(nearest[:1]))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look up a notice by its public name, a slug and a number, or those of a request or a subject."""
        if not search_term:
            return queryset, False
        slug, _, number = search_term.strip().rpartition(" ")
        # No stream has a longer number; a label may end with one, too.
        is_name = number.isdecimal() and len(number) <= 18
        if not is_name or (slug and not Partner.objects.filter(slug=slug.strip()).exists()):
            return queryset.filter(request__in=requests_named(search_term)), False
        streams = Stream.objects.filter(**({"partner__slug": slug.strip()} if slug else {}))
        epochs = streams.aggregate(last=Max("epoch"))["last"] or 0
        # By all three columns of the index, or a number alone would be looked for in the whole table.
        return queryset.filter(stream__in=streams, epoch__in=range(1, epochs + 1), sequence=int(number)), False

    @admin.display
    def number(self, notice: Notice) -> str:
        return str(notice.sequence)

    @admin.display
    def partner(self, notice: Notice) -> SafeString:
        return link(notice.stream.partner)

    @admin.display(description="request")
    def of_request(self, notice: Notice) -> SafeString:
        return link(notice.request)

    @admin.display
    def delivery(self, notice: Any) -> SafeString:
        return state_badge(_delivery_of(notice))

    @admin.display(description="handling")
    def handled(self, notice: Notice) -> SafeString:
        said = handling_badge(handling_of(notice))
        return format_html("{} {}", said, badge("closed by hand", "calm")) if notice.closed_at else said

    @admin.display(description="respond by")
    def answer_due(self, notice: Any) -> SafeString:
        word = standing(
            handling=handling_of(notice),
            delivery=_delivery_of(notice),
            respond_by=notice.respond_by,
            receive_by=notice.receive_by,
            withdrawn_at=notice.withdrawn_at,
            closed_at=notice.closed_at,
            now=timezone.now(),
        )
        return format_html("{} {}", moment(notice.respond_by), state_badge(word) if word else "")

    @admin.display
    def message(self, notice: Notice) -> str:
        carrying = Delivery.objects.filter(
            stream=notice.stream_id,
            epoch=notice.epoch,
            first_sequence__lte=notice.sequence,
            last_sequence__gte=notice.sequence,
        ).exclude(state=Delivery.State.SPLIT)
        delivery = carrying.order_by("-first_sequence", "pk").first()
        return link(delivery) if delivery else "in none yet"

    @admin.display(description="handed over in")
    def handovers(self, notice: Notice) -> SafeString:
        disclosures = Disclosure.objects.filter(pk__in=notice.disclosures).select_related("release").order_by("pk")
        links = [(link(disclosure, disclosure.release.name),) for disclosure in disclosures[:MOST_DISCLOSURES]]
        more = len(notice.disclosures) - len(links)
        return format_html("{}{}", format_html_join(", ", "{}", links), f" and {more} more" if more > 0 else "")

    @admin.display(description="reason")
    def closed_for(self, notice: Notice) -> str:
        closing = Closing.objects.filter(notice=notice).first()
        return link(closing, closing.get_reason_display()) if closing else "not closed by hand"

    @admin.display(description="in their words")
    def closed_words(self, notice: Notice) -> str:
        closing = Closing.objects.filter(notice=notice).first()
        return verbatim(closing.text) if closing else "-"

    @admin.display
    def statements(self, notice: Notice) -> str:
        said = statements_about(notice, most=MOST_STATEMENTS)
        links = [(link(one, f"{one.get_status_display()} ({one})"),) for one in said]
        return format_html_join(", ", "{}", links) or "none yet"


def _delivery_of(notice: Any) -> str:
    """Say how the sending of a notice from ``NoticeAdmin.get_queryset`` stands."""
    if notice.withdrawn_at and not notice.message_state:
        return "withdrawn"
    stream = notice.stream
    if notice.epoch == stream.epoch and stream.has_pulled(notice.sequence):
        return Delivery.State.DELIVERED
    return delivery_word(notice.message_state or Delivery.State.WAITING, stream.partner)


class OngoingFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("ongoing", "ongoing"), ("closed", "closed")]

    def queryset(self, request: HttpRequest, incidents: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"ongoing", "closed"}:
            return incidents
        return incidents.filter(closed_at__isnull=self.value() == "ongoing")


@admin.register(Incident)
class IncidentAdmin(ReadOnlyAdmin):
    explanation = (
        "Something is wrong with a partner's endpoint, not with one message: the next success closes it. "
        "Until then messages are tried again, and nothing is lost."
    )
    when_empty = "No incident: every endpoint does what it should."
    list_display = ("cause", "partner", "standing", "opened_at", "closed_at")
    list_filter = (OngoingFilter, CauseFilter, "stream__partner")
    list_select_related = ("stream__partner",)
    fields = ("cause", "partner", "standing", "opened_at", "closed_at")

    @admin.display(ordering="kind")
    def cause(self, incident: Incident) -> str:
        return name_cause(incident.kind)

    @admin.display
    def partner(self, incident: Incident) -> SafeString:
        return link(incident.stream.partner)

    @admin.display(description="state")
    def standing(self, incident: Incident) -> SafeString:
        return badge("closed", "calm") if incident.closed_at else state_badge("ongoing")
