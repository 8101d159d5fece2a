"""The work of a notice: the removal, its outcome and our answer are written down together, or not at all."""

import json
import sqlite3
from collections.abc import Collection
from datetime import datetime

from partners.reference import holdings
from partners.reference.notices import Item, Notice
from partners.reference.store import utc_text


def take(db: sqlite3.Connection, notice: Notice, *, slug: str, now: datetime) -> None:
    """Record a notice if it is new and, unless its items must be fetched, do its work. Needs a transaction."""
    is_new = db.execute(
        "INSERT INTO notices (epoch, sequence, kind, items_total, items_url, state, received_at)"
        " VALUES (:epoch, :sequence, :kind, :items_total, :items_url, 'pending', :now) ON CONFLICT DO NOTHING",
        vars(notice) | {"now": utc_text(now)},
    ).rowcount
    if is_new and notice.kind == "offboarding":
        holdings.remove_everything(db)
    if is_new and notice.items_url is None:
        complete(db, notice.epoch, notice.sequence, notice.items, slug=slug, now=now)


def complete(
    db: sqlite3.Connection, epoch: int, sequence: int, items: Collection[Item], *, slug: str, now: datetime
) -> None:
    """Remove the items, and write down the outcome and our answer. Needs a transaction."""
    removed = holdings.remove(db, items)
    not_found = len(items) - removed
    acknowledgement = {
        "sequence": sequence,
        "epoch": epoch,
        "status": "completed",
        "completed_at": utc_text(now),
        "outcomes": {name: n for name, n in (("removed", removed), ("not_found", not_found)) if n},
        "attestations": [{"claim": "removed_from_corpus", "detail": f"holdings of {slug}"}] if items else [],
    }
    db.execute(
        "UPDATE notices SET state = 'done', removed = ?, not_found = ?, done_at = ? WHERE epoch = ? AND sequence = ?",
        (removed, not_found, utc_text(now), epoch, sequence),
    )
    db.execute(
        "INSERT INTO answers (epoch, sequence, acknowledgement, state) VALUES (?, ?, ?, 'waiting')",
        (epoch, sequence, json.dumps(acknowledgement)),
    )
