"""A worker that takes nothing from a broker that is up ends; no other does."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings

from removal import watchdog
from removal.demo.processes import Processes
from removal.watchdog import Watchdog
from tests.faults.harness import environment_of_tests
from tests.faults.proxy import Mode, Proxy
from tests.faults.servers import Redis

PATIENCE_SECONDS = 60  # on a busy machine

# Three seconds of patience, which settings.py refuses to production. The worker may take messages over one connection
# and publish over another; the test stands between it and the first.
WATCHED_SETTINGS = """
import os
from datetime import timedelta
from removal.config.settings import *
WATCHDOG = timedelta(seconds=3)
CELERY_BROKER_READ_URL = os.environ.get("BROKER_READ_URL") or CELERY_BROKER_URL
"""


class Broker:
    """Says whether it takes a pulse, and may hand one on at once."""

    def __init__(self) -> None:
        self.is_up = True
        self.hands_on = False
        self.pulses = 0

    def publish(self) -> bool:
        self.pulses += 1
        if self.is_up and self.hands_on:
            watchdog._note()
        return self.is_up


def turns(dog: Watchdog, count: int) -> list[bool]:
    return [dog.is_stuck() for _ in range(count)]


def test_it_ends_after_so_many_pulses_that_nothing_followed() -> None:
    dog = Watchdog(publish=Broker().publish, interval_seconds=30, limit_seconds=100)
    assert turns(dog, 5) == [False, False, False, False, True]


def test_it_does_not_end_a_worker_that_takes_its_pulses() -> None:
    broker = Broker()
    broker.hands_on = True
    assert not any(turns(Watchdog(publish=broker.publish, interval_seconds=30, limit_seconds=30), 20))


def test_it_begins_anew_whenever_the_broker_does_not_take_a_pulse() -> None:
    broker = Broker()
    dog = Watchdog(publish=broker.publish, interval_seconds=30, limit_seconds=90)
    for _ in range(5):
        broker.is_up = True
        assert turns(dog, 2) == [False, False]
        broker.is_up = False
        assert turns(dog, 2) == [False, False]


def test_any_task_counts_as_much_as_a_pulse() -> None:
    dog = Watchdog(publish=Broker().publish, interval_seconds=30, limit_seconds=90)
    for _ in range(5):
        assert turns(dog, 3) == [False, False, False]
        watchdog._note()


# --- real workers ---


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Processes]:
    """Run a worker that has two processes, a pulse a second, and three seconds of patience."""
    (folder / "watched_settings.py").write_text(WATCHED_SETTINGS)
    environment = {
        **environment_of_tests(),
        "BROKER_QUEUE": f"{settings.CELERY_TASK_DEFAULT_QUEUE}-watched",  # in which no other test has left hints
        "DELIVERY_DEADLINE_SECONDS": "1",
        "DELIVERY_LEASE_SECONDS": "3",
        "PULSE_INTERVAL_SECONDS": "1",
        "DJANGO_SETTINGS_MODULE": "watched_settings",
        "PYTHONPATH": f"{folder}{os.pathsep}{os.getcwd()}",
        **environment,
    }
    with Processes(logs=folder / "logs", environment=environment) as processes:
        processes.start_worker()
        yield processes


def says(processes: Processes, what: str) -> Callable[[], bool]:
    return lambda: what in processes.log("worker").read_text()


def wait_for_end(processes: Processes) -> None:
    """Wait until the worker's main process has ended, and every process that it had."""
    worker = processes.running.pop("worker")
    try:
        worker.wait(PATIENCE_SECONDS)
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            os.killpg(worker.pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    raise AssertionError(f"a process of the worker goes on:\n{processes.last_words('worker')}")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if not Redis.is_installed():
        pytest.skip("needs redis-server")
    (tmp_path / "redis").mkdir()
    server = Redis(tmp_path / "redis")
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_a_worker_whose_connection_fell_silent_ends(tmp_path: Path, redis: Redis) -> None:
    with (
        Proxy(("127.0.0.1", redis.port)) as proxy,
        running(
            tmp_path,
            BROKER_URL=f"redis://127.0.0.1:{redis.port}/0",
            BROKER_READ_URL=f"redis://127.0.0.1:{proxy.port}/0",
        ) as processes,
    ):
        processes.wait_for(says(processes, "removal.tasks.pulse"), "worker")
        assert "worker_not_consuming" not in processes.log("worker").read_text()
        proxy.switch(Mode.SILENT)
        wait_for_end(processes)
        assert "worker_not_consuming" in processes.log("worker").read_text()


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_a_worker_whose_main_process_hangs_ends(tmp_path: Path) -> None:
    with running(tmp_path) as processes:
        processes.wait_for(says(processes, "removal.tasks.pulse"), "worker")
        os.kill(processes.running["worker"].pid, signal.SIGSTOP)  # only this one: it cannot end in order any more
        wait_for_end(processes)
        assert "worker_not_consuming" in processes.log("worker").read_text()


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broker", ["up", "down"])
def test_an_idle_worker_goes_on_and_so_does_one_without_a_broker(tmp_path: Path, broker: str) -> None:
    environment = {"BROKER_URL": "amqp://guest:guest@127.0.0.1:1//"} if broker == "down" else {}
    with running(tmp_path, **environment) as processes:
        if broker == "up":
            processes.wait_for(says(processes, "removal.tasks.pulse"), "worker")
        time.sleep(12)  # four times its patience
        processes.check()
        assert "worker_not_consuming" not in processes.log("worker").read_text()
