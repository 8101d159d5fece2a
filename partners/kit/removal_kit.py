"""Receive removal notices and answer them. One file, standard library only, Python 3.9 or newer: copy it.

    receiver = Receiver("acme", take=store_it, secrets=["whsec_…"])
    status, headers, body = receiver.receive(request_headers, request_body_bytes)    # in any web framework
    Client("https://removal.example", "rk_…").acknowledge([{"sequence": 7, "status": "completed"}])

Licence: Apache-2.0. Signatures follow Standard Webhooks 1.0.0 (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import logging
import random
import re
import secrets as random_source
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Union
from urllib.parse import urljoin, urlsplit

TOLERANCE_SECONDS = 300
MAX_SIGNATURES = 8  # rotation needs two a version; a longer list is somebody making us work
MAX_BODY_BYTES = 1024 * 1024
MAX_NUMBER = 2**53 - 1  # beyond it, JSON means different numbers to different readers
PAUSE_SECONDS = 1  # before asking for more, where the answer was "nothing" and came at once
KINDS = frozenset({"opt_out", "deletion", "recall", "offboarding", "reinstatement"})

Headers = Union[Mapping[str, str], Iterable[tuple[str, str]]]
Response = tuple[int, dict[str, str], bytes]
log = logging.getLogger("removal_kit")


class KitError(Exception):
    """Whatever went wrong. ``code`` is stable: programs go by it. ``status`` is the service's answer, 0 without one."""

    def __init__(self, code: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class NotVerified(KitError):
    """Do not believe this message. Tell the sender 401 and nothing more."""


class Unreadable(KitError):
    """Signed, but not for us, or nothing that this file understands."""


class ServiceFailed(KitError):
    """The service did not do what it was asked."""


# --- verify ---


def verify(
    headers: Headers,
    body: bytes,
    *,
    secrets: Iterable[str] = (),
    public_keys: Iterable[str] = (),
    now: float | None = None,
    tolerance: float = TOLERANCE_SECONDS,
) -> str:
    """Check that the service signed these bytes, and return the message's id. Raises ``NotVerified``.

    ``secrets`` are ``whsec_`` texts (two while one is rotated), ``public_keys`` are ``whpk_`` texts; ``now`` is in
    seconds since 1970, by default the clock's. Give the raw body: the same JSON in other bytes is not signed.
    """
    hmac_keys = [_decode_key(text, "whsec_") for text in secrets]
    ed25519_keys = [_decode_key(text, "whpk_") for text in public_keys]
    headers = headers if hasattr(headers, "items") else list(headers)
    message_id, timestamp, signatures = (
        _only_header(headers, name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    )
    # A full stop could make the end of an id pass for a timestamp. int() would take signs, spaces and other scripts.
    if not re.fullmatch(r"[!-\-/-~]{1,256}", message_id):
        raise NotVerified("header_unreadable", "webhook-id is 1 to 256 visible ASCII characters without a full stop")
    if not re.fullmatch(r"[0-9]{1,11}", timestamp):
        raise NotVerified("header_unreadable", "webhook-timestamp is whole seconds since 1970 in ASCII digits")
    age = (time.time() if now is None else now) - int(timestamp)
    if age > tolerance:
        raise NotVerified("signature_too_old", f"signed {age:.0f} s ago; check this machine's clock")
    if age < -tolerance:
        raise NotVerified("signature_too_new", f"signed {-age:.0f} s ahead; check this machine's clock")

    content = f"{message_id}.{timestamp}.".encode() + body
    for offered in signatures.split(maxsplit=MAX_SIGNATURES)[:MAX_SIGNATURES]:
        version, _, encoded = offered.partition(",")
        signature = _decode_base64(encoded)
        if signature is None:
            continue  # another one may still be good
        # A key has one algorithm, whatever the sender calls it: the version only says which keys are asked.
        if version == "v1" and any(
            hmac.compare_digest(hmac.new(key, content, hashlib.sha256).digest(), signature) for key in hmac_keys
        ):
            return message_id
        if version == "v1a" and any(ed25519_verify(key, content, signature) for key in ed25519_keys):
            return message_id
    raise NotVerified("no_matching_signature", "no signature was made with a key we know")


def _only_header(headers: Headers, name: str) -> str:
    # Not every framework's headers are a Mapping, and some of those that are not give pairs.
    pairs = headers.items() if hasattr(headers, "items") else headers
    values = [value for key, value in pairs if key.lower() == name]
    if len(values) != 1:
        raise NotVerified("header_missing", f"{name} must be there once, not {len(values)} times")
    return values[0]


def _decode_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _decode_key(text: str, prefix: str) -> bytes:
    """Read a key in its text form. Raises ``KitError`` with code ``key_unusable``, which never quotes the key."""
    raw = _decode_base64(text[len(prefix) :]) if text.startswith(prefix) else None
    if raw is None:
        raise KitError("key_unusable", f"a key here is {prefix} and base64")
    # hmac itself would accept an empty key. A whsk_ key may have its public key behind the seed.
    allowed: Sequence[int] = {"whsec_": range(24, 65), "whpk_": (32,), "whsk_": (32, 64)}[prefix]
    if len(raw) not in allowed:
        raise KitError("key_unusable", f"a {prefix} key has {allowed[0]} to {allowed[-1]} bytes, not {len(raw)}")
    return raw


# --- Ed25519 (RFC 8032 §5.1). A few milliseconds a signature, and verifying handles no secret. Signing is NOT
# constant-time: use it only where nobody can measure this process closely. ---

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]  # extended coordinates: x = X/Z, y = Y/Z, T = XY/Z
_ZERO: _Point = (0, 1, 1, 0)


def _add(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _combine(s: int, p: _Point, k: int = 0, q: _Point = _ZERO) -> _Point:
    """Make s·p + k·q."""
    choices = (_ZERO, p, q, _add(p, q))
    total = _ZERO
    for bit in range(max(s.bit_length(), k.bit_length()) - 1, -1, -1):
        total = _add(_add(total, total), choices[(s >> bit & 1) + 2 * (k >> bit & 1)])
    return total


def _decode_point(raw: bytes) -> _Point | None:
    """Read a point (§5.1.3); None when there is no such point, or it is written otherwise than it must be."""
    number = int.from_bytes(raw, "little")
    y, sign = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_1 % _P
    if y >= _P or (x * x - square) % _P or (x == 0 and sign):
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P


def _encode_point(point: _Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    return (point[1] * inverse % _P | (point[0] * inverse % _P & 1) << 255).to_bytes(32, "little")


def _hash_number(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


_BASE = _decode_point((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little")) or _ZERO


def ed25519_verify(public_key: bytes, content: bytes, signature: bytes) -> bool:
    """Check a signature (§5.1.7). S must be below L, or each signature would have a second form."""
    key, s = _decode_point(public_key), int.from_bytes(signature[32:], "little")
    if len(public_key) != 32 or len(signature) != 64 or key is None or s >= _L:
        return False
    k = _hash_number(signature[:32], public_key, content) % _L
    minus_key = (-key[0] % _P, key[1], 1, -key[3] % _P)
    return hmac.compare_digest(_encode_point(_combine(s, _BASE, k, minus_key)), signature[:32])


def ed25519_sign(seed: bytes, content: bytes) -> bytes:
    """Sign (§5.1.6) with a 32-byte seed. Not constant-time."""
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
    public_key = _encode_point(_combine(scalar, _BASE))
    r = _hash_number(digest[32:], content) % _L
    point = _encode_point(_combine(r, _BASE))
    s = (r + _hash_number(point, public_key, content) * scalar) % _L
    return point + s.to_bytes(32, "little")


# --- parse ---


@dataclass(frozen=True)
class Notice:
    """One thing to do, known for ever by ``(epoch, sequence)``.

    ``items`` are distinct (subject, item) pairs; where ``items_url`` is set, ``Client.items(items_url)`` lists them
    instead. Of an ``offboarding`` nothing is listed: it is everything of ``releases``. A ``reinstatement`` has no
    items: answer it ``completed`` without outcomes. ``raw`` is the JSON as it came.
    """

    epoch: int
    sequence: int
    kind: str
    items_total: int
    subject: str | None
    items: tuple[tuple[str, str], ...]
    items_url: str | None
    releases: tuple[str, ...]
    withdrawn: bool  # taken back before you heard of it: nothing to do, and no answer is due
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Message:
    """``notices`` is empty in a ping, in a reminder, whose facts are in ``data``, and in types that came later."""

    type: str
    epoch: int
    notices: tuple[Notice, ...]
    data: dict[str, Any] = field(repr=False)


def parse(body: bytes, partner: str) -> Message:
    """Read a verified message. Raises ``Unreadable``, also when it is another partner's. Unknown fields are ignored."""
    message = _read_json(body)
    if _get(message, "version", str) != "1":
        raise Unreadable("unknown_version", "this file reads version 1; get a newer one")
    type_, data = _get(message, "type", str), _get(message, "data", dict)
    # One Ed25519 key signs for all partners: only this says that the message is for us.
    if _get(data, "partner", str) != partner:
        raise Unreadable("wrong_partner", "this message is for another partner")
    return read_data(data, type_)


def read_data(data: dict[str, Any], type_: str = "removal.notices") -> Message:
    """Read the ``data`` of a message, or a page of the stream. Raises ``Unreadable``."""
    epoch = _get(data, "epoch", int)
    if type_ != "removal.notices":
        return Message(type_, epoch, (), data)
    notices = tuple(read_notice(raw, epoch) for raw in _get(data, "notices", list))
    first, last = (_get(data, name, int, type(None)) for name in ("first", "last"))
    sequences = [notice.sequence for notice in notices]
    # A 2xx says that all of first..last came: one that is missing here would be lost.
    if None not in {first, last} and (len(sequences), sequences[:1], sequences[-1:]) != (
        last - first + 1,
        [first],
        [last],
    ):
        raise Unreadable("unreadable", "the notices are not those from first to last")
    return Message(type_, epoch, notices, data)


def read_notice(raw: Any, epoch: int) -> Notice:
    """Read one notice, such as ``raw`` of one that was stored. Raises ``Unreadable``."""
    sequence, kind, total = _get(raw, "sequence", int), _get(raw, "kind", str), _get(raw, "items_total", int)
    if kind not in KINDS:
        # "completed" must not be said to what nobody understood.
        raise Unreadable("unknown_kind", "this file does not know this kind of notice; get a newer one")
    subject, items_url = _get(raw, "subject", str, type(None)), _get(raw, "items_url", str, type(None))
    releases = tuple(_strings(_get(raw, "releases", list, type(None)) or []))
    withdrawn = raw.get("withdrawn_at") is not None
    items: dict[tuple[str, str], None] = {}  # in order, each once
    if kind in {"reinstatement", "offboarding"} or withdrawn:
        items_url = None
    elif items_url is None:
        for held in _get(raw, "held", list):
            owner = _get(raw, "subject", str)
            items.update(((owner, item), None) for item in _strings(_get(held, "items", list)))
    return Notice(epoch, sequence, kind, total, subject, tuple(items), items_url, releases, withdrawn, raw)


def _get(parent: Any, name: str, *types: type) -> Any:
    value = parent.get(name) if isinstance(parent, dict) else None
    if type(value) not in types or (type(value) is int and not 0 <= value <= MAX_NUMBER):
        raise Unreadable("unreadable", f"{name} is missing, or not what it must be")
    return value


def _strings(values: Any) -> list[str]:
    if type(values) is not list or not all(type(value) is str for value in values):
        raise Unreadable("unreadable", "a list of texts is something else")
    return values


def _read_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_each_name_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable("unreadable", "the body is not JSON in UTF-8, with each name once") from error


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two values, one reader takes the first and another the last.
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity, which Python would read


# --- receive ---


class Memory:
    """Notices in memory, for trying out: a restart forgets them. Give its two methods to a ``Receiver``."""

    def __init__(self) -> None:
        self.notices: dict[tuple[int, int], Notice] = {}

    def seen(self, epoch: int, sequence: int) -> bool:
        return (epoch, sequence) in self.notices

    def take(self, notice: Notice) -> None:
        self.notices.setdefault((notice.epoch, notice.sequence), notice)


@dataclass(repr=False)
class Receiver:
    """Turns a request into the response for it, in any web framework. Usable by several threads.

    ``take(notice)`` stores one notice in a transaction of yours and returns when it is COMMITTED: with our 2xx the
    service stops sending it. Two copies of a message may come at once, so your table needs (epoch, sequence) as its
    primary key and an insert that ignores what is there. ``seen(epoch, sequence)``, if given, spares the call.
    ``public_keys`` are ``whpk_`` texts, or a function that lists them: ``Client.public_keys``. ``remind(message)``, if
    given, is called with a reminder. Samples (epoch 0) oblige nobody: they are taken only if ``take_samples`` says so.
    """

    partner: str
    take: Callable[[Notice], Any]
    seen: Callable[[int, int], bool] | None = None
    secrets: Sequence[str] = ()
    public_keys: Sequence[str] | Callable[[], Sequence[str]] = ()
    remind: Callable[[Message], Any] | None = None
    take_samples: bool = False
    tolerance: float = TOLERANCE_SECONDS

    def __post_init__(self) -> None:
        # Keys that cannot be used stop the start, not the first message.
        if not self.secrets and not self.public_keys:
            raise KitError("key_unusable", "a receiver needs a secret or a public key")
        for text in self.secrets:
            _decode_key(text, "whsec_")
        for text in () if callable(self.public_keys) else self.public_keys:
            _decode_key(text, "whpk_")

    def receive(self, headers: Headers, body: bytes, now: float | None = None) -> Response:
        """Verify, read, take, and return (status, headers, body) to send. Never raises."""
        try:
            if len(body) > MAX_BODY_BYTES:
                return _response(413, {"code": "too_large"})
            public_keys = self.public_keys() if callable(self.public_keys) else self.public_keys
            verify(headers, body, secrets=self.secrets, public_keys=public_keys, now=now, tolerance=self.tolerance)
            return _response(200, self._answer(parse(body, self.partner)))
        except NotVerified as error:
            log.warning("refused a message: %s", error.code)
            return 401, {}, b""  # a forger must not learn what was wrong
        except Unreadable as error:
            log.warning("refused a message: %s: %s", error.code, error)
            # 400 is about the content: a message of many is halved until the culprit stands alone. 403 is not.
            return _response(403 if error.code == "wrong_partner" else 400, {"code": error.code, "detail": str(error)})
        except Exception:
            log.exception("a message was not taken; it will come again")
            return 500, {}, b""

    def _answer(self, message: Message) -> dict[str, Any]:
        if message.type == "removal.reminder" and self.remind:
            self.remind(message)
        for notice in message.notices:
            is_wanted = notice.epoch > 0 or self.take_samples
            if is_wanted and not (self.seen and self.seen(notice.epoch, notice.sequence)):
                self.take(notice)
        # The same words for a repeat: whoever missed them the first time needs them now.
        lines = [{"sequence": notice.sequence, "status": "received"} for notice in message.notices]
        return {"acknowledgements": lines} if lines else {}


def _response(status: int, document: dict[str, Any]) -> Response:
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


# --- call the service ---


@dataclass
class Answer:
    """What became of the lines. ``refused`` has ``{"sequence", "code", "message"}`` for each that changed nothing."""

    accepted: int = 0
    unchanged: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: urllib would take our key along to wherever it is sent."""


@dataclass(repr=False)
class Client:
    """The service, as a partner calls it. Each call may be repeated, retries by itself, and raises ``ServiceFailed``.

    ``signing_key`` (``whsk_`` and the base64 of a 32-byte Ed25519 seed) signs acknowledgements; register its public key
    with the service first. ``attempts`` are made in all, with growing waits of up to ``longest_wait`` seconds. No proxy
    and no redirect sees the key.
    """

    base_url: str
    api_key: str
    signing_key: str | None = None
    allow_http: bool = False
    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60
    timeout: float = 20
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if urlsplit(self.base_url).scheme not in ({"https", "http"} if self.allow_http else {"https"}):
            raise KitError("https_needed", "the service's address must be https, or others read your key")
        self.base_url = self.base_url.rstrip("/")
        self._seed = _decode_key(self.signing_key, "whsk_")[:32] if self.signing_key else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
        self._keys: list[dict[str, Any]] | None = None
        self._keys_stale_at = 0.0
        self._keys_lock = threading.Lock()

    def acknowledge(self, lines: Iterable[Mapping[str, Any]]) -> Answer:
        """Post answers, in calls of at most 1000 lines. When one fails, post all again: a repeat changes nothing."""
        answer = Answer()
        for body, content_type in _batches(lines):
            said = _read_json(self._ask("/v1/acknowledgements", body, content_type)[0])
            answer.accepted += _get(said, "accepted", int)
            answer.unchanged += _get(said, "unchanged", int)
            answer.refused += _get(said, "refused", list)
        return answer

    def items(self, notice: int | str, limit: int = 1000) -> Iterator[tuple[str, list[str]]]:
        """Yield (subject, items) of a long list, by ``items_url`` or number. One page is in memory at a time."""
        url = f"/v1/stream/{notice}/items?limit={limit}" if isinstance(notice, int) else notice
        while url:
            text, headers = self._ask(url)
            for line in text.splitlines():
                entry = _read_json(line)
                yield _get(entry, "subject", str), _strings(_get(entry, "items", list))
            link = re.search(r'<([^>]*)>[^,]*;\s*rel="?next\b', headers.get("Link", ""))  # RFC 8288
            url = urljoin(self.base_url, link[1]) if link else ""

    def pull(self, after: int = 0, epoch: int | None = None, wait: int = 20, limit: int = 100) -> Iterator[Message]:
        """Yield messages of the notices behind number ``after`` of ``epoch``; when the stream is in another, of all.

        Goes on for ever, asking anew every ``wait`` seconds; with ``wait=0`` it ends when nothing follows any more.
        Asking for the next message tells the service that you have this one, the last one included: commit its notices,
        ``epoch`` and last sequence first, and begin there the next time.
        """
        while True:
            asked_at = time.monotonic()
            path = f"/v1/stream?after={after}&limit={limit}&wait={wait}"
            try:
                text, _ = self._ask(path + (f"&epoch={epoch}" if epoch and after else ""), wait=wait)
                message = read_data(_read_json(text))
                is_another = epoch not in {None, message.epoch}
            except ServiceFailed as error:
                if error.status != 409 or not after:
                    raise
                is_another = True
            if is_another and after:
                epoch, after = None, 0  # numbers began anew: what was asked for means nothing now
                continue
            epoch = message.epoch
            if message.notices:
                yield message
                after = message.notices[-1].sequence
            elif not wait:
                return
            elif time.monotonic() - asked_at < wait / 2:
                self.sleep(PAUSE_SECONDS)  # too many wait at the service, and we were sent away

    def public_keys(self, now: float | None = None) -> list[str]:
        """List the service's ``whpk_`` keys that are not retired. However often it is called, it asks once a minute."""
        now = time.time() if now is None else now
        with self._keys_lock:
            if now >= self._keys_stale_at:
                self._keys_stale_at = now + 60  # first: while the service is down, forgers must not make us wait
                try:
                    text, _ = self._ask("/.well-known/removal-notices", attempts=1)
                    self._keys = _get(_read_json(text), "keys", list)
                except KitError as error:
                    log.warning("no public keys from the service: %s", error)
            if self._keys is None:
                raise ServiceFailed("no_public_keys", "the service has not told its public keys yet")
            return [
                key["public_key"]
                for key in self._keys
                if key.get("algorithm") == "ed25519"
                and not (key.get("retire_at") and _seconds(key["retire_at"]) <= now)
            ]

    def statement(self, secrets: Sequence[str] = (), public_keys: Sequence[str] = ()) -> dict[str, Any]:
        """Fetch the signed statement of what you should have, and return its ``data``. Raises ``NotVerified``, too.

        Without a key of yours it is checked with the service's published ones.
        """
        text, headers = self._ask("/v1/stream/statement")
        keys = public_keys if secrets or public_keys else self.public_keys()
        verify(headers.items(), text, secrets=secrets, public_keys=keys)
        statement = _read_json(text)
        if (_get(statement, "type", str), _get(statement, "version", str)) != ("removal.statement", "1"):
            raise Unreadable("unknown_type", "this is not a statement of version 1")
        return dict(_get(statement, "data", dict))

    def _ask(
        self,
        path: str,
        body: bytes | None = None,
        content_type: str = "",
        *,
        wait: float = 0,
        attempts: int = 0,
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """Ask until there is an answer, or no sense in asking. Reads it whole: what was cut off is asked for again."""
        url = path if "://" in path else self.base_url + path
        if urlsplit(url)[:2] != urlsplit(self.base_url)[:2]:
            raise ServiceFailed("another_host", f"{urlsplit(url).netloc} is not the service; it must not see your key")
        message_id = f"ack_{random_source.token_urlsafe(18)}"  # the same on every retry; the timestamp is not
        for left in range((attempts or self.attempts) - 1, -1, -1):
            headers = {"Authorization": f"Bearer {self.api_key}"}
            if body is not None:
                headers["Content-Type"] = content_type
            if body is not None and self._seed:
                headers.update(sign_acknowledgement(self._seed, body, message_id, int(time.time())))
            asked_for: float | None = None
            try:
                request = urllib.request.Request(url, body, headers)  # noqa: S310 (http or https)
                with self._opener.open(request, timeout=self.timeout + wait) as response:
                    return response.read(), response.headers
            except urllib.error.HTTPError as error:
                with error:
                    failure = _failure(error)
                if error.code not in {408, 425, 429} and error.code < 500:
                    raise failure from None
                asked_for = _retry_after(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException) as error:
                failure = ServiceFailed("unreachable", f"no answer from {self.base_url}: {error}")
            if not left:
                raise failure
            step = self.first_wait * 2 ** ((attempts or self.attempts) - 1 - left) * random.uniform(1, 1.5)  # noqa: S311
            self.sleep(min(self.longest_wait, max(step, asked_for or 0)))
        raise AssertionError("attempts is at least 1")


def sign_acknowledgement(seed: bytes, body: bytes, message_id: str, timestamp: int) -> dict[str, str]:
    """Make the headers of a signed answer. The word in front keeps it from passing for a message of the service."""
    content = f"acknowledgement.{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(ed25519_sign(seed, content)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1a,{signature}"}


def _batches(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, str]]:
    """Pack lines into bodies of at most 1000, and below the 1 MiB that the service takes as JSON."""
    batch: list[bytes] = []

    def close() -> tuple[bytes, str]:
        if len(batch) == 1 and len(batch[0]) > MAX_BODY_BYTES * 3 // 4:
            return batch[0], "application/x-ndjson"  # whose lines may be longer
        return b'{"acknowledgements":[' + b",".join(batch) + b"]}", "application/json"

    for line in lines:
        text = json.dumps(line).encode()
        if batch and (len(batch) == 1000 or sum(map(len, batch)) + len(text) > MAX_BODY_BYTES * 3 // 4):
            yield close()
            batch = []
        batch.append(text)
    if batch:
        yield close()


def _failure(error: urllib.error.HTTPError) -> ServiceFailed:
    try:
        problem = _read_json(error.read())
        return ServiceFailed(_get(problem, "code", str), str(problem.get("detail")), error.code)
    except (KitError, OSError, http.client.HTTPException):
        return ServiceFailed(f"http_{error.code}", f"the service answered {error.code}", error.code)


def _retry_after(text: str) -> float | None:
    """Read a Retry-After of seconds or a date (RFC 9110 §10.2.3), in seconds from now."""
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, IndexError):
        return None


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
