"""Closing notices by hand, and giving them up: what a person may say alone, and what takes a second one."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from partners.admin import ReadOnlyAdmin, link, shorten, verbatim
from removal import closing
from removal.admin.actions import Act, ActingAdmin, Action, ReasonForm, one_by_one
from removal.admin.words import state_badge
from removal.models import Closing, Notice, Waiver
from removal.models.closings import MOST_TEXT


def _is_open(notice: Notice) -> bool:
    return not (notice.closed_at or notice.withdrawn_at or notice.handling in Notice.TERMINAL)


def _owed(notices: Sequence[Any]) -> list[str]:
    return [
        f"Notice {notice.sequence} of {notice.stream.partner.slug}: {notice.item_count} items, to be answered by "
        f"{notice.respond_by:%Y-%m-%d %H:%M}; the partner's word so far: {notice.get_handling_display()}."
        for notice in notices
    ]


class ClosingForm(ReasonForm):
    reasons = tuple((reason.value, reason.label) for reason in closing.ALONE)


class WaiverForm(forms.Form):
    text = forms.CharField(
        label="Why, in your words",
        widget=forms.Textarea(attrs={"rows": 4}),
        max_length=MOST_TEXT,
        help_text="The second person reads this, and whoever asks in five years. Name no person.",
    )


def _close(act: Act) -> str:
    def step(notice: Notice) -> None:
        closing.close_notice(user_id=act.user_id, notice_id=notice.pk, **act.said)

    return one_by_one(act, step, done="closed by hand", errors=(closing.AlreadyEnded, closing.InvalidClosing))


CLOSE = Action(
    name="close",
    label="Close by hand",
    permission="removal.close",
    run=_close,
    preview=_owed,
    form=ClosingForm,
    is_dangerous=True,
    applies=_is_open,
    explanation=(
        "Nobody is asked for these numbers any more, and their requests count as complied with in part at most. "
        "One that was not sent yet is still sent in its turn, so that the partner's numbers have no gap. "
        "It cannot be taken back. The partner may still answer, and its answer is kept beside yours."
    ),
)


def _ask_waiver(act: Act) -> str:
    errors = (closing.AlreadyEnded, closing.AlreadyAsked, closing.InvalidClosing)

    def step(notice: Notice) -> None:
        closing.ask_waiver(user_id=act.user_id, notice_id=notice.pk, text=act.said["text"])

    return one_by_one(act, step, done="put to a second person", errors=errors)


ASK_WAIVER = Action(
    name="waive",
    label="Ask to waive: give up without the partner's word",
    permission="removal.waive",
    run=_ask_waiver,
    preview=_owed,
    form=WaiverForm,
    is_dangerous=True,
    applies=_is_open,
    explanation="Nothing changes until another person approves it, under Waivers.",
)


def _wishes(waivers: Sequence[Any]) -> list[str]:
    return [f"{_notice_name(waiver.notice)}: {waiver.text}" for waiver in waivers]


def _approve(act: Act) -> str:
    errors = (closing.NotASecondPerson, closing.AlreadyDecided, closing.AlreadyEnded)
    return one_by_one(
        act,
        lambda waiver: closing.approve_waiver(user_id=act.user_id, waiver_id=waiver.pk),
        done="waived",
        errors=errors,
    )


def _refuse(act: Act) -> str:
    return one_by_one(
        act,
        lambda waiver: closing.refuse_waiver(user_id=act.user_id, waiver_id=waiver.pk),
        done="refused",
        errors=(closing.AlreadyDecided,),
    )


def _is_asked(waiver: Waiver) -> bool:
    return waiver.state == Waiver.State.ASKED


APPROVE = Action(
    name="approve",
    label="Approve, as the second person",
    permission="removal.waive",
    run=_approve,
    preview=_wishes,
    is_dangerous=True,
    applies=_is_asked,
    explanation="The notices are closed: nothing more is asked of the partner. It cannot be taken back.",
)
REFUSE = Action(
    name="refuse",
    label="Refuse, or take back your own",
    permission="removal.waive",
    run=_refuse,
    preview=_wishes,
    applies=_is_asked,
    explanation="What is still owed under these notices is owed as before.",
)


def _notice_name(notice: Notice) -> str:
    return f"notice {notice.sequence} of {notice.stream.partner.slug}"


def waiting(waivers: QuerySet[Waiver]) -> QuerySet[Waiver]:
    """Those that somebody has to decide on: nothing has ended their notices meanwhile."""
    return waivers.filter(state=Waiver.State.ASKED, notice__in=Notice.objects.open())


class WaitingFilter(admin.SimpleListFilter):
    title = "decision"
    parameter_name = "waits"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "somebody has to decide")]

    def queryset(self, request: HttpRequest, waivers: QuerySet[Waiver]) -> QuerySet[Waiver]:
        return waiting(waivers) if self.value() == "yes" else waivers


@admin.register(Waiver)
class WaiverAdmin(ActingAdmin):
    acts = (APPROVE, REFUSE)
    explanation = "Notices that somebody wants to give up. Another person than who asked decides."
    when_empty = "Nobody has asked to give anything up. Who wants to, does so on a notice's page."
    list_display = ("asked_at", "of_notice", "standing", "asked_by", "why", "decided_by", "decided_at")
    list_display_links = ("asked_at",)
    list_filter = (WaitingFilter, "state", "notice__stream__partner")
    fields = ("of_notice", "standing", "words", "asked_by", "asked_at", "decided_by", "decided_at")

    def get_queryset(self, request: Any) -> Any:
        # For the list, the page, and the questions that actions ask.
        return super().get_queryset(request).select_related("notice__stream__partner", "asked_by", "decided_by")

    @admin.display(description="notice")
    def of_notice(self, waiver: Waiver) -> SafeString:
        return link(waiver.notice, _notice_name(waiver.notice))

    @admin.display(description="state")
    def standing(self, waiver: Waiver) -> SafeString:
        return state_badge("waiting" if _is_asked(waiver) else waiver.state, waiver.get_state_display())

    @admin.display(description="why")
    def why(self, waiver: Waiver) -> str:
        return shorten(waiver.text)

    @admin.display(description="why")
    def words(self, waiver: Waiver) -> SafeString:
        return verbatim(waiver.text)


@admin.register(Closing)
class ClosingAdmin(ReadOnlyAdmin):
    explanation = "Notices that a person ended, and why. It is evidence like any other: the database refuses changes."
    when_empty = "No notice was closed by hand. Who has to, does so on a notice's page."
    list_display = ("closed_at", "of_notice", "reason", "closed_by", "why")
    list_filter = ("reason", "notice__stream__partner")
    list_select_related = ("notice__stream__partner", "closed_by")
    fields = ("of_notice", "reason", "words", "closed_by", "closed_at", "by_waiver")

    @admin.display(description="notice")
    def of_notice(self, closing: Closing) -> SafeString:
        return link(closing.notice, _notice_name(closing.notice))

    @admin.display(description="in their words")
    def why(self, closing: Closing) -> str:
        return shorten(closing.text)

    @admin.display(description="in their words")
    def words(self, closing: Closing) -> SafeString:
        return verbatim(closing.text)

    @admin.display(description="asked for in")
    def by_waiver(self, closing: Closing) -> str:
        return link(closing.waiver) if closing.waiver else "one person's word"
