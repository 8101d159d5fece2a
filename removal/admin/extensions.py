"""More time: what partners ask for, and what staff decide."""

from collections.abc import Callable
from functools import partial

from django import forms
from django.contrib import admin
from django.utils.safestring import SafeString

from partners.admin import link, shorten, verbatim
from removal import extensions
from removal.admin.actions import Act, ActingAdmin, Action, Failed, one_by_one
from removal.admin.words import moment, state_badge
from removal.models import Extension


class DecisionForm(forms.Form):
    decision = forms.CharField(label="Why", max_length=2000, widget=forms.Textarea(attrs={"rows": 4}))


def _decide(act: Act, decide: Callable[..., None], done: str) -> str:
    def step(wish: Extension) -> None:
        try:
            decide(extension_id=wish.pk, actor=act.actor, decision=act.said["decision"])
        except (extensions.DecisionNeeded, extensions.NotAsked, extensions.NothingToExtend) as error:
            raise Failed(f"{wish}: {error}") from error

    return one_by_one(act, step, done=done, errors=(Failed,))


def _about(wish: Extension) -> str:
    return f"number {wish.sequence} of {wish.stream.partner.slug}, until {moment(wish.extend_until)}"


def _is_open(wish: Extension) -> bool:
    return wish.state == Extension.State.ASKED


def _why_not(wish: Extension) -> str:
    return f"It was {wish.state} before."


GRANT = Action(
    name="grant",
    label="Grant: give the notices the dates asked for",
    permission="removal.extend",
    run=partial(_decide, decide=extensions.grant, done="granted"),
    preview=lambda wishes: [_about(wish) for wish in wishes],
    form=DecisionForm,
    applies=_is_open,
    why_not=_why_not,
    explanation="A notice is extended once.",
)
REFUSE = Action(
    name="refuse",
    label="Refuse: the notices keep their dates",
    permission="removal.extend",
    run=partial(_decide, decide=extensions.refuse, done="refused"),
    preview=lambda wishes: [_about(wish) for wish in wishes],
    form=DecisionForm,
    applies=_is_open,
    why_not=_why_not,
)


@admin.register(Extension)
class ExtensionAdmin(ActingAdmin):
    acts = (GRANT, REFUSE)
    explanation = (
        "Partners ask for a later date here. The date of a notice stands until a wish is granted; it is granted once. "
        "To decide, choose wishes and an action."
    )
    when_empty = "No wish for more time yet. Partners send them to /v1/acknowledgements."
    list_display = ("asked_at", "partner", "notice", "extend_until", "standing", "why_asked", "decided_by")
    list_filter = ("state", "stream__partner")
    orders = {"stream__partner__id__exact": ("-stream_id", "-epoch", "-sequence", "-pk")}
    list_select_related = ("stream__partner",)
    fieldsets = (
        (None, {"fields": ("partner", "epoch", "notice", "extend_until", "standing")}),
        ("Asked by the partner", {"fields": ("asked_at", "words", "key_prefix", "signed_answer")}),
        ("Decided by staff", {"fields": ("decided_at", "decided_by", "why_decided")}),
    )

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
