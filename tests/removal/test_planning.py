"""Requests x ledger -> notices: who is told what, once, in unbroken numbers."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, delivery, planning, recall
from removal.models import LogEntry, Notice, RemovalRequest, Stream
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


def complete(partner: Partner, sequence: int) -> None:
    said = Statement(status="completed", text="{}", sequence=sequence)
    acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[said])


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


def test_a_disclosure_recorded_later_adds_a_notice_and_opens_the_request_again() -> None:
    first, second = make_partner().partner, make_partner().partner
    release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, first)
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    delivery.claim_due(partner_id=first.pk)
    complete(first, 1)
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("closed", "fulfilled")

    late = disclose(release, second)
    planning.plan(budget=BUDGET)

    request.refresh_from_db()
    assert (request.state, request.outcome, request.closed_at) == ("planned", "", None)
    notice = Notice.objects.get(stream=second.pk)
    assert notice.disclosures == [late.pk]
    assert notice.round > Notice.objects.get(stream=first.pk).round


def test_a_second_handover_to_the_same_partner_is_a_notice_of_a_later_round() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    later = make_release(contents={"site:1": ["post:1", "post:2"]})
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    disclose(later, partner)
    planning.plan(budget=BUDGET)
    assert list(Notice.objects.order_by("sequence").values_list("sequence", "item_count")) == [(1, 1), (2, 2)]


def test_a_request_that_meets_no_disclosure_closes_and_stays_active() -> None:
    release = make_release(contents={"site:1": ["post:1"]})
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("closed", "nothing_disclosed")
    disclose(release, make_partner().partner)
    planning.plan(budget=BUDGET)
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("planned", "")


@pytest.mark.parametrize(
    ("asked", "licensed", "told"),
    [
        (("all",), ("search",), True),
        (("train-ai",), ("all",), True),
        (("train-ai",), ("train-ai", "search"), True),
        (("train-ai",), ("search",), False),
    ],
)
def test_only_partners_of_an_overlapping_usage_are_told(
    asked: tuple[str, ...], licensed: tuple[str, ...], told: bool
) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner, usages=licensed)
    record(make_wish("site:1", usages=asked))
    planning.plan(budget=BUDGET)
    assert Notice.objects.exists() is told


def test_a_deletion_of_items_is_told_where_one_of_them_is_held() -> None:
    holder, other = make_partner().partner, make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1", "post:2"]}), holder)
    disclose(make_release(contents={"site:1": ["post:1"]}), other)
    record(make_wish("site:1", kind="deletion", items=("post:2", "post:3")))
    planning.plan(budget=BUDGET)
    assert list(Notice.objects.values_list("stream_id", "item_count")) == [(holder.pk, 1)]


def test_distinct_items_are_counted_over_releases_and_handovers() -> None:
    partner = make_partner().partner
    first = make_release(contents={"site:1": ["post:1", "post:2"]})
    disclose(first, partner)
    disclose(first, partner)
    disclose(make_release(contents={"site:1": ["post:2", "post:3"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    notice = Notice.objects.get()
    assert (len(notice.disclosures), notice.item_count) == (3, 3)


def test_numbers_have_no_holes_over_rounds_smaller_than_the_work() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(7)}), partner)
    for n in range(7):
        record(make_wish(f"site:{n}"))
    rounds = 0
    while (done := planning.plan_round(limit=2)) and not done.found_nothing:
        rounds += 1
    assert rounds == 4
    assert list(Notice.objects.order_by("sequence").values_list("sequence", flat=True)) == list(range(1, 8))
    assert Stream.objects.get(partner=partner).head == 7


def test_only_one_planner_runs_at_a_time() -> None:
    record(make_wish())
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("select pg_advisory_xact_lock(%s)", [planning.LOCK])
        assert planning.plan_round() is None
    done = planning.plan_round()
    assert done is not None
    assert done.requests == 1


def test_the_reconciler_finds_nothing_after_the_planner_and_plans_what_was_missed() -> None:
    partner = make_partner().partner
    disclosure = disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    later = make_release(contents={"site:1": ["post:2"]})
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    assert planning.reconcile() == planning.Round(0, 0, 0, ())

    second = disclose(later, partner)
    with connection.cursor() as cursor:  # a planner that marked a disclosure without matching it
        cursor.execute(
            "insert into removal_planneddisclosure values (%s, nextval('removal_planner_round'))", [second.pk]
        )
    found = planning.reconcile()

    assert found == planning.Round(0, 0, 1, (partner.pk,))
    assert list(Notice.objects.order_by("sequence").values_list("request", "disclosures")) == [
        (request.pk, [disclosure.pk]),
        (request.pk, [second.pk]),
    ]
    assert LogEntry.objects.filter(action="reconciled").count() == 1


def test_a_planner_that_dies_in_the_middle_leaves_nothing() -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    record(make_wish("site:1"))
    with psycopg.connect(**connection.get_connection_params()) as dying:
        dying.execute("select pg_try_advisory_xact_lock(%s)", [planning.LOCK])
        dying.execute(planning.PLAN_NEW, planning.parameters(now=timezone.now(), action="planned", limit=10))
        with connection.cursor() as cursor:
            cursor.execute("select pg_terminate_backend(%s)", [dying.info.backend_pid])
        dying.close()
    assert Notice.objects.count() == 0
    planning.plan(budget=BUDGET)
    assert Notice.objects.count() == 1


def read_of(table: str, plan: dict[str, Any]) -> int:
    """Count the rows of a table that a plan has read, its sub-plans included."""
    own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    here = own * plan["Actual Loops"] if plan.get("Relation Name") == table else 0
    return int(here) + sum(read_of(table, part) for part in plan.get("Plans", ()))


def test_a_round_reads_no_targets_of_standing_requests() -> None:
    """However little the database knows of them: an opt-out beside a large recall must not wait (design §6)."""
    subjects = [f"site:{n}" for n in range(3001)]
    release = make_release("r", contents={subject: ["post:1"] for subject in subjects})
    disclose(release, make_partner().partner)
    with connection.cursor() as cursor:
        cursor.execute("analyze")
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="r-1", releases=(release.name,)),
        lines=(recall.Line(n, subject, None) for n, subject in enumerate(subjects[1:], start=1)),
        now=timezone.now(),
    )
    planning.plan(budget=BUDGET)
    record(make_wish("site:0"))
    parameters = planning.parameters(now=timezone.now(), action="planned", limit=1000)
    with connection.cursor() as cursor:
        cursor.execute("explain (analyze, format json) " + planning.PLAN_NEW, parameters)
        [[explained]] = cursor.fetchall()
    [found] = explained
    assert read_of("removal_requesttarget", found["Plan"]) < 10
    assert Notice.objects.count() == 2
