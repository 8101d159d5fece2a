"""Partners are reminded at 50, 80 and 100 % of the time, at most once a day, by a message that carries no notice."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import F
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, delivery, escalation, invariants, payload, planning, reminders, sending
from removal.models import Attempt, Delivery, Escalation, LogEntry, Notice, RemovalRequest, Stream
from removal.partnerships import set_paused
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)
DAYS = 30


def owe(receiver: Receiver, *, notices: int = 1, slug: str = "acme", **limits: Any) -> Partner:
    """Make a partner that was sent so many notices, and has answered none."""
    partner = make_partner(slug, url=receiver.url, **limits).partner
    disclose(make_release(contents={f"{slug}:{n}": ["post:1"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"{slug}:{n}"))
    planning.plan(budget=BUDGET)
    sending.drain(partner_id=partner.pk, budget=BUDGET)
    return partner


def owe_another(partner: Partner) -> None:
    disclose(make_release(contents={"acme:another": ["post:1"]}), partner)
    record(make_wish("acme:another"))
    planning.plan(budget=BUDGET)


def let_pass(days: float, **which: Any) -> None:
    """Let so many of the 30 days of notices be over, and the time of the next look and reminder have come."""
    planned_at = timezone.now() - timedelta(days=days)
    Notice.objects.filter(**which).update(
        planned_at=planned_at, respond_by=planned_at + timedelta(days=DAYS), receive_by=planned_at + timedelta(days=3)
    )
    an_hour_ago = timezone.now() - timedelta(hours=1, seconds=1)
    Stream.objects.filter(looked_at__isnull=False).update(looked_at=an_hour_ago)


def let_days_pass(days: float) -> None:
    """Let all that was done have happened so much earlier."""
    passed = timedelta(days=days)
    Notice.objects.update(
        planned_at=F("planned_at") - passed, respond_by=F("respond_by") - passed, receive_by=F("receive_by") - passed
    )
    Stream.objects.update(looked_at=F("looked_at") - passed, reminded_at=F("reminded_at") - passed)
    Escalation.objects.update(until=F("until") - passed)


def remind(partner: Partner) -> list[dict[str, Any]]:
    """Look, make reminders, send; returns the reminders made that wait or have gone."""
    escalation.look()
    reminders.remind()
    sending.drain(partner_id=partner.pk, budget=BUDGET)
    made = Delivery.objects.filter(first_sequence=None, stream=partner.pk).exclude(state="dropped").order_by("id")
    return [json.loads(bytes(one.body.body)) for one in made]


def say(partner: Partner, **said: Any) -> None:
    statement = Statement(text=json.dumps(said), **said)
    assert acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk", statements=[statement]).refused == []


def reminded(receiver: Receiver) -> list[dict[str, Any]]:
    messages = [json.loads(message.body) for message in receiver.received]
    return [message for message in messages if message["type"] == "removal.reminder"]


def beside(reading: str, statement: str) -> AbstractContextManager[None]:
    """Run a statement on a connection of its own each time that a reading one has run. It fails rather than wait."""

    def run(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        result = execute(sql, *rest)
        if sql == reading:
            with psycopg.connect(**connection.get_connection_params()) as other:
                other.execute("set lock_timeout = '100ms'")
                other.execute(statement)
        return result

    return connection.execute_wrapper(run)


def test_a_reminder_names_what_is_due_and_arrives_as_every_message_does() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=4)
        let_pass(16, sequence=1)
        let_pass(25, sequence=2)
        let_pass(31, sequence=3)
        remind(partner)
        [message] = reminded(receiver)
    notices = {notice.sequence: notice for notice in Notice.objects.all()}
    assert message.keys() == {"type", "version", "timestamp", "data"}
    assert message["data"] == {
        "partner": "acme",
        "epoch": 1,
        "head": 4,
        "due": [
            {"sequence": n, "respond_by": payload.as_time(notices[n].respond_by), "state": state}
            for n, state in ((3, "overdue"), (2, "due_soon"), (1, "on_track"))
        ],
        "due_total": 3,
        "acknowledge_url": "http://testserver/v1/acknowledgements",
    }
    kept = Delivery.objects.get(first_sequence=None)
    assert (kept.state, kept.delivered_by, kept.attempts, kept.last_sequence) == ("delivered", "response", 1, None)
    assert receiver.received[-1].webhook_id == kept.webhook_id
    assert LogEntry.objects.get(action="partner_reminded").about == {
        "partner": partner.pk, "delivery": str(kept.pk), "notices": 3, "reminders_dropped": 0,
    }  # fmt: skip
    assert Stream.objects.get().head == 4
    assert {name: count for name, count in invariants.check().items() if count} == {}


def test_what_arrived_without_a_word_is_silent_once_its_time_to_say_so_is_over() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=3)
        let_pass(20)
        assert {line["state"] for line in reminders.reminders_for(partner_id=partner.pk).due} == {"on_track"}
        with connection.cursor() as cursor:  # the guard lets no code of ours say when a message arrived
            cursor.execute("alter table removal_delivery disable trigger a_delivery_moves_forward")
            cursor.execute("update removal_delivery set delivered_at = delivered_at - interval '2 days'")
            cursor.execute("alter table removal_delivery enable always trigger a_delivery_moves_forward")
        now = timezone.now()
        assert Notice.objects.silent(now=now).count() == 3
        assert {line["state"] for line in reminders.reminders_for(partner_id=partner.pk).due} == {"silent"}
        say(partner, through=2, status="received")
        assert list(Notice.objects.silent(now=now).values_list("sequence", flat=True)) == [3]
        states = [line["state"] for line in reminders.reminders_for(partner_id=partner.pk).due]
        assert sorted(states) == ["on_track", "on_track", "silent"]
        say(partner, sequence=3, status="in_progress")
        assert not Notice.objects.silent(now=now).exists()


@pytest.mark.parametrize(("days", "made"), [(0, 0), (14.9, 0), (15.1, 1), (31, 1)])
def test_a_reminder_is_made_when_half_of_the_time_is_over(days: float, made: int) -> None:
    with listening() as receiver:
        partner = owe(receiver)
        let_pass(days)
        assert len(remind(partner)) == made


def test_a_partner_is_reminded_at_each_level_once_and_at_most_once_a_day() -> None:
    with listening() as receiver:
        partner = owe(receiver)
        counts = []
        for days in (16, 1, 8, 1, 5, 9):
            let_days_pass(days)
            remind(partner)
            counts.append(len(reminded(receiver)))
        assert counts == [1, 1, 2, 2, 3, 3]

        # Another notice comes to a level on the same day: it waits for the next.
        owe_another(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        Stream.objects.update(reminded_at=timezone.now() - timedelta(hours=2))
        let_pass(15.001, sequence=2)
        remind(partner)
        assert len(reminded(receiver)) == 3
        Stream.objects.update(reminded_at=timezone.now() - timedelta(days=1, seconds=1))
        Escalation.objects.filter(level__gte=80).update(until=F("until") - timedelta(days=2))
        remind(partner)
        assert len(reminded(receiver)) == 4


@pytest.mark.parametrize(
    "ends",
    [
        lambda partner: say(partner, sequence=1, status="completed"),
        lambda _: Notice.objects.update(withdrawn_at=timezone.now()),
        lambda partner: set_paused(actor="test", slug=partner.slug, paused=True),
    ],
)
def test_who_owes_nothing_or_is_paused_is_not_reminded(ends: Callable[[Partner], object]) -> None:
    with listening() as receiver:
        partner = owe(receiver)
        ends(partner)
        let_pass(31)
        assert remind(partner) == []


def test_what_was_never_sent_is_not_held_against_its_partner() -> None:
    with listening() as receiver:
        partner = owe(receiver)
        owe_another(partner)
        let_pass(31)
        assert [line["sequence"] for line in reminders.reminders_for(partner_id=partner.pk).due] == [1]


def test_a_long_list_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reminders, "MOST_LISTED", 2)
    with listening() as receiver:
        partner = owe(receiver, notices=5)
        let_pass(31)
        [message] = remind(partner)
    assert [line["sequence"] for line in message["data"]["due"]] == [1, 2]
    assert message["data"]["due_total"] == 5


def test_a_reminder_that_does_not_arrive_is_dropped_for_a_newer_one_and_holds_nothing_up() -> None:
    def refuse_reminders(message: Any) -> Reply:
        return Reply(500 if b"removal.reminder" in message.body else 200)

    with listening(refuse_reminders) as receiver:
        partner = owe(receiver, window=1)
        let_pass(16)
        remind(partner)
        [first] = Delivery.objects.filter(first_sequence=None)
        assert (first.state, first.failures) == ("waiting", 1)
        # A new notice goes out beside it, although only one message may be on its way.
        owe_another(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert Delivery.objects.filter(last_sequence=2, state="delivered").exists()

        let_days_pass(9)
        remind(partner)
        first.refresh_from_db()
        assert first.state == "dropped"
        assert Delivery.objects.filter(first_sequence=None, state="waiting").count() == 1
        assert LogEntry.objects.filter(action="partner_reminded").latest("id").about["reminders_dropped"] == 1
        receiver.script = lambda _: Reply(200)
        Delivery.objects.filter(state="waiting").update(due_at=timezone.now())
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert sorted(Delivery.objects.filter(first_sequence=None).values_list("state", flat=True)) == [
        "delivered",
        "dropped",
    ]
    assert {name: count for name, count in invariants.check().items() if count} == {}


def test_an_answer_does_not_end_a_reminder_that_waits() -> None:
    with listening(lambda message: Reply(500 if b"reminder" in message.body else 200)) as receiver:
        partner = owe(receiver)
        let_pass(16)
        remind(partner)
        say(partner, sequence=1, status="in_progress")
    assert Delivery.objects.get(first_sequence=None).state == "waiting"


def test_a_receiver_that_refuses_the_form_of_a_reminder_is_sent_everything_else() -> None:
    with listening(lambda message: Reply(422 if b"reminder" in message.body else 200)) as receiver:
        partner = owe(receiver)
        let_pass(16)
        remind(partner)
        assert Delivery.objects.get(first_sequence=None).state == "waiting"
        assert Attempt.objects.latest("id").status == 422
    assert Delivery.objects.filter(state="split").count() == 0


def test_a_reminder_whose_worker_died_goes_again() -> None:
    with listening() as receiver:
        partner = owe(receiver)
        let_pass(16)
        escalation.look()
        reminders.remind()
        [claim] = delivery.claim(partner_id=partner.pk).claims
        assert (claim.first, claim.last, claim.notices) == (None, None, 1)
        Delivery.objects.filter(state="sending").update(lease_until=timezone.now() - timedelta(seconds=1))
        from removal import recovery

        assert recovery.reap() == 1
        Delivery.objects.filter(state="waiting").update(due_at=timezone.now())
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert len(reminded(receiver)) == 1
    assert Delivery.objects.get(first_sequence=None).state == "delivered"


def test_of_many_workers_at_once_one_makes_the_reminder() -> None:
    with listening() as receiver:
        owe(receiver)
        let_pass(16)
        escalation.look()

        def work(_: int) -> int:
            try:
                return reminders.remind()
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(work, range(16))) == 1
    assert Delivery.objects.filter(first_sequence=None).count() == 1


def test_a_stream_can_be_locked_while_its_notices_are_read() -> None:
    with listening() as receiver:
        owe(receiver)
        let_pass(16)
        escalation.look()
        with beside(reminders.LISTED, "select from removal_stream for no key update"):
            assert reminders.remind() == 1


def test_a_reminder_that_somebody_else_made_meanwhile_is_not_made_again() -> None:
    with listening() as receiver:
        owe(receiver)
        let_pass(16)
        escalation.look()
        with beside(reminders.LISTED, "update removal_stream set reminded_at = clock_timestamp()"):
            assert reminders.remind() == 0
    assert not Delivery.objects.filter(first_sequence=None).exists()


@pytest.mark.parametrize(
    "change",
    [
        "update removal_delivery set state = 'dropped' where first_sequence = 1",
        "update removal_delivery set first_sequence = null where first_sequence = 1",
        "update removal_delivery set first_sequence = null, last_sequence = null where first_sequence = 1",
    ],
)
def test_no_message_that_carries_notices_is_dropped_or_loses_its_range(change: str) -> None:
    with listening() as receiver:
        owe(receiver)
    with psycopg.connect(**connection.get_connection_params()) as other, pytest.raises(psycopg.Error):
        other.execute(change)


def test_states_of_notices_and_requests_are_told_apart() -> None:
    with listening() as receiver:
        owe(receiver, notices=4)
        for sequence, days in ((1, 5), (2, 25), (3, 31)):
            let_pass(days, sequence=sequence)
        Notice.objects.filter(sequence=4).update(withdrawn_at=timezone.now())
    now = timezone.now()
    found = Notice.objects
    assert [list(each.values_list("sequence", flat=True)) for each in (
        found.on_track(now=now), found.due_soon(now=now), found.overdue(now=now))] == [[1], [2], [3]]  # fmt: skip
    asked = [record(make_wish(f"late:{n}", received_at=now - timedelta(days=n))) for n in (1, 27, 40)]
    record(make_wish("late:40"))  # a repeat: it is answered with the earlier one
    late = RemovalRequest.objects.filter(pk__gte=asked[0].pk)
    states = (late.on_track(now=now), late.due_soon(now=now), late.overdue(now=now))
    assert [list(each.values_list("pk", flat=True)) for each in states] == [[one.pk] for one in asked]
