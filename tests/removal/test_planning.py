"""Requests x ledger -> notices: who is told what, once, in unbroken numbers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, delivery, intake, planning, recall
from removal.models import LogEntry, Notice, RemovalRequest, Stream
from removal.policies import notice_rules
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.plans import analyze, pairs_compared_in_vain, rows_read

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
    delivery.claim(partner_id=first.pk)
    complete(first, 1)
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("closed", "fulfilled")
    closed_at = request.closed_at
    assert reopened() == []

    late = disclose(release, second)
    planning.plan(budget=BUDGET)

    assert reopened() == [(request.public_id, "fulfilled", closed_at)]
    request.refresh_from_db()
    assert (request.state, request.outcome, request.closed_at) == ("planned", "", None)
    notice = Notice.objects.get(stream=second.pk)
    assert notice.disclosures == [late.pk]
    assert notice.round > Notice.objects.get(stream=first.pk).round


def reopened() -> list[tuple[str, str, datetime | None]]:
    """List what the log says of requests that were opened again: which, and what their rows had said."""
    entries = LogEntry.objects.filter(action="request_reopened", actor="planner").order_by("id")
    return [
        (one.about["request"], one.about["outcome"], datetime.fromisoformat(one.about["closed_at"])) for one in entries
    ]


def test_a_late_handover_leaves_no_word_of_a_request_that_was_open() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    later = make_release(contents={"site:1": ["post:2"]})
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    disclose(later, partner)
    planning.plan(budget=BUDGET)
    assert Notice.objects.count() == 2
    assert reopened() == []


def wait_until_somebody_waits() -> None:
    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute("select exists (select from pg_locks where not granted)")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_a_last_answer_while_a_round_waits_for_its_stream_leaves_the_request_open() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    later = make_release(contents={"site:1": ["post:2"]})
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    disclose(later, partner)

    def plan() -> None:
        planning.plan_round()
        connection.close()

    with ThreadPoolExecutor() as pool:
        with transaction.atomic(), connection.cursor() as cursor:  # what an answer does, with its stream locked
            Stream.objects.select_for_update(no_key=True).get(pk=partner.pk)
            planned = pool.submit(plan)
            wait_until_somebody_waits()
            # The round has written a second notice, which this cannot see.
            Notice.objects.filter(sequence=1).update(handling="completed", acknowledged_at=timezone.now())
            acknowledgement.close_requests(cursor, request_ids=[request.pk])
            request.refresh_from_db()
            assert request.state == "closed"
            closed_at = request.closed_at
        planned.result()
    assert reopened() == [(request.public_id, "fulfilled", closed_at)]
    request.refresh_from_db()
    assert (request.state, request.outcome, request.closed_at) == ("planned", "", None)
    assert list(Notice.objects.order_by("sequence").values_list("sequence", "handling")) == [
        (1, "completed"),
        (2, "none"),
    ]
    assert Stream.objects.get(pk=partner.pk).head == 2


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


@pytest.mark.parametrize(
    ("lists", "asked", "count"),
    [
        ((["post:1", "post:2"], ["post:2", "post:3"]), (), 3),
        ((["post:1", "post:2"], ["post:1", "post:2"]), (), 2),
        ((["post:1", "post:2"], ["post:2", "post:1"]), (), 2),
        ((["post:1", "post:2"], ["post:1", "post:2"], ["post:3"]), (), 3),
        ((["post:1", "post:2"], ["post:1", "post:2"]), ("post:2", "post:9"), 1),
        ((["post:1", "post:2"], ["post:2", "post:3"], ["post:4"]), ("post:2", "post:3"), 2),
    ],
)
def test_distinct_items_are_counted_over_releases_and_handovers(
    lists: tuple[list[str], ...], asked: tuple[str, ...], count: int
) -> None:
    partner, of_first = make_partner().partner, make_partner().partner
    releases = [make_release(contents={"site:1": items}) for items in lists]
    disclose(releases[0], of_first)
    for release in (releases[0], *releases):
        disclose(release, partner)
    record(make_wish("site:1", kind="deletion", items=asked) if asked else make_wish("site:1"))
    planning.plan(budget=BUDGET)
    met = [[item for item in items if not asked or item in asked] for items in lists]
    assert dict(Notice.objects.values_list("stream_id", "item_count")) == {partner.pk: count, of_first.pk: len(met[0])}
    assert len(Notice.objects.get(stream=partner.pk).disclosures) == 1 + sum(map(bool, met))


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


def call_back(key: str, subjects: list[str], *, release: str) -> str:
    done = recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key=key, releases=(release,)),
        lines=(recall.Line(n, subject, None) for n, subject in enumerate(subjects, start=1)),
        now=timezone.now(),
    )
    return done.public_id


def plan_by_rounds() -> list[int]:
    """Plan until nothing is left; returns how many requests each round had."""
    rounds = []
    while (done := planning.plan_round()) and not done.found_nothing:
        rounds.append(done.requests)
    return rounds


def test_requests_share_a_round_up_to_so_many_subjects() -> None:
    subjects = [f"site:{n}" for n in range(4_000)]
    disclose(make_release("r", contents={subject: ["post:1"] for subject in subjects}), make_partner().partner)
    planning.plan(budget=BUDGET)
    for n in range(4):
        call_back(f"recall {n}", subjects, release="r")
    record(make_wish("site:0"))
    assert plan_by_rounds() == [3, 2]  # the third begins below 10,000 subjects, and the fourth does not
    told = Notice.objects.order_by("sequence").values_list("sequence", "kind", "item_count")
    assert list(told) == [*((n, "recall", 4_000) for n in range(1, 5)), (5, "opt_out", 1)]
    assert planning.reconcile() == planning.Round(0, 0, 0, ())


def test_a_request_that_fills_a_round_has_one_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_TARGETS", 2)
    disclose(make_release("r", contents={f"site:{n}": ["post:1"] for n in range(3)}), make_partner().partner)
    planning.plan(budget=BUDGET)
    call_back("recall", ["site:0", "site:1"], release="r")
    for n in range(3):
        record(make_wish(f"site:{n}"))
    assert plan_by_rounds() == [1, 2, 1]
    assert Notice.objects.count() == 4


def test_a_request_that_somebody_holds_keeps_nobody_from_the_round_and_has_the_next() -> None:
    disclose(make_release("r", contents={"site:0": ["post:1"], "site:1": ["post:1"]}), make_partner().partner)
    planning.plan(budget=BUDGET)
    recalled = call_back("recall", ["site:0", "site:1"], release="r")
    record(make_wish("site:1"))
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("select from removal_removalrequest where public_id = %s for update", [recalled])
        assert plan_by_rounds()[:1] == [1]
        assert Notice.objects.get().kind == "opt_out"
    assert plan_by_rounds() == [1]
    assert Notice.objects.count() == 2


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


def test_the_reconciler_looks_while_a_planner_is_at_work_and_plans_behind_it() -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    planning.plan(budget=BUDGET)
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("select pg_advisory_xact_lock(%s)", [planning.LOCK])
        assert planning.reconcile() == planning.Round(0, 0, 0, ())
        request = record(make_wish("site:1"))
        with connection.cursor() as cursor:  # as a planner would that loses a pair
            cursor.execute("update removal_removalrequest set round = 1, state = 'planned'")
        threading.Timer(0.3, other.rollback).start()
        assert planning.reconcile().notices == 1
    assert Notice.objects.get().request == request


def test_no_notice_is_planned_before_its_request_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    record(make_wish("site:2"))  # so that there is something new

    def record_another() -> None:
        record(make_wish("site:1"))
        connection.close()

    def read_rules_long(*, now: datetime) -> dict[str, Any]:
        with ThreadPoolExecutor() as pool:
            pool.submit(record_another).result()
        return notice_rules(now=now)

    monkeypatch.setattr(planning, "notice_rules", read_rules_long)
    planning.plan_round()
    notice = Notice.objects.get()
    assert notice.planned_at >= notice.request.recorded_at


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
    assert rows_read(planning.PLAN_NEW, parameters)["removal_requesttarget"] < 10
    assert Notice.objects.count() == 2


def test_who_holds_the_same_is_not_compared_each_with_each_where_the_database_expects_few() -> None:
    subjects = [f"site:{n}" for n in range(100)]
    partners = [make_partner().partner for _ in range(3)]
    for place in range(7):  # each subject in releases of its own choosing
        contents = {subject: ["post:1"] for n, subject in enumerate(subjects) if (n + 1) >> place & 1}
        for partner in partners:
            disclose(make_release(f"r-{place}-{partner.slug}", contents=contents), partner)
    planning.plan(budget=BUDGET)
    analyze()  # before there is a request
    wishes = [make_wish(subject) for subject in subjects]
    intake.record_requests(source="blogs", actor="test", wishes=wishes, now=timezone.now())
    parameters = planning.parameters(now=timezone.now(), action="planned", limit=1000)
    assert pairs_compared_in_vain(planning.PLAN_NEW, parameters) < 1000
    assert Notice.objects.count() == 300
