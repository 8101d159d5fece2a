"""Requests are recorded once, whatever is repeated, raced or withdrawn."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.utils import timezone

from removal import delivery, intake, invariants, planning
from removal.exports import yearly_metrics
from removal.models import LogEntry, Notice, Preference, RemovalRequest, RequestTarget, Subject
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.removal.admin.story import say

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


def record_block(*wishes: intake.Wish) -> list[intake.Recorded]:
    return intake.record_requests(source="blogs", actor="test", wishes=wishes, now=timezone.now())


def test_a_wish_becomes_a_request_with_its_target_preference_and_log_entry() -> None:
    request = record(make_wish("site:1", usages=("train-ai",), received_at=datetime(2026, 1, 31, 12, tzinfo=UTC)))
    assert (request.state, request.round, request.usages) == ("received", None, ["train-ai"])
    assert request.respond_by == datetime(2026, 2, 28, 12, tzinfo=UTC)  # a calendar month later
    target = RequestTarget.objects.get()
    assert (target.subject.key, target.items) == ("site:1", None)
    preference = Preference.objects.get()
    assert (preference.usage, preference.value, preference.request) == ("train-ai", "disallow", request)
    assert LogEntry.objects.get(action="request_recorded").about == {"request": request.public_id}


def test_the_same_key_gives_the_same_request_and_another_body_is_refused() -> None:
    wish = make_wish("site:1", key="k")
    first = record(wish)
    assert record(wish) == first
    with pytest.raises(intake.KeyReused):
        record(make_wish("site:2", key="k"))
    assert RemovalRequest.objects.count() == 1
    assert list(Subject.objects.values_list("key", flat=True)) == ["site:1"]


def test_keys_of_two_sources_do_not_meet() -> None:
    assert record(make_wish(key="k"), source="blogs") != record(make_wish("site:2", key="k"), source="photos")


def test_fifty_equal_calls_at_once_make_one_request() -> None:
    wish = make_wish(key="k")
    found: list[str] = []

    def call() -> None:
        try:
            found.append(record(wish).public_id)
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 50
    assert set(found) == {RemovalRequest.objects.get().public_id}


def test_a_block_answers_in_order_and_counts_a_repeated_key_once() -> None:
    earlier = record(make_wish("site:0", key="old"))
    answers = record_block(
        make_wish("site:1", key="a"),
        make_wish("site:0", key="old"),
        make_wish("site:1", key="a"),
        make_wish("site:9", key="a"),
    )
    assert [(answer.created, answer.conflict) for answer in answers] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]
    assert answers[1].public_id == earlier.public_id
    assert answers[2].public_id == answers[0].public_id
    assert RemovalRequest.objects.count() == 2


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"items": ("post:1",)}, "items"),
        ({"kind": "deletion", "items": ()}, "items"),
    ],
)
def test_a_wish_that_contradicts_itself_is_refused(said: dict[str, object], field: str) -> None:
    with pytest.raises(intake.InvalidWish) as refused:
        make_wish(**said)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_a_wish_from_the_future_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(intake.InvalidWish):
        record_block(make_wish("site:1"), make_wish("site:2", received_at=timezone.now() + timedelta(minutes=6)))
    assert RemovalRequest.objects.count() == 0
    record(make_wish(received_at=timezone.now() + timedelta(minutes=4)))


def test_an_opt_out_that_says_nothing_new_repeats_the_earlier_one() -> None:
    first = record(make_wish("site:1", usages=("all",)))
    again = record(make_wish("site:1", usages=("train-ai", "search")))
    narrower_elsewhere = record(make_wish("site:2", usages=("train-ai",)))
    wider = record(make_wish("site:2", usages=("train-ai", "search")))
    assert (again.repeats, narrower_elsewhere.repeats, wider.repeats) == (first, None, None)
    assert list(RemovalRequest.objects.unplanned().order_by("id")) == [first, narrower_elsewhere, wider]


def test_a_deletion_repeats_nothing() -> None:
    record(make_wish("site:1"))
    assert record(make_wish("site:1", kind="deletion")).repeats is None


def test_withdrawing_before_sending_tells_the_number_as_withdrawn() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)

    withdrawn = intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)

    assert (withdrawn.state, withdrawn.outcome) == ("closed", "withdrawn")
    assert Preference.objects.filter(valid_to=None).count() == 0
    [claim] = delivery.claim(partner_id=partner.pk).claims
    assert b'"withdrawn_at"' in claim.body
    assert b"site:1" not in claim.body
    assert (claim.first, claim.last) == (1, 1)


def test_withdrawing_after_sending_leaves_what_was_told() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    delivery.claim(partner_id=partner.pk)
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    assert Notice.objects.get().withdrawn_at is None


def test_withdrawing_what_is_closed_keeps_how_and_when_it_ended() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    request, repeat = record(make_wish("site:1")), record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    delivery.claim(partner_id=partner.pk)
    say(partner, 1, "rejected", reason="legal_obligation")
    closed = RemovalRequest.objects.get(pk=request.pk)
    before = list(yearly_metrics(first_year=2026, last_year=2100))
    for one in (repeat, request):
        intake.withdraw_request(source="blogs", actor="test", public_id=one.public_id)
        one.refresh_from_db()
        assert (one.outcome, one.closed_at) == ("partially_fulfilled", closed.closed_at)
        assert one.withdrawn_at is not None
    assert yearly_metrics(first_year=2026, last_year=2100) == before
    assert Preference.objects.filter(valid_to=None).count() == 0
    say(partner, 1, "completed", outcomes={"removed": 1}, amends=True, detail="Removed after all.")
    assert RemovalRequest.objects.get(pk=request.pk).outcome == "fulfilled"
    assert not any(invariants.check().values())


def test_a_withdrawn_request_is_never_planned() -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    request = record(make_wish("site:1"))
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    planning.plan(budget=BUDGET)
    assert Notice.objects.count() == 0
    assert intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id).state == "closed"


def test_a_wish_that_repeated_a_withdrawn_one_stands_by_itself() -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    mistaken = record(make_wish("site:1"))
    meant = record(make_wish("site:1", usages=("train-ai",)))
    also = record(make_wish("site:1", usages=("train-ai",)))

    intake.withdraw_request(source="blogs", actor="test", public_id=mistaken.public_id)
    planning.plan(budget=BUDGET)

    also.refresh_from_db()
    assert also.repeats == meant
    assert Notice.objects.get().request == meant
    assert [(p.usage, p.request) for p in Preference.objects.filter(valid_to=None)] == [("train-ai", meant)]


def test_nobody_withdraws_the_request_of_another_source() -> None:
    request = record(make_wish(), source="photos")
    with pytest.raises(intake.UnknownRequest):
        intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
