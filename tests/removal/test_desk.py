"""What the start page asks: requests by day, not all counted again for every look, and what was not sent in time."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone

from partners.models import Partner
from removal import desk, pulling
from removal.models import Delivery, Notice
from tests.factories import make_partner, make_wish, record
from tests.receivers import Reply, listening
from tests.removal.admin.story import owe, say, send, set_aside

pytestmark = pytest.mark.django_db

NOW = timezone.now()
YESTERDAY = NOW - timedelta(days=1)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    cache.clear()


def received() -> list[int]:
    return [day.received for day in desk.requests_by_day(now=NOW, days=3)]


@pytest.mark.parametrize(("many", "of_yesterday"), [(2, 1), (1, 0)])
def test_days_before_today_are_kept_for_a_while_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch, many: int, of_yesterday: int
) -> None:
    monkeypatch.setattr(desk, "MANY", many)
    record(make_wish("site:1", received_at=NOW - timedelta(days=2)))
    record(make_wish("site:2", received_at=NOW))
    assert received() == [1, 0, 1]
    record(make_wish("site:3", received_at=YESTERDAY))
    record(make_wish("site:4", received_at=NOW))
    assert received() == [1, of_yesterday, 2]
    cache.clear()
    assert received() == [1, 1, 2]


def not_sent(of: Partner, **asked: str) -> list[int]:
    found = Notice.objects.filter(pk__in=desk.notices_not_sent(now=NOW, **asked), stream=of.pk)
    return list(found.order_by("sequence").values_list("sequence", flat=True))


def test_what_should_have_been_sent_and_has_not_arrived_is_found(loopback_partners: None) -> None:
    with listening() as receiver, listening(lambda _: Reply(503)) as down:
        there, away = make_partner("there", url=receiver.url).partner, make_partner("away", url=down.url).partner
        for _ in range(2):
            owe(there, away)
        send(there)
        send(away)
        owe(there, away)
    assert desk.notices_not_sent(now=NOW) == []  # none is late
    Notice.objects.update(send_by=YESTERDAY)
    assert not_sent(there) == [3]
    assert not_sent(away) == [1, 2, 3]  # in a message that did not arrive, and in none
    assert not_sent(away, partner=str(there.pk)) == []
    assert not_sent(away, partner=str(away.pk)) == [1, 2, 3]
    assert desk.notices_not_sent(now=NOW, partner="none") == []
    Notice.objects.filter(stream=away.pk, sequence=2).update(send_by=NOW + timedelta(hours=1))
    assert not_sent(away) == [1, 3]
    set_aside(Delivery.objects.get(stream=away.pk))
    assert not_sent(away) == [1, 3]
    say(away, 1, "completed")
    assert not_sent(away) == [3]
    for after in (0, 3):
        pulling.pull(partner_id=away.pk, key_prefix="rk_prefix", after=after, limit=10)
    assert not_sent(away) == []


def test_a_backlog_is_one_after_a_quarter_of_an_hour_or_when_it_should_have_been_sent() -> None:
    partner = make_partner().partner
    owe(partner)
    now = Notice.objects.get().planned_at + timedelta(minutes=5)
    assert desk.partners_not_told(now=now) == {}
    assert desk.partners_not_told(now=now + timedelta(minutes=11)) == {partner.pk: "backlog"}
    Notice.objects.update(send_by=now - timedelta(minutes=1))
    assert desk.partners_not_told(now=now) == {partner.pk: "backlog"}
