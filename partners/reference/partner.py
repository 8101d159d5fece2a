"""What happens to a message: is it to be believed, what is done about it, and what does the sender hear."""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from partners import signing
from partners.reference import work
from partners.reference.client import NO_USABLE_ANSWER, Service
from partners.reference.notices import UNREADABLE, Notice, read_notice
from partners.reference.store import STATUS, Store, utc_text

MAX_BODY_BYTES = 1024 * 1024
KEYS_ARE_FRESH_FOR = timedelta(minutes=1)
SAMPLES = 0  # the epoch of sample notices, by which the service checks a receiver

log = logging.getLogger(__name__)


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
        self.slug = slug
        self.store = store
        self._keys = keys
        self._key_service = key_service
        self._published_keys: list[signing.Ed25519PublicKey] = []
        self._keys_stale_at = datetime.min.replace(tzinfo=UTC)
        self._keys_lock = threading.Lock()
        self._refusals = iter(range(refuse_first))
        self.work_came = threading.Event()

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
        with self.store.transaction() as db:
            db.execute(
                "INSERT INTO received (at, message_id, verified, verdict, body_sha256, body) VALUES (?, ?, ?, ?, ?, ?)",
                (utc_text(now), headers.get(signing.ID_HEADER), verified, verdict, digest, body),
            )
        if refused:
            # RFC 9457, and nothing beyond the status: a forger must not learn what was wrong.
            return refused.status, {"type": "about:blank", "title": refused.status.phrase, "status": refused.status}

        with self.store.transaction() as db:
            for notice in notices:
                if notice.epoch == SAMPLES:
                    continue  # it obliges nobody: answered below, and nothing is done
                work.take(db, notice, slug=self.slug, now=now)
        self.work_came.set()
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
            if data["partner"] != self.slug:
                raise Refused(HTTPStatus.FORBIDDEN, "wrong_partner")
            if message["type"] != "removal.notices":
                return []  # a ping, a reminder, or something newer than this program: no notice to take
            return [read_notice(line, epoch=int(data["epoch"])) for line in data["notices"]]
        except UNREADABLE as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "unreadable") from error

    def status(self) -> dict[str, int]:
        return dict(self.store.rows(STATUS)[0])
