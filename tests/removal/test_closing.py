"""A notice ends by the partner's word or by a named person's reason; giving one up takes two people."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import Error, IntegrityError, connection, transaction
from django.utils import timezone

from partners.models import Partner
from partners.webhook import Refused
from removal import acknowledgement, closing, delivery, health, holdings, invariants, planning, reports
from removal.models import Acknowledgement, Closing, Delivery, LogEntry, Notice, RemovalRequest, Waiver
from removal.statements import Statement
from removal.verdict import judge
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)
TEXT = "Their counsel's letter of Monday, in the file."


@pytest.fixture
def lead() -> User:
    return User.objects.create_user("lead", is_staff=True)


@pytest.fixture
def other() -> User:
    return User.objects.create_user("other", is_staff=True)


@pytest.fixture
def partner() -> Partner:
    return make_partner("acme").partner


def owe(*partners: Partner, subject: str = "site:1", sent: bool = True) -> RemovalRequest:
    release = make_release(contents={subject: ["post:1", "post:2"]})
    for partner in partners:
        disclose(release, partner)
    request = record(make_wish(subject))
    planning.plan(budget=BUDGET)
    if sent:
        for partner in partners:
            delivery.claim(partner_id=partner.pk)
    return request


def fail(partner: Partner) -> None:
    """Let every message under way fail, so that it waits for its next try."""
    outcome = Refused(status=503, answer=b"", latency=timedelta(0))
    verdict = judge(outcome, notices=1, attempt=1, jitter=0)
    results = [delivery.Result(one, outcome, verdict) for one in delivery.claim(partner_id=partner.pk).claims]
    delivery.record(results, partner_id=partner.pk)


def say(partner: Partner, sequence: int, status: str, **said: Any) -> Any:
    statement = Statement(status=status, text="{}", sequence=sequence, **said)
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])


def close(notice: Notice, user: User, reason: str = "agreed_in_writing", text: str = TEXT) -> Closing:
    return closing.close_notice(user_id=user.pk, notice_id=notice.pk, reason=reason, text=text)


def broken() -> dict[str, int]:
    return {name: count for name, count in invariants.check().items() if count}


def test_a_person_closes_a_notice_and_the_partners_word_stays(partner: Partner, lead: User) -> None:
    request = owe(partner)
    say(partner, 1, "in_progress")
    notice = Notice.objects.get()
    made = close(notice, lead)
    notice.refresh_from_db()
    request.refresh_from_db()
    assert (notice.handling, notice.closed_at is None) == ("in_progress", False)
    assert (made.reason, made.text, made.closed_by) == ("agreed_in_writing", TEXT, lead)
    assert (request.state, request.outcome) == ("closed", "partially_fulfilled")
    assert not Notice.objects.open().exists()
    entry = LogEntry.objects.get(action="notice_closed")
    assert entry.actor == f"staff:{lead.pk}"
    assert entry.about == {
        "notice": notice.pk, "partner": partner.pk, "epoch": 1, "sequence": 1, "closing": made.pk,
        "reason": "agreed_in_writing",
    }  # fmt: skip
    assert broken() == {}


def test_a_request_stays_open_while_another_partner_owes(partner: Partner, lead: User) -> None:
    request = owe(partner, make_partner("other-partner").partner)
    close(Notice.objects.get(stream_id=partner.pk), lead)
    request.refresh_from_db()
    assert request.state == "planned"
    assert broken() == {}


def test_what_was_closed_is_owed_no_more_on_any_page(partner: Partner, lead: User) -> None:
    request = owe(partner)
    held = holdings.holdings_of(partner="acme", now=timezone.now() + timedelta(days=60))
    assert (held.open_notices, held.overdue_notices) == (1, 1)
    close(Notice.objects.get(), lead)
    held = holdings.holdings_of(partner="acme", now=timezone.now() + timedelta(days=60))
    assert (held.open_notices, held.overdue_notices, held.oldest) == (0, 0, None)
    [line] = reports.partner_lines(request)
    assert (line.handling, line.closed_reason, line.closed_at is None) == ("none", "agreed_in_writing", False)


def test_a_message_whose_every_number_is_closed_is_not_sent_any_more(partner: Partner, lead: User) -> None:
    owe(partner, sent=False)
    fail(partner)
    assert Delivery.objects.get().state == "waiting"
    close(Notice.objects.get(), lead)
    message = Delivery.objects.get()
    assert (message.state, message.delivered_by) == ("delivered", "closed")
    request = RemovalRequest.objects.get()
    [line] = reports.partner_lines(request)
    assert (line.delivery, line.delivered_at) == ("ended_by_hand", None)
    [told] = holdings.window_of(source=request.source, public_id=request.public_id)
    assert told.told_at is None
    assert health.health_of(partner_id=partner.pk, now=timezone.now()).delivered == 0
    assert delivery.claim(partner_id=partner.pk).claims == []
    assert broken() == {}


def test_a_message_with_another_number_in_it_goes_on(partner: Partner, lead: User) -> None:
    owe(partner, subject="site:1", sent=False)
    owe(partner, subject="site:2", sent=False)
    fail(partner)
    assert (Delivery.objects.get().first_sequence, Delivery.objects.get().last_sequence) == (1, 2)
    close(Notice.objects.get(sequence=1), lead)
    assert Delivery.objects.get().state == "waiting"
    say(partner, 2, "received")
    message = Delivery.objects.get()
    assert (message.state, message.delivered_by) == ("delivered", "closed")
    assert broken() == {}


def test_a_later_answer_is_taken_and_counts(partner: Partner, lead: User) -> None:
    request = owe(partner)
    close(Notice.objects.get(), lead)
    answer = say(partner, 1, "completed", outcomes={"removed": 2})
    assert (answer.accepted, answer.refused) == (1, [])
    notice = Notice.objects.get()
    request.refresh_from_db()
    assert (notice.handling, notice.closed_at is None, Acknowledgement.objects.count()) == ("completed", False, 1)
    assert request.outcome == "fulfilled"
    assert broken() == {}


@pytest.mark.parametrize("reason", ["waived", "", "because", "other"])
def test_only_a_reason_from_the_list_closes(partner: Partner, lead: User, reason: str) -> None:
    owe(partner)
    with pytest.raises(closing.InvalidClosing):
        close(Notice.objects.get(), lead, reason=reason)
    assert Notice.objects.open().count() == 1


@pytest.mark.parametrize("text", ["", "  \n", "x" * 2001, "\0"])
def test_closing_takes_words(partner: Partner, lead: User, text: str) -> None:
    owe(partner)
    with pytest.raises(closing.InvalidClosing):
        close(Notice.objects.get(), lead, text=text)
    assert Closing.objects.count() == 0


def test_what_has_ended_is_not_closed(partner: Partner, lead: User) -> None:
    owe(partner)
    notice = Notice.objects.get()
    close(notice, lead)
    with pytest.raises(closing.AlreadyEnded, match="closed notice 1 of acme before"):
        close(notice, lead)
    owe(partner, subject="site:2")
    say(partner, 2, "completed", outcomes={"removed": 2})
    with pytest.raises(closing.AlreadyEnded, match="has answered notice 2 of acme: completed"):
        close(Notice.objects.get(sequence=2), lead)
    with pytest.raises(closing.UnknownNotice):
        closing.close_notice(user_id=lead.pk, notice_id=0, reason="duplicate", text=TEXT)
    assert Closing.objects.count() == 1


def test_a_waiver_changes_nothing_until_a_second_person_approves(partner: Partner, lead: User, other: User) -> None:
    request = owe(partner)
    notice = Notice.objects.get()
    waiver = closing.ask_waiver(user_id=lead.pk, notice_id=notice.pk, text=TEXT)
    assert Notice.objects.open().count() == 1
    with pytest.raises(closing.AlreadyAsked):
        closing.ask_waiver(user_id=other.pk, notice_id=notice.pk, text=TEXT)
    with pytest.raises(closing.NotASecondPerson):
        closing.approve_waiver(user_id=lead.pk, waiver_id=waiver.pk)
    assert Notice.objects.open().count() == 1
    made = closing.approve_waiver(user_id=other.pk, waiver_id=waiver.pk)
    waiver.refresh_from_db()
    request.refresh_from_db()
    assert (made.reason, made.closed_by, made.waiver) == ("waived", other, waiver)
    assert (waiver.state, waiver.asked_by, waiver.decided_by) == ("approved", lead, other)
    assert request.outcome == "partially_fulfilled"
    entries = LogEntry.objects.filter(action__in=["waiver_asked", "notice_closed"]).order_by("pk")
    assert [entry.actor for entry in entries] == [f"staff:{lead.pk}", f"staff:{other.pk}"]
    with pytest.raises(closing.AlreadyDecided):
        closing.approve_waiver(user_id=other.pk, waiver_id=waiver.pk)
    assert broken() == {}


def test_a_refused_waiver_leaves_the_notice_owed_and_may_be_asked_again(
    partner: Partner, lead: User, other: User
) -> None:
    owe(partner)
    notice = Notice.objects.get()
    waiver = closing.ask_waiver(user_id=lead.pk, notice_id=notice.pk, text=TEXT)
    closing.refuse_waiver(user_id=lead.pk, waiver_id=waiver.pk)  # taken back
    with pytest.raises(closing.AlreadyDecided):
        closing.approve_waiver(user_id=other.pk, waiver_id=waiver.pk)
    assert Notice.objects.open().count() == 1
    closing.ask_waiver(user_id=lead.pk, notice_id=notice.pk, text=TEXT)
    assert list(Waiver.objects.order_by("pk").values_list("state", flat=True)) == ["refused", "asked"]


def test_an_answer_overtakes_a_waiver(partner: Partner, lead: User, other: User) -> None:
    owe(partner)
    waiver = closing.ask_waiver(user_id=lead.pk, notice_id=Notice.objects.get().pk, text=TEXT)
    say(partner, 1, "completed", outcomes={"removed": 2})
    with pytest.raises(closing.AlreadyEnded):
        closing.approve_waiver(user_id=other.pk, waiver_id=waiver.pk)
    waiver.refresh_from_db()
    assert (waiver.state, Closing.objects.count()) == ("asked", 0)


def test_the_database_itself_refuses_one_person_alone(partner: Partner, lead: User) -> None:
    owe(partner)
    waiver = closing.ask_waiver(user_id=lead.pk, notice_id=Notice.objects.get().pk, text=TEXT)
    with pytest.raises(IntegrityError, match="nobody_approves_their_own_waiver"), transaction.atomic():
        Waiver.objects.filter(pk=waiver.pk).update(state="approved", decided_by=lead, decided_at=timezone.now())
    with pytest.raises(IntegrityError, match="a_closing_that_waives_has_its_waiver"), transaction.atomic():
        Closing.objects.create(notice=Notice.objects.get(), reason="waived", text=TEXT, closed_by=lead)


def test_a_closing_is_history(partner: Partner, lead: User) -> None:
    owe(partner)
    made = close(Notice.objects.get(), lead)
    for change in (
        lambda: Closing.objects.filter(pk=made.pk).update(text="else"),
        lambda: Closing.objects.filter(pk=made.pk).delete(),
        lambda: Notice.objects.update(closed_at=None),
    ):
        with pytest.raises(Error), transaction.atomic():
            change()


def at_once(*steps: Callable[[], object]) -> list[str]:
    """Run steps on connections of their own, from the same moment on; returns how each ended."""
    start, ended = threading.Barrier(len(steps)), []

    def run(step: Callable[[], object]) -> None:
        try:
            start.wait()
            step()
            ended.append("done")
        except Exception as error:  # noqa: BLE001
            ended.append(type(error).__name__)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return sorted(ended)


@pytest.mark.faults
def test_two_people_close_at_once_and_one_does(partner: Partner, lead: User, other: User) -> None:
    for turn in range(5):
        owe(partner, subject=f"site:{turn}")
        notice = Notice.objects.get(sequence=turn + 1)
        ended = at_once(lambda n=notice: close(n, lead), lambda n=notice: close(n, other, "duplicate"))  # type: ignore[misc]
        assert ended == ["AlreadyEnded", "done"]
    assert (Closing.objects.count(), LogEntry.objects.filter(action="notice_closed").count()) == (5, 5)
    assert broken() == {}


@pytest.mark.faults
def test_approved_and_refused_at_once_is_one_of_them(partner: Partner, lead: User, other: User) -> None:
    third = User.objects.create_user("third", is_staff=True)
    for turn in range(5):
        owe(partner, subject=f"site:{turn}")
        notice = Notice.objects.get(sequence=turn + 1)
        pk = closing.ask_waiver(user_id=lead.pk, notice_id=notice.pk, text=TEXT).pk
        ended = at_once(
            lambda w=pk: closing.approve_waiver(user_id=other.pk, waiver_id=w),  # type: ignore[misc]
            lambda w=pk: closing.approve_waiver(user_id=third.pk, waiver_id=w),  # type: ignore[misc]
            lambda w=pk: closing.refuse_waiver(user_id=lead.pk, waiver_id=w),  # type: ignore[misc]
        )
        assert ended == ["AlreadyDecided", "AlreadyDecided", "done"]
    assert broken() == {}


@pytest.mark.faults
def test_a_closing_and_an_answer_at_once_leave_nothing_half(partner: Partner, lead: User) -> None:
    for turn in range(4):  # as many as the partner's window has room for
        request = owe(partner, subject=f"site:{turn}")
        notice = Notice.objects.get(sequence=turn + 1)
        at_once(
            lambda n=notice: close(n, lead),  # type: ignore[misc]
            lambda t=turn: say(partner, t + 1, "completed", outcomes={"removed": 2}),  # type: ignore[misc]
        )
        request.refresh_from_db()
        assert (request.state, request.outcome) == ("closed", "fulfilled")
    assert broken() == {}
