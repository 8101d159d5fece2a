"""A worker dies at the worst moments, and the broker loses everything: it is delivered in the end, and all is known."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.conf import settings

from removal.models import Attempt, Delivery, Stream
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.faults.harness import Installation, empty_broker, installation
from tests.receivers import Received, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults]

SUBJECTS = [f"site:{n}" for n in range(5)]


def hand_over(platform: Installation) -> None:
    """Give two partners a release of five sites."""
    release = make_release(contents={subject: ["post:1", "post:2"] for subject in SUBJECTS})
    for slug in ("acme", "globex"):
        disclose(release, platform.add_partner(slug).partner)


def test_a_worker_killed_whole_while_a_partner_thinks_loses_nothing(tmp_path: Path) -> None:
    with installation(tmp_path) as platform:
        platform.start_web()
        partner = platform.add_partner("acme", "--delay", "1").partner
        disclose(make_release(contents={"site:1": ["post:1"]}), partner)
        platform.processes.start_worker("first")
        platform.opt_out("site:1")
        platform.wait_until(lambda: Attempt.objects.filter(finished_at=None).exists(), "a message on its way")
        platform.processes.kill("first")
        platform.processes.start_worker("second")
        platform.wait_until_all_answered(notices=1)
        assert platform.witnessed("acme") == [1]
        platform.wait_until(lambda: Delivery.objects.filter(state="delivered").exists(), "the message delivered")
        platform.assert_promises_hold()
    outcomes = set(Attempt.objects.values_list("outcome", flat=True))
    assert "abandoned" in outcomes


@pytest.mark.parametrize("end", ["stopped", "recycled"])
def test_a_process_that_ends_in_order_finishes_what_its_sweep_sends(tmp_path: Path, end: str) -> None:
    def think(_: Received) -> Reply:
        time.sleep(4)
        return Reply()

    options = {
        "BROKER_QUEUE": f"{settings.CELERY_TASK_DEFAULT_QUEUE}-ending",  # in which no other test has left hints
        "DELIVERY_DEADLINE_SECONDS": "10",
        "DELIVERY_LEASE_SECONDS": "20",
        "WATCHDOG_SECONDS": "0",
    }
    with listening(think) as receiver, installation(tmp_path, **options) as platform:
        partner = make_partner("acme", url=receiver.url, max_notices=1).partner
        disclose(make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}), partner)
        for subject in ("site:1", "site:2"):
            record(make_wish(subject))
        Stream.objects.update(failures=1)  # so that no hint sends to it
        worker = platform.processes.start(
            *("worker", "-m", "celery", "--app", "removal.config", "worker", "--concurrency", "1"),
            *("--max-tasks-per-child", "1", "--without-gossip", "--without-mingle"),
        )
        platform.wait_until(lambda: bool(receiver.received), "a message on its way")
        if end == "stopped":
            os.kill(worker.pid, signal.SIGTERM)
            del platform.processes.running["worker"]
            assert worker.wait(30) == 0
            # The other was claimed beside it.
            assert sorted(Attempt.objects.values_list("outcome", flat=True)) == ["delivered", "unsent"]
        else:
            call = ("-m", "celery", "--app", "removal.config", "call", "removal.tasks.pulse")
            assert platform.processes.start("caller", *call).wait(30) == 0
            del platform.processes.running["caller"]
            platform.wait_until(lambda: Delivery.objects.filter(state="delivered").count() == 2, "both delivered")
            assert "abandoned" not in Attempt.objects.values_list("outcome", flat=True)
        assert len(receiver.received) == Delivery.objects.filter(state="delivered").count()


@pytest.mark.long
def test_a_broker_that_loses_everything_delays_and_loses_nothing(tmp_path: Path) -> None:
    with installation(tmp_path) as platform:
        platform.start_web()
        hand_over(platform)
        for subject in SUBJECTS:
            platform.opt_out(subject)
        empty_broker()
        platform.processes.start_worker()
        platform.wait_until_all_answered(notices=10)
        assert platform.witnessed("acme") == platform.witnessed("globex") == [1, 2, 3, 4, 5]
        platform.assert_promises_hold()


@pytest.mark.long
def test_a_broker_that_is_not_there_delays_and_loses_nothing(tmp_path: Path) -> None:
    with installation(tmp_path, BROKER_URL="amqp://guest:guest@127.0.0.1:1//") as platform:
        platform.start_web()
        hand_over(platform)
        platform.processes.start_worker()
        for subject in SUBJECTS:
            platform.opt_out(subject)  # answers 201 although no hint can be given
        platform.wait_until_all_answered(notices=10)
        assert platform.witnessed("acme") == platform.witnessed("globex") == [1, 2, 3, 4, 5]
        platform.assert_promises_hold()
