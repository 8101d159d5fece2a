"""Items that a partner names: counted, its notice's own, and nothing learned about any other."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, partnerships, planning, recall
from removal.identifiers import Identifiers
from removal.models import Acknowledgement, Notice, Stream
from removal.statements import Answer, NamedItem, Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)

Items = Sequence[tuple[str, str] | tuple[str, str, str]]


@pytest.fixture
def partner() -> Partner:
    return make_partner("acme").partner


def hold(partner: Partner, contents: dict[str, list[str]], name: str = "") -> None:
    disclose(make_release(name, contents=contents), partner)


def plan(partner: Partner) -> None:
    planning.plan(budget=BUDGET)
    stream = Stream.objects.get(partner=partner)
    Stream.objects.filter(partner=partner).update(packed_through=stream.head)


def say(
    partner: Partner, items: Items, *, status: str = "partially_completed", sequence: int = 1, **said: Any
) -> Answer:
    named = [NamedItem(None, *one) if len(one) == 2 else NamedItem(*one) for one in items]
    statement = Statement(status=status, text="{}", sequence=sequence, items=named, **said)
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])


def codes(answer: Answer) -> list[str]:
    return [refusal.code for refusal in answer.refused]


def outcomes() -> object:
    return Acknowledgement.objects.get().outcomes


def test_a_list_of_all_items_stands_for_the_counts(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1", "post:2", "post:3"]})
    record(make_wish("site:1"))
    plan(partner)
    answer = say(partner, [("post:1", "removed"), ("post:2", "removed"), ("post:3", "exempt"), ("post:3", "exempt")])
    assert (answer.accepted, answer.refused) == (1, [])
    assert outcomes() == {"removed": 2, "exempt": 1}


def test_a_list_of_some_items_goes_with_the_counts(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1", "post:2", "post:3"]})
    record(make_wish("site:1"))
    plan(partner)
    answer = say(partner, [("post:2", "exempt")], outcomes={"removed": 2, "exempt": 1})
    assert (answer.accepted, outcomes()) == (1, {"removed": 2, "exempt": 1})


@pytest.mark.parametrize(
    ("items", "said", "code"),
    [
        ([("post:1", "removed"), ("post:1", "exempt")], {}, "item_said_twice"),
        ([("post:1", "removed")], {"outcomes": {"exempt": 2}}, "items_contradict_outcomes"),
        (
            [("post:1", "exempt"), ("post:2", "exempt")],
            {"outcomes": {"removed": 1, "exempt": 1}},
            "items_contradict_outcomes",
        ),
        ([("post:1", "exempt")], {"status": "completed"}, "not_complete"),
        ([("post:1", "removed"), ("site:1", "post:2", "removed")], {}, "subject_needed"),
        ([("post:9", "removed")], {}, "unknown_item"),
        ([("site:2", "post:1", "removed")], {}, "unknown_item"),
        ([("site:none", "post:1", "removed")], {}, "unknown_item"),
        ([("site:1", "post:1", "removed")], {}, ""),
        ([("post:1", "removed")], {"status": "received"}, ""),
    ],
)
def test_a_list_that_cannot_be_is_refused(partner: Partner, items: Items, said: dict[str, Any], code: str) -> None:
    hold(partner, {"site:1": ["post:1", "post:2"], "site:2": ["post:1", "post:9"]})
    record(make_wish("site:1"))
    plan(partner)
    answer = say(partner, items, **said)
    assert codes(answer) == ([code] if code else [])
    assert Acknowledgement.objects.count() == (not code)


def test_unknown_items_and_items_of_others_get_the_same_answer(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1"]})
    hold(make_partner("globex").partner, {"site:1": ["post:2"], "site:2": ["post:3"]})
    record(make_wish("site:1"))
    plan(partner)
    answers = [
        say(partner, [named])
        for named in (("post:2", "removed"), ("nowhere", "removed"), ("site:2", "post:3", "removed"))
    ]
    assert len({json.dumps([vars(refusal) for refusal in answer.refused]) for answer in answers}) == 1
    assert codes(answers[0]) == ["unknown_item"]


def test_items_that_the_request_does_not_name_are_not_the_notices(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1", "post:2"]})
    record(make_wish("site:1", kind="deletion", items=("post:1", "post:7")))
    plan(partner)
    assert codes(say(partner, [("post:2", "removed")])) == ["unknown_item"]
    assert codes(say(partner, [("post:7", "removed")])) == ["unknown_item"]  # wanted, but never handed over
    assert codes(say(partner, [("post:1", "removed")], status="completed")) == []


def test_a_notice_about_several_subjects_wants_each_items_subject(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1"], "site:2": ["post:1"], "site:3": ["post:1"]}, "2025-01")
    said = recall.Recall(idempotency_key="r", releases=("2025-01",))
    lines = [recall.Line(n, f"site:{n}", None) for n in (1, 2)]
    recall.record_recall(source="blogs", actor="test", recall=said, lines=iter(lines), now=timezone.now())
    plan(partner)
    assert Notice.objects.get().item_count == 2
    assert codes(say(partner, [("post:1", "removed")])) == ["subject_needed"]
    assert codes(say(partner, [("site:3", "post:1", "removed")])) == ["unknown_item"]
    assert codes(say(partner, [("site:1", "post:1", "removed"), ("site:2", "post:1", "not_found")])) == []
    assert outcomes() == {"removed": 1, "not_found": 1}


def test_an_offboarding_is_about_all_that_was_handed_over(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1"], "site:2": ["post:2"]})
    record(make_wish("", kind="offboarding", partner="acme", reason="licence_ended"))
    plan(partner)
    assert codes(say(partner, [("site:1", "post:2", "removed")])) == ["unknown_item"]
    assert codes(say(partner, [("site:1", "post:1", "removed"), ("site:2", "post:2", "removed")])) == []


def test_a_withdrawn_notice_has_no_items(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1"]})
    record(make_wish("site:1"))
    plan(partner)
    Notice.objects.update(withdrawn_at=timezone.now())
    assert codes(say(partner, [("post:1", "removed")])) == ["unknown_item"]


def test_hashed_items_are_looked_up_under_every_key_that_the_partner_was_given(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1", "post:2"]})
    partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256")
    partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256", new_key=True)
    _, new, old = Identifiers.ever_given(partner.pk)
    record(make_wish("site:1"))
    plan(partner)

    stranger = say(partner, [(new.item("site:2", "post:1"), "removed")])
    known = say(partner, [(old.item("site:1", "post:1"), "removed"), (new.item("site:1", "post:2"), "exempt")])

    assert codes(stranger) == ["unknown_item"]
    assert known.accepted == 1
    assert outcomes() == {"removed": 1, "exempt": 1}


def test_hashed_items_of_a_notice_about_several_subjects_are_counted_only(partner: Partner) -> None:
    hold(partner, {"site:1": ["post:1"], "site:2": ["post:1"]}, name="posts")
    partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256")
    said = recall.Recall(idempotency_key="r", releases=("posts",))
    lines = [recall.Line(n, f"site:{n}", None) for n in (1, 2)]
    recall.record_recall(source="blogs", actor="test", recall=said, lines=iter(lines), now=timezone.now())
    plan(partner)
    names = Identifiers.for_partner(partner.pk)

    answer = say(partner, [(names.subject("site:1"), names.item("site:1", "post:1"), "removed")])

    assert codes(answer) == ["counts_only"]
