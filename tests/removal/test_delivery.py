"""Claim -> POST -> record, with a real partner on a real socket."""

import ipaddress
import json
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners import keys, signing
from partners.models import Endpoint, Partner
from removal import delivery, planning
from removal.models import Attempt, Delivery, Incident, Notice, Stream
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Received, Receiver, Reply, listening

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


@pytest.fixture(autouse=True)
def _loopback_partners(settings: Settings) -> None:
    settings.PARTNER_ALLOW_HTTP = True
    settings.PARTNER_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)


def owe(receiver: Receiver, *, notices: int, **limits: int) -> Partner:
    """Make a partner that listens there and is owed so many notices."""
    partner = make_partner(url=receiver.url, **limits).partner
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    return partner


def make_due(partner: Partner) -> None:
    Delivery.objects.filter(stream_id=partner.pk, state="waiting").update(due_at=timezone.now() - timedelta(seconds=1))


def test_a_notice_is_sent_signed_and_recorded() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
        assert delivery.drain(partner_id=partner.pk, budget=BUDGET) is False
    [message] = receiver.received
    assert message.sequences == [1]
    sent = Delivery.objects.get()
    assert (sent.state, sent.delivered_by, sent.attempts, sent.webhook_id) == (
        "delivered",
        "response",
        1,
        message.webhook_id,
    )
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.status, attempt.number) == ("delivered", 200, 1)
    signer = keys.signer_for(partner_id=partner.pk, now=timezone.now())
    assert attempt.key_ids == list(signer.key_ids)
    for key in signer.keys:
        verifying = key.public_key if isinstance(key, signing.Ed25519PrivateKey) else key
        signing.verify(headers=message.headers, body=message.body, keys=[verifying], now=timezone.now())
