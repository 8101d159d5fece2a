"""A partner reads its own stream: what was handed out counts as told, and only what it came back behind ends."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from partners.models import Endpoint, Partner
from partners.webhook import Refused
from removal import (
    acknowledgement,
    delivery,
    extensions,
    intake,
    invariants,
    planning,
    pulling,
    replay,
    reports,
    sending,
    verification,
)
from removal.models import Acknowledgement, Attempt, Delivery, Extension, LogEntry, Notice, RemovalRequest, Stream
from removal.pulling import Page
from removal.statements import Answer, Statement, Wish
from removal.verdict import judge
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)
NOWHERE = "http://127.0.0.1:1/"  # nothing listens there


def owe(*, notices: int, url: str = NOWHERE, items: int = 1, **limits: Any) -> Partner:
    partner = make_partner("acme", url=url, **limits).partner
    contents = {f"site:{n}": [f"post:{item}" for item in range(items)] for n in range(1, notices + 1)}
    disclose(make_release(contents=contents), partner)
    for n in range(1, notices + 1):
        record(make_wish(f"site:{n}", key=f"opt-out-{n}"))
    planning.plan(budget=BUDGET)
    return partner


def pull(partner: Partner, after: int = 0, *, limit: int = 100, **more: Any) -> Page:
    return pulling.pull(partner_id=partner.pk, key_prefix="rk_test", after=after, limit=limit, **more)


def say(partner: Partner, **line: Any) -> Answer:
    statement = Statement(text=json.dumps(line), **line)
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])


def refused(answer: Answer) -> list[str]:
    return [refusal.code for refusal in answer.refused]


def drain(partner: Partner) -> None:
    Delivery.objects.filter(state="waiting").update(due_at=timezone.now() - timedelta(seconds=1))
    Stream.objects.update(failures=0, probe_at=None)
    sending.drain(partner_id=partner.pk, budget=BUDGET)


def messages() -> list[tuple[int | None, int | None, str, str]]:
    rows = Delivery.objects.exclude(state="split").order_by("first_sequence")
    return list(rows.values_list("first_sequence", "last_sequence", "state", "delivered_by"))


def assert_promises_hold() -> None:
    assert {name: count for name, count in invariants.check().items() if count} == {}


def marks() -> tuple[object, object, int]:
    stream = Stream.objects.get()
    return stream.served, stream.pulled, stream.packed_through


# --- what a pull gives, and what it means ---


def test_a_page_has_the_very_bytes_of_a_message() -> None:
    with listening() as receiver:
        partner = owe(notices=3, url=receiver.url, items=2)
        page = pull(partner)
        drain(partner)
    [message] = receiver.received
    assert b",".join(page.notices) in message.body
    assert (page.partner, page.epoch, page.first, page.last, page.head) == ("acme", 1, 1, 3, 3)


def test_what_was_handed_out_is_still_sent_until_the_partner_comes_back() -> None:
    partner = owe(notices=3)
    pull(partner, limit=2)
    pull(partner, limit=2)  # the answer was cut off: the same again
    assert marks() == (((1, 2),), (), 0)
    pull(partner, 2)
    assert marks() == (((1, 3),), ((1, 2),), 2)
    pull(partner, 3)
    assert marks() == (((1, 3),), ((1, 3),), 3)
    assert messages() == [(1, 2, "delivered", "pulled"), (3, 3, "delivered", "pulled")]
    assert_promises_hold()


def test_a_repeat_changes_nothing() -> None:
    partner = owe(notices=3)
    for after in (0, 3, 3, 0, 1):
        pull(partner, after)
    assert marks() == (((1, 3),), ((1, 3),), 3)
    assert [entry.about for entry in LogEntry.objects.filter(action="pulled").order_by("pk")] == [
        {"partner": partner.pk, "epoch": 1, "first": 1, "last": 3},
        {"partner": partner.pk, "epoch": 1, "has_through": 3},
    ]


def test_to_come_back_confirms_nothing_that_was_not_handed_out() -> None:
    partner = owe(notices=3)
    pull(partner, 2)
    pull(partner, 3)
    assert marks() == (((3, 3),), ((3, 3),), 0)


def test_an_answer_holds_about_a_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    partner = owe(notices=5)
    monkeypatch.setattr(pulling, "MAX_BYTES", 2 * len(pull(partner, limit=1).notices[0]) + 1)
    monkeypatch.setattr(pulling, "READ_AT_ONCE", 2)
    assert [(page.first, page.last) for page in (pull(partner), pull(partner, 2), pull(partner, 4))] == [
        (1, 2),
        (3, 4),
        (5, 5),
    ]
    monkeypatch.setattr(pulling, "MAX_BYTES", 1)
    assert pull(partner, 1).last == 2  # one always fits
    assert marks()[0] == ((1, 5),)


def test_numbers_that_the_stream_does_not_have_are_refused() -> None:
    partner = owe(notices=1)
    with pytest.raises(pulling.PastHead):
        pull(partner, 2)
    with pytest.raises(pulling.WrongEpoch):
        pull(partner, epoch=2)
    assert pull(partner, epoch=1).last == 1


def test_what_is_read_here_and_there_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "MAX_RANGES", 2)
    partner = owe(notices=9)
    pull(partner, 4, limit=1)
    pull(partner, 6, limit=1)
    with pytest.raises(pulling.TooScattered):
        pull(partner, 8, limit=1)
    with pytest.raises(pulling.TooScattered):
        pulling.pull_one(partner_id=partner.pk, key_prefix="rk_test", sequence=3)
    assert pull(partner, 5, limit=1).last == 6  # joins what is there
    assert pull(partner, 0).last == 9
    assert marks()[0] == ((1, 9),)


def test_one_notice_is_told_by_reading_it() -> None:
    partner = owe(notices=2)
    assert json.loads(pulling.pull_one(partner_id=partner.pk, key_prefix="rk_test", sequence=2))["sequence"] == 2
    assert marks() == (((2, 2),), (), 0)
    for sequence in (0, 3):
        with pytest.raises(reports.UnknownNotice):
            pulling.pull_one(partner_id=partner.pk, key_prefix="rk_test", sequence=sequence)


# --- answers ---


def test_what_was_handed_out_can_be_answered() -> None:
    partner = owe(notices=4)
    assert refused(say(partner, sequence=2, status="completed")) == ["not_yet_sent"]
    pull(partner, 1, limit=2)
    assert refused(say(partner, sequence=2, status="completed")) == []
    assert refused(say(partner, sequence=4, status="completed")) == ["not_yet_sent"]
    assert refused(say(partner, through=3, status="received")) == ["not_yet_sent"]  # 1 was not
    pull(partner, 0, limit=1)
    assert say(partner, through=3, status="received").accepted == 2
    assert refused(say(partner, through=4, status="received")) == ["not_yet_sent"]
    assert Stream.objects.get().received_through == 3
    assert messages() == [(1, 3, "delivered", "acknowledged")]
    assert_promises_hold()


def test_all_that_was_sent_or_handed_out_is_covered_by_a_range() -> None:
    partner = owe(notices=6, max_notices=2, window=1)
    delivery.claim(partner_id=partner.pk)
    pull(partner, 1, limit=4)
    assert Stream.objects.get().told_through == 5
    assert say(partner, through=5, status="completed").accepted == 5
    assert Stream.objects.get().packed_through == 5
    assert RemovalRequest.objects.filter(state="closed").count() == 5


# --- one obligation, by push and pull ---


def test_a_message_whose_every_number_was_pulled_or_answered_ends() -> None:
    partner = owe(notices=6, max_notices=2, window=3)
    drain(partner)
    assert [state for _, _, state, _ in messages()] == ["waiting"] * 3
    pull(partner, limit=3)
    pull(partner, 3, limit=1)
    say(partner, sequence=4, status="received")
    say(partner, sequence=6, status="received")
    assert messages() == [
        (1, 2, "delivered", "pulled"),
        (3, 4, "delivered", "pulled"),
        (5, 6, "waiting", ""),
    ]
    pull(partner, 4)
    say(partner, sequence=5, status="received")
    assert messages()[2] == (5, 6, "delivered", "acknowledged")
    assert_promises_hold()


def test_a_quarantined_notice_ends_when_it_is_pulled() -> None:
    partner = owe(notices=1)
    drain(partner)
    Delivery.objects.update(due_at=timezone.now())
    [claim] = delivery.claim(partner_id=partner.pk).claims
    Delivery.objects.update(state="quarantined", lease_until=None)
    Attempt.objects.filter(number=claim.fence).update(finished_at=timezone.now(), outcome="refused", status=422)
    pull(partner)
    pull(partner, 1)
    assert messages() == [(1, 1, "delivered", "pulled")]
    assert_promises_hold()


def test_a_try_that_fails_after_the_pull_is_the_last() -> None:
    partner = owe(notices=1)
    [claim] = delivery.claim(partner_id=partner.pk).claims
    pull(partner)
    pull(partner, 1)
    assert messages() == [(1, 1, "sending", "")]
    outcome = Refused(503, b"", timedelta(milliseconds=1))
    verdict = judge(outcome, notices=1, attempt=1, jitter=0)
    delivery.record([delivery.Result(claim, outcome, verdict)], partner_id=partner.pk)
    assert messages() == [(1, 1, "delivered", "pulled")]
    assert_promises_hold()


def test_a_message_that_its_worker_lost_is_ended_by_the_next_pull() -> None:
    partner = owe(notices=1)
    delivery.claim(partner_id=partner.pk)
    pull(partner)
    pull(partner, 1)
    Delivery.objects.update(state="waiting", lease_until=None)
    Attempt.objects.update(finished_at=timezone.now(), outcome="abandoned")
    Endpoint.objects.update(state="suspended")
    pull(partner, 1)
    assert messages() == [(1, 1, "delivered", "pulled")]


def test_what_was_pulled_is_not_sent() -> None:
    with listening() as receiver:
        partner = owe(notices=5, url=receiver.url, max_notices=2)
        pull(partner, limit=4)
        pull(partner, 4, limit=1)
        drain(partner)
    assert receiver.sequences == [5]
    assert messages() == [
        (1, 2, "delivered", "pulled"),
        (3, 4, "delivered", "pulled"),
        (5, 5, "delivered", "response"),
    ]
    assert_promises_hold()


def test_what_was_pulled_behind_a_gap_is_not_sent() -> None:
    with listening() as receiver:
        partner = owe(notices=7, url=receiver.url, max_notices=2)
        pull(partner, 2, limit=3)
        pull(partner, 5, limit=1)
        assert marks() == (((3, 6),), ((3, 5),), 0)
        drain(partner)
        drain(partner)
    assert receiver.sequences == [1, 2, 6, 7]
    assert messages() == [
        (1, 2, "delivered", "response"),
        (3, 4, "delivered", "pulled"),
        (5, 5, "delivered", "pulled"),
        (6, 7, "delivered", "response"),
    ]
    assert_promises_hold()


def test_a_long_run_is_counted_as_told_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("removal.settling.STEP", 3)
    partner = owe(notices=8, max_notices=2)
    pull(partner)
    assert say(partner, through=8, status="received").accepted == 8
    assert [(first, last) for first, last, *_ in messages()] == [(1, 2), (3, 3), (4, 5), (6, 6), (7, 8)]
    assert_promises_hold()


def test_a_partner_that_is_never_reached_lives_on_pull_alone() -> None:
    partner = owe(notices=30, max_notices=4, window=2)
    after = 0
    while page := pull(partner, after, limit=7).notices:
        drain(partner)
        after += len(page)
    say(partner, through=30, status="completed")
    assert {delivered_by for *_, delivered_by in messages()} == {"pulled"}
    assert Stream.objects.get().packed_through == 30
    assert Delivery.objects.filter(state="waiting").count() == 0
    assert_promises_hold()


def test_what_was_pulled_can_be_asked_for_again() -> None:
    with listening() as receiver:
        partner = owe(notices=3, url=receiver.url)
        pull(partner)
        pull(partner, 3)
        replay.send_again(actor="test", slug="acme")
        drain(partner)
    assert receiver.sequences == [1, 2, 3]
    assert messages() == [(1, 3, "delivered", "pulled")]
    assert_promises_hold()


def test_what_was_pulled_and_is_too_long_for_a_message_is_asked_for_again_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening() as receiver:
        partner = owe(notices=4, url=receiver.url)
        size = len(pull(partner).notices[0])
        pull(partner, 4)
        replay.send_again(actor="test", slug="acme")
        monkeypatch.setattr("removal.payload.MAX_NOTICES_BYTES", 3 * size)
        drain(partner)
        drain(partner)
    assert sorted(receiver.sequences) == [1, 2, 3, 4]
    assert messages() == [(1, 2, "delivered", "response"), (3, 4, "delivered", "response")]
    assert_promises_hold()


def test_platforms_see_what_was_pulled_as_delivered() -> None:
    partner = owe(notices=3, max_notices=3)
    drain(partner)
    pull(partner, limit=2)
    pull(partner, 2, limit=1)
    requests = RemovalRequest.objects.order_by("pk")
    assert [reports.partner_lines(request)[0].delivery for request in requests] == ["delivered", "delivered", "waiting"]
    pull(partner, 3)
    line = reports.partner_lines(requests[0])[0]
    assert (line.delivery, line.delivered_at) == ("delivered", Delivery.objects.get().delivered_at)
    assert line.delivered_at is not None


def test_a_new_epoch_starts_without_marks() -> None:
    partner = owe(notices=1)
    pull(partner)
    Stream.objects.update(epoch=2, head=0, packed_through=0, received_through=0, served=(), pulled=())
    assert pull(partner).notices == []
    with pytest.raises(pulling.WrongEpoch):
        pull(partner, epoch=1)


# --- withdrawal ---


def withdraw(n: int) -> None:
    public_id = RemovalRequest.objects.get(idempotency_key=f"opt-out-{n}").public_id
    intake.withdraw_request(source="blogs", actor="test", public_id=public_id)


def withdrawn() -> list[bool]:
    return [notice.withdrawn_at is not None for notice in Notice.objects.order_by("sequence")]


def test_what_was_handed_out_stands_when_its_wish_is_withdrawn() -> None:
    partner = owe(notices=3)
    pull(partner, limit=1)
    withdraw(1)
    withdraw(2)
    assert withdrawn() == [False, True, False]
    assert [sorted(json.loads(notice)) for notice in pull(partner, 1, limit=1).notices] == [
        ["items_total", "kind", "request", "sequence", "withdrawn_at"]
    ]


def in_background(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


BLOCKED = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid <> pg_backend_pid()"


def wait_until_somebody_is_blocked() -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with connection.cursor() as cursor:
            cursor.execute("select pg_stat_clear_snapshot()")  # or a transaction sees what it saw first
            cursor.execute(BLOCKED)
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waits for a lock")


def test_a_withdrawal_beside_a_pull_sees_what_that_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    partner = owe(notices=1)
    read = pulling._read
    threads = []

    def read_and_be_raced(*arguments: Any) -> list[bytes]:
        notices = read(*arguments)
        threads.append(in_background(lambda: withdraw(1)))
        wait_until_somebody_is_blocked()  # the withdrawal waits for the stream
        return notices

    monkeypatch.setattr(pulling, "_read", read_and_be_raced)
    [notice] = pull(partner).notices
    threads[0].join()
    assert "withdrawn_at" not in json.loads(notice)
    assert RemovalRequest.objects.get().withdrawn_at is not None
    assert withdrawn() == [False]


def test_a_pull_beside_a_withdrawal_hands_out_what_that_left() -> None:
    partner = owe(notices=1)
    pages: list[Page] = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("select from removal_stream for no key update")
        thread = in_background(lambda: pages.append(pull(partner)))
        cursor.execute("select pg_sleep(0.3)")  # the pull waits for the stream
        cursor.execute(intake.WITHDRAW_NOTICES, {"request": RemovalRequest.objects.get().pk})
    thread.join()
    assert "withdrawn_at" in json.loads(pages[0].notices[0])


def test_pulls_and_sends_at_once_leave_one_obligation() -> None:
    with listening(lambda _: Reply(200)) as receiver:
        partner = owe(notices=60, url=receiver.url, max_notices=3, window=4)

        def pull_all() -> None:
            after = 0
            while page := pull(partner, after, limit=4).notices:
                after += len(page)

        pullers = [in_background(pull_all) for _ in range(2)]
        while any(puller.is_alive() for puller in pullers):
            sending.drain(partner_id=partner.pk, budget=timedelta(seconds=0.2))
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Stream.objects.get().packed_through == 60
    assert {state for _, _, state, _ in messages()} == {"delivered"}
    assert Acknowledgement.objects.count() == 0
    assert_promises_hold()


# --- with what others do ---


def test_a_partner_in_onboarding_may_live_on_pull_and_is_sent_nothing_of_that_when_it_goes_live() -> None:
    with listening() as receiver:
        partner = owe(notices=3, url=receiver.url)
        Partner.objects.update(state=Partner.State.ONBOARDING)
        drain(partner)
        assert pull(partner).last == 3
        assert refused(say(partner, through=2, status="completed")) == []
        pull(partner, 3)
        assert messages() == [(1, 2, "delivered", "acknowledged"), (3, 3, "delivered", "pulled")]
        assert list(RemovalRequest.objects.order_by("id").values_list("state", flat=True)) == [
            "closed", "closed", "planned",
        ]  # fmt: skip
        verification.waive(actor="staff:7", slug="acme", reason="It pulls.")
        drain(partner)
    assert receiver.received == []
    assert_promises_hold()


def test_a_wish_for_more_time_about_what_was_only_pulled_outlives_a_withdrawal_that_comes_too_late() -> None:
    partner = owe(notices=1)
    pull(partner)
    until = timezone.now() + timedelta(days=90)
    wish = Wish(1, until, "Backups.", "{}")
    said = acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[wish])
    assert (said.accepted, said.refused) == (1, [])

    request = RemovalRequest.objects.get()
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    assert Notice.objects.get().withdrawn_at is None  # it was told, and stands

    extensions.grant(extension_id=Extension.objects.get().pk, actor="staff:7", decision="Tapes.")
    assert Notice.objects.get().respond_by == until
    assert refused(say(partner, sequence=1, status="completed", outcomes={"removed": 1})) == []
    assert_promises_hold()


def test_an_answer_to_a_sample_that_names_its_epoch_answers_no_notice() -> None:
    partner = owe(notices=1)
    pull(partner)
    line = {"sequence": 1, "status": "completed", "outcomes": {"removed": 1}, "epoch": 0}
    assert refused(say(partner, **line)) == ["wrong_epoch"]
    assert Notice.objects.get().handling == "none"
