"""The exact words: what one notice's messages said, byte by byte, and what its partner answered.

A message carries notices about other people too. A notice's page shows its own part; the whole message has a page of
its own, and its bytes are a download, for those who may see messages.
"""

import json
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import F
from django.db.models.functions import Left, Length
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from partners.admin import link, verbatim
from removal.admin.words import as_hex, as_json, handling_badge, span, state_badge
from removal.models import (
    Acknowledgement,
    AcknowledgementText,
    Attempt,
    Delivery,
    DeliveryBody,
    Notice,
    SignedAnswer,
    SignedAnswerBody,
)
from removal.models.numbers import NumberRange

SEES_SENT = "removal.view_deliverybody"
SEES_SAID = "removal.view_acknowledgementtext"
SEES_SIGNED = "removal.view_signedanswerbody"
MOST_MESSAGES = 20
MOST_ATTEMPTS = 100
MOST_ANSWERS = 50
MOST_SHOWN = 100_000  # characters of one answer


@dataclass(frozen=True)
class Message:
    """One message that carries the notice. ``part`` is what it says of it; ``others`` counts its other notices."""

    name: SafeString
    webhook_id: str
    numbers: str
    standing: SafeString
    digest: str
    part: SafeString | str
    others: int
    tries: list[Attempt]
    bytes_url: str


@dataclass(frozen=True)
class Answer:
    name: SafeString
    said: SafeString
    at: Any
    digest: str
    words: SafeString | str
    signed: SignedAnswer | None
    signed_page: SafeString | str
    bytes_url: str
    signed_bytes_url: str


@require_safe
def show_exact(request: HttpRequest, notice_id: int) -> HttpResponse:
    """Show what was sent of one notice, and what was answered to it, word for word."""
    if not request.user.has_perms(("removal.view_notice", "removal.view_delivery", SEES_SENT, SEES_SAID)):
        raise PermissionDenied
    notice = get_object_or_404(Notice.objects.select_related("stream__partner", "request"), pk=notice_id)
    context = {
        **admin.site.each_context(request),
        "title": f"Exactly what notice {notice.sequence} of {notice.stream.partner.slug} said",
        "notice": notice,
        # Not "messages": those are what the site itself says at the top of a page.
        "sent": _messages(notice),
        "answers": _answers(notice, shows_signed=request.user.has_perm(SEES_SIGNED)),
        "most_answers": MOST_ANSWERS,
    }
    return TemplateResponse(request, "admin/removal/exact.html", context)


def _messages(notice: Notice) -> list[Message]:
    """Find the messages that carry a notice: that of now first, then those that it was split from."""
    carrying = Delivery.objects.filter(
        stream=notice.stream_id,
        epoch=notice.epoch,
        first_sequence__lte=notice.sequence,
    ).exclude(state=Delivery.State.SPLIT)
    found = list(carrying.order_by("-first_sequence", "pk")[:1])
    if not found or (found[0].last_sequence or 0) < notice.sequence:
        return []
    while found[-1].parent_id and len(found) < MOST_MESSAGES:
        found.append(Delivery.objects.get(pk=found[-1].parent_id))
    ids = [delivery.pk for delivery in found]
    bodies = {row.pk: bytes(row.body) for row in DeliveryBody.objects.filter(pk__in=ids)}
    tries: dict[Any, list[Attempt]] = {}
    for attempt in Attempt.objects.filter(delivery__in=ids).order_by("-started_at", "-pk")[:MOST_ATTEMPTS]:
        tries.setdefault(attempt.delivery_id, []).append(attempt)
    return [_message(notice, one, bodies.get(one.pk), tries.get(one.pk, [])) for one in found]


def _message(notice: Notice, delivery: Delivery, body: bytes | None, tries: list[Attempt]) -> Message:
    return Message(
        name=link(delivery),
        webhook_id=delivery.webhook_id,
        numbers=span(delivery.first_sequence, delivery.last_sequence),
        standing=state_badge(delivery.state),
        digest=as_hex(delivery.body_digest),
        part=verbatim(as_json(part_of(json.loads(body), notice.sequence))) if body else _without_body(delivery),
        others=(delivery.last_sequence or 0) - (delivery.first_sequence or 0),
        tries=tries,
        bytes_url=reverse("admin:removal_message_bytes", args=[delivery.pk]) if body else "",
    )


def part_of(message: dict[str, Any], sequence: int) -> dict[str, Any]:
    """Leave of a message's body what it says to all, and of its notices only the one with this number."""
    data = message.get("data", {})
    mine = [notice for notice in data.get("notices", []) if notice.get("sequence") == sequence]
    return {**message, "data": {**data, "notices": mine}}


def _without_body(delivery: Delivery) -> str:
    if delivery.body_digest is None:
        return "Not packed yet: its bytes are written when it is first sent."
    return "Erased: its time was over. The digest above is that of the bytes that were sent."


def statements_about(notice: Notice, *, most: int) -> list[Acknowledgement]:
    """Find the newest statements about a notice, those about many numbers at once included."""
    here = Acknowledgement.objects.filter(stream=notice.stream_id, epoch=notice.epoch)
    single = here.filter(first_sequence=notice.sequence, last_sequence=notice.sequence)
    # As in the index acknowledgement_covers. A partner says much about one number, and little about many at once.
    one: Any = notice.sequence
    ranges = here.alias(numbers=NumberRange("first_sequence", F("last_sequence") + 1)).filter(
        first_sequence__lt=F("last_sequence"), numbers__contains=one
    )
    rows = [row for each in (single, ranges) for row in each.select_related("signed_answer").order_by("-pk")[:most]]
    return sorted(rows, key=lambda row: row.pk, reverse=True)[:most]


def _answers(notice: Notice, *, shows_signed: bool) -> list[Answer]:
    rows = statements_about(notice, most=MOST_ANSWERS)
    texts = {
        pk: (text, length)
        for pk, text, length in AcknowledgementText.objects.filter(pk__in=[row.pk for row in rows]).values_list(
            "pk", Left("text", MOST_SHOWN), Length("text")
        )
    }
    return [_answer(row, texts.get(row.pk), shows_signed=shows_signed) for row in rows]


def _answer(row: Acknowledgement, text: tuple[str, int] | None, *, shows_signed: bool) -> Answer:
    if text:
        more = text[1] - MOST_SHOWN
        words: SafeString | str = verbatim(text[0] + (f"\n… and {more} more characters" if more > 0 else ""))
    else:
        words = "Erased: its time was over. The digest above is that of its words."
    signed = row.signed_answer
    return Answer(
        name=link(row, f"Statement {row.pk}"),
        said=handling_badge(row.status),
        at=row.received_at,
        digest=as_hex(row.text_digest),
        words=words,
        signed=signed,
        signed_page=link(signed) if signed else "",
        bytes_url=reverse("admin:removal_answer_bytes", args=[row.pk]) if text else "",
        signed_bytes_url=reverse("admin:removal_signed_bytes", args=[signed.pk]) if signed and shows_signed else "",
    )


# --- downloads ---


@require_safe
def message_bytes(request: HttpRequest, delivery_id: Any) -> HttpResponse:
    """Send a message's body as it was sent: the whole of it, other people's notices included."""
    _require(request, "removal.view_delivery", SEES_SENT)
    body = DeliveryBody.objects.filter(pk=delivery_id).values_list("body", flat=True).first()
    return _as_file(body, name=f"msg_{delivery_id.hex}.json")


@require_safe
def answer_bytes(request: HttpRequest, acknowledgement_id: int) -> HttpResponse:
    """Send one statement's text as it came."""
    _require(request, "removal.view_acknowledgement", SEES_SAID)
    text = AcknowledgementText.objects.filter(pk=acknowledgement_id).values_list("text", flat=True).first()
    return _as_file(None if text is None else text.encode(), name=f"statement-{acknowledgement_id}.json")


@require_safe
def signed_bytes(request: HttpRequest, signed_answer_id: int) -> HttpResponse:
    """Send a signed request's body as it came: the whole of it, since that is what the signature is about."""
    _require(request, "removal.view_signedanswer", SEES_SIGNED)
    body = SignedAnswerBody.objects.filter(pk=signed_answer_id).values_list("body", flat=True).first()
    return _as_file(body, name=f"signed-answer-{signed_answer_id}.bin")


def _require(request: HttpRequest, *permissions: str) -> None:
    if not request.user.has_perms(permissions):
        raise PermissionDenied


def _as_file(body: bytes | memoryview | None, *, name: str) -> HttpResponse:
    """Send bytes that no browser shows or runs, under a name made of our own ids alone."""
    if body is None:
        raise Http404("There are no bytes: not written yet, or erased when their time was over.")
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return HttpResponse(bytes(body), content_type="application/octet-stream", headers=headers)


def pages(site: admin.AdminSite) -> list[URLPattern]:
    """Name the addresses of these pages, below the list of requests."""
    return [
        path("exact/<int:notice_id>/", site.admin_view(show_exact), name="removal_exact"),
        path("exact/message/<uuid:delivery_id>/", site.admin_view(message_bytes), name="removal_message_bytes"),
        path("exact/answer/<int:acknowledgement_id>/", site.admin_view(answer_bytes), name="removal_answer_bytes"),
        path("exact/signed/<int:signed_answer_id>/", site.admin_view(signed_bytes), name="removal_signed_bytes"),
    ]
