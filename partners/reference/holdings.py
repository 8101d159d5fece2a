"""What this partner holds: whatever it is asked to remove, or exactly what a file said at the first start."""

import sqlite3
from collections.abc import Collection
from pathlib import Path

from partners.reference.notices import UNREADABLE, Item, read_items


def _are_known(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA user_version").fetchone()[0])


def load(db: sqlite3.Connection, path: Path) -> None:
    """Read what this partner holds, once: at a later start the file knows nothing of what was removed since.

    Needs an open transaction. Raises ``OSError``, and ``ValueError`` with the number of a line that cannot be read.
    """
    if _are_known(db):
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                db.executemany("INSERT OR IGNORE INTO holdings VALUES (?, ?)", read_items(line))
            except UNREADABLE as error:
                raise ValueError(f'{path}, line {number}: expected {{"subject": …, "items": […]}}') from error
    db.execute("PRAGMA user_version = 1")


def remove(db: sqlite3.Connection, items: Collection[Item]) -> int:
    """Remove items, and return how many were held: all, if nobody said what is. Needs an open transaction."""
    if not _are_known(db):
        return len(items)
    return db.executemany("DELETE FROM holdings WHERE subject = ? AND item = ?", items).rowcount


def remove_everything(db: sqlite3.Connection) -> None:
    """Delete all that is held. Needs a transaction."""
    db.execute("DELETE FROM holdings")
