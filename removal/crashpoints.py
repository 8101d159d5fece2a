"""Places where a test may kill or stop the process, so that what survives is known and not believed."""

import os
import signal
from itertools import count
from pathlib import Path

from django.conf import settings

_hits = count(1)


def crashpoint(name: str) -> None:
    """Kill this process if a test named this point: ``CRASH_AT=name:FILE`` kills once, and FILE tells that it did.

    ``name%3`` waits for the third time that a process comes by. ``name~`` stops the process in place of killing it.
    """
    point, _, file = settings.CRASH_AT.partition(":")
    wanted, _, nth = point.rstrip("~").partition("%")
    if wanted != name or next(_hits) < int(nth or 1):
        return
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGSTOP if point.endswith("~") else signal.SIGKILL)
