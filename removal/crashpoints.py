"""Places where a test may kill the process, so that what survives is known and not believed."""

import os
import signal
from pathlib import Path

from django.conf import settings


def crashpoint(name: str) -> None:
    """Kill this process if a test named this point: ``CRASH_AT=name:FILE`` kills once, and FILE tells that it did."""
    if not settings.CRASH_AT.startswith(f"{name}:"):
        return
    try:
        Path(settings.CRASH_AT.partition(":")[2]).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
