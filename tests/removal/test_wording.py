"""What notices say of a request is kept for the next partner: the same for who holds the same, and for nobody else."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from partners.models import Partner
from removal import planning, wording
from removal.models import Notice
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    wording._kept.clear()


def read(partner: Partner) -> dict[int, Any]:
    said = wording.read(stream_id=partner.pk, epoch=1, first=1, last=100, most_items=1000, most_bytes=64 * 1024)
    return {sequence: json.loads(text) for sequence, text in said.items()}


def looks_up_requests(partner: Partner) -> bool:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        read(partner)
    return any("removal_requesttarget" in query["sql"] for query in queries)


def test_what_was_said_to_one_partner_is_said_to_the_next_without_a_look() -> None:
    first, second, more = (make_partner().partner for _ in range(3))
    shared = make_release("r", contents={"site:1": ["post:1"], "site:2": ["post:2"]})
    for partner in (first, second, more):
        disclose(shared, partner)
    disclose(make_release("more", contents={"site:1": ["post:9"]}), more)
    record(make_wish("site:1"))
    record(make_wish("site:2"))
    planning.plan(budget=timedelta(seconds=5))

    assert looks_up_requests(first)
    assert not looks_up_requests(second)
    assert read(second) == read(first)
    said = read(more)  # it holds more of one of them
    assert [held["release"] for held in said[1]["held"]] == ["r", "more"]
    assert said[2] == read(first)[2] | {"respond_by": said[2]["respond_by"]}


def test_what_is_a_notices_own_is_never_anothers() -> None:
    first, second = make_partner().partner, make_partner().partner
    shared = make_release("r", contents={"site:1": ["post:1"]})
    disclose(shared, first)
    disclose(shared, second)
    record(make_wish("site:1"))
    planning.plan(budget=timedelta(seconds=5))
    notice = Notice.objects.get(stream=second.pk)
    notice.respond_by += timedelta(days=3)
    notice.save()
    read(first)
    assert read(second)[1]["respond_by"] == notice.respond_by.strftime("%Y-%m-%dT%H:%M:%SZ")
    notice.withdrawn_at = notice.planned_at
    notice.save()
    assert read(second) == {}  # told in the long way, which names nobody


def test_a_request_that_got_the_number_of_another_is_not_taken_for_it() -> None:
    """After a restore of the database, ids are given again; a worker may have lived through it."""
    partner = make_partner().partner
    disclose(make_release("r", contents={"site:1": ["post:1"], "site:2": ["post:2"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=timedelta(seconds=5))
    assert read(partner)[1]["subject"] == "site:1"
    [((name, releases), shared)] = wording._kept.items()
    after = record(make_wish("site:2"))
    planning.plan(budget=timedelta(seconds=5))
    _, planned = name.split(" ", 1)
    wording._kept[f"{after.pk} {planned}", releases] = shared
    assert read(partner)[2]["subject"] == "site:2"


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "MOST_KEPT", 3)
    partner = make_partner().partner
    contents = {f"site:{n}": [f"post:{n}"] for n in range(5)} | {"site:long": ["x" * 2000]}
    disclose(make_release("r", contents=contents), partner)
    for subject in contents:
        record(make_wish(subject))
    planning.plan(budget=timedelta(seconds=5))
    assert len(read(partner)) == 6
    assert len(wording._kept) == 3
    assert not any("xxx" in shared for shared in wording._kept.values())
    assert len(read(partner)) == 6
