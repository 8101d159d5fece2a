"""Sign and verify messages as Standard Webhooks 1.0.0 says. Pure: no clock, no settings, no database.

The specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
Its section "Signature scheme" fixes the signed content, the key texts and the versions used below: ``v1`` is
HMAC-SHA256 with a secret that both sides know, ``v1a`` is Ed25519, whose public key can forge nothing.

What a partner signs for us is no message of ours: it has a word in front of the signed content, the ``purpose``.
Without it, a message of ours could be sent back to us as if it were the partner's answer.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import ClassVar, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
HEADERS = (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)

ACKNOWLEDGEMENT = "acknowledgement"  # the purpose of a partner's answers; our own messages have none

TOLERANCE = timedelta(minutes=5)

# Rotation needs two signatures a version. A longer list is somebody making us work.
MAX_SIGNATURES = 8

# A full stop would let the end of an id pass for a timestamp; anything but visible ASCII has no place in a header.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")
# int() takes signs, spaces, underscores and the digits of every script. Eleven digits last until the year 5138.
_TIMESTAMP = re.compile(r"[0-9]{1,11}")


class KeyUnusable(ValueError):
    """This key cannot be used. The message says why and never quotes the key."""


class MessageUnusable(ValueError):
    """This id or timestamp must not be signed."""


class NotVerified(Exception):
    """Do not believe this message. ``code`` is for logs: the sender is told 401 and nothing more."""

    code: ClassVar[str]


class HeaderMissing(NotVerified):
    """A header is missing, or is there twice."""

    code = "header_missing"


class HeaderUnreadable(NotVerified):
    """The id or the timestamp has a form that no sender may sign."""

    code = "header_unreadable"


class SignatureTooOld(NotVerified):
    """The timestamp lies further back than the tolerance: a replay, or a clock that is wrong."""

    code = "signature_too_old"


class SignatureTooNew(NotVerified):
    """The timestamp lies further ahead than the tolerance."""

    code = "signature_too_new"


class NoMatchingSignature(NotVerified):
    """None of the first ``MAX_SIGNATURES`` signatures was made with one of the keys."""

    code = "no_matching_signature"


@dataclass(frozen=True)
class HmacSecret:
    """A secret shared with one partner for one direction: 24 to 64 random bytes, in text ``whsec_<base64>``."""

    version: ClassVar[str] = "v1"
    prefix: ClassVar[str] = "whsec_"

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        # hmac itself would accept an empty key.
        if not 24 <= len(self.raw) <= 64:
            raise KeyUnusable(f"a {self.prefix} secret has 24 to 64 bytes, not {len(self.raw)}")

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls(_decode_key(text, prefix=cls.prefix))

    def to_text(self) -> str:
        return _encode_key(self.raw, prefix=self.prefix)

    def sign(self, content: bytes) -> bytes:
        return hmac.digest(self.raw, content, "sha256")

    def verifies(self, content: bytes, *, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(content), signature)


# The points of order 1, 2, 4 and 8 of edwards25519, in every encoding but for the sign bit (RFC 8032 §5.1).
SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


@dataclass(frozen=True)
class Ed25519PublicKey:
    """What partners verify our messages with: 32 bytes, in text ``whpk_<base64>``."""

    version: ClassVar[str] = "v1a"
    prefix: ClassVar[str] = "whpk_"

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise KeyUnusable(f"a {self.prefix} key has 32 bytes, not {len(self.raw)}")
        if self.raw[:31] + bytes([self.raw[31] & 0x7F]) in SMALL_ORDER:
            raise KeyUnusable("it is a point of small order, for which anybody can sign")

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls(_decode_key(text, prefix=cls.prefix))

    def to_text(self) -> str:
        return _encode_key(self.raw, prefix=self.prefix)

    def verifies(self, content: bytes, *, signature: bytes) -> bool:
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, content)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Ed25519PrivateKey:
    """What we sign with: the 32-byte seed of RFC 8032 §5.1.5, in text ``whsk_<base64>``."""

    version: ClassVar[str] = "v1a"
    prefix: ClassVar[str] = "whsk_"

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise KeyUnusable(f"a {self.prefix} key has 32 bytes, not {len(self.seed)}")

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read a key in either form in use: the specification's own library writes the seed, Svix seed and public key.

        Raises ``KeyUnusable``, also when the two halves of the longer form do not belong together.
        """
        raw = _decode_key(text, prefix=cls.prefix)
        if len(raw) not in {32, 64}:
            raise KeyUnusable(f"a {cls.prefix} key has 32 bytes, or 64 with its public key, not {len(raw)}")
        key = cls(raw[:32])
        if raw[32:] not in {b"", key.public_key.raw}:
            raise KeyUnusable(f"the public key inside this {cls.prefix} key belongs to another one")
        return key

    def to_text(self) -> str:
        return _encode_key(self.seed, prefix=self.prefix)

    @cached_property
    def _key(self) -> ed25519.Ed25519PrivateKey:
        # Kept, since making it takes as long as signing.
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def public_key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, content: bytes) -> bytes:
        return self._key.sign(content)


SigningKey = HmacSecret | Ed25519PrivateKey
VerifyingKey = HmacSecret | Ed25519PublicKey


def sign(
    *, message_id: str, timestamp: datetime | int, body: bytes, keys: Sequence[SigningKey], purpose: str = ""
) -> str:
    """Make the value of ``webhook-signature``: one signature for each key, in the order of the keys.

    ``timestamp`` is the moment of this attempt, aware or in whole seconds since the epoch; ``purpose`` is the word in
    front of what is signed, which both sides know. Raises ``MessageUnusable``
    for an id or timestamp that may not be signed, and ``KeyUnusable`` when there is no key, or more than a receiver
    looks at.
    """
    if not 1 <= len(keys) <= MAX_SIGNATURES:
        raise KeyUnusable(f"a message is signed with 1 to {MAX_SIGNATURES} keys, not {len(keys)}")
    content = _signed_content(message_id=message_id, timestamp=_timestamp_text(timestamp), body=body, purpose=purpose)
    return " ".join(f"{key.version},{base64.b64encode(key.sign(content)).decode()}" for key in keys)


def headers(
    *, message_id: str, timestamp: datetime | int, body: bytes, keys: Sequence[SigningKey], purpose: str = ""
) -> dict[str, str]:
    """Make the three headers of one attempt. Raises what ``sign`` raises.

    The id stays the same on every retry of a message, the timestamp does not.
    """
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: _timestamp_text(timestamp),
        SIGNATURE_HEADER: sign(message_id=message_id, timestamp=timestamp, body=body, keys=keys, purpose=purpose),
    }


def verify(
    *,
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[VerifyingKey],
    now: datetime,
    tolerance: timedelta = TOLERANCE,
    purpose: str = "",
) -> str:
    """Check that a message was signed with one of the keys, close to ``now``, and return its id.

    ``headers`` may have names in any case; ``body`` is the bytes as they came, before anything parses them. Raises a
    ``NotVerified`` that says why. The same message may come again within the tolerance: the id is for noticing that.
    """
    find_key(headers=headers, body=body, keys=keys, now=now, tolerance=tolerance, purpose=purpose)
    return _only_header(headers, ID_HEADER)


def find_key(
    *,
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[VerifyingKey],
    now: datetime,
    tolerance: timedelta = TOLERANCE,
    purpose: str = "",
) -> VerifyingKey:
    """Do as ``verify``, and return which of the keys it was."""
    message_id = _only_header(headers, ID_HEADER)
    timestamp = _only_header(headers, TIMESTAMP_HEADER)
    signatures = _only_header(headers, SIGNATURE_HEADER)
    try:
        content = _signed_content(message_id=message_id, timestamp=timestamp, body=body, purpose=purpose)
    except MessageUnusable as error:
        raise HeaderUnreadable(str(error)) from error

    signed_at = datetime.fromtimestamp(int(timestamp), tz=UTC)
    if signed_at < now - tolerance:
        raise SignatureTooOld(f"signed at {signed_at:%Y-%m-%dT%H:%M:%SZ}")
    if signed_at > now + tolerance:
        raise SignatureTooNew(f"signed at {signed_at:%Y-%m-%dT%H:%M:%SZ}")

    for version, signature in _offered(signatures):
        # The version never chooses the algorithm of a key: it only chooses which keys are asked.
        for key in keys:
            if key.version == version and key.verifies(content, signature=signature):
                return key
    raise NoMatchingSignature("no signature was made with a key we know")


def _signed_content(*, message_id: str, timestamp: str, body: bytes, purpose: str) -> bytes:
    if not _MESSAGE_ID.fullmatch(message_id):
        raise MessageUnusable("a message id is 1 to 256 visible ASCII characters without a full stop")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise MessageUnusable("a timestamp is whole seconds since 1970 in ASCII digits")
    return f"{purpose and purpose + '.'}{message_id}.{timestamp}.".encode() + body


def _timestamp_text(timestamp: datetime | int) -> str:
    if isinstance(timestamp, int):
        return str(timestamp)
    if timestamp.tzinfo is None:
        # timestamp() would take it for the local time of whichever machine signs.
        raise MessageUnusable("a timestamp needs a time zone")
    return str(int(timestamp.timestamp()))


def _only_header(headers: Mapping[str, str], name: str) -> str:
    values = [value for key, value in headers.items() if key.lower() == name]
    if len(values) != 1:
        raise HeaderMissing(f"{name} must be there once, not {len(values)} times")
    return values[0]


def _offered(signatures: str) -> list[tuple[str, bytes]]:
    """Read the first signatures of a header, leaving out what is not base64: another one may still be good."""
    offered = []
    for signature in signatures.split(maxsplit=MAX_SIGNATURES)[:MAX_SIGNATURES]:
        version, _, encoded = signature.partition(",")
        try:
            offered.append((version, base64.b64decode(encoded, validate=True)))
        except ValueError:
            continue
    return offered


def _encode_key(raw: bytes, *, prefix: str) -> str:
    return prefix + base64.b64encode(raw).decode()


def _decode_key(text: str, *, prefix: str) -> bytes:
    # The prefix is required: it is what keeps the key of one algorithm from being read as a key of another.
    if not text.startswith(prefix):
        raise KeyUnusable(f"this key must start with {prefix}")
    try:
        return base64.b64decode(text.removeprefix(prefix), validate=True)
    except ValueError as error:
        raise KeyUnusable(f"this {prefix} key is not base64") from error
