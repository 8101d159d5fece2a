"""What this partner writes down: its tables, in one SQLite file."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

SCHEMA = """
-- Every request that came, believed or not: a witness. Nothing but /status reads it.
CREATE TABLE IF NOT EXISTS received (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    message_id TEXT,            -- what the header says, true or not
    verified INTEGER NOT NULL,  -- 1 when the signature is good
    verdict TEXT NOT NULL,      -- 'accepted', or why not
    body_sha256 TEXT NOT NULL,
    body BLOB NOT NULL);
-- What this partner holds, if --holds said so. PRAGMA user_version is 1 from then on.
CREATE TABLE IF NOT EXISTS holdings (subject TEXT, item TEXT, PRIMARY KEY (subject, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notices (
    epoch INTEGER, sequence INTEGER, kind TEXT NOT NULL, items_total INTEGER NOT NULL,
    items_url TEXT,             -- where the items must be fetched before they can be removed
    state TEXT NOT NULL,        -- 'pending', then 'done'
    removed INTEGER, not_found INTEGER, received_at TEXT NOT NULL, done_at TEXT,
    PRIMARY KEY (epoch, sequence));
-- The outbox: one answer for each notice that is done.
CREATE TABLE IF NOT EXISTS answers (
    epoch INTEGER, sequence INTEGER, acknowledgement TEXT NOT NULL,
    state TEXT NOT NULL,        -- 'waiting', then 'answered' or 'refused'
    code TEXT, message TEXT,    -- what the service said when it refused
    posted_at TEXT,             -- the last time
    PRIMARY KEY (epoch, sequence));
CREATE INDEX IF NOT EXISTS notices_to_fetch ON notices (epoch, sequence) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS answers_to_post ON answers (epoch, sequence) WHERE state = 'waiting';
"""

STATUS = """
SELECT (SELECT count(*) FROM received) AS received,
       (SELECT count(*) FROM received WHERE verified) AS verified,
       (SELECT count(*) FROM received WHERE verdict <> 'accepted') AS refused,
       (SELECT count(*) FROM notices) AS notices,
       (SELECT count(*) FROM answers WHERE state = 'answered') AS answered,
       (SELECT count(*) FROM answers WHERE state = 'refused') AS answers_refused,
       (SELECT count(*) FROM notices WHERE state = 'pending')
           + (SELECT count(*) FROM answers WHERE state = 'waiting') AS pending
"""


class Store:
    """This partner's own SQLite file, for use by all threads. What is committed survives a power cut."""

    def __init__(self, path: Path) -> None:
        # One connection behind a lock: SQLite has one writer at a time anyway.
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block did, or nothing of it when it raises."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def rows(self, query: str) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query).fetchall()

    def close(self) -> None:
        """Let the transaction under way end, and close the file. The lock is kept, so that no other one begins."""
        self._lock.acquire()
        self._connection.close()


def utc_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
