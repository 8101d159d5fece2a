"""Large requests are matched in pieces, with the same result as any other, and nobody beside them waits."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from removal import large, planning, recall
from removal.models import MatchedPiece, Notice, RemovalRequest, Stream
from removal.transactions import read_along_indexes
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.plans import analyze, rows_read
from tests.removal.test_planning import wait_until_somebody_waits

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=30)


def call_back(key: str, releases: tuple[str, ...], lines: dict[str, list[str] | None]) -> RemovalRequest:
    done = recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key=key, releases=releases),
        lines=[recall.Line(n, subject, items) for n, (subject, items) in enumerate(lines.items(), start=1)],
        now=timezone.now(),
    )
    assert done.refused_count == 0
    return RemovalRequest.objects.get(public_id=done.public_id)


def told(request: RemovalRequest) -> list[tuple[int, int, list[int]]]:
    notices = Notice.objects.filter(request=request).order_by("stream_id")
    return list(notices.values_list("stream_id", "item_count", "disclosures"))


@pytest.mark.parametrize("seed", range(4))
def test_pieces_find_what_one_round_finds(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Items in several releases, releases handed over twice, other requests' targets between, named items."""
    chance = random.Random(seed)
    subjects = [f"site:{n}" for n in range(30)]
    partners = [make_partner().partner for _ in range(4)]
    contents = {}
    for name in ("a", "b", "c"):
        contents[name] = {
            subject: chance.sample(["post:1", "post:2", "post:3", "post:4"], k=chance.randint(1, 4))
            for subject in chance.sample(subjects, k=20)
        }
        release = make_release(name, contents=contents[name])
        for partner in chance.choices(partners, k=4):
            disclose(release, partner, usages=chance.choice([("all",), ("search",)]))
    for subject in chance.sample(subjects, k=20):
        record(make_wish(subject))
    planning.plan(budget=BUDGET)

    named = ("a", "b")
    lines: dict[str, list[str] | None] = {}
    for subject in subjects:
        held = sorted({item for name in named for item in contents[name].get(subject, [])})
        if held:
            lines[subject] = chance.choice([None, chance.sample(held, k=chance.randint(1, len(held)))])
    at_once = call_back("at once", named, lines)
    planning.plan(budget=BUDGET)
    monkeypatch.setattr(planning, "LARGE", 1)
    monkeypatch.setattr(large, "PIECE", 3)
    in_pieces = call_back("in pieces", named, lines)
    large.advance(budget=BUDGET)

    assert told(in_pieces) == told(at_once) != []
    assert MatchedPiece.objects.count() == 0
    assert planning.reconcile() == planning.Round(0, 0, 0, ())


def test_targets_far_apart_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    monkeypatch.setattr(large, "PIECE", 1)
    holder = make_partner().partner
    disclose(make_release("a", contents={f"site:{n}": ["post:1"] for n in range(20)}), holder)
    for n in range(20):
        for key in ("once", "again"):
            record(make_wish(f"site:{n}", kind="deletion", key=f"{key} {n}"))
    planning.plan(budget=BUDGET)
    request = call_back("k", ("a",), {"site:0": None, "site:9": None, "site:19": None})
    large.advance(budget=BUDGET)
    assert [(stream_id, items) for stream_id, items, _ in told(request)] == [(holder.pk, 3)]


@pytest.mark.parametrize("known", ["nothing", "a few", "all"])
def test_a_piece_reads_no_further_than_itself(monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    monkeypatch.setattr(large, "PIECE", 100)
    subjects = [f"site:{n}" for n in range(10_000)]
    disclose(make_release("a", contents={subject: ["post:1"] for subject in subjects}), make_partner().partner)
    for n in range(10):
        record(make_wish(f"elsewhere:{n}"))
    planning.plan(budget=BUDGET)
    if known == "a few":
        analyze("removal_requesttarget")
    request = call_back("k", ("a",), dict.fromkeys(subjects))
    if known == "all":
        analyze("removal_requesttarget")
    large.advance(budget=timedelta(milliseconds=1))  # gives it its round
    with transaction.atomic():
        with connection.cursor() as cursor:
            read_along_indexes(cursor)
        piece = {"request": request.pk, "after": 0, "piece": large.PIECE}
        assert rows_read(large.MATCH_PIECE, piece)["removal_requesttarget"] == large.PIECE


def test_an_opt_out_beside_a_large_recall_is_planned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    holder = make_partner().partner
    disclose(make_release("a", contents={f"site:{n}": ["post:1"] for n in range(5)}), holder)
    planning.plan(budget=BUDGET)
    call_back("k", ("a",), {f"site:{n}": None for n in range(4)})
    record(make_wish("site:4"))
    large.advance(budget=BUDGET)
    assert list(Notice.objects.order_by("sequence").values_list("kind", flat=True)) == ["opt_out", "recall"]


def test_one_large_request_after_the_other_is_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    disclose(make_release("a", contents={f"site:{n}": ["post:1"] for n in range(4)}), make_partner().partner)
    planning.plan(budget=BUDGET)
    for n in (0, 2):
        call_back(f"{n}", ("a",), {f"site:{n}": None, f"site:{n + 1}": None})
    large.advance(budget=BUDGET)
    assert list(Notice.objects.order_by("sequence").values_list("sequence", "item_count")) == [(1, 2), (2, 2)]


def test_a_sweep_without_a_large_request_reads_none() -> None:
    for n in range(1_000):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    with connection.cursor() as cursor:
        cursor.execute("analyze removal_removalrequest")
        cursor.execute(f"explain {large.TAKE}")
        assert "request_matching" in str(cursor.fetchall())


def test_what_waits_for_a_stream_at_the_end_holds_no_request_that_an_answer_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    holder = make_partner().partner
    disclose(make_release("a", contents={f"site:{n}": ["post:1"] for n in range(2)}), holder)
    planning.plan(budget=BUDGET)
    request = call_back("k", ("a",), {"site:0": None, "site:1": None})

    def advance() -> set[int]:
        try:
            return large.advance(budget=BUDGET)
        finally:
            connection.close()

    with ThreadPoolExecutor() as pool:
        with transaction.atomic():  # as an answer locks them: its stream, then its requests
            Stream.objects.select_for_update(no_key=True).get(pk=holder.pk)
            advanced = pool.submit(advance)
            wait_until_somebody_waits()
            RemovalRequest.objects.select_for_update(no_key=True, nowait=True).get(pk=request.pk)
        assert advanced.result() == {holder.pk}
    assert [(stream_id, items) for stream_id, items, _ in told(request)] == [(holder.pk, 2)]
