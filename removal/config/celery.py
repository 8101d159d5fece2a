"""The Celery application: ``celery --app removal.config worker``."""

import logging
import os
import traceback
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_init, worker_process_init, worker_process_shutdown
from django.conf import settings
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")

TRANSPORT_ALIASES["filesystem"] = "removal.config.broker:FolderTransport"
TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "removal.config.broker:RedisTransport"

app = Celery("removal")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def leave_out_contents(record: logging.LogRecord) -> bool:
    """Take out of Celery's own log lines what a message or a row may say of a person; what happened stays."""
    if isinstance(record.msg, str) and "body" in record.msg:  # a message that it rejects, quoted in full
        record.msg, record.args, record.exc_info = record.msg.partition("%s")[0].partition("%r")[0], (), None
    elif record.exc_info and record.exc_info[0]:  # a task that failed; a database quotes rows in its messages
        kind, _, trace = record.exc_info
        [*_, last] = traceback.extract_tb(trace) or [None]
        where = f" at {last.filename}:{last.lineno}" if last else ""
        record.msg, record.args, record.exc_info = "A task failed: %s%s", (kind.__name__, where), None
    return True


@setup_logging.connect
def keep_django_logging(**_: Any) -> None:
    """Having a receiver here keeps Celery from installing handlers of its own."""
    for name in ("celery.app.trace", "celery.worker.consumer.consumer", "celery.worker.request"):
        logging.getLogger(name).addFilter(leave_out_contents)


@celeryd_init.connect
def wait_longer_than_publishers(conf: Any, **_: Any) -> None:
    """Give the worker's consuming socket five seconds; a publisher, which someone waits for, has one."""
    options = conf.broker_transport_options
    if "socket_timeout" in options:
        conf.broker_transport_options = {**options, "socket_timeout": 5}


# What these two import needs the apps, which are ready only when they are called.


@worker_init.connect
def note_what_is_consumed(**_: Any) -> None:
    """Begin before the worker's processes are started, which share the note."""
    from removal import watchdog

    watchdog.listen()


@worker_process_init.connect
def sweep_in_this_process(**_: Any) -> None:
    """Start the timer that makes the broker optional: each worker process looks for work by itself."""
    from removal import sweep, watchdog

    sweeper = sweep.start(interval=settings.SWEEP_INTERVAL)
    # After its last task, or when the worker stops; a second later billiard ends the process with all its threads.
    worker_process_shutdown.connect(lambda **_: sweeper.finish(), weak=False)
    watchdog.start()
