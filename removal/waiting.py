"""Wait for a stream to grow: how a long poll waits without a database connection, and without holding up the others.

All that wait in a process share one look at the database a moment; between two looks nobody has a connection. Few may
wait at once, so that there are always threads for everybody else; one too many is told at once that there is nothing.
"""

import threading
import time
from collections import Counter

from django.db import connection

from removal import pulling

LOOK_EVERY_SECONDS = 0.5
MOST_AT_ONCE = 4  # in one process, whose web server has eight threads (docs/operations.md)
MOST_OF_A_PARTNER = 2

Position = tuple[int, int]  # epoch and head


class Waits:
    """The waits of one process."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._looking = threading.Lock()
        self._waiting: Counter[int] = Counter()
        self._heads: dict[int, Position] = {}
        self._looked_at = 0.0

    def wait(self, *, partner_id: int, seen: Position, seconds: float) -> bool:
        """Wait until a stream is not where it was ``seen``, up to so many seconds; says whether it has moved.

        Needs no open transaction. Returns at once where too many wait already.
        """
        if not self.enter(partner_id):
            return False
        try:
            end = time.monotonic() + seconds
            connection.close()
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(LOOK_EVERY_SECONDS, left))
                if self._look(partner_id) != seen:
                    return True
            return False
        finally:
            self.leave(partner_id)

    def count(self) -> int:
        return self._waiting.total()

    def enter(self, partner_id: int) -> bool:
        """Take a place, if there is one; ``leave`` gives it back."""
        with self._counting:
            if self._waiting.total() >= MOST_AT_ONCE or self._waiting[partner_id] >= MOST_OF_A_PARTNER:
                return False
            self._waiting[partner_id] += 1
            return True

    def leave(self, partner_id: int) -> None:
        with self._counting:
            self._waiting[partner_id] -= 1
            if not self._waiting[partner_id]:
                del self._waiting[partner_id]

    def _look(self, partner_id: int) -> Position | None:
        """Say where a stream ends, as of half a moment ago at most."""
        with self._looking:
            if partner_id not in self._heads or time.monotonic() - self._looked_at > LOOK_EVERY_SECONDS / 2:
                with self._counting:
                    partner_ids = list(self._waiting)
                self._heads = pulling.heads(partner_ids)
                self._looked_at = time.monotonic()
                connection.close()
            return self._heads.get(partner_id)


waits = Waits()
