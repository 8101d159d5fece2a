"""Whoever waited for a stream's row acts on what holds now, and a result that comes too late moves nothing else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from partners import webhook
from partners.models import Endpoint, Partner
from removal import delivery, recovery
from removal.delivery import Claim, Result
from removal.models import Attempt, Delivery, Incident, Stream
from removal.verdict import judge
from tests.receivers import listening
from tests.removal.test_delivery import make_due, owe
from tests.removal.test_planning import wait_until_somebody_waits

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

SOON = timedelta(milliseconds=5)


def came_of(claim: Claim, outcome: webhook.Outcome) -> Result:
    return Result(claim, outcome, judge(outcome, notices=claim.notices, attempt=claim.failures + 1, jitter=0.1))


@contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Run a block in a transaction, and a step on another connection that waits for it, from the block's end on."""

    def run() -> None:
        try:
            step()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    with transaction.atomic():
        yield
        thread.start()
        wait_until_somebody_waits()
    thread.join()


@pytest.mark.parametrize("change", ["gone", "paused", "moved"])
def test_a_claim_that_waited_sees_the_partner_as_it_is_now(change: str) -> None:
    claims: list[Claim] = []
    with listening() as receiver:
        partner = owe(receiver, notices=3, max_notices=1)
        [first] = delivery.claim(partner_id=partner.pk, most=1).claims
        with meanwhile(lambda: claims.extend(delivery.claim(partner_id=partner.pk).claims)):
            Stream.objects.select_for_update(no_key=True).get(pk=partner.pk)
            if change == "gone":
                with connection.cursor() as cursor:
                    gone = came_of(first, webhook.Refused(410, b"", SOON))
                    delivery._record(cursor, [gone], partner_id=partner.pk, unsent=())
            elif change == "paused":
                Partner.objects.update(state=Partner.State.PAUSED)
            else:
                Endpoint.objects.update(url="http://127.0.0.1:9/new")
    assert {claim.url for claim in claims} == ({"http://127.0.0.1:9/new"} if change == "moved" else set())


def test_a_result_after_the_lease_moves_neither_breaker_nor_incident() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
    [old] = delivery.claim(partner_id=partner.pk).claims
    Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert recovery.reap() == 1
    make_due(partner)
    [new] = delivery.claim(partner_id=partner.pk).claims
    delivery.record([came_of(new, webhook.Refused(401, b"", SOON))], partner_id=partner.pk)
    delivery.record([came_of(old, webhook.Delivered(200, b"", SOON))], partner_id=partner.pk)
    assert Stream.objects.get().failures == 1
    assert Incident.objects.get().closed_at is None
    assert Attempt.objects.get(number=old.fence).late_outcome == "delivered"


def test_what_a_worker_saw_is_kept_though_it_loses_its_lease_while_it_records() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
    [claim] = delivery.claim(partner_id=partner.pk).claims
    Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    arrived = came_of(claim, webhook.Delivered(200, b"", SOON))
    with meanwhile(lambda: delivery.record([arrived], partner_id=partner.pk)), connection.cursor() as cursor:
        reap: dict[str, Any] = {"soon": recovery.AFTER_REAPING, "tries": recovery.TRIES_BEFORE_ASIDE}
        cursor.execute(recovery.REAP, reap)
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.late_outcome) == ("abandoned", "delivered")
    assert Delivery.objects.get().state == "waiting"
