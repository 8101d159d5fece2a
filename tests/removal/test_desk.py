"""Requests by day: what is long over is not counted again for every look."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone

from removal import desk
from tests.factories import make_wish, record

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
