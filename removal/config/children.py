"""Child processes that do not outlive their parent, not even after ``kill -9``."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)  # loaded before any fork


def ending_with_parent(with_signal: signal.Signals) -> Callable[[], None]:
    """Make a ``preexec_fn`` that has the child sent ``with_signal`` when this process is gone. On Linux only.

    ``subprocess`` changes the user before it calls it; a change of user after it would undo the wish. Linux counts the
    end of the thread that starts the child as the end of the parent: start it from the main thread.
    """
    parent = os.getpid()

    def arrange() -> None:
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, with_signal)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return arrange
