"""Answers that a partner signed: verified as a whole, kept word for word, and verified again whenever somebody asks.

What is signed is ``acknowledgement.<id>.<timestamp>.<body>`` with the partner's Ed25519 key (``v1a``). The word in
front keeps our own messages, which are signed without one, from coming back as answers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import psycopg
from django.db import connection

from partners import keys, signing
from partners.models import Partner, Secret
from removal.manifests import Unreadable, read_json, split_lines
from removal.models import Acknowledgement, LogEntry, SignedAnswer, SignedAnswerBody
from removal.statements import line_text
from removal.transactions import whole_step


class IdReused(Exception):
    """The id came before with another body: which of the two was meant cannot be told."""


class UnknownPartner(Exception):
    """No partner has this slug."""


def record(*, partner_id: int, key_prefix: str, headers: Mapping[str, str], body: bytes, now: datetime) -> int:
    """Verify a signed body and keep it; returns the id of its row. The same body under the same id is kept once.

    Raises a signing.NotVerified, which is logged, or IdReused. Opens its own transactions.
    """
    found: dict[signing.VerifyingKey, Secret] = {
        keys.open_public_key(secret): secret for secret in keys.verifying_keys(partner_id=partner_id, now=now)
    }
    try:
        key = signing.find_key(headers=headers, body=body, keys=list(found), now=now, purpose=signing.ACKNOWLEDGEMENT)
    except signing.NotVerified as error:
        about = {"partner": partner_id, "why": error.code}
        LogEntry.objects.create(actor=f"api:{key_prefix}", action="answer_not_verified", about=about)
        raise
    return _keep(partner_id, found[key], headers, body, now)


@whole_step
def _keep(partner_id: int, secret: Secret, headers: Mapping[str, str], body: bytes, now: datetime) -> int:
    digest = hashlib.sha256(body).digest()
    kept, is_new = SignedAnswer.objects.get_or_create(
        partner_id=partner_id,
        message_id=headers[signing.ID_HEADER],
        defaults={
            "key": secret,
            "timestamp": headers[signing.TIMESTAMP_HEADER],
            "signature": headers[signing.SIGNATURE_HEADER],
            "body_digest": digest,
            "received_at": now,
        },
    )
    if is_new:
        # As bytes: Django's own cursor writes parameters into the statement, where these take twice the room.
        with psycopg.Cursor(connection.connection) as cursor:
            cursor.execute("insert into removal_signedanswerbody values (%s, %b)", [kept.pk, body])
    elif bytes(kept.body_digest) != digest:
        raise IdReused(kept.message_id)
    return kept.pk


@dataclass(frozen=True)
class Checked:
    """What looking at one signed answer again has shown. ``fault`` is empty where all is as it was."""

    answer: SignedAnswer
    fault: str
    is_erased: bool = False


def check_again(*, slug: str = "") -> Iterator[Checked]:
    """Verify all signed answers again, or one partner's, in the order in which they came.

    Each is verified as of the moment when it came: a key that was retired or revoked since still counts. What is kept
    of its lines is held against the signed bytes, too. Raises UnknownPartner.
    """
    answers = SignedAnswer.objects.all()
    if slug:
        partner = Partner.objects.filter(slug=slug).first()
        if partner is None:
            raise UnknownPartner(slug)
        answers = answers.filter(partner=partner)
    last = 0
    while answer := answers.select_related("key", "partner").filter(pk__gt=last).order_by("pk").first():
        last = answer.pk
        stored = SignedAnswerBody.objects.filter(pk=answer.pk).first()
        if stored is None:
            yield Checked(answer, "", is_erased=True)
        else:
            yield Checked(answer, _fault(answer, bytes(stored.body)))


def _fault(answer: SignedAnswer, body: bytes) -> str:
    if hashlib.sha256(body).digest() != bytes(answer.body_digest):
        return "the body is not the one that came"
    key, at = answer.key, answer.received_at
    if key.partner_id != answer.partner_id or key.direction != Secret.Direction.INBOUND:
        return "the key is not the partner's own"
    if key.active_from > at or any(end and end <= at for end in (key.retire_at, key.revoked_at)):
        return "the key was not in force when it came"
    headers = {
        signing.ID_HEADER: answer.message_id,
        signing.TIMESTAMP_HEADER: answer.timestamp,
        signing.SIGNATURE_HEADER: answer.signature,
    }
    try:
        signing.verify(
            headers=headers, body=body, keys=[keys.open_public_key(key)], now=at, purpose=signing.ACKNOWLEDGEMENT
        )
    except (signing.NotVerified, signing.KeyUnusable) as error:
        return f"the signature is not good: {getattr(error, 'code', 'key_unusable')}"
    rows = Acknowledgement.objects.filter(signed_answer=answer).order_by("-pk").values_list("pk", "text_digest")
    sought = {bytes(digest): pk for pk, digest in rows.iterator()}
    for line in _lines_of(body):
        if not sought:
            break
        sought.pop(hashlib.sha256(line).digest(), None)
    return f"acknowledgement {min(sought.values())} does not stand in it" if sought else ""


def _lines_of(body: bytes) -> Iterator[bytes]:
    """List what a line of it may be: of NDJSON, the whole of one object, or a member of a list."""
    yield body
    yield from (line for _, line in split_lines([body]) if line is not None)
    try:
        said = read_json(body)
    except Unreadable:
        return
    if isinstance(said, dict) and isinstance(said.get("acknowledgements"), list):
        yield from map(line_text, said["acknowledgements"])
