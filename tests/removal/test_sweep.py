"""Work is found without a hint, and tasks may come twice."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.utils import timezone

from partners.models import Endpoint, Partner
from removal import delivery, hints, planning, recovery, sending, tasks
from removal.models import Attempt, Delivery, Notice, Release, Stream
from removal.sweep import LEFT_TO_HINTS, MOST_OF_A_KIND, Sweeper
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Received, Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]


class Hanging:
    """A partner's script that says when it was asked, and answers only when it may."""

    def __init__(self) -> None:
        self.was_asked = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def __call__(self, _: Received) -> Reply:
        self.was_asked.release()
        self.may_answer.wait(10)
        return Reply()


def make_sweeper() -> Sweeper:
    return Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(0))


def finish(sweeper: Sweeper) -> None:
    sweeper.pool.shutdown(wait=True)


def owe_unplanned(receiver: Receiver) -> int:
    partner = make_partner(url=receiver.url).partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    return partner.pk


def test_one_sweep_plans_and_sends_what_no_hint_told_of() -> None:
    with listening() as receiver:
        owe_unplanned(receiver)
        sweeper = make_sweeper()
        sweeper.sweep()
        finish(sweeper)
    assert receiver.sequences == [1]
    assert Delivery.objects.get().state == "delivered"


def test_what_takes_long_to_reconcile_is_reconciled_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_long() -> planning.Round:
        time.sleep(0.2)
        return planning.Round(0, 0, 0, ())

    monkeypatch.setattr(planning, "reconcile", look_long)
    sweeper = Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(seconds=1))
    sweeper.reconcile_at = 0
    sweeper.sweep()
    assert sweeper.reconcile_at == float("inf")  # it is being looked for, and this sweep did not wait
    finish(sweeper)
    assert sweeper.reconcile_at - time.monotonic() > 15


def test_a_sweep_frees_what_a_dead_worker_held() -> None:
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)
        planning.plan(budget=timedelta(seconds=5))
        delivery.claim(partner_id=partner_id)
        Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        sweeper = make_sweeper()
        sweeper.sweep()
        assert Delivery.objects.get().state == "waiting"
        Delivery.objects.update(due_at=timezone.now() - timedelta(seconds=1))
        sweeper.sweep()
        finish(sweeper)
    assert receiver.sequences == [1]


def test_a_sweeper_that_finishes_waits_for_what_it_sends_and_begins_nothing_more() -> None:
    hanging = Hanging()
    with listening(hanging) as receiver:
        partner = make_partner(url=receiver.url, max_notices=1).partner
        disclose(make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}), partner)
        for subject in ("site:1", "site:2"):
            record(make_wish(subject))
        sweeper = make_sweeper()
        sweeper.sweep()
        assert hanging.was_asked.acquire(timeout=5)
        threading.Timer(0.5, hanging.may_answer.set).start()
        sweeper.finish()
        assert list(Attempt.objects.order_by("delivery__first_sequence").values_list("outcome", flat=True)) == [
            "delivered",
            "unsent",
        ]
        sweeper.sweep()
        finish(sweeper)
    assert receiver.sequences == [1]


def test_a_process_that_sends_all_the_time_leaves_partners_to_the_hints_for_a_while() -> None:
    with listening() as receiver:
        owe_unplanned(receiver)
        sweeper = make_sweeper()
        assert not sending.is_busy()
        for _ in range(LEFT_TO_HINTS):
            sending._ended.extend([time.monotonic()] * 100)
            sweeper.sweep()
        assert not sweeper.draining
        sending._ended.extend([time.monotonic()] * 100)
        sweeper.sweep()
        finish(sweeper)
        sending._ended.clear()
    assert receiver.sequences == [1]


def test_a_process_that_takes_one_hint_after_the_other_leaves_partners_to_them_for_a_while() -> None:
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)
        tasks.drain_stream(partner_id=partner_id)  # nothing is planned yet
        assert sending.is_busy()
        sweeper = make_sweeper()
        sweeper.sweep()
        assert not sweeper.draining
        time.sleep(1)  # it is long at that hint, or there are no more
        assert not sending.is_busy()
        sweeper.sweep()
        finish(sweeper)
    assert receiver.sequences == [1]


def test_a_sweep_that_leaves_a_partner_to_the_hints_sends_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(hints, "hint_stream", lambda *, partner_id: hinted.append(partner_id))
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)  # the sweep's planner is faster than a hint's
        sending.take_hint()
        sweeper = make_sweeper()
        sweeper.sweep()
        assert not sweeper.draining
        finish(sweeper)
    assert hinted == [partner_id]


def test_a_probe_is_not_left_to_hints() -> None:
    with listening() as receiver:
        owe_unplanned(receiver)
        planning.plan(budget=timedelta(seconds=5))
        Stream.objects.update(failures=1)
        sweeper = make_sweeper()
        sending._ended.extend([time.monotonic()] * 100)
        sweeper.sweep()
        finish(sweeper)
        sending._ended.clear()
    assert receiver.sequences == [1]


def test_a_partner_that_hangs_keeps_no_other_waiting() -> None:
    with listening(lambda _: time.sleep(3) or Reply()) as hanging, listening() as healthy:  # type: ignore[func-returns-value]
        owe_unplanned(hanging)
        Endpoint.objects.update(url=hanging.url)
        other = make_partner(url=healthy.url).partner
        disclose(make_release(contents={"site:2": ["post:1"]}), other)
        record(make_wish("site:2"))
        sweeper = make_sweeper()
        sweeper.sweep()
        end = time.monotonic() + 2.5
        while not healthy.received and time.monotonic() < end:
            time.sleep(0.05)
        assert healthy.sequences == [1]
        assert not Delivery.objects.filter(stream__partner__endpoint__url=hanging.url, state="delivered").exists()
        finish(sweeper)


def test_a_partner_that_keeps_one_task_waiting_gets_no_second_one() -> None:
    hanging = Hanging()

    def drain(partner_id: int) -> None:
        tasks.drain_stream(partner_id=partner_id)
        connection.close()

    with listening(hanging) as receiver, ThreadPoolExecutor() as pool:
        partner_id = owe_unplanned(receiver)
        planning.plan(budget=timedelta(seconds=5))
        waiting = pool.submit(drain, partner_id)
        assert hanging.was_asked.acquire(timeout=5)
        disclose(make_release(contents={"site:2": ["post:1"]}), Partner.objects.get())
        record(make_wish("site:2"))
        planning.plan(budget=timedelta(seconds=5))
        time.sleep(1.1)
        tasks.drain_stream(partner_id=partner_id)
        assert not waiting.done()
        assert receiver.sequences == [1]
        sweeper = make_sweeper()  # it has threads for this
        sweeper.sweep()
        assert hanging.was_asked.acquire(timeout=5)
        hanging.may_answer.set()
        waiting.result()
        finish(sweeper)
    assert receiver.sequences == [1, 2]
    assert not Delivery.objects.exclude(state="delivered").exists()


def test_partners_that_take_their_time_leave_places_for_the_others() -> None:
    hanging = Hanging()
    with listening(hanging) as slow, listening() as prompt:
        release = make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]})
        partners = [_holder(slow, release) for _ in range(MOST_OF_A_KIND["slow"] + 1)]
        record(make_wish("site:1"))
        planning.plan(budget=timedelta(seconds=5))
        for partner in partners:  # somebody waits for their answers, and has for a while
            delivery.claim(partner_id=partner.pk)
        Delivery.objects.update(lease_until=timezone.now() + settings.DELIVERY_LEASE - 2 * recovery.SLOW)
        _holder(prompt, release)
        record(make_wish("site:2"))
        sweeper = make_sweeper()
        sweeper.sweep()
        assert Counter(sweeper.kinds.values()) == {"slow": MOST_OF_A_KIND["slow"], "prompt": 1}
        hanging.may_answer.set()
        finish(sweeper)


def test_tasks_may_run_twice_and_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(hints, "hint_stream", lambda *, partner_id: hinted.append(partner_id))
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)
        for _ in range(2):
            tasks.plan()
            tasks.drain_stream(partner_id=partner_id, added_by_a_newer_release=1)
        tasks.drain_stream(partner_id=12345)
    assert hinted == []
    assert receiver.sequences == [1]
    assert Notice.objects.count() == 1


def test_a_planner_sends_what_little_it_found_to_one_partner_and_hints_at_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(hints, "hint_stream", lambda *, partner_id: hinted.append(partner_id))
    release = make_release(contents={"site:1": ["post:1"]})
    with listening() as one, listening() as another:
        by_id = {partner.pk: receiver for receiver in (one, another) for partner in [_holder(receiver, release)]}
        record(make_wish("site:1"))
        tasks.plan()
        [left] = hinted
        assert by_id.pop(left).sequences == []
        assert [receiver.sequences for receiver in by_id.values()] == [[1]]


def test_a_lone_notice_is_sent_before_the_planner_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([planning.plan_round])

    def plan_one_round() -> planning.Round | None:
        look = next(rounds, None)
        if look is None:
            raise OperationalError("no")
        return look()

    monkeypatch.setattr(planning, "plan_round", plan_one_round)
    with listening() as receiver:
        owe_unplanned(receiver)
        with pytest.raises(OperationalError):
            tasks.plan()
    assert receiver.sequences == [1]


def test_more_than_a_lone_notice_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(hints, "hint_stream", lambda *, partner_id: hinted.append(partner_id))
    with listening() as receiver:
        partner = _holder(receiver, make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}))
        record(make_wish("site:1"))
        record(make_wish("site:2"))
        tasks.plan()
        assert hinted == [partner.pk]
        assert not receiver.received


def _holder(receiver: Receiver, release: Release) -> Partner:
    partner = make_partner(url=receiver.url).partner
    disclose(release, partner)
    return partner


def test_a_planner_that_fails_keeps_nothing_from_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as receiver:
        owe_unplanned(receiver)
        planning.plan(budget=timedelta(seconds=5))

        def fail(**_: object) -> set[int]:
            raise OperationalError("no")

        monkeypatch.setattr(planning, "plan", fail)
        sweeper = make_sweeper()
        sweeper.sweep()
        finish(sweeper)
    assert receiver.sequences == [1]
