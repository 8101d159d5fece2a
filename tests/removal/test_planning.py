"""Requests x ledger -> notices: who is told what, once, in unbroken numbers."""

from datetime import timedelta

import pytest

from removal import planning
from removal.models import Notice, RemovalRequest, Stream
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


def test_only_holders_are_told_and_told_what_they_hold() -> None:
    holder, other = make_partner().partner, make_partner().partner
    disclosure = disclose(make_release(contents={"site:1": ["post:1", "post:2"]}), holder)
    disclose(make_release(contents={"site:2": ["post:1"]}), other)
    request = record(make_wish("site:1"))

    planning.plan(budget=BUDGET)

    notice = Notice.objects.get()
    assert (notice.stream_id, notice.sequence, notice.request, notice.disclosures, notice.item_count) == (
        holder.pk,
        1,
        request,
        [disclosure.pk],
        2,
    )
    assert Stream.objects.get(partner=holder).head == 1
    request.refresh_from_db()
    assert request.state == RemovalRequest.State.PLANNED
