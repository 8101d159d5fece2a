"""A partner's own stream, for it to read: by pull, notice by notice, with long lists, and as a signed statement."""

import json
import time
from functools import partial
from typing import Annotated
from urllib.parse import urlencode

from cryptography.fernet import InvalidToken
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Path as InPath
from ninja import Query, Router

from partners.encryption import fernet
from removal import payload, pulling, reports, stream_statement
from removal.api import answers, fields
from removal.api.auth import KeyRequest, PartnerKey, check_still_good, partner_id
from removal.api.problems import FieldError, check_parameters, invalid_fields
from removal.api.streams import NDJSON, as_ndjson
from removal.waiting import waits

router = Router(auth=PartnerKey(), tags=["partners"])

LONGEST_WAIT_SECONDS = 25

Sequence = Annotated[int, InPath(ge=1, le=fields.MAX_NUMBER)]


@router.get("/stream", response=answers.StreamPage)
def pull(
    request: KeyRequest,
    after: Annotated[int, Query(ge=0, le=fields.MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=pulling.MOST_AT_ONCE)] = 100,
    wait: Annotated[int, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
    epoch: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> HttpResponse:
    """Read your stream behind a number. Coming back for what follows tells us that you have the numbers before.

    Name in `after` the last number that you have committed. With `wait`, the answer comes as soon as there is something
    new, or after so many seconds. A page holds up to `limit` notices, and about 1 MiB.
    """
    check_parameters(request, "after", "limit", "wait", "epoch")
    read = partial(
        pulling.pull,
        partner_id=partner_id(request),
        key_prefix=request.auth.prefix,
        after=after,
        limit=limit,
        epoch=epoch,
    )
    end = time.monotonic() + (wait if _may_wait(request) else 0)
    page = read()
    while not page.notices and (left := end - time.monotonic()) > 0:
        if not waits.wait(partner_id=partner_id(request), seen=(page.epoch, page.head), seconds=left):
            break
        check_still_good(request)
        page = read()
    return HttpResponse(_as_json(page, limit=limit), content_type="application/json")


def _may_wait(request: HttpRequest) -> bool:
    """Whether this server has other threads: with one alone, whoever waits would keep everybody waiting."""
    return bool(request.META.get("wsgi.multithread"))


def _as_json(page: pulling.Page, *, limit: int) -> bytes:
    rest = urlencode({"after": page.last, "limit": limit, "epoch": page.epoch})
    around = {
        "partner": page.partner,
        "epoch": page.epoch,
        "first": page.first,
        "last": page.last,
        "head": page.head,
        "acknowledge_url": payload.acknowledge_url(),
        "next": f"{settings.PUBLIC_URL}/v1/stream?{rest}" if page.last and page.last < page.head else None,
        "notices": [],
    }
    # Each notice is JSON already, byte for byte as in a message; they go between the brackets of the empty list.
    opening = json.dumps(around, ensure_ascii=False, separators=(",", ":")).removesuffix("]}").encode()
    return b"%b%b]}" % (opening, b",".join(page.notices))


_SIGNED = {
    "webhook-id": "The id of this statement.",
    "webhook-timestamp": "When it was signed, in seconds since 1970.",
    "webhook-signature": "Signatures of the body, as of a message (Standard Webhooks 1.0.0): v1 and v1a.",
}


@router.get(
    "/stream/statement",
    response=answers.StatementDocument,
    openapi_extra={
        "responses": {
            200: {
                "headers": {
                    name: {"description": text, "required": True, "schema": {"type": "string"}}
                    for name, text in _SIGNED.items()
                }
            }
        }
    },
)
def show_statement(
    request: KeyRequest, open_after: Annotated[int, Query(ge=0, le=fields.MAX_NUMBER)] = 0
) -> HttpResponse:
    """Say what you should have, and what became of it: signed like a message, by the response's `webhook-*` headers.

    `open` lists a hundred notices that you still have to answer for good, behind `open_after`.
    """
    check_parameters(request, "open_after")
    made = stream_statement.make_statement(partner_id=partner_id(request), open_after=open_after, now=timezone.now())
    return HttpResponse(made.body, content_type="application/json", headers=made.headers)


@router.get("/stream/{int:sequence}", response=payload.Notice)
def pull_one(request: KeyRequest, sequence: Sequence) -> HttpResponse:
    """Read one notice of your stream, as it stands in a message."""
    check_parameters(request)
    notice = pulling.pull_one(partner_id=partner_id(request), key_prefix=request.auth.prefix, sequence=sequence)
    return HttpResponse(notice, content_type="application/json")


@router.get(
    "/stream/{int:sequence}/items",
    openapi_extra={
        "responses": {
            200: {
                "description": "While more follows, a Link header with rel=next says where.",
                "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/ManifestLine"}}},
            }
        }
    },
)
def list_items(
    request: KeyRequest,
    sequence: Sequence,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,500}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    epoch: Annotated[int, Query(ge=1, le=2**31 - 1)] = 1,
) -> HttpResponse:
    """List what a notice is about, a line a subject. Empty when the wish was withdrawn before you were told of it.

    A number of an epoch that is over is unknown (404).
    """
    check_parameters(request, "after", "limit", "epoch")
    page = reports.notice_items(
        partner_id=partner_id(request),
        epoch=epoch,
        sequence=sequence,
        after=_open_cursor(after) if after else 0,
        limit=limit,
    )
    response = HttpResponse(
        as_ndjson({"subject": subject, "items": items} for subject, items in page.entries), content_type=NDJSON
    )
    if page.next_after:
        following = payload.items_url(sequence, epoch=epoch, after=_make_cursor(page.next_after), limit=limit)
        response["Link"] = f'<{following}>; rel="next"'
    return response


# Encrypted, because it is one of our own row numbers: from their gaps one could count others' content.
_CURSOR = "after subject "


def _make_cursor(subject_id: int) -> str:
    return fernet().encrypt(f"{_CURSOR}{subject_id}".encode()).decode()


def _open_cursor(cursor: str) -> int:
    try:
        return int(fernet().decrypt(cursor).decode().removeprefix(_CURSOR))
    except (InvalidToken, ValueError) as error:
        raise invalid_fields([FieldError("after", "Take it from a Link header, unchanged.")], status=400) from error
