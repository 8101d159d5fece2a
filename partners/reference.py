"""A small partner, to read and to test with: it receives removal notices, removes, and says what it did.

    REFERENCE_SECRET=whsec_… REFERENCE_API_KEY=… python -m partners.reference \\
        --slug acme --service-url https://removal.example --database acme.sqlite3

It needs the standard library and ``partners.signing``. What every receiver has to get right is in ``Partner``:

1. Nothing is believed before the signature over the raw bytes is verified, and nothing that names another partner.
2. Messages come twice, late and out of order. A notice is known by its epoch and sequence, not by its message, and
   only once its own work is committed.
3. The answer to a message follows the commit, never the other way round.
4. What we have to say is written in the transaction of the work, and posted from there until the service has it.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import sqlite3
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from partners import signing

T = TypeVar("T")
Item = tuple[str, str]  # the key of a subject and of one of its items

MAX_BODY_BYTES = 1024 * 1024
ANSWERS_IN_A_BATCH = 100
SERVICE_TIMEOUT_SECONDS = 10
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 10.0
KEYS_ARE_FRESH_FOR = timedelta(minutes=1)

REMOVING_KINDS = {"opt_out", "deletion", "recall", "offboarding"}
# The one refusal that passes by itself: the service has not noted yet that it sent us this notice.
NOT_YET_SENT = "not_yet_sent"

# What JSON of an unexpected shape raises, and what asking the service may raise: the latter means to ask again later.
UNREADABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
NO_USABLE_ANSWER = (OSError, HTTPException, *UNREADABLE)

log = logging.getLogger(__name__)

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


def holdings_are_known(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA user_version").fetchone()[0])


def load_holdings(db: sqlite3.Connection, path: Path) -> None:
    """Read what this partner holds, once: at a later start the file knows nothing of what was removed since.

    Needs an open transaction. Raises ``OSError``, and ``ValueError`` with the number of a line that cannot be read.
    """
    if holdings_are_known(db):
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                db.executemany("INSERT OR IGNORE INTO holdings VALUES (?, ?)", read_items(line))
            except UNREADABLE as error:
                raise ValueError(f'{path}, line {number}: expected {{"subject": …, "items": […]}}') from error
    db.execute("PRAGMA user_version = 1")


def read_items(line: bytes) -> list[Item]:
    """Read an NDJSON line ``{"subject", "items"}``. May raise each of ``UNREADABLE``."""
    entry = json.loads(line)
    return [(entry["subject"], item) for item in entry["items"]]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow nothing: urllib would take our key along to wherever it is sent."""


# Nor does any proxy of the environment get to see the key.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


class Service:
    """The removal service, as this partner calls it. Every call may raise each of ``NO_USABLE_ANSWER``."""

    def __init__(self, *, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def public_keys(self, *, now: datetime) -> list[signing.Ed25519PublicKey]:
        """Fetch the keys that the service signs with, without those that are retired."""
        body, _ = self._ask(f"{self._url}/.well-known/removal-notices")
        return [
            signing.Ed25519PublicKey.from_text(key["public_key"])
            for key in json.loads(body)["keys"]
            if key["algorithm"] == "ed25519"
            and not (key.get("retire_at") and datetime.fromisoformat(key["retire_at"]) <= now)
        ]

    def items(self, url: str) -> set[Item]:
        """Fetch a list of items, page by page."""
        items: set[Item] = set()
        page: str | None = url
        while page:
            body, headers = self._ask(page)
            for line in body.splitlines():
                items.update(read_items(line))
            next_link = re.search(r'<([^>]*)>[^,]*;\s*rel="?next\b', headers.get("Link", ""))  # RFC 8288
            page = urljoin(page, next_link[1]) if next_link else None
        return items

    def acknowledge(self, acknowledgements: Sequence[object]) -> dict[int, tuple[str, str]]:
        """Post answers and return those that were refused: code and message by sequence."""
        content = json.dumps({"acknowledgements": acknowledgements}).encode()
        body, _ = self._ask(f"{self._url}/v1/acknowledgements", content)
        return {line["sequence"]: (line["code"], line.get("message", "")) for line in json.loads(body)["refused"]}

    def _ask(self, url: str, content: bytes | None = None) -> tuple[bytes, Message]:
        # Whoever is asked learns our key, so it is always this service, whatever a message or a page says.
        home = urlsplit(self._url)
        address = urlsplit(url)._replace(scheme=home.scheme, netloc=home.netloc).geturl()
        request = urllib.request.Request(address, content, self._headers)  # noqa: S310 (the options let in http alone)
        with _opener.open(request, timeout=SERVICE_TIMEOUT_SECONDS) as response:
            return response.read(), response.headers


@dataclass(frozen=True)
class Notice:
    epoch: int
    sequence: int
    kind: str
    items_total: int
    items: frozenset[Item]
    items_url: str | None  # where the items are, when they are not in ``items``


def read_notice(line: Mapping[str, Any], *, epoch: int) -> Notice:
    """Read one notice of a message. May raise each of ``UNREADABLE``."""
    kind, items_url = line["kind"], line.get("items_url")
    items: frozenset[Item] = frozenset()
    if kind == "reinstatement" or line.get("withdrawn_at"):
        # Nothing to remove. After a reinstatement, past removals stand; and a wish withdrawn before it was sent
        # comes at all only so that the stream has no holes.
        items_url = None
    elif kind not in REMOVING_KINDS:
        # We must not say "completed" to what we do not understand.
        raise ValueError(f"unknown kind of notice: {kind}")
    elif items_url is None:
        items = frozenset((line["subject"], item) for held in line["held"] for item in held["items"])
    return Notice(epoch, int(line["sequence"]), kind, int(line["items_total"]), items, items_url)


class Refused(Exception):
    """This message is not accepted. The sender gets the status; ``code`` is the verdict we write down."""

    def __init__(self, status: HTTPStatus, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Partner:
    """Receives messages, does their work and answers: one for the process, used by all its threads.

    A message that fits none of ``keys`` may still be signed with one that ``key_service`` publishes.
    """

    def __init__(
        self,
        *,
        slug: str,
        store: Store,
        keys: Sequence[signing.VerifyingKey],
        key_service: Service | None,
        refuse_first: int,
    ) -> None:
        self._slug = slug
        self._store = store
        self._keys = keys
        self._key_service = key_service
        self._published_keys: list[signing.Ed25519PublicKey] = []
        self._keys_stale_at = datetime.min.replace(tzinfo=UTC)
        self._keys_lock = threading.Lock()
        self._refusals = iter(range(refuse_first))
        self._work_came = threading.Event()

    def receive(self, *, headers: Mapping[str, str], body: bytes, now: datetime) -> tuple[HTTPStatus, dict[str, Any]]:
        """Judge a message, write it down, do its work, and return the status and the JSON to answer with."""
        verified = False
        notices: list[Notice] = []
        refused: Refused | None = None
        try:
            self._verify(headers=headers, body=body, now=now)
            verified = True
            notices = self._read(body)
        except signing.NotVerified as error:
            refused = Refused(HTTPStatus.UNAUTHORIZED, error.code)
        except Refused as error:
            refused = error
        if next(self._refusals, None) is not None:
            refused = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")

        verdict = refused.code if refused else "accepted"
        digest = hashlib.sha256(body).hexdigest()
        with self._store.transaction() as db:
            db.execute(
                "INSERT INTO received (at, message_id, verified, verdict, body_sha256, body) VALUES (?, ?, ?, ?, ?, ?)",
                (utc_text(now), headers.get(signing.ID_HEADER), verified, verdict, digest, body),
            )
        if refused:
            # RFC 9457, and nothing beyond the status: a forger must not learn what was wrong.
            return refused.status, {"type": "about:blank", "title": refused.status.phrase, "status": refused.status}

        with self._store.transaction() as db:
            for notice in notices:
                self._take(db, notice, now=now)
        self._work_came.set()
        # The same words for a repeat: whoever missed them the first time needs them now.
        received = [{"sequence": notice.sequence, "status": "received"} for notice in notices]
        return HTTPStatus.OK, {"acknowledgements": received}

    def _verify(self, *, headers: Mapping[str, str], body: bytes, now: datetime) -> None:
        if len(body) > MAX_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large")
        try:
            signing.verify(headers=headers, body=body, keys=self._keys, now=now)
        except signing.NoMatchingSignature:
            signing.verify(headers=headers, body=body, keys=self._look_for_keys(now=now), now=now)

    def _look_for_keys(self, *, now: datetime) -> list[signing.Ed25519PublicKey]:
        with self._keys_lock:
            # Anyone can send us bad signatures: however many come, the service is asked once a minute.
            if self._key_service and now >= self._keys_stale_at:
                self._keys_stale_at = now + KEYS_ARE_FRESH_FOR
                try:
                    self._published_keys = self._key_service.public_keys(now=now)
                except NO_USABLE_ANSWER as error:
                    log.warning("no public keys from the service: %s", error)
            return self._published_keys

    def _read(self, body: bytes) -> list[Notice]:
        try:
            message = json.loads(body)
            data = message["data"]
            # The service signs with one Ed25519 key for all partners: only this says that the message is for us.
            if data["partner"] != self._slug:
                raise Refused(HTTPStatus.FORBIDDEN, "wrong_partner")
            if message["type"] != "removal.notices":
                return []  # a ping, a reminder, or something newer than this program: no notice to take
            return [read_notice(line, epoch=int(data["epoch"])) for line in data["notices"]]
        except UNREADABLE as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "unreadable") from error

    def _take(self, db: sqlite3.Connection, notice: Notice, *, now: datetime) -> None:
        """Record a notice if it is new and, unless its items must be fetched, do its work. Needs a transaction."""
        is_new = db.execute(
            "INSERT INTO notices (epoch, sequence, kind, items_total, items_url, state, received_at)"
            " VALUES (:epoch, :sequence, :kind, :items_total, :items_url, 'pending', :now) ON CONFLICT DO NOTHING",
            vars(notice) | {"now": utc_text(now)},
        ).rowcount
        if is_new and notice.items_url is None:
            self._complete(db, notice.epoch, notice.sequence, notice.items, now=now)

    def _complete(
        self, db: sqlite3.Connection, epoch: int, sequence: int, items: Collection[Item], *, now: datetime
    ) -> None:
        """Remove the items, and write down the outcome and our answer. Needs a transaction."""
        removed = len(items)
        if holdings_are_known(db):
            removed = db.executemany("DELETE FROM holdings WHERE subject = ? AND item = ?", items).rowcount
        not_found = len(items) - removed
        acknowledgement = {
            "sequence": sequence,
            "status": "completed",
            "completed_at": utc_text(now),
            "outcomes": {name: n for name, n in (("removed", removed), ("not_found", not_found)) if n},
            "attestations": [{"claim": "removed_from_corpus", "detail": f"holdings of {self._slug}"}] if items else [],
        }
        db.execute(
            "UPDATE notices SET state = 'done', removed = ?, not_found = ?, done_at = ?"
            " WHERE epoch = ? AND sequence = ?",
            (removed, not_found, utc_text(now), epoch, sequence),
        )
        db.execute(
            "INSERT INTO answers (epoch, sequence, acknowledgement, state) VALUES (?, ?, ?, 'waiting')",
            (epoch, sequence, json.dumps(acknowledgement)),
        )

    def keep_calling(self, service: Service) -> None:
        """Fetch and post for ever: at once what a message brought, and with growing waits what did not succeed."""
        wait_seconds = FIRST_WAIT_SECONDS
        while True:
            self._work_came.clear()
            try:
                is_done = self.fetch_items(service) & self.post_answers(service)
            except Exception:
                # Nobody else would notice that this thread had died.
                log.exception("the service was not called")
                is_done = False
            if is_done:
                wait_seconds = FIRST_WAIT_SECONDS
                self._work_came.wait()
            else:
                time.sleep(wait_seconds)
                wait_seconds = min(wait_seconds * 2, LONGEST_WAIT_SECONDS)

    def fetch_items(self, service: Service) -> bool:
        """Ask once for the items of each pending notice, and do its work if they come complete.

        Returns whether all came.
        """
        pending = self._store.rows(
            "SELECT epoch, sequence, items_total, items_url FROM notices WHERE state = 'pending'"
            " ORDER BY epoch, sequence"
        )
        all_came = True
        for epoch, sequence, items_total, items_url in pending:
            try:
                items = service.items(items_url)
                if len(items) != items_total:
                    raise ValueError(f"{len(items)} items listed, {items_total} announced")
            except NO_USABLE_ANSWER as error:
                log.warning("the items of notice %d must wait: %s", sequence, error)
                all_came = False
                continue
            with self._store.transaction() as db:
                self._complete(db, epoch, sequence, items, now=datetime.now(UTC))
        return all_came

    def post_answers(self, service: Service) -> bool:
        """Post each waiting answer once, in batches, and write down what the service said to it.

        Returns whether it has said yes or no to all.
        """
        waiting = self._store.rows(
            "SELECT epoch, sequence, acknowledgement FROM answers WHERE state = 'waiting' ORDER BY epoch, sequence"
        )
        all_settled = True
        for first in range(0, len(waiting), ANSWERS_IN_A_BATCH):
            batch = waiting[first : first + ANSWERS_IN_A_BATCH]
            try:
                refused = service.acknowledge([json.loads(acknowledgement) for _, _, acknowledgement in batch])
            except NO_USABLE_ANSWER as error:
                log.warning("%d answers must wait: %s", len(waiting) - first, error)
                return False
            with self._store.transaction() as db:
                for epoch, sequence, _ in batch:
                    code, message = refused.get(sequence, (None, None))
                    state = "answered" if code is None else "waiting" if code == NOT_YET_SENT else "refused"
                    all_settled &= state != "waiting"
                    db.execute(
                        "UPDATE answers SET state = ?, code = ?, message = ?, posted_at = ?"
                        " WHERE epoch = ? AND sequence = ?",
                        (state, code, message, utc_text(datetime.now(UTC)), epoch, sequence),
                    )
        return all_settled

    def status(self) -> dict[str, int]:
        return dict(self._store.rows(STATUS)[0])


def utc_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Receiver(ThreadingHTTPServer):
    """The HTTP side: a thread for each connection, none of which holds up the end of the program."""

    daemon_threads = True
    request_queue_size = 128  # with the library's 5, a burst of connections waits for a second

    def __init__(self, address: tuple[str, int], *, partner: Partner, delay_seconds: float) -> None:
        super().__init__(address, RequestHandler)
        self.partner = partner
        self.delay_seconds = delay_seconds


class RequestHandler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"  # keeps the connection for the next message
    timeout = 30
    disable_nagle_algorithm = True  # or answers on a kept connection wait 40 ms between their headers and their body

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        announced = int(length) if re.fullmatch("[0-9]{1,10}", length) else -1
        body = self.rfile.read(max(0, min(announced, MAX_BODY_BYTES + 1)))
        # What is left on the connection would be taken for the next request.
        self.close_connection |= len(body) != announced
        if self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, {})
            return
        # A header that came twice becomes one value (RFC 9110 §5.3), which then has the wrong form.
        headers = {name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        status, document = self.server.partner.receive(headers=headers, body=body, now=datetime.now(UTC))
        time.sleep(self.server.delay_seconds)
        self._send(status, document)

    def do_GET(self) -> None:
        if self.path == "/status":
            self._send(HTTPStatus.OK, self.server.partner.status())
        else:
            self._send(HTTPStatus.NOT_FOUND, {})

    def _send(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        # The service hangs up when it is tired of waiting. It will come again.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Write no access log: the table ``received`` is one."""


def serve(receiver: Receiver, *, service: Service | None) -> None:
    """Receive messages, and call the service if there is one, until SIGINT or SIGTERM."""
    # Blocked here, and so in the threads started below: the signal waits for sigwait.
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    if service:
        threading.Thread(target=receiver.partner.keep_calling, args=[service], daemon=True).start()
    host, port = receiver.server_address[:2]
    sys.stdout.write(f"listening on http://{host!s}:{port}/\n")
    sys.stdout.flush()
    signal.sigwait(stop_signals)
    receiver.shutdown()


def option(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse say why a value was refused, and not what it was: it may be a secret."""

    def read_option(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_option


def read_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("expected HOST:PORT, with port 0 for any free one")
    return host, int(port)


def read_url(text: str) -> str:
    if not re.match("https?://[^/]", text):
        raise ValueError("expected http://… or https://…")
    return text


def read_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise ValueError("expected 0 to 3600 seconds")
    return seconds


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m partners.reference",
        description="A partner that receives removal notices, removes, and says what it did.",
        epilog="Keys may stay off the command line: REFERENCE_API_KEY, and REFERENCE_SECRET with one or more secrets.",
        allow_abbrev=False,
    )
    hmac_secret, public_key = option(signing.HmacSecret.from_text), option(signing.Ed25519PublicKey.from_text)
    add = parser.add_argument
    add("--slug", required=True, help="the name the service has for this partner")
    add("--database", required=True, type=Path, metavar="FILE", help="this partner's SQLite file")
    add("--listen", type=option(read_address), default="127.0.0.1:0", metavar="HOST:PORT", help="default: %(default)s")
    add("--service-url", type=option(read_url), metavar="URL", help="where the removal service is")
    add("--api-key", metavar="KEY", help="this partner's key to the service")
    add("--secret", type=hmac_secret, action="append", metavar="whsec_…", help="v1; both, while it is changed")
    add("--public-key", type=public_key, action="append", metavar="whpk_…", help="v1a; default: ask the service")
    add("--holds", type=Path, metavar="FILE", help='what is held: lines of {"subject", "items"}; default: everything')
    add("--refuse-first", type=int, default=0, metavar="N", help="answer 503 to the first N requests")
    add("--delay", type=option(read_seconds), default=0.0, metavar="SECONDS", help="wait before each answer")
    add("--no-acknowledge", action="store_true", help="do the work, but do not call the service's API")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(arguments)
    api_key = options.api_key or os.environ.get("REFERENCE_API_KEY", "")
    secrets = os.environ.get("REFERENCE_SECRET", "").split()
    try:
        keys = options.secret or [signing.HmacSecret.from_text(secret) for secret in secrets]
    except ValueError as error:
        parser.error(f"REFERENCE_SECRET: {error}")
    keys += options.public_key or []
    if not keys and not options.service_url:
        parser.error("give --secret, --public-key or --service-url: without a key no message can be verified")
    if not options.no_acknowledge and not (options.service_url and api_key):
        parser.error("give --service-url and --api-key, or --no-acknowledge")

    logging.basicConfig(format="%(levelname)s %(message)s")
    service = Service(url=options.service_url, api_key=api_key) if options.service_url else None
    try:
        with closing(Store(options.database)) as store:
            if options.holds:
                with store.transaction() as db:
                    load_holdings(db, options.holds)
            partner = Partner(
                slug=options.slug,
                store=store,
                keys=keys,
                key_service=None if options.public_key else service,
                refuse_first=options.refuse_first,
            )
            with Receiver(options.listen, partner=partner, delay_seconds=options.delay) as receiver:
                serve(receiver, service=None if options.no_acknowledge else service)
    except (OSError, sqlite3.Error, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
