"""The partner's word: forward only, line by line, its own numbers only."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from partners.webhook import Refused
from removal import acknowledgement, delivery, planning
from removal.models import Acknowledgement, Delivery, LogEntry, Notice, RemovalRequest, Stream
from removal.statements import Answer, Statement
from removal.verdict import judge
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


def tell(partner: Partner, *, notices: int, sent: bool = True) -> None:
    """Owe a partner notices of two items each, and put them into messages."""
    disclose(make_release(contents={f"site:{n}": ["post:1", "post:2"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    if sent:
        delivery.claim(partner_id=partner.pk)


def say(partner: Partner, *lines: dict[str, Any]) -> Answer:
    statements = [Statement(text=str(line), **line) for line in lines]
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=statements)


def codes(answer: Answer) -> list[tuple[int | None, str]]:
    return [(refusal.sequence, refusal.code) for refusal in answer.refused]


def handlings() -> list[str]:
    return list(Notice.objects.order_by("sequence").values_list("handling", flat=True))


@pytest.fixture
def partner() -> Partner:
    return make_partner("acme").partner


def test_handling_moves_forward_and_repeats_change_nothing(partner: Partner) -> None:
    tell(partner, notices=1)
    seen = []
    for status in ("received", "received", "in_progress", "received", "completed", "in_progress", "completed"):
        answer = say(partner, {"sequence": 1, "status": status})
        seen.append((answer.accepted, answer.unchanged, answer.refused))
    assert [accepted for accepted, _, _ in seen] == [1, 0, 1, 0, 1, 0, 0]
    assert [unchanged for _, unchanged, _ in seen] == [0, 1, 0, 1, 0, 1, 1]
    assert handlings() == ["completed"]
    assert Acknowledgement.objects.count() == 3


@pytest.mark.parametrize("number", ["sequence", "through"])
def test_a_repeated_in_progress_is_a_heartbeat(partner: Partner, number: str) -> None:
    tell(partner, notices=2)
    say(partner, {"through": 2, "status": "in_progress"})
    say(partner, {"sequence": 2, "status": "completed"})
    before = timezone.now() - timedelta(hours=2)
    Notice.objects.update(acknowledged_at=before)
    assert say(partner, {number: 1, "status": "received"}).unchanged == 1
    assert list(Notice.objects.values_list("acknowledged_at", flat=True).distinct()) == [before]

    assert say(partner, {number: 1, "status": "in_progress"}).unchanged == 1
    heard = Notice.objects.get(sequence=1).acknowledged_at
    assert heard
    assert heard > before + timedelta(hours=1)
    assert say(partner, {number: 1, "status": "in_progress"}).unchanged == 1
    assert say(partner, {"sequence": 2, "status": "in_progress"}).unchanged == 1
    assert list(Notice.objects.order_by("sequence").values_list("acknowledged_at", flat=True)) == [heard, before]
    assert Acknowledgement.objects.count() == 2


def test_the_last_answer_closes_the_request(partner: Partner) -> None:
    other = make_partner("globex").partner
    release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, partner)
    disclose(release, other)
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    for holder in (partner, other):
        delivery.claim(partner_id=holder.pk)
    say(partner, {"sequence": 1, "status": "completed"})
    request.refresh_from_db()
    assert request.state == "planned"
    say(other, {"sequence": 1, "status": "completed"})
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("closed", "fulfilled")


def test_an_outcome_that_is_changed_stays_in_the_log(partner: Partner) -> None:
    tell(partner, notices=2)
    say(partner, {"sequence": 1, "status": "completed"}, {"sequence": 2, "status": "completed"})
    changed = LogEntry.objects.filter(action="request_outcome_changed")
    assert not changed.exists()
    before = Notice.objects.get(sequence=1).request
    for _ in range(2):  # the second changes nothing
        say(partner, {
            "sequence": 1, "status": "rejected", "reason": "no_match", "amends": True, "detail": "We had none.",
        })  # fmt: skip
    now = RemovalRequest.objects.get(pk=before.pk)
    assert (before.outcome, now.outcome) == ("fulfilled", "partially_fulfilled")
    [entry] = changed
    assert (entry.about["request"], entry.about["outcome"]) == (before.public_id, "fulfilled")
    assert before.closed_at == datetime.fromisoformat(entry.about["closed_at"])


def test_two_last_answers_at_once_close_the_request() -> None:
    for attempt in range(10):
        partners = [make_partner().partner for _ in range(2)]
        release = make_release(contents={f"race:{attempt}": ["post:1"]})
        for holder in partners:
            disclose(release, holder)
        request = record(make_wish(f"race:{attempt}"))
        planning.plan(budget=BUDGET)
        for holder in partners:
            delivery.claim(partner_id=holder.pk)
        ready = threading.Barrier(2)

        def answer(holder: Partner, ready: threading.Barrier = ready) -> None:
            try:
                ready.wait()
                say(holder, {"sequence": 1, "status": "completed"})
            finally:
                connection.close()

        threads = [threading.Thread(target=answer, args=(holder,)) for holder in partners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        request.refresh_from_db()
        assert (request.state, request.outcome) == ("closed", "fulfilled")


def test_a_rejection_needs_a_reason_and_some_reasons_need_facts(partner: Partner) -> None:
    tell(partner, notices=3)
    answer = say(
        partner,
        {"sequence": 1, "status": "rejected"},
        {"sequence": 2, "status": "rejected", "reason": "disproportionate_effort"},
        {"sequence": 3, "status": "rejected", "reason": "legal_obligation"},
    )
    assert codes(answer) == [
        (1, "reason_needed"),
        (2, "detail_needed"),
    ]
    assert handlings() == ["none", "none", "rejected"]
    outcomes = RemovalRequest.objects.order_by("id").values_list("outcome", flat=True)
    assert list(outcomes) == ["", "", "partially_fulfilled"]


def test_outcomes_add_up_to_the_notices_items(partner: Partner) -> None:
    tell(partner, notices=3)
    answer = say(
        partner,
        {"sequence": 1, "status": "completed", "outcomes": {"removed": 1}},
        {"sequence": 2, "status": "completed", "outcomes": {"removed": 1, "cannot_comply": 1}},
        {"sequence": 3, "status": "partially_completed", "outcomes": {"removed": 1, "cannot_comply": 1}},
    )
    assert codes(answer) == [
        (1, "outcomes_do_not_add_up"),
        (2, "not_complete"),
    ]
    assert handlings() == ["none", "none", "partially_completed"]


def test_an_outcome_of_no_items_is_not_held_against_completed(partner: Partner) -> None:
    tell(partner, notices=2)
    answer = say(
        partner,
        {"sequence": 1, "status": "completed", "outcomes": {"removed": 2, "exempt": 0, "cannot_comply": 0}},
        {"sequence": 2, "status": "completed", "outcomes": {"exempt": 0}},
    )
    assert codes(answer) == [(2, "outcomes_do_not_add_up")]
    assert handlings() == ["completed", "none"]


def test_unknown_numbers_and_numbers_not_yet_sent_are_refused(partner: Partner) -> None:
    tell(partner, notices=2, sent=False)
    answer = say(
        partner,
        {"sequence": 1, "status": "completed"},
        {"sequence": 3, "status": "completed"},
        {"through": 1, "status": "received"},
        {"through": 3, "status": "received"},
    )
    assert codes(answer) == [
        (1, "not_yet_sent"),
        (3, "unknown_sequence"),
        (1, "not_yet_sent"),
        (3, "unknown_sequence"),
    ]
    assert handlings() == ["none", "none"]


def test_a_partner_cannot_name_the_notice_of_another(partner: Partner) -> None:
    tell(partner, notices=1)
    stranger = make_partner("globex").partner
    assert [refusal.code for refusal in say(stranger, {"sequence": 1, "status": "completed"}).refused] == [
        "unknown_sequence"
    ]
    assert handlings() == ["none"]


def test_a_terminal_word_stands_unless_it_is_amended_with_a_detail(partner: Partner) -> None:
    tell(partner, notices=1)
    say(partner, {"sequence": 1, "status": "completed"})
    rejected = {"sequence": 1, "status": "rejected", "reason": "legal_obligation"}
    assert [refusal.code for refusal in say(partner, rejected).refused] == ["already_answered"]
    assert [refusal.code for refusal in say(partner, {**rejected, "amends": True}).refused] == ["already_answered"]
    assert say(partner, {**rejected, "amends": True, "detail": "Found a court order."}).accepted == 1
    assert handlings() == ["rejected"]
    assert RemovalRequest.objects.get().outcome == "partially_fulfilled"


def test_counts_are_amended_once(partner: Partner) -> None:
    tell(partner, notices=1)
    said = {"sequence": 1, "status": "completed", "outcomes": {"removed": 2}}
    amended = {**said, "outcomes": {"not_found": 2}, "amends": True, "detail": "It was gone before."}
    assert [say(partner, line).accepted for line in (said, said, amended, amended)] == [1, 0, 1, 0]
    assert list(Acknowledgement.objects.order_by("pk").values_list("outcomes", flat=True)) == [
        {"removed": 2},
        {"not_found": 2},
    ]


def test_a_response_to_a_message_of_before_a_restore_says_nothing(partner: Partner) -> None:
    tell(partner, notices=1)
    Stream.objects.update(epoch=2)
    answer = json.dumps({"sequence": 1, "status": "received"}).encode()
    with transaction.atomic(), connection.cursor() as cursor:
        acknowledgement.accept_response(cursor, stream_id=partner.pk, epoch=1, first=1, last=1, answer=answer)
    assert Stream.objects.get(partner=partner).received_through == 0


def test_through_received_moves_the_watermark_alone(partner: Partner) -> None:
    tell(partner, notices=3)
    answer = say(partner, {"through": 2, "status": "received"})
    assert (answer.accepted, answer.unchanged) == (2, 0)
    assert Stream.objects.get(partner=partner).received_through == 2
    assert handlings() == ["none", "none", "none"]
    assert say(partner, {"through": 2, "status": "received"}).unchanged == 2
    # The watermark counts as said: the same word again changes nothing, the next one does.
    assert say(partner, {"sequence": 1, "status": "received"}).unchanged == 1
    assert say(partner, {"sequence": 1, "status": "in_progress"}).accepted == 1


def test_through_completed_counts_those_further_along_as_unchanged(partner: Partner) -> None:
    tell(partner, notices=4)
    say(partner, {"sequence": 2, "status": "rejected", "reason": "no_match"})
    answer = say(partner, {"through": 3, "status": "completed"})
    assert (answer.accepted, answer.unchanged) == (2, 1)
    assert handlings() == ["completed", "rejected", "completed", "none"]


def steps_taken(partner: Partner, *lines: dict[str, Any]) -> tuple[int, Answer]:
    with CaptureQueriesContext(connection) as queries:
        answer = say(partner, *lines)
    return sum("update removal_notice n set handling" in query["sql"] for query in queries), answer


def test_a_range_that_is_said_again_takes_one_step(partner: Partner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledgement, "STEP", 2)
    tell(partner, notices=7)
    done = {"through": 7, "status": "completed"}
    steps, answer = steps_taken(partner, done, done, {"through": 6, "status": "in_progress"}, done)
    assert (steps, answer.accepted, answer.unchanged) == (4 + 3, 7, 7 + 6 + 7)
    steps, answer = steps_taken(partner, done)
    assert (steps, answer.accepted, answer.unchanged) == (1, 0, 7)
    rows = Acknowledgement.objects.order_by("id").values_list("first_sequence", "last_sequence", "status")
    assert list(rows) == [(first, min(first + 1, 7), "completed") for first in (1, 3, 5, 7)]


def test_a_range_begins_with_the_step_in_which_something_is_behind(
    partner: Partner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acknowledgement, "STEP", 3)
    tell(partner, notices=9)
    say(partner, *({"sequence": n, "status": "completed"} for n in (1, 2, 3, 4, 6, 7, 8)))
    Notice.objects.filter(sequence=5).update(closed_at=timezone.now())  # the partner may still answer
    steps, answer = steps_taken(partner, {"through": 9, "status": "completed"})
    assert (steps, answer.accepted, answer.unchanged) == (2, 2, 7)
    assert handlings() == ["completed"] * 9
    ranges = Acknowledgement.objects.order_by("id").values_list("first_sequence", "last_sequence")
    assert list(ranges)[7:] == [(4, 6), (7, 9)]


def test_a_range_that_may_not_be_said_is_refused_however_far_the_stream_is(
    partner: Partner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acknowledgement, "STEP", 1)
    tell(partner, notices=3)
    say(partner, {"through": 3, "status": "completed"})
    answer = say(partner, {"through": 9, "status": "completed"}, {"through": 3, "status": "completed", "epoch": 2})
    assert codes(answer) == [(9, "unknown_sequence"), (3, "wrong_epoch")]
    assert (answer.accepted, answer.unchanged) == (0, 0)


def test_a_repeated_range_is_a_heartbeat_of_all_of_it(partner: Partner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledgement, "STEP", 2)
    tell(partner, notices=5)
    say(partner, {"through": 5, "status": "in_progress"})
    before = timezone.now() - timedelta(hours=2)
    Notice.objects.filter(sequence=2).update(acknowledged_at=before)
    assert say(partner, {"through": 5, "status": "in_progress"}).unchanged == 5
    heard = Notice.objects.get(sequence=2).acknowledged_at
    assert heard
    assert heard > before + timedelta(hours=1)


def test_a_message_whose_numbers_are_all_answered_is_sent_no_more(partner: Partner) -> None:
    tell(partner, notices=2)
    Delivery.objects.update(state="waiting", lease_until=None)
    say(partner, {"sequence": 1, "status": "received"})
    assert Delivery.objects.get().state == "waiting"
    say(partner, {"sequence": 2, "status": "completed"})
    assert list(Delivery.objects.values_list("state", "delivered_by")) == [("delivered", "acknowledged")]


def test_an_answer_before_our_post_returns_is_not_undone(partner: Partner) -> None:
    tell(partner, notices=1)
    say(partner, {"sequence": 1, "status": "completed"})
    [row] = Delivery.objects.all()
    assert row.state == "sending"
    claim = delivery.Claim(row.pk, 1, 1, 1, row.fence, 0, "https://partner.example/", b"", None, 0)  # type: ignore[arg-type]
    late = Refused(status=500, answer=b"", latency=timedelta(0))
    verdict = judge(late, notices=1, attempt=1, jitter=0)
    delivery.record([delivery.Result(claim, late, verdict)], partner_id=partner.pk)
    assert handlings() == ["completed"]
    assert delivery.claim(partner_id=partner.pk).claims == []
    assert list(Delivery.objects.values_list("state", "delivered_by")) == [("delivered", "acknowledged")]


def test_a_block_ends_with_so_much_text(partner: Partner) -> None:
    tell(partner, notices=4)
    written = []

    def lines() -> Iterator[Statement]:
        for number in range(1, 5):
            written.append(Acknowledgement.objects.count())
            yield Statement(status="received", text="ä" * (2 << 20), sequence=number)  # 4 MiB in UTF-8

    acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=lines())
    assert written == [0, 0, 2, 2]
    assert handlings() == ["received"] * 4


def test_fifty_equal_answers_at_once_are_one(partner: Partner) -> None:
    tell(partner, notices=1)
    answers: list[Answer] = []

    def call() -> None:
        try:
            answers.append(say(partner, {"sequence": 1, "status": "completed"}))
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answer.accepted for answer in answers) == 1
    assert sum(answer.unchanged for answer in answers) == 49
    assert Acknowledgement.objects.count() == 1
