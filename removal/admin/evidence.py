"""What was said and done, as it was: partners' statements, and the log."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.functions import Left, Length, Substr
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from partners.admin import MOST_CHARACTERS, ReadOnlyAdmin, link, shorten, verbatim
from removal.admin.words import as_hex, as_json, handling_badge, span
from removal.models import Acknowledgement, AcknowledgementText, LogEntry, SignedAnswer, SignedAnswerBody

MOST_CONTENTS = 50


@admin.register(Acknowledgement)
class AcknowledgementAdmin(ReadOnlyAdmin):
    explanation = "What partners say. What one says it did is attested by it, and checked by nobody here."
    when_empty = "No answer yet. Partners send them to /v1/acknowledgements."
    list_display = ("received_at", "partner", "notices", "said", "reason", "amended", "channel", "key_prefix")
    # By channel there is none: it would cost the table an index, and the channel stands on each row.
    list_filter = ("status", "stream__partner")
    orders = {"stream__partner__id__exact": ("-stream_id", "-epoch", "-last_sequence", "-pk")}
    list_select_related = ("stream__partner",)
    fieldsets = (
        (None, {"fields": ("partner", "epoch", "notices", "said", "reason", "amended", "completed_at")}),
        ("Attested by the partner", {"fields": ("counts", "claims")}),
        ("How it came", {"fields": ("received_at", "channel", "key_prefix", "signature", "digest")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Show the statement itself to those who may see statements: it may name items."""
        if not request.user.has_perm("removal.view_acknowledgementtext"):
            return self.fieldsets
        return (*self.fieldsets, ("Word for word", {"fields": ("words",)}))

    @admin.display
    def partner(self, statement: Acknowledgement) -> SafeString:
        return link(statement.stream.partner)

    @admin.display
    def notices(self, statement: Acknowledgement) -> str:
        return span(statement.first_sequence, statement.last_sequence)

    @admin.display(description="status")
    def said(self, statement: Acknowledgement) -> SafeString:
        return handling_badge(statement.status)

    @admin.display(description="amends")
    def amended(self, statement: Acknowledgement) -> str:
        return "an earlier one" if statement.amends else "-"

    @admin.display(description="items by outcome")
    def counts(self, statement: Acknowledgement) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in statement.outcomes.items())
        return shorten(counts, most=1000) or "-"

    @admin.display(description="attestations")
    def claims(self, statement: Acknowledgement) -> str:
        return verbatim(as_json(statement.attestations)) if statement.attestations else "-"

    @admin.display(description="signed")
    def signature(self, statement: Acknowledgement) -> str:
        return link(statement.signed_answer) if statement.signed_answer else "not signed"

    @admin.display(description="SHA-256 of its words")
    def digest(self, statement: Acknowledgement) -> str:
        return as_hex(statement.text_digest)

    @admin.display(description="statement")
    def words(self, statement: Acknowledgement) -> str:
        # The database cuts it: a statement may be 64 MiB long.
        found = AcknowledgementText.objects.filter(pk=statement.pk)
        row = found.values_list(Left("text", MOST_CHARACTERS), Length("text")).first()
        return verbatim(row[0], length=row[1]) if row else "Erased: its time was over."


@admin.register(SignedAnswer)
class SignedAnswerAdmin(ReadOnlyAdmin):
    explanation = (
        "Whole requests that a partner signed with its own key, checked when they came and kept word for word. "
        "To check them again: manage.py verify_answers"
    )
    when_empty = "No signed answer yet. Partners may sign what they send to /v1/acknowledgements."
    list_display = ("received_at", "partner_link", "message_id", "key_id", "digest")
    list_display_links = ("received_at",)
    list_filter = ("partner",)
    list_select_related = ("partner",)
    fieldsets = (
        (None, {"fields": ("partner_link", "received_at", "key_id", "contents")}),
        ("Headers", {"fields": ("message_id", "timestamp", "signed_with")}),
        ("Body", {"fields": ("digest",)}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Show the body to those who may see statements: it may name items."""
        if not request.user.has_perm("removal.view_signedanswerbody"):
            return self.fieldsets
        return (*self.fieldsets, ("Word for word", {"fields": ("words",)}))

    @admin.display(description="partner")
    def partner_link(self, answer: SignedAnswer) -> SafeString:
        return link(answer.partner)

    @admin.display(description="key")
    def key_id(self, answer: SignedAnswer) -> str:
        return f"key_{answer.key_id}"

    @admin.display(description="webhook-signature")
    def signed_with(self, answer: SignedAnswer) -> SafeString:
        return verbatim(answer.signature)

    @admin.display(description="SHA-256 of its body")
    def digest(self, answer: SignedAnswer) -> str:
        return as_hex(answer.body_digest)

    @admin.display(description="acknowledgements in it")
    def contents(self, answer: SignedAnswer) -> str:
        first = list(answer.acknowledgements.order_by("pk")[: MOST_CONTENTS + 1])
        links = format_html_join(", ", "{}", [(link(one),) for one in first[:MOST_CONTENTS]])
        return format_html("{}{}", links, " and more" if len(first) > MOST_CONTENTS else "") if first else "none"

    @admin.display(description="body")
    def words(self, answer: SignedAnswer) -> str:
        # The database cuts it: a body may be 64 MiB long, and the cut may go through a character.
        found = SignedAnswerBody.objects.filter(pk=answer.pk)
        row = found.values_list(Substr("body", 1, MOST_CHARACTERS), Length("body")).first()
        return verbatim(bytes(row[0]).decode(errors="replace"), length=row[1]) if row else "Erased: its time was over."


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnlyAdmin):
    explanation = "What happened, and who did it: ids and states only. The database refuses to change or delete these."
    when_empty = "Nothing has happened yet."
    list_display = ("at", "actor", "action", "summary")
    search_fields = ("actor", "action")
    search_help_text = "An actor or an action, exactly: staff:1, worker, partner_paused …"
    fields = ("at", "actor", "action", "subjects", "seal")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look up what was done, or else who did it: either has an index, and both in one question have none."""
        if not search_term:
            return queryset, False
        of_action = queryset.filter(action=search_term.strip())
        return (of_action if of_action.exists() else queryset.filter(actor=search_term.strip())), False

    @admin.display(description="about")
    def summary(self, entry: LogEntry) -> str:
        return shorten(", ".join(f"{name} {value}" for name, value in entry.about.items()), most=120)

    @admin.display(description="about")
    def subjects(self, entry: LogEntry) -> SafeString:
        return verbatim(as_json(entry.about))

    @admin.display(description="SHA-256 of all this")
    def seal(self, entry: LogEntry) -> str:
        return as_hex(entry.digest)
