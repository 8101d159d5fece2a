"""Signed bodies: read whole, and believed before anything is done with them."""

from dataclasses import dataclass

from django.http import HttpRequest
from django.utils import timezone

from partners import signing
from removal import signed_answers
from removal.api.auth import KeyRequest, partner_id
from removal.api.problems import Problem
from removal.api.streams import NDJSON, LengthNeeded, has_untold_length, open_body

# A signature covers the whole body, and Ed25519 wants all of it at once.
MAX_SIGNED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Signed:
    """A body whose signature is good, and the row that keeps it."""

    id: int
    body: bytes


def verify(request: KeyRequest) -> Signed | None:
    """Read and verify a body that is signed; None where no header says that it is.

    Raises Problem 401 when it cannot be believed, 413 when it is too long, and 409 when its id came before.
    """
    headers = {name: request.headers[name] for name in signing.HEADERS if name in request.headers}
    if not headers:
        return None
    if has_untold_length(request) and request.content_type != NDJSON:
        raise LengthNeeded
    body = _read_whole(request)
    try:
        answer_id = signed_answers.record(
            partner_id=partner_id(request),
            key_prefix=request.auth.prefix,
            headers=headers,
            body=body,
            now=timezone.now(),
        )
    except signing.NotVerified as error:
        detail = "The signature is not good. Check the key that you registered, the clock, and what is signed."
        raise Problem(401, "not_verified", detail) from error
    except signed_answers.IdReused as error:
        detail = "This webhook-id came before with another body. Give each body an id of its own."
        raise Problem(409, "id_reused", detail) from error
    return Signed(answer_id, body)


def _read_whole(request: HttpRequest) -> bytes:
    if request.content_type != NDJSON:
        return request.body
    length = request.META.get("CONTENT_LENGTH")
    if length and int(length) > MAX_SIGNED_BYTES:
        raise _too_large()
    body = bytearray()
    for piece in open_body(request):
        body += piece
        if len(body) > MAX_SIGNED_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Problem:
    detail = f"A signed body has at most {MAX_SIGNED_BYTES >> 20} MiB. Send several, each with its own signature."
    return Problem(413, "body_too_large", detail)
