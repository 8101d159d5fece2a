"""A worker that dies while it tells staff: nothing is lost, and what it had sent comes once more under the same id."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from partners import signing
from removal import sweep
from removal.models import Escalation, StaffMessage
from tests.factories import make_wish, record
from tests.faults.harness import environment_of_tests
from tests.receivers import listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.faults, pytest.mark.usefixtures("loopback_partners")]

SECRET = signing.HmacSecret.generate().to_text()
WATCH = "import django; django.setup(); from removal import sweep; sweep.watch_deadlines()"


@pytest.mark.parametrize(("point", "arrived"), [("after_staff_claim", 0), ("after_staff_send", 1)])
def test_a_worker_killed_while_telling_staff_loses_nothing(
    tmp_path: Path, settings: Settings, point: str, arrived: int
) -> None:
    settings.OPERATOR_WEBHOOK_SECRET = SECRET
    for n in range(3):
        record(make_wish(f"site:{n}", received_at=timezone.now() - timedelta(days=40)))
    with listening() as operator:
        settings.OPERATOR_WEBHOOK_URL = operator.url
        marker = tmp_path / "killed"
        environment = {
            "DJANGO_SETTINGS_MODULE": "removal.config.settings",
            "OPERATOR_WEBHOOK_URL": operator.url,
            "OPERATOR_WEBHOOK_SECRET": SECRET,
            "CRASH_AT": f"{point}:{marker}",
        }
        lone = subprocess.run(
            [sys.executable, "-c", WATCH],
            env={**os.environ, **environment_of_tests(), **environment},
            timeout=60,
            check=False,
        )
        assert (lone.returncode, marker.exists()) == (-signal.SIGKILL, True)
        assert len(operator.received) == arrived
        sweep.watch_deadlines()
        assert len(operator.received) == arrived  # its lease stands
        StaffMessage.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        sweep.watch_deadlines()
        sweep.watch_deadlines()
        assert len(operator.received) == arrived + 1
        assert len({(message.webhook_id, message.body) for message in operator.received}) == 1
    assert Escalation.objects.count() == 3
    assert not StaffMessage.objects.filter(sent_at=None).exists()
