"""A request is given more time once, in time, with a reason, and where the person was told."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from removal import intake
from removal.intake import InvalidWish, UnknownRequest
from removal.models import DeadlinePolicy, LogEntry, RemovalRequest, RequestExtension
from removal.prolonging import CannotExtend, extend_request
from tests.factories import make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)


def ask(*, days_ago: float = 10, jurisdiction: str = "eu", kind: str = "opt_out") -> RemovalRequest:
    received_at = timezone.now() - timedelta(days=days_ago)
    return record(make_wish("site:1", kind=kind, jurisdiction=jurisdiction, received_at=received_at))


def extend(request: RemovalRequest, **said: Any) -> RequestExtension:
    given = {"actor": "test", "public_id": request.public_id, "reason": "Many sites.", "person_told_at": timezone.now()}
    return extend_request(**{**given, **said})


@pytest.mark.parametrize(("jurisdiction", "kind"), [("", "opt_out"), ("eu", "opt_out"), ("us-ca", "deletion")])
def test_an_extension_moves_the_date_and_keeps_the_first(jurisdiction: str, kind: str) -> None:
    request = ask(jurisdiction=jurisdiction, kind=kind)
    told_at = timezone.now()
    made = extend(request, person_told_at=told_at)
    after = RemovalRequest.objects.get(pk=request.pk)
    assert after.respond_by == request.extendable_to == made.respond_by
    assert (made.first_respond_by, made.reason, made.person_told_at) == (request.respond_by, "Many sites.", told_at)
    assert LogEntry.objects.get(action="request_extended").about == {"request": request.public_id}


def test_the_same_again_changes_nothing_and_another_is_refused() -> None:
    request, told_at = ask(), timezone.now()
    first = extend(request, person_told_at=told_at)
    assert extend(request, person_told_at=told_at) == first
    with pytest.raises(CannotExtend, match="once"):
        extend(request, reason="Still more sites.", person_told_at=told_at)
    assert LogEntry.objects.filter(action="request_extended").count() == 1


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (lambda _: None, "Tell the person first"),
        (lambda _: timezone.now() + timedelta(hours=1), "future"),
        (lambda request: request.received_at - timedelta(seconds=1), "after asking"),
    ],
)
def test_the_person_must_have_been_told_within_the_first_term(
    told: Callable[[RemovalRequest], datetime | None], words: str
) -> None:
    request = ask()
    with pytest.raises(InvalidWish, match=words):
        extend(request, person_told_at=told(request))
    assert RemovalRequest.objects.get(pk=request.pk).respond_by == request.respond_by


def test_where_the_policy_does_not_ask_for_it_nobody_need_be_told() -> None:
    DeadlinePolicy.objects.filter(name="gdpr").update(tells_person=False)
    assert extend(ask(), person_told_at=None).person_told_at is None


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (lambda: ask(days_ago=40), "past"),
        (lambda: ask(jurisdiction="us-ca"), "allows no extension"),
        (lambda: withdrawn(ask()), "closed"),
        (lambda: (ask(), ask())[1], "repeats"),
    ],
)
def test_a_request_that_cannot_be_extended_keeps_its_date(request_of: Callable[[], RemovalRequest], words: str) -> None:
    request = request_of()
    with pytest.raises(CannotExtend, match=words):
        extend(request)
    assert RemovalRequest.objects.get(pk=request.pk).respond_by == request.respond_by


def withdrawn(request: RemovalRequest) -> RemovalRequest:
    return intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)


def test_another_source_cannot_extend_it_and_a_reason_is_needed() -> None:
    request = ask()
    with pytest.raises(UnknownRequest):
        extend(request, source="somebody-else")
    with pytest.raises(InvalidWish):
        extend(request, reason="  ")


def test_of_many_at_once_one_extends() -> None:
    request = ask()

    def work(n: int) -> bool:
        try:
            extend(request, reason=f"reason {n}")
        except CannotExtend:
            return False
        else:
            return True
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))).count(True) == 1
    assert RequestExtension.objects.count() == 1


@pytest.mark.parametrize(
    "change",
    [
        "update removal_removalrequest set respond_by = respond_by + interval '1 day'",
        "update removal_removalrequest set respond_by = respond_by - interval '1 day'",
        "update removal_requestextension set reason = 'another'",
        "delete from removal_requestextension",
    ],
)
def test_the_database_moves_no_date_without_an_extension_and_changes_none(change: str) -> None:
    extend(ask())
    with pytest.raises(IntegrityError), connection.cursor() as cursor:
        cursor.execute(change)
