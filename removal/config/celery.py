"""The Celery application: ``celery --app removal.config worker``."""

import os
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_process_init
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")

app = Celery("removal")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def keep_django_logging(**_: Any) -> None:
    """Having a receiver here keeps Celery from installing handlers of its own."""


@celeryd_init.connect
def wait_longer_than_publishers(conf: Any, **_: Any) -> None:
    """Give the worker's consuming socket five seconds; a publisher, which someone waits for, has one."""
    options = conf.broker_transport_options
    if "socket_timeout" in options:
        conf.broker_transport_options = {**options, "socket_timeout": 5}


@worker_process_init.connect
def sweep_in_this_process(**_: Any) -> None:
    """Start the timer that makes the broker optional: each worker process looks for work by itself."""
    from removal import sweep  # needs the apps, which are ready only now

    sweep.start(interval=settings.SWEEP_INTERVAL)
