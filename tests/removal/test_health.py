"""How partners stand: counted from real rows, for one and for all, and never without an end."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Endpoint, Partner
from removal import delivery, health, partnerships, sample
from removal.models import Acknowledgement, Delivery, Notice, Stream
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.admin.story import ask_for_time, owe, say, send, set_aside

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _partners_on_loopback(loopback_partners: None) -> None:
    """For every test here."""


def stands(partner: Partner, *, in_days: float = 0) -> health.Health:
    return health.health_of(partner_id=partner.pk, now=timezone.now() + timedelta(days=in_days))


def test_a_new_partner_owes_nothing_and_was_sent_nothing() -> None:
    partner = make_partner("acme").partner
    found = stands(partner)
    assert (found.slug, found.state, found.endpoint_state) == ("acme", "live", "open")
    assert (found.open, found.overdue, found.oldest_at, found.success_rate, found.half_within) == (
        0,
        0,
        None,
        None,
        None,
    )
    assert (found.is_silent, found.incidents, found.down_since) == (False, 0, None)


def test_what_is_open_overdue_and_oldest_is_counted() -> None:
    partner = make_partner().partner
    for _ in range(3):
        owe(partner)
    Notice.objects.filter(sequence=2).update(planned_at=timezone.now() - timedelta(days=9))
    delivery.claim(partner_id=partner.pk)
    say(partner, 1, "completed", outcomes={"removed": 2})
    found = stands(partner)
    assert (found.open, found.overdue, found.oldest_sequence) == (2, 0, 2)
    assert stands(partner, in_days=400).overdue == 2
    ages = health.ages_of(partner_id=partner.pk, now=timezone.now())
    assert [(age.first, age.last, age.notices) for age in ages] == [(0, 7, 1), (8, 30, 1), (31, 90, 0), (91, None, 0)]
    ages = health.ages_of(partner_id=partner.pk, now=timezone.now() + timedelta(days=85))
    assert [age.notices for age in ages] == [0, 0, 1, 1]


def test_counts_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST", 1)
    partner = make_partner().partner
    for _ in range(3):
        owe(partner)
    found = stands(partner, in_days=400)
    assert (found.open, found.overdue) == (2, 2)  # one more than the most
    assert [age.notices for age in health.ages_of(partner_id=partner.pk, now=timezone.now())] == [2, 0, 0, 0]


def test_answers_are_timed_from_the_arrival() -> None:
    with listening() as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner)
        send(partner)
    say(partner, 1, "received")
    assert stands(partner).answers == 0  # it has it; that is no answer yet
    say(partner, 1, "completed", outcomes={"removed": 2})
    found = stands(partner)
    assert (found.messages, found.delivered, found.answers, found.success_rate) == (1, 1, 1, 1.0)
    delivered_at = Delivery.objects.get().delivered_at
    assert delivered_at is not None
    took = Acknowledgement.objects.get(status="completed").received_at - delivered_at
    assert (found.half_within, found.most_within) == (took, took)


def test_silent_is_arrived_and_no_word_in_time() -> None:
    with listening() as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner)
        assert not stands(partner, in_days=400).is_silent  # nothing has arrived
        send(partner)
    for in_days in (0, 400):
        now = timezone.now() + timedelta(days=in_days)
        expected = Notice.objects.silent(now=now).exists()
        assert health.health_of(partner_id=partner.pk, now=now).is_silent is expected is bool(in_days)
    Stream.objects.update(received_through=1)
    assert not stands(partner, in_days=400).is_silent


def test_an_endpoint_is_down_since_the_first_try_that_was_not_answered() -> None:
    with listening(lambda _: Reply(503, b"<b>busy</b>")) as receiver:
        partner = make_partner(url=receiver.url).partner
        Endpoint.objects.update(max_notices=1)
        for _ in range(3):
            owe(partner)
        for _ in range(3):
            send(partner)
    found = stands(partner)
    first = min(failure.at for failure in health.failures_of(partner_id=partner.pk))
    assert Stream.objects.get().probe_at is not None
    assert (found.down_since, found.messages, found.delivered) == (first, 3, 0)
    failure = health.failures_of(partner_id=partner.pk)[0]
    assert (failure.outcome, failure.status, failure.words) == ("refused", 503, "<b>busy</b>")
    partnerships.set_paused(actor="test", slug=partner.slug, paused=True)
    partnerships.set_paused(actor="test", slug=partner.slug, paused=False)  # tries at once
    with listening() as receiver:
        Endpoint.objects.update(url=receiver.url)
        for _ in range(3):
            send(partner)
    found = stands(partner)
    assert (found.down_since, found.success_rate) == (None, 1.0)


def test_the_newest_failures_come_first_and_no_more_than_ten() -> None:
    with listening(lambda _: Reply(500)) as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner)
        for _ in range(12):
            Stream.objects.update(probe_at=None, failures=0)
            send(partner)
    found = health.failures_of(partner_id=partner.pk)
    assert len(found) == health.SHOWN_FAILURES
    assert [one.at for one in found] == sorted((one.at for one in found), reverse=True)


def test_the_position_of_a_stream_is_read_by_number_and_by_message() -> None:
    with listening(lambda _: Reply(500)) as receiver:
        partner = make_partner(url=receiver.url).partner
        Endpoint.objects.update(max_notices=1, window=2)
        for _ in range(5):
            owe(partner)
        send(partner)
    ask_for_time(partner, reason="Backups on tape.")
    at = health.position_of(partner_id=partner.pk)
    assert (at.head, at.packed_through, at.unpacked, at.received_through) == (5, 2, 3, 0)
    assert (at.waiting, at.again, at.sending, at.quarantined) == (2, 0, 0, 0)
    assert (at.reminders, at.reminded_at, at.wishes) == (0, None, 1)
    set_aside(Delivery.objects.get(first_sequence=1))
    assert health.position_of(partner_id=partner.pk).quarantined == 1


def test_all_partners_are_read_in_one_statement_as_each_alone_is() -> None:
    partners = [make_partner().partner for _ in range(3)]
    owe(*partners)
    now = timezone.now()
    with CaptureQueriesContext(connection) as queries:
        found = health.health_of_all(now=now)
    assert len(queries) == 1
    assert found == [health.health_of(partner_id=partner.pk, now=now) for partner in partners]


def test_a_partner_that_is_not_there_is_named() -> None:
    with pytest.raises(health.UnknownPartner):
        health.health_of(partner_id=0, now=timezone.now())
    with pytest.raises(health.UnknownPartner):
        health.position_of(partner_id=0)


def test_open_notices_are_counted_by_age_along_an_index() -> None:
    sample.make(requests=3000, now=timezone.now())  # on an empty table the planner takes whichever index
    partner = Partner.objects.get(slug="cobalt")
    asked: dict[str, Any] = {"partner": partner.pk, "from": ["-infinity"], "to": ["infinity"], "most": 10}
    with connection.cursor() as cursor:
        cursor.execute("set local enable_seqscan = off")
        cursor.execute(f"explain {health.AGES_OF_OPEN}", asked)
        plan = " ".join(line for (line,) in cursor.fetchall())
    # One of those that hold what is open and nothing else; which one is the server's choice.
    assert "notice_open" in plan or "notice_age" in plan
