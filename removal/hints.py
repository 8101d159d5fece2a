"""Tell the workers that there may be work. Only ever a hint: every worker's sweep finds the rows without one."""

import time

import structlog
from kombu.exceptions import OperationalError

from removal.config.celery import app

log = structlog.get_logger()

# After a failed publication the broker is left alone for this long: a silent one costs a second each time.
PAUSE_SECONDS = 10
# A hint that waited this long is worth nothing; the sweep has been there.
EXPIRES_SECONDS = 300

_silent_until = 0.0


def hint_planner() -> None:
    """Say that there may be something to plan. Call it after the commit."""
    _publish("removal.tasks.plan")


def hint_stream(*, partner_id: int) -> None:
    """Say that this partner's stream may have something to send. Call it after the commit."""
    _publish("removal.tasks.drain_stream", partner_id=partner_id)


def _publish(task: str, **kwargs: int) -> None:
    global _silent_until
    if time.monotonic() < _silent_until:
        return
    try:
        app.send_task(task, kwargs=kwargs, expires=EXPIRES_SECONDS, retry=False, ignore_result=True)
    except (OperationalError, OSError) as error:
        _silent_until = time.monotonic() + PAUSE_SECONDS
        log.warning("hint_lost", task=task, error=type(error).__name__)
