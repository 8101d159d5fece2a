"""Closing a notice by hand: the other way than the partner's word by which it ends (design §9.6).

The partner's word stays as it is: what a person says stands in a row of its own, with the reason and their words, and
a later answer of the partner is taken as ever. Giving something up without any word of the partner takes two people.
"""

from django.db import connection
from django.db.models.functions import Now

from removal.acknowledgement import close_requests
from removal.models import Closing, LogEntry, Notice, Stream, Waiver
from removal.models.closings import MOST_TEXT
from removal.settling import settle_deliveries
from removal.transactions import whole_step

# What one person may say alone.
ALONE = tuple(reason for reason in Closing.Reason if reason != Closing.Reason.WAIVED)


class UnknownNotice(Exception):
    """There is no such notice."""


class UnknownWaiver(Exception):
    """There is no such waiver."""


class AlreadyEnded(Exception):
    """Nothing is owed under this number any more. The message says why."""


class InvalidClosing(Exception):
    """The reason or the text will not do. The message says which, and what to write."""


class AlreadyAsked(Exception):
    """Somebody has asked for the same waiver; it waits for another person."""


class AlreadyDecided(Exception):
    """Somebody has decided on this waiver before."""


class NotASecondPerson(Exception):
    """Whoever asked for a waiver cannot be the one who approves it."""


@whole_step
def close_notice(*, user_id: int, notice_id: int, reason: str, text: str) -> Closing:
    """End a notice by a person's word: it is asked for no more, and its request closes with its last notice.

    Its message is tried no more once all of it has ended. One that is in no message yet is still sent under its number.

    Raises UnknownNotice, AlreadyEnded, and InvalidClosing; a waiver needs ``ask_waiver`` and a second person.
    """
    if reason not in ALONE:
        raise InvalidClosing(f"{reason!r} is no reason that one person may give. Write one of: {', '.join(ALONE)}.")
    return _close(_lock(notice_id), user_id=user_id, reason=reason, text=_checked(text))


@whole_step
def ask_waiver(*, user_id: int, notice_id: int, text: str) -> Waiver:
    """Ask that a notice be given up. Nothing changes until another person approves.

    Raises UnknownNotice, AlreadyEnded, AlreadyAsked, and InvalidClosing.
    """
    notice = _lock(notice_id)
    text = _checked(text)
    if Waiver.objects.filter(notice=notice, state=Waiver.State.ASKED).exists():
        raise AlreadyAsked(f"A waiver of {_name(notice)} waits for a second person already.")
    waiver = Waiver.objects.create(notice=notice, text=text, asked_by_id=user_id)
    _log(user_id, "waiver_asked", notice, waiver=waiver.pk)
    return waiver


@whole_step
def approve_waiver(*, user_id: int, waiver_id: int) -> Closing:
    """Agree that a notice is given up, which closes it.

    Raises UnknownWaiver, NotASecondPerson, AlreadyDecided, and AlreadyEnded when the partner has answered meanwhile:
    the waiver then stays as it was asked.
    """
    waiver, notice = _lock_waiver(waiver_id)
    if waiver.asked_by_id == user_id:
        raise NotASecondPerson("You asked for this waiver yourself: another person must approve it.")
    _refuse_ended(notice)
    _decide(waiver, Waiver.State.APPROVED, user_id)
    return _close(notice, user_id=user_id, reason=Closing.Reason.WAIVED, text=waiver.text, waiver=waiver)


@whole_step
def refuse_waiver(*, user_id: int, waiver_id: int) -> None:
    """Refuse a waiver, or take one's own back: the notice is owed as before. Raises UnknownWaiver, AlreadyDecided."""
    waiver, notice = _lock_waiver(waiver_id)
    _decide(waiver, Waiver.State.REFUSED, user_id)
    _log(user_id, "waiver_refused", notice, waiver=waiver.pk)


def _lock(notice_id: int) -> Notice:
    """Lock a notice behind its stream, as an answer of the partner does: of both at once, the later sees the other."""
    stream_id = Notice.objects.filter(pk=notice_id).values_list("stream_id", flat=True).first()
    if stream_id is None:
        raise UnknownNotice(f"There is no notice {notice_id}.")
    Stream.objects.select_for_update(no_key=True).get(pk=stream_id)
    notice = (
        Notice.objects.select_related("stream__partner").select_for_update(no_key=True, of=("self",)).get(pk=notice_id)
    )
    _refuse_ended(notice)
    return notice


def _lock_waiver(waiver_id: int) -> tuple[Waiver, Notice]:
    asked = Waiver.objects.filter(pk=waiver_id).select_related("notice").first()
    if asked is None:
        raise UnknownWaiver(f"There is no waiver {waiver_id}.")
    Stream.objects.select_for_update(no_key=True).get(pk=asked.notice.stream_id)
    waiver = Waiver.objects.select_for_update(no_key=True).get(pk=waiver_id)
    if waiver.state != Waiver.State.ASKED:
        raise AlreadyDecided(f"This waiver was {waiver.get_state_display()} before.")
    return waiver, Notice.objects.select_related("stream__partner").get(pk=asked.notice_id)


def _refuse_ended(notice: Notice) -> None:
    if notice.closed_at:
        raise AlreadyEnded(f"Somebody closed {_name(notice)} before.")
    if notice.withdrawn_at:
        raise AlreadyEnded(f"Nothing is asked under {_name(notice)} any more: it was withdrawn.")
    if notice.handling in Notice.TERMINAL:
        raise AlreadyEnded(f"The partner has answered {_name(notice)}: {notice.get_handling_display()}.")


def _checked(text: str) -> str:
    text = text.strip().replace("\0", "")
    if not text or len(text) > MOST_TEXT:
        raise InvalidClosing(f"Say in your own words why: 1 to {MOST_TEXT} characters.")
    return text


def _decide(waiver: Waiver, state: Waiver.State, user_id: int) -> None:
    Waiver.objects.filter(pk=waiver.pk).update(state=state, decided_by_id=user_id, decided_at=Now())


def _close(notice: Notice, *, user_id: int, reason: str, text: str, waiver: Waiver | None = None) -> Closing:
    closing = Closing.objects.create(notice=notice, reason=reason, text=text, closed_by_id=user_id, waiver=waiver)
    Notice.objects.filter(pk=notice.pk).update(closed_at=Now())
    _log(user_id, "notice_closed", notice, closing=closing.pk, reason=reason)
    with connection.cursor() as cursor:
        close_requests(cursor, request_ids=[notice.request_id])
        settle_deliveries(cursor, stream_id=notice.stream_id)
    return closing


def _name(notice: Notice) -> str:
    return f"notice {notice.sequence} of {notice.stream.partner.slug}"


def _log(user_id: int, action: str, notice: Notice, **about: int | str) -> None:
    LogEntry.objects.create(
        actor=f"staff:{user_id}",
        action=action,
        about={"notice": notice.pk, "partner": notice.stream_id, "epoch": notice.epoch, "sequence": notice.sequence}
        | about,
    )
