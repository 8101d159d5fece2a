"""Work is found without a hint, and tasks may come twice."""

import time
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from partners.models import Endpoint
from removal import delivery, hints, planning, tasks
from removal.models import Delivery, Notice
from removal.sweep import Sweeper
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]


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


def test_a_sweep_frees_what_a_dead_worker_held() -> None:
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)
        planning.plan(budget=timedelta(seconds=5))
        delivery.claim_due(partner_id=partner_id)
        Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        sweeper = make_sweeper()
        sweeper.sweep()
        assert Delivery.objects.get().state == "waiting"
        Delivery.objects.update(due_at=timezone.now() - timedelta(seconds=1))
        sweeper.sweep()
        finish(sweeper)
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


def test_tasks_may_run_twice_and_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(hints, "hint_stream", lambda *, partner_id: hinted.append(partner_id))
    with listening() as receiver:
        partner_id = owe_unplanned(receiver)
        for _ in range(2):
            tasks.plan()
            tasks.drain_stream(partner_id=partner_id, added_by_a_newer_release=1)
        tasks.drain_stream(partner_id=12345)
    assert hinted == [partner_id]
    assert receiver.sequences == [1]
    assert Notice.objects.count() == 1


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
