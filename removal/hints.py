"""Tell the workers that there may be work. Only ever a hint: every worker's sweep finds the rows without one.

Hints leave on a thread of their own, so that whoever commits never waits for the broker, not even for one that takes
the connection and says nothing.
"""

import atexit
import os
import queue
import threading
import time
from collections.abc import Iterable

import structlog

from removal.config.celery import app

log = structlog.get_logger()

# After a failed publication the broker is left alone for this long.
PAUSE_SECONDS = 10
# A hint that waited this long is worth nothing; the sweep has been there.
EXPIRES_SECONDS = 300
# Hints that wait for the broker at once; more are not kept.
MOST_WAITING = 1000

Hint = tuple[str, int | None]


def hint_planner() -> None:
    """Say that there may be something to plan. Call it after the commit."""
    _publisher().put(("removal.tasks.plan", None))


def hint_stream(*, partner_id: int) -> None:
    """Say that this partner's stream may have something to send. Call it after the commit."""
    _publisher().put(("removal.tasks.drain_stream", partner_id))


def hint_streams(partner_ids: Iterable[int]) -> None:
    """Say so of each of these partners."""
    for partner_id in partner_ids:
        hint_stream(partner_id=partner_id)


class _Publisher:
    """This process's thread towards the broker. A hint that is waiting already is not queued again."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.waiting: queue.Queue[Hint] = queue.Queue(MOST_WAITING)
        self.known: set[Hint] = set()
        self.lock = threading.Lock()
        self.pause_until = 0.0
        threading.Thread(target=self._run, name="hints", daemon=True).start()
        atexit.register(self.flush, 1.0)

    def put(self, hint: Hint) -> None:
        with self.lock:
            if hint in self.known:
                return
            try:
                self.waiting.put_nowait(hint)
            except queue.Full:
                return
            self.known.add(hint)

    def flush(self, within: float) -> None:
        """Wait until the hints have left, or for so many seconds: the process is about to end."""
        if self.pid != os.getpid():
            return  # a fork: the thread stayed behind
        end = time.monotonic() + within
        while self.waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            hint = self.waiting.get()
            with self.lock:
                self.known.discard(hint)  # from here on a new one is not the same: there may be more to do
            if time.monotonic() >= self.pause_until:
                self._publish(hint)
            self.waiting.task_done()

    def _publish(self, hint: Hint) -> None:
        task, partner_id = hint
        kwargs = {} if partner_id is None else {"partner_id": partner_id}
        try:
            app.send_task(task, kwargs=kwargs, expires=EXPIRES_SECONDS, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001
            # The thread must go on whatever the broker's library raises; a hint may be lost.
            self.pause_until = time.monotonic() + PAUSE_SECONDS
            log.warning("hint_lost", task=task, error=type(error).__name__)


_current: _Publisher | None = None
_making = threading.Lock()


def _publisher() -> _Publisher:
    """Find this process's publisher, or make it: a thread does not survive a fork."""
    global _current
    if _current is None or _current.pid != os.getpid():
        with _making:
            if _current is None or _current.pid != os.getpid():
                _current = _Publisher()
    return _current
