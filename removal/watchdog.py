"""End a worker that is alive but takes nothing from the broker, so that its supervisor starts another one.

Each process of a worker publishes a tiny task now and then, the pulse, into the queue that all workers share. If the
broker took its pulses, and yet for a long time no process of this worker ran a task of any kind, the worker does not
consume. While the broker is down nothing ends: the pulses do not get through either. Work goes on meanwhile, since
every process sweeps.
"""

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import RawValue
from typing import Any

import structlog
from celery.signals import task_prerun, task_rejected, task_revoked, task_unknown, worker_shutting_down
from django.conf import settings

from removal.config.celery import app

log = structlog.get_logger()

# Shared by a worker's main process, which takes messages and throws away those that are expired or unknown, and its
# child processes, which run tasks. By time.monotonic(), which on one machine is the same for all.
_consumed_at = RawValue("d", 0.0)
_ending = RawValue("b", 0)


def listen() -> None:
    """Note from now on whatever this worker takes from the broker. Call it before the worker starts its processes."""
    for taken in (task_prerun, task_revoked, task_rejected, task_unknown):
        taken.connect(_note)
    worker_shutting_down.connect(_limit_shutdown)


def _note(**_: Any) -> None:
    _consumed_at.value = time.monotonic()


def start() -> None:
    """Start this process's watchdog on a thread of its own, unless it is switched off."""
    if settings.WATCHDOG:
        watchdog = Watchdog(
            publish=_publish,
            interval_seconds=settings.PULSE_INTERVAL.total_seconds(),
            limit_seconds=settings.WATCHDOG.total_seconds(),
        )
        threading.Thread(target=watchdog.run, name="watchdog", daemon=True).start()


class Watchdog:
    """Counts the pulses that the broker took, one after the other, while the worker consumed nothing.

    It counts pulses and not seconds, so that a machine that was asleep finds its worker innocent.
    """

    def __init__(self, *, publish: Callable[[], bool], interval_seconds: float, limit_seconds: float) -> None:
        self.publish = publish
        self.interval_seconds = interval_seconds
        self.most_unheard = math.ceil(limit_seconds / interval_seconds)
        self.unheard = 0
        self.consumed_at = _consumed_at.value
        self.main_process = os.getppid()

    def run(self) -> None:
        while not self.is_stuck():
            # Jitter: processes that started together must not all ask in the same moment.
            time.sleep(self.interval_seconds * random.uniform(0.75, 1.25))  # noqa: S311
        if not _ending.value:  # or else another process of this worker has seen to it
            _ending.value = 1
            log.error("worker_not_consuming", worker=self.main_process, pulses=self.unheard)
            # In order: its tasks end by themselves, and so does what its sweeps have on its way (Sweeper.finish).
            self._end(signal.SIGTERM)
            time.sleep(_grace_seconds())
            self._end(signal.SIGKILL)

    def is_stuck(self) -> bool:
        """Do one turn: look whether enough was waited, or else publish one more pulse."""
        consumed_at = _consumed_at.value
        if consumed_at != self.consumed_at:
            self.consumed_at, self.unheard = consumed_at, 0
        if self.unheard >= self.most_unheard:
            return True
        self.unheard = self.unheard + 1 if self.publish() else 0
        return False

    def _end(self, how: signal.Signals) -> None:
        if os.getppid() == self.main_process:  # or else it is gone, and its number may be another's
            os.kill(self.main_process, how)


def _publish() -> bool:
    try:
        app.send_task("removal.tasks.pulse", expires=settings.WATCHDOG.total_seconds(), retry=False, ignore_result=True)
    except Exception:  # noqa: BLE001
        # Whatever the broker's library raises, the broker did not take it. Whoever hints will log why.
        return False
    return True


def _grace_seconds() -> float:
    """Say how long an orderly end may take: after it, whatever the worker was sending has lost its lease."""
    return settings.DELIVERY_LEASE.total_seconds()


def _limit_shutdown(**_: Any) -> None:
    """End the main process if its shutdown hangs, which its child processes, gone by then, could not see."""
    if _ending.value:
        signal.alarm(math.ceil(_grace_seconds()))  # nobody handles it, and so it ends the process
