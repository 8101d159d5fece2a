"""More time: a partner asks, a named person grants or refuses, and the date stands until then (design §10).

A notice has one open wish at a time, and is extended once.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection
from django.db.models.functions import Now

from removal.identifiers import Identifiers
from removal.models import Extension, LogEntry, Notice, Stream
from removal.payload import as_time
from removal.statements import TERMINAL, Answer, Refusal, Wish, refuse_epoch, refuse_unknown
from removal.testimony import Origin
from removal.transactions import whole_step

State = Extension.State

# A wish for more than this is a mistake, or no wish to remove anything.
LONGEST = timedelta(days=366)


class NotAsked(Exception):
    """Nobody waits for this decision: the wish was decided before."""


class NothingToExtend(Exception):
    """The notice needs no later date: it has ended, or its date is as late already."""


class DecisionNeeded(ValueError):
    """A decision needs a text that says why."""


@whole_step
def ask(*, partner_id: int, origin: Origin, wishes: Sequence[Wish]) -> Answer:
    """Take a partner's wishes for more time, each for one notice of its stream. Repeating one changes nothing."""
    stream = Stream.objects.select_for_update(no_key=True).filter(partner_id=partner_id).first()
    if stream is None:
        return Answer(refused=[refuse_unknown(wish) for wish in wishes])
    numbers = [wish.sequence for wish in wishes]
    here = {"stream": stream, "epoch": stream.epoch, "sequence__in": numbers}
    notices = {notice.sequence: notice for notice in Notice.objects.filter(**here)}
    earlier: dict[int, list[Extension]] = {}
    for extension in Extension.objects.filter(**here):
        earlier.setdefault(extension.sequence, []).append(extension)
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        (now,) = cursor.fetchone()

    names = Identifiers.for_partner(partner_id)
    answer = Answer()
    accepted: list[Extension] = []
    for wish in wishes:
        known = earlier.setdefault(wish.sequence, [])
        refusal = _refuse(wish, stream, notices.get(wish.sequence))
        if refusal:
            answer.refused.append(refusal)
        elif any((one.extend_until, one.reason) == (wish.extend_until, wish.reason) for one in known):
            answer.unchanged += 1
        elif fault := _fault(wish, notices[wish.sequence], known, names=names, now=now):
            answer.refused.append(Refusal(wish.sequence, *fault, wish.line))
        else:
            extension = Extension(
                stream=stream,
                epoch=stream.epoch,
                sequence=wish.sequence,
                extend_until=wish.extend_until,
                reason=wish.reason,
                key_prefix=origin.key_prefix,
                signed_answer_id=origin.signed_answer_id,
            )
            known.append(extension)
            accepted.append(extension)
    answer.accepted = len(accepted)
    Extension.objects.bulk_create(accepted)
    LogEntry.objects.bulk_create(_log(origin.actor, "extension_asked", extension) for extension in accepted)
    return answer


def _refuse(wish: Wish, stream: Stream, notice: Notice | None) -> Refusal | None:
    """Say why there is nothing that the wish could be about."""
    if refusal := refuse_epoch(wish, epoch=stream.epoch):
        return refusal
    if notice is None:
        return refuse_unknown(wish)
    if not stream.has_told(notice.sequence):
        message = "This number has not been sent to you yet. Ask when it comes."
        return Refusal(notice.sequence, "not_yet_sent", message, wish.line)
    return None


def _fault(
    wish: Wish, notice: Notice, known: Sequence[Extension], *, names: Identifiers, now: datetime
) -> tuple[str, str] | None:
    states = {one.state for one in known}
    if _has_ended(notice):
        return "already_ended", "This notice has ended: no answer to it is due any more."
    if State.GRANTED in states:
        return "already_extended", "This notice was given more time once. That date stands."
    if State.ASKED in states:
        return "extension_pending", "You have asked for more time already. Wait for the decision; the date stands."
    # As the partner was told it, on both sides: whoever was told a day could find the moment by trying.
    respond_by = names.time(notice.respond_by)
    if names.time(wish.extend_until) <= respond_by:
        return "not_later", f"The answer is due by {as_time(respond_by)}. Ask for a later date."
    if wish.extend_until <= now:
        return "not_later", "This date has passed. Ask for one that is to come."
    if wish.extend_until > now + LONGEST:
        return "too_far", "Nobody may take more than a year. Ask for an earlier date."
    return None


def _has_ended(notice: Notice) -> bool:
    """Whether no answer is awaited any more: the partner gave it, the wish was taken back, or a person closed it."""
    return bool(notice.handling in TERMINAL or notice.withdrawn_at or notice.closed_at)


@whole_step
def grant(*, extension_id: int, actor: str, decision: str) -> None:
    """Give a notice the date that its partner asked for. ``decision`` says why.

    Raises DecisionNeeded, NotAsked or NothingToExtend.
    """
    extension = _open(extension_id, decision)
    notice = Notice.objects.select_for_update(no_key=True).get(
        stream=extension.stream_id, epoch=extension.epoch, sequence=extension.sequence
    )
    if _has_ended(notice) or extension.extend_until <= notice.respond_by:
        raise NothingToExtend("The notice has ended, or its date is as late already. Refuse the wish.")
    Notice.objects.filter(pk=notice.pk).update(respond_by=extension.extend_until)
    _decide(extension, State.GRANTED, actor, decision)


@whole_step
def refuse(*, extension_id: int, actor: str, decision: str) -> None:
    """Leave a notice its date. ``decision`` says why. Raises DecisionNeeded or NotAsked."""
    _decide(_open(extension_id, decision), State.REFUSED, actor, decision)


def _open(extension_id: int, decision: str) -> Extension:
    if not decision.strip():
        raise DecisionNeeded("Say why: the text is kept with the decision.")
    extension = Extension.objects.select_for_update().get(pk=extension_id)
    if extension.state != State.ASKED:
        raise NotAsked(f"It was {extension.state} before.")
    return extension


def _decide(extension: Extension, state: str, actor: str, decision: str) -> None:
    Extension.objects.filter(pk=extension.pk).update(
        state=state, decided_at=Now(), decided_by=actor, decision=decision.strip()
    )
    _log(actor, f"extension_{state}", extension).save()


def _log(actor: str, action: str, extension: Extension) -> LogEntry:
    about = {"partner": extension.stream_id, "sequence": extension.sequence, "extension": extension.pk}
    until = f"{extension.extend_until:%Y-%m-%dT%H:%M:%SZ}"
    return LogEntry(actor=actor, action=action, about=about | {"epoch": extension.epoch, "until": until})
