"""More time: what partners ask for, and what staff decide."""

from collections.abc import Callable

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from partners.admin import ReadOnlyAdmin, link, shorten, verbatim
from removal import extensions
from removal.admin.words import state_badge
from removal.models import Extension


class DecisionForm(ActionForm):
    """The list's own choice of an action, and why."""

    decision = forms.CharField(
        required=False, max_length=2000, label="Why:", widget=forms.TextInput(attrs={"size": 40, "autocomplete": "off"})
    )


@admin.register(Extension)
class ExtensionAdmin(ReadOnlyAdmin):
    explanation = (
        "Partners ask for a later date here. The date of a notice stands until a wish is granted; it is granted once. "
        "To decide, select wishes, choose an action, and say why."
    )
    when_empty = "No wish for more time yet. Partners send them to /v1/acknowledgements."
    list_display = ("asked_at", "partner", "notice", "extend_until", "standing", "why_asked", "decided_by")
    list_filter = ("state", "stream__partner")
    list_select_related = ("stream__partner",)
    fieldsets = (
        (None, {"fields": ("partner", "epoch", "notice", "extend_until", "standing")}),
        ("Asked by the partner", {"fields": ("asked_at", "words", "key_prefix", "signed_answer")}),
        ("Decided by staff", {"fields": ("decided_at", "decided_by", "why_decided")}),
    )
    actions = ("grant", "refuse")
    action_form = DecisionForm

    def has_decide_permission(self, request: HttpRequest) -> bool:
        """The actions ask for the right to change extensions, though no field can be edited here."""
        return request.user.has_perm("removal.change_extension")

    @admin.action(description="Grant: give the notices the dates asked for", permissions=["decide"])
    def grant(self, request: HttpRequest, wishes: QuerySet[Extension]) -> None:
        self._decide(request, wishes, extensions.grant, "granted")

    @admin.action(description="Refuse: the notices keep their dates", permissions=["decide"])
    def refuse(self, request: HttpRequest, wishes: QuerySet[Extension]) -> None:
        self._decide(request, wishes, extensions.refuse, "refused")

    def _decide(
        self, request: HttpRequest, wishes: QuerySet[Extension], decide: Callable[..., None], word: str
    ) -> None:
        decided, faults = 0, []
        for wish in wishes.order_by("pk"):
            try:
                decide(
                    extension_id=wish.pk,
                    actor=f"staff:{request.user.pk}",
                    decision=request.POST.get("decision", "").replace("\0", "")[:2000],
                )
                decided += 1
            except extensions.DecisionNeeded as error:
                self.message_user(request, str(error), messages.ERROR)
                return
            except (extensions.NotAsked, extensions.NothingToExtend) as error:
                faults.append(f"{wish}: {error}")
        level = messages.SUCCESS if decided else messages.WARNING
        self.message_user(request, " ".join([f"{decided} {word}; {len(faults)} could not be.", *faults[:5]]), level)

    @admin.display
    def partner(self, extension: Extension) -> SafeString:
        return link(extension.stream.partner)

    @admin.display
    def notice(self, extension: Extension) -> str:
        return str(extension.sequence)

    @admin.display(description="state")
    def standing(self, extension: Extension) -> SafeString:
        return state_badge(extension.state)

    @admin.display(description="reason")
    def why_asked(self, extension: Extension) -> str:
        return shorten(extension.reason)

    @admin.display(description="reason, word for word")
    def words(self, extension: Extension) -> SafeString:
        return verbatim(extension.reason)

    @admin.display(description="why")
    def why_decided(self, extension: Extension) -> str:
        return verbatim(extension.decision) if extension.decision else "-"
