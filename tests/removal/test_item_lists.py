"""Lists of items are compared alike whether short or long, and a hundred thousand do not take minutes anywhere."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from removal import acknowledgement, invariants, planning, recall, reports
from removal.models import Notice, Stream
from removal.statements import NamedItem, Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record

SEVERAL = [f"post:{n}" for n in range(300)]
MANY = [f"post:{n}" for n in range(100_000)]


def asked(function: str, held: list[str], wanted: list[str] | None) -> object:
    with connection.cursor() as cursor:
        cursor.execute(f"select {function}(%s::text[], %s::text[])", [held, wanted])
        return cursor.fetchone()[0]


@pytest.mark.django_db
@pytest.mark.parametrize("length", [3, 300])  # 300 times 300 is more than is compared each with each
def test_items_in_both_keep_the_order_of_the_first(length: int) -> None:
    held = list(reversed(SEVERAL[:length]))
    wanted = [*SEVERAL[:length:2], *(f"page:{n}" for n in range(length))]
    assert asked("removal_items_in_both", held, wanted) == [item for item in held if item in wanted]
    assert asked("removal_items_meet", held, wanted) is True
    strangers = [f"page:{n}" for n in range(length)]
    assert asked("removal_items_in_both", held, strangers) == []
    assert asked("removal_items_meet", held, strangers) is False


@pytest.mark.django_db
def test_who_wants_everything_names_no_items() -> None:
    assert asked("removal_items_in_both", SEVERAL, None) is None
    assert asked("removal_items_in_both", [], SEVERAL) == []
    assert asked("removal_items_meet", SEVERAL, []) is False


@pytest.fixture
def no_statement_takes_minutes() -> Iterator[None]:
    """Stop what compares each with each; what sorts or hashes needs a hundredth of this."""
    with connection.cursor() as cursor:
        cursor.execute("set statement_timeout = '60s'")
        yield
        cursor.execute("reset statement_timeout")


@pytest.mark.django_db(transaction=True)
def test_a_hundred_thousand_items_go_all_the_way(no_statement_takes_minutes: None) -> None:
    partner = make_partner("acme").partner
    release = make_release("2026-01", contents={"site:1": MANY})
    disclose(release, partner)
    record(make_wish("site:1", kind="deletion", items=tuple(f"page:{n}" for n in range(100_000))))
    record(make_wish("site:1", kind="deletion", items=tuple(MANY[::2])))
    said = recall.Recall(idempotency_key="r", releases=("2026-01",))
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=said,
        lines=iter([recall.Line(1, "site:1", MANY[1::2])]),
        now=timezone.now(),
    )
    planning.plan(budget=timedelta(seconds=50))
    assert list(Notice.objects.order_by("sequence").values_list("kind", "item_count")) == [
        ("deletion", 50_000), ("recall", 50_000),
    ]  # fmt: skip

    Stream.objects.update(packed_through=2)
    listed = reports.notice_items(partner_id=partner.pk, epoch=1, sequence=1, after=0, limit=10)
    assert [(subject, len(items)) for subject, items in listed.entries] == [("site:1", 50_000)]
    removed = [NamedItem(None, item, "removed") for item in MANY[::2]]
    statement = Statement(status="completed", text="{}", sequence=1, items=removed)
    answer = acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])
    assert answer.accepted == 1
    violations = invariants.check()
    assert violations["every_holder_has_a_notice"] == violations["every_notice_is_about_content_its_partner_holds"] == 0
