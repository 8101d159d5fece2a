"""A worker dies at the worst moments, and the broker loses everything: it is delivered in the end, and all is known."""

from pathlib import Path

import pytest

from removal.models import Attempt, Delivery
from tests.factories import disclose, make_release
from tests.faults.harness import Installation, empty_broker, installation

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
