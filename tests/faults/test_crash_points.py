"""A process is killed at each step, and what its partner saw and what is stored afterwards is exactly known."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import invariants, planning, recovery, sending
from removal.models import Attempt, Delivery, RemovalRequest
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.faults import oracle
from tests.faults.harness import environment_of_tests, installation
from tests.faults.mix import crash_points
from tests.receivers import Received, Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults, pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=20)
PATIENCE_SECONDS = 15


def owe(receiver: Receiver, *, notices: int = 1, slug: str = "acme", **limits: Any) -> Partner:
    """Make a partner that must be told of so many notices; they are planned, and not claimed."""
    partner = make_partner(slug, url=receiver.url, **limits).partner
    disclose(make_release(contents={f"{slug}:{n}": ["post:1"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"{slug}:{n}"))
    planning.plan(budget=BUDGET)
    return partner


def start_lone(slug: str, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.lone", slug, *options],
        env={**os.environ, **environment_of_tests(), **environment},
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def let_leases_end() -> None:
    Delivery.objects.filter(state="sending").update(lease_until=timezone.now() - timedelta(seconds=1))
    recovery.reap()
    Delivery.objects.filter(state="waiting").update(due_at=timezone.now())


def assert_promises_hold() -> None:
    assert {name: count for name, count in invariants.check().items() if count} == {}
    assert oracle.stale_records() == []


def needs(point: str) -> None:
    if point not in crash_points():
        pytest.skip(f"the product has no crash point {point}")


# Where it dies: how often the partner has been sent to by then, in what state that leaves the message, and what its
# attempts are once all is over.
@pytest.mark.parametrize(
    ("point", "arrived", "state", "outcomes"),
    [
        ("before_claim_commit", 0, None, ["delivered"]),
        ("after_claim_commit", 0, "sending", ["abandoned", "delivered"]),
        ("after_response", 1, "sending", ["abandoned", "delivered"]),
        ("before_record_commit", 1, "sending", ["abandoned", "delivered"]),
        ("after_record_commit", 1, "delivered", ["delivered"]),
    ],
)
def test_a_sender_killed_at_any_step_loses_nothing(
    tmp_path: Path, point: str, arrived: int, state: str | None, outcomes: list[str]
) -> None:
    needs(point)
    with listening() as receiver:
        partner = owe(receiver, notices=3)
        marker = tmp_path / "killed"
        lone = start_lone("acme", CRASH_AT=f"{point}:{marker}")
        assert (lone.wait(PATIENCE_SECONDS), marker.exists()) == (-signal.SIGKILL, True)
        wait_until(lambda: len(receiver.received) >= arrived)
        assert len(receiver.received) == arrived
        assert [message.state for message in Delivery.objects.all()] == ([state] if state else [])
        let_leases_end()
        sending.drain(partner_id=partner.pk, budget=BUDGET)

        assert Delivery.objects.get().state == "delivered"
        assert list(Attempt.objects.order_by("number").values_list("outcome", flat=True)) == outcomes
        # Only what was given up after it had gone out comes twice: under the same id, with the same bytes.
        times = 1 + arrived if state == "sending" else 1
        assert [message.sequences for message in receiver.received] == [[1, 2, 3]] * times
        assert len({(message.webhook_id, message.body) for message in receiver.received}) == 1
    assert_promises_hold()


def test_a_sender_killed_while_its_partner_thinks_sends_the_same_again() -> None:
    with listening() as receiver:
        partner = owe(receiver)
        killed = threading.Event()
        receiver.script = first_answered_when(killed.is_set, receiver, status=200)
        lone = start_lone("acme")
        wait_until(lambda: len(receiver.received) == 1)
        lone.kill()
        lone.wait()
        killed.set()
        let_leases_end()
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        first, second = receiver.received
        assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
        assert list(Attempt.objects.order_by("number").values_list("outcome", flat=True)) == ["abandoned", "delivered"]
        assert Delivery.objects.get().state == "delivered"
    assert_promises_hold()


@pytest.mark.parametrize(("point", "stored", "answer"), [("before_commit", 0, 201), ("after_commit", 1, 200)])
def test_an_api_killed_around_its_commit_makes_one_request(
    tmp_path: Path, point: str, stored: int, answer: int
) -> None:
    needs(point)
    marker = tmp_path / "killed"
    with installation(tmp_path, CRASH_AT=f"{point}:{marker}") as platform:
        platform.start_web()
        with pytest.raises(requests.ConnectionError):
            platform.opt_out("site:1")
        assert marker.exists()
        assert RemovalRequest.objects.count() == stored
        platform.wait_until(platform.is_answering, "the server to start a new process")
        again = platform.ask(
            "POST",
            "/v1/requests",
            json={"kind": "opt_out", "subject": "site:1"},
            headers={"Idempotency-Key": "opt-out-site:1"},
        )
        assert (again.status_code, again.json()["id"]) == (answer, RemovalRequest.objects.get().public_id)


def stop_past_its_lease(receiver: Receiver, *options: str, meanwhile: Callable[[], object]) -> None:
    """Stop a process while its partner thinks, do something once its lease is over, and wake it up."""
    lone = start_lone("acme", *options)
    wait_until(lambda: len(receiver.received) == 1)
    lone.send_signal(signal.SIGSTOP)
    let_leases_end()
    meanwhile()
    lone.send_signal(signal.SIGCONT)
    assert lone.wait(PATIENCE_SECONDS) == 0


def first_answered_when(is_so: Callable[[], bool], receiver: Receiver, *, status: int) -> Callable[[Received], Reply]:
    def script(message: Received) -> Reply:
        if message is not receiver.received[0]:
            return Reply(200)
        try:
            wait_until(is_so)
        finally:
            connection.close()  # this thread's own
        return Reply(status)

    return script


def test_a_worker_stopped_past_its_lease_changes_nothing_when_it_wakes_up() -> None:
    with listening() as receiver:
        partner = owe(receiver)
        receiver.script = first_answered_when(Delivery.objects.filter(state="delivered").exists, receiver, status=500)
        stop_past_its_lease(receiver, meanwhile=lambda: sending.drain(partner_id=partner.pk, budget=BUDGET))
        message = Delivery.objects.get()
        # Its claim was 1, giving it up 2, and the claim that delivered 3.
        assert (message.state, message.delivered_by, message.fence, message.attempts) == ("delivered", "response", 3, 2)
        given_up, delivered = Attempt.objects.order_by("number")
        assert (given_up.number, given_up.outcome, given_up.late_outcome) == (1, "abandoned", "refused")
        assert (delivered.number, delivered.outcome, delivered.late_outcome) == (3, "delivered", "")
    assert_promises_hold()


@pytest.mark.parametrize(("options", "attempts", "found"), [((), 2, 0), (("--unfenced",), 1, 1)])
def test_the_rig_sees_a_late_result_that_counts(options: tuple[str, ...], attempts: int, found: int) -> None:
    with listening() as receiver:
        owe(receiver)
        receiver.script = first_answered_when(Delivery.objects.filter(state="waiting").exists, receiver, status=200)
        stop_past_its_lease(receiver, *options, meanwhile=lambda: None)
    message = Delivery.objects.get()
    assert (message.state, message.attempts) == ("delivered", attempts)
    assert oracle.stale_records() == [f"attempt 1 of {message.pk} counted after its lease"][:found]


def test_a_notice_that_kills_whoever_sends_it_is_found_and_set_aside() -> None:
    with listening() as receiver, listening() as other:
        owe(receiver, notices=4)
        bystander = owe(other, notices=2, slug="globex")
        lone = start_lone("acme", "--poison", "3", "--rounds", "40")
        assert lone.wait(60) == 0, "it never came to an end"
        assert list(Delivery.objects.filter(state="quarantined").values_list("first_sequence", "last_sequence")) == [
            (3, 3)
        ]
        assert sorted(set(receiver.sequences)) == [1, 2, 4]
        assert not Delivery.objects.filter(stream__partner__slug="acme", state__in=["waiting", "sending"]).exists()
        sending.drain(partner_id=bystander.pk, budget=BUDGET)
        assert other.sequences == [1, 2]
    assert_promises_hold()
