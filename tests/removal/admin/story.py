"""Real rows for every page: a partner refuses a message, takes it at the second try, wants time, and answers."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from itertools import count
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Model
from django.utils import timezone

from partners import signing
from partners.admin import ReadOnlyAdmin
from partners.models import Partner, Secret, Verification
from partners.onboarding import Check
from partners.webhook import excerpt
from removal import acknowledgement, closing, exports, planning, sending, signed_answers
from removal.models import Alarm, Delivery, Disclosure, Escalation, RemovalRequest, StaffMessage
from removal.prolonging import extend_request
from removal.statements import Statement, Wish
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Reply, Script, listening

BUDGET = timedelta(seconds=5)

_numbers = count(1)


def first_refuses(body: bytes = b"") -> Script:
    """Answer 401, which opens an incident, and from the second message on 200."""
    tries = count(1)
    return lambda _: Reply(401, body) if next(tries) == 1 else Reply(200, body)


def owe(*partners: Partner, subject: str = "") -> RemovalRequest:
    """Record an opt-out of a subject whose two items all of these partners hold, and plan it."""
    subject = subject or f"site:{next(_numbers)}"
    release = make_release(contents={subject: ["post:1", "post:2"]})
    for partner in partners:
        disclose(release, partner)
    request = record(make_wish(subject))
    planning.plan(budget=BUDGET)
    return request


def send(partner: Partner) -> None:
    """Try every message of a partner once, also those that would wait."""
    Delivery.objects.filter(stream_id=partner.pk, state="waiting").update(due_at=timezone.now() - timedelta(seconds=1))
    sending.drain(partner_id=partner.pk, budget=BUDGET)


def set_aside(delivery: Delivery) -> None:
    """Leave a message that waits to a person, as when its partner takes others and not this one."""
    one = Delivery.objects.filter(pk=delivery.pk)
    one.update(state="sending", fence=delivery.fence + 1, lease_until=timezone.now())
    one.update(state="quarantined", lease_until=None)


def say(partner: Partner, sequence: int, status: str, **said: Any) -> None:
    text = said.pop("text", json.dumps({"sequence": sequence, "status": status}))
    signed_answer_id = said.pop("signed_answer_id", None)
    statement = Statement(status=status, text=text, sequence=sequence, **said)
    acknowledgement.acknowledge(
        partner_id=partner.pk, key_prefix="rk_prefix", statements=[statement], signed_answer_id=signed_answer_id
    )


def tell(*, subject: str = "", response: bytes = b"", text: str = "{}", **said: Any) -> Partner:
    """Tell a new partner of one opt-out, at the second try; it attests that the content is gone."""
    with listening(first_refuses(response)) as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner, subject=subject)
        send(partner)
        send(partner)
    prove(partner, said=response)
    come_back(Disclosure.objects.filter(partner=partner).latest("id"))
    said = {"attestations": [{"claim": "removed_from_corpus"}]} | said
    run_late(partner, RemovalRequest.objects.latest("id"))
    deque(exports.export(exports.of_partner(slug=partner.slug), actor="test"), maxlen=0)
    ask_for_time(partner, reason=text)
    say(partner, 1, "completed", text=text, outcomes={"removed": 2}, signed_answer_id=sign(partner, text), **said)
    return partner


def prove(partner: Partner, *, said: bytes) -> None:
    """Record that a partner's endpoint failed a check, in its own words."""
    check = Check("unsigned", False, "The notice", f"It answered 200. {excerpt(said)}", "Verify.", "by staff's eyes")
    Verification.objects.create(
        partner=partner, url=partner.endpoint.url, key_ids=["key_1"], started_at=timezone.now(), passed=False,
        effect="none", checks=[asdict(check)], asked_by="test",
    )  # fmt: skip


def ask_for_time(partner: Partner, *, reason: str) -> None:
    until = timezone.now() + timedelta(days=60)
    wish = Wish(sequence=1, extend_until=until, reason=reason[:4000], text="{}")
    acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_prefix", statements=[wish])


def sign(partner: Partner, text: str) -> int:
    """Keep a text as a signed answer of the partner."""
    key = signing.Ed25519PrivateKey.generate()
    Secret.objects.create(
        partner=partner, direction="inbound", algorithm="ed25519", key=key.public_key.to_text(),
    )  # fmt: skip
    body, now = text.encode(), timezone.now()
    headers = signing.headers(message_id="answer-1", timestamp=now, body=body, keys=[key], purpose="acknowledgement")
    return signed_answers.record(
        partner_id=partner.pk, key_prefix="rk_prefix", headers=headers, body=body, now=timezone.now()
    )


def give_up(partner: Partner, *, text: str = "It is gone.") -> None:
    """Let one person ask to waive another notice of the partner, and a second one approve it."""
    asker, approver = (User.objects.get_or_create(username=name)[0] for name in ("asker", "approver"))
    notice = owe(partner).notices.get()
    waiver = closing.ask_waiver(user_id=asker.pk, notice_id=notice.pk, text=text)
    closing.approve_waiver(user_id=approver.pk, waiver_id=waiver.pk)


def come_back(disclosure: Disclosure) -> None:
    """Let the content of a release be among the candidates for it again, although a request removed it."""
    entry = disclosure.release.entries.get()
    request = RemovalRequest.objects.latest("id")
    Alarm.objects.create(release=disclosure.release, request=request, subject=entry.subject, feed="backup", items=2)


def run_late(partner: Partner, request: RemovalRequest) -> None:
    """Let the time of a request run out, and be extended; staff are told."""
    extend_request(actor="test", public_id=request.public_id, reason="Many sites", person_told_at=timezone.now())
    Escalation.objects.create(stream_id=partner.pk, until=timezone.now(), level=50, notices=1, sequences=[1])
    StaffMessage.objects.create(channel="email", body="{}")


def history() -> Iterator[tuple[type[Model], ReadOnlyAdmin]]:
    """Walk all that the two apps show in the admin."""
    for model, model_admin in admin.site._registry.items():
        if model._meta.app_label in {"partners", "removal"} and not hasattr(model_admin, "is_setting"):
            assert isinstance(model_admin, ReadOnlyAdmin)
            yield model, model_admin


def list_url(model: type[Model]) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def page_url(row: Model) -> str:
    return f"{list_url(type(row))}{row.pk}/change/"


def pages() -> Iterator[str]:
    """Name the address of every list, and of every row's page."""
    for model, _ in history():
        yield list_url(model)
        yield from (page_url(row) for row in model._default_manager.order_by("pk"))
