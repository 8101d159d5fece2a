"""Give a request more time, once, with a reason: the platform's own clock (GDPR Art. 12(3), 11 CCR 7021(b)).

What a partner wishes for its notices is another matter; see docs/deadlines.md.
"""

from datetime import datetime

from django.conf import settings
from django.db import connection

from removal.intake import InvalidWish, UnknownRequest
from removal.models import LogEntry, RemovalRequest, RequestExtension
from removal.transactions import whole_step


class CannotExtend(Exception):
    """The request keeps its date. The message says why."""


@whole_step
def extend_request(
    *, actor: str, public_id: str, reason: str, person_told_at: datetime | None, source: str | None = None
) -> RequestExtension:
    """Move a request's date to the one that its policy allows, once; the first date stays on record.

    Only before the first date, and where the policy asks for it only if the person was told by now: not after the
    first date, and not ahead of time. ``source`` None is staff, who may extend every request. The same again changes
    nothing. Raises UnknownRequest, InvalidWish, or CannotExtend.
    """
    if not reason.strip():
        raise InvalidWish("reason", "Say why it takes longer: the person was told, and an auditor will ask.")
    whose = {} if source is None else {"source": source}
    request = RemovalRequest.objects.select_for_update(no_key=True).filter(public_id=public_id, **whose).first()
    if request is None:
        raise UnknownRequest(public_id)
    earlier = RequestExtension.objects.filter(request=request).first()
    if earlier:
        if (earlier.reason, earlier.person_told_at) == (reason, person_told_at):
            return earlier
        raise CannotExtend("It was extended before, and that is possible once.")
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        (now,) = cursor.fetchone()
    if request.state == RemovalRequest.State.CLOSED:
        raise CannotExtend("It is closed: there is nothing to wait for.")
    if request.repeats_id:
        raise CannotExtend("It only repeats an earlier request; extend that one.")
    if request.extendable_to is None or request.extendable_to <= request.respond_by:
        raise CannotExtend("Its deadline policy allows no extension.")
    if now > request.respond_by:
        raise CannotExtend("Its first date is past. An extension counts only within the first term.")
    _check_told(request, person_told_at, now=now)
    extension = RequestExtension.objects.create(
        request=request,
        first_respond_by=request.respond_by,
        respond_by=request.extendable_to,
        reason=reason,
        person_told_at=person_told_at,
        actor=actor,
    )
    # As a filter, since a trigger compares the date with the extension's.
    RemovalRequest.objects.filter(pk=request.pk).update(respond_by=extension.respond_by)
    LogEntry.objects.create(actor=actor, action="request_extended", about={"request": public_id})
    return extension


def _check_told(request: RemovalRequest, person_told_at: datetime | None, *, now: datetime) -> None:
    if person_told_at is None:
        if request.tells_person:
            raise InvalidWish("person_told_at", "Tell the person first, with the reason, and say when you did.")
        return
    if person_told_at > now + settings.CLOCK_SKEW:
        raise InvalidWish("person_told_at", "It lies in the future; tell the person first.")
    if not request.received_at <= person_told_at <= request.respond_by:
        raise InvalidWish("person_told_at", "The person must be told after asking, and before the first date.")
