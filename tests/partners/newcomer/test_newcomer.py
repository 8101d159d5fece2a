"""A new partner, written from the guide with the kit: it is added, passes the checks, and lives through an opt-out.

In both languages, from ``manage.py partner add`` to a request that is fulfilled, with kills and restarts in between.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from django.utils import timezone

from partners.models import Partner
from removal.config.children import ending_with_parent
from removal.demo.processes import free_port
from removal.models import Acknowledgement, Attempt, Delivery, Notice, Stream
from tests.conftest import ROOT
from tests.factories import disclose, make_release
from tests.faults.harness import Installation, installation
from tests.partners.kit.node import KIT, node

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey, pytest.mark.long]

HERE = Path(__file__).parent


@dataclass
class Newcomer:
    """A program beside its copy of the kit's file, with a store that outlives its process."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        file = self.folder / "output"
        return file.read_text() if file.exists() else ""

    @property
    def removed(self) -> list[str]:
        return re.findall(r"^removed .*$", self.output, flags=re.MULTILINE)

    def start(self) -> None:
        environment = {**os.environ, **self.environment, "PORT": str(self.port), "STORE": str(self.folder / "store")}
        with (self.folder / "output").open("ab") as out:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdout=out, stderr=out,
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )  # fmt: skip
        end = time.monotonic() + 30
        while not self.is_listening():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def is_listening(self) -> bool:
        try:
            return requests.post(f"http://127.0.0.1:{self.port}/", timeout=2).status_code == 401
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process:
            self.process.kill()
            self.process.wait()


def settle_in(language: str, folder: Path) -> Newcomer:
    """Copy the program and the one file of the kit next to each other."""
    folder.mkdir()
    ending = {"python": "py", "node": "mjs"}[language]
    for file in (KIT / f"removal_kit.{ending}", HERE / f"newcomer.{ending}"):
        shutil.copy(file, folder)
    return Newcomer([sys.executable if language == "python" else node(), f"newcomer.{ending}"], folder, {})


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def manage(platform: Installation, *arguments: str) -> str:
    """Run ``manage.py`` as staff do."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        env=platform.processes.environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def word(said: str, name: str) -> str:
    [found] = re.findall(rf"^{name}\s+(\S+)", said, flags=re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("language", ["python", "node"])
def test_it_goes_live_and_completes_what_it_is_told_whatever_ends_in_between(
    language: str, tmp_path: Path, stack: ExitStack
) -> None:
    platform = stack.enter_context(installation(tmp_path, DEADLINES_INTERVAL_SECONDS="1"))
    platform.start_web()
    platform.processes.start_worker()
    newcomer = settle_in(language, tmp_path / language)
    stack.callback(newcomer.kill)

    said = manage(platform, "partner", "add", "acme", "--url", f"http://127.0.0.1:{newcomer.port}/")
    newcomer.environment = {
        "PARTNER": "acme", "SERVICE_URL": platform.url,
        "SECRET": word(said, "signing secret"), "API_KEY": word(said, "api key"),
    }  # fmt: skip
    partner = Partner.objects.get()
    # The second has more items than fit into a message.
    contents = {"site:1": ["post:1", "post:2"], "site:2": [f"post:{n}" for n in range(1001)], "site:3": ["post:1"]}
    disclose(make_release(contents=contents), partner)
    asked = [platform.opt_out("site:1")]
    platform.wait_until(lambda: Notice.objects.count() == 1, "the first notice")
    assert partner.state == Partner.State.ONBOARDING

    newcomer.start()
    assert newcomer.removed == []  # nothing is sent to who has proved nothing
    assert "acme is live" in manage(platform, "partner", "verify", "acme")
    platform.wait_until_all_answered(notices=1)

    newcomer.kill()
    newcomer.start()
    asked.append(platform.opt_out("site:2"))
    platform.wait_until(lambda: Notice.objects.filter(sequence=2).exclude(handling="none").exists(), "it was told")
    newcomer.kill()
    newcomer.start()
    platform.wait_until_all_answered(notices=2)

    # It is away for more than half of the third one's time.
    newcomer.kill()
    asked.append(platform.opt_out("site:3"))
    platform.wait_until(lambda: Attempt.objects.filter(outcome="unreachable").exists(), "a try that fails")
    _let_half_the_time_pass()
    platform.wait_until(lambda: Delivery.objects.filter(first_sequence=None).exists(), "a reminder")
    newcomer.start()
    platform.wait_until_all_answered(notices=3)
    platform.wait_until(
        lambda: Delivery.objects.filter(first_sequence=None, state="delivered").exists(), "the reminder is there"
    )
    assert re.search(r"reminded of \[ ?3 ?\]", newcomer.output)

    assert newcomer.removed[0].startswith("removed 1 site:1")
    assert "removed 2 site:2 1001" in newcomer.removed
    assert newcomer.removed[-1] == "removed 3 site:3 1"
    completed = Acknowledgement.objects.filter(status="completed").order_by("first_sequence")
    assert list(completed.values_list("epoch", "first_sequence", "outcomes")) == [
        (1, 1, {"removed": 2}), (1, 2, {"removed": 1001}), (1, 3, {"removed": 1}),
    ]  # fmt: skip
    for request_id in asked:
        status: Any = platform.ask("GET", f"/v1/requests/{request_id}").json()
        assert (status["state"], status["outcome"]) == ("closed", "fulfilled")
    platform.assert_promises_hold()


def _let_half_the_time_pass() -> None:
    """Half of the third notice's time is over for a moment, and the next look at the stream, one an hour, is due."""
    now = timezone.now()
    planned_at = now - timedelta(days=15, seconds=1)
    Notice.objects.filter(sequence=3).update(planned_at=planned_at, respond_by=planned_at + timedelta(days=30))
    Stream.objects.update(looked_at=now - timedelta(hours=1, seconds=1))


@pytest.mark.parametrize("name", ["newcomer.py", "newcomer.mjs"])
def test_it_is_a_page(name: str) -> None:
    assert len((HERE / name).read_text().splitlines()) <= 60
