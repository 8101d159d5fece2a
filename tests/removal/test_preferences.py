"""Who prevails, in one rule and two forms; and how what subjects allow is recorded."""

import json
import random
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations, product

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from removal import exclusions, intake, invariants
from removal.models import LogEntry, Preference, RemovalRequest, Subject
from removal.models.subjects import USAGES
from removal.preferences import (
    CONTAINER_STATES,
    Answer,
    Choice,
    InForce,
    InvalidChoice,
    Prevailing,
    UnknownState,
    UnknownSubject,
    decide,
    find_preferences,
    prevailing,
    record_preferences,
)
from tests.factories import make_wish, record

pytestmark = pytest.mark.django_db

OLD = datetime(2020, 1, 1, tzinfo=UTC)


def restricted(subjects: Collection[str], usages: Collection[str]) -> dict[str, list[exclusions.Restriction]]:
    return exclusions.restrictions(exclusions.ask_about(keys=json.dumps(sorted(subjects)), usages=usages))


def in_force(*said: tuple[str, str, str]) -> list[InForce]:
    """Make preferences of (source, value, usage); their ids count from 1."""
    return [InForce(n, usage, value, source) for n, (source, value, usage) in enumerate(said, start=1)]


def say(*choices: Choice) -> list[Answer]:
    return record_preferences(actor="test", choices=choices, now=timezone.now())


# --- who prevails ---

# blog_public 1, 0 and -1 mean public, discouraged and private. The seven cases are those that the tests of a WordPress
# privacy feature publish (Automattic/jetpack, jetpack-mu-wpcom, blog privacy): facts only.
OPT_OUT = ("explicit", "disallow", "all")
SEVEN_CASES = [
    ("public", [], "allow"),
    ("public", [OPT_OUT], "disallow"),
    ("discouraged", [], "disallow"),
    ("discouraged", [OPT_OUT], "disallow"),
    ("private", [], "disallow"),
    ("private", [OPT_OUT], "disallow"),
    ("discouraged", None, "disallow"),  # nothing about it is there at all
]


@pytest.mark.parametrize(("state", "said", "value"), SEVEN_CASES)
def test_the_seven_published_cases(state: str, said: list[tuple[str, str, str]] | None, value: str) -> None:
    known = in_force(*said or [])
    decided = decide(container_state=state, usages=["train-ai"], in_force=known, default="allow")
    assert decided.value == value


TABLE = [
    # what is said                                                    asked            what prevails, by which number
    ([], ["train-ai"], ("allow", "default", None)),
    ([("explicit", "disallow", "train-ai")], ["train-ai"], ("disallow", "explicit", 1)),
    ([("explicit", "disallow", "train-ai")], ["search"], ("allow", "default", None)),
    ([("explicit", "disallow", "train-ai")], ["all"], ("disallow", "explicit", 1)),
    ([("explicit", "disallow", "train-ai")], ["search", "train-ai"], ("disallow", "explicit", 1)),
    ([("explicit", "disallow", "all")], ["search"], ("disallow", "explicit", 1)),
    # the most restrictive explicit wins, the narrower one or the wider
    ([("explicit", "allow", "all"), ("explicit", "disallow", "search")], ["search"], ("disallow", "explicit", 2)),
    ([("explicit", "allow", "search"), ("explicit", "disallow", "all")], ["search"], ("disallow", "explicit", 2)),
    # explicit means: it outranks what others say
    ([("gpc", "disallow", "all"), ("explicit", "allow", "search")], ["search"], ("allow", "explicit", 2)),
    ([("gpc", "disallow", "all"), ("explicit", "allow", "search")], ["all"], ("disallow", "gpc", 1)),
    ([("explicit", "allow", "all"), ("registry", "disallow", "search")], ["all"], ("allow", "explicit", 1)),
    ([("import", "allow", "all"), ("gpc", "disallow", "search")], ["search"], ("disallow", "gpc", 2)),
    ([("registry", "disallow", "all"), ("inherited", "disallow", "all")], ["search"], ("disallow", "registry", 1)),
    # the container's state outranks all, and its allow says nothing
    ([("explicit", "allow", "all"), ("container_state", "disallow", "all")], ["all"],
     ("disallow", "container_state", 2)),
    ([("container_state", "allow", "all"), ("gpc", "disallow", "all")], ["all"], ("disallow", "gpc", 2)),
    ([("container_state", "allow", "all")], ["all"], ("allow", "default", None)),
]  # fmt: skip


@pytest.mark.parametrize(("said", "usages", "decided"), TABLE)
def test_the_written_precedence(
    said: list[tuple[str, str, str]], usages: list[str], decided: tuple[str, str, int | None]
) -> None:
    known = in_force(*said)
    assert decide(container_state="public", usages=usages, in_force=known, default="allow") == Prevailing(*decided)


def test_what_nobody_said_is_the_platforms_default() -> None:
    assert decide(container_state="public", usages=["all"], in_force=[], default="disallow") == Prevailing(
        "disallow", "default", None
    )
    # An allow of one usage is no allow of the others.
    known = in_force(("explicit", "allow", "search"))
    assert decide(container_state="public", usages=["search"], in_force=known, default="disallow").value == "allow"
    assert decide(container_state="public", usages=["all"], in_force=known, default="disallow").rule == "default"
    every = in_force(*[("explicit", "allow", usage) for usage in USAGES if usage != "all"])
    assert decide(container_state="public", usages=["all"], in_force=every, default="disallow").rule == "default"


@pytest.mark.parametrize("state", CONTAINER_STATES)
def test_every_state_but_public_excludes_whatever_is_said(state: str) -> None:
    known = in_force(("explicit", "allow", "all"))
    decided = decide(container_state=state, usages=["all"], in_force=known, default="allow")
    assert (decided.value == "allow") == (state == "public")


@pytest.mark.parametrize("state", ["", "Public", "publish", "unknown"])
def test_a_state_that_is_not_known_is_an_error(state: str) -> None:
    with pytest.raises(UnknownState):
        decide(container_state=state, usages=["all"], in_force=[], default="allow")


SOURCES = ("explicit", "gpc", "import", "container_state")
SAID = list(product(SOURCES, ("allow", "disallow"), ("all", "train-ai", "search")))


def every_pair_and_some_larger() -> list[Sequence[tuple[str, str, str]]]:
    """List sets of preferences in which no source says two things of one usage."""
    chance = random.Random(7)
    some = [tuple(chance.sample(SAID, chance.randint(3, 6))) for _ in range(600)]
    every: list[Sequence[tuple[str, str, str]]] = [(), *combinations(SAID, 1), *combinations(SAID, 2), *some]
    return [said for said in every if len({(source, usage) for source, _, usage in said}) == len(said)]


@pytest.mark.parametrize("default", ["allow", "disallow"])
@pytest.mark.parametrize("usages", [("all",), ("train-ai",), ("search", "train-ai"), ("bulk-dataset",)])
def test_one_subject_and_a_set_of_them_are_judged_alike(
    settings: Settings, default: str, usages: tuple[str, ...]
) -> None:
    settings.DEFAULT_PREFERENCE = default
    sets = every_pair_and_some_larger()
    subjects = Subject.objects.bulk_create(Subject(key=f"site:{n}") for n in range(len(sets)))
    rows = Preference.objects.bulk_create(
        Preference(subject=subject, usage=usage, value=value, source=source)
        for subject, said in zip(subjects, sets, strict=True)
        for source, value, usage in said
    )
    known: dict[str, list[InForce]] = {subject.key: [] for subject in subjects}
    for row in rows:
        known[row.subject.key].append(InForce(row.pk, row.usage, row.value, row.source))
    known["never heard of"] = []

    alone = {
        key: decide(container_state="public", usages=usages, in_force=said, default=default)
        for key, said in known.items()
    }
    together = restricted(known, usages)

    assert {key: [(one.rule, one.preference) for one in reasons] for key, reasons in together.items()} == {
        key: [(decided.rule, decided.preference)] for key, decided in alone.items() if decided.value == "disallow"
    }
    assert len(sets) > 500


def test_what_has_ended_says_nothing() -> None:
    say(Choice("site:1", "all", "disallow", "gpc"), Choice("site:1", "all", "allow", "gpc"))
    assert restricted(["site:1"], ["all"]) == {}


# --- what is said ---


def history(subject: str) -> list[tuple[str, str, str, bool]]:
    rows = Preference.objects.filter(subject__key=subject).order_by("id")
    return [(row.usage, row.source, row.value, row.valid_to is None) for row in rows]


def test_a_choice_ends_the_one_before_it_and_the_history_stays() -> None:
    assert say(Choice("site:1", "train-ai", "disallow", "registry")) == ["created"]
    assert say(Choice("site:1", "train-ai", "allow", "registry")) == ["created"]
    first, second = Preference.objects.order_by("id")
    assert (first.value, first.valid_to) == ("disallow", second.valid_from)
    assert (second.value, second.valid_to) == ("allow", None)
    assert [entry.about for entry in LogEntry.objects.filter(action="preferences_recorded").order_by("id")] == [
        {"preferences": [first.pk]},
        {"preferences": [second.pk]},
    ]


def test_the_same_choice_again_changes_nothing() -> None:
    choices = [Choice("site:1", "train-ai", "disallow", "gpc"), Choice("site:2", "all", "allow", "import")]
    assert say(*choices) == ["created", "created"]
    before = list(Preference.objects.order_by("id").values())
    assert say(*choices) == ["unchanged", "unchanged"]
    assert list(Preference.objects.order_by("id").values()) == before
    assert LogEntry.objects.filter(action="preferences_recorded").count() == 1


def test_each_source_and_usage_has_its_own_history() -> None:
    say(
        Choice("site:1", "all", "disallow", "gpc"),
        Choice("site:1", "all", "allow", "explicit"),
        Choice("site:1", "search", "disallow", "explicit"),
    )
    assert [is_open for *_, is_open in history("site:1")] == [True, True, True]


def test_a_block_may_change_its_mind() -> None:
    answers = say(
        Choice("site:1", "all", "disallow", "gpc"),
        Choice("site:1", "all", "allow", "gpc"),
        Choice("site:1", "all", "allow", "gpc"),
        Choice("site:1", "all", "disallow", "gpc"),
    )
    assert answers == ["created", "created", "unchanged", "created"]
    assert history("site:1") == [
        ("all", "gpc", "disallow", False),
        ("all", "gpc", "allow", False),
        ("all", "gpc", "disallow", True),
    ]


def test_a_choice_may_be_from_the_past_but_not_from_before_the_one_in_force() -> None:
    assert say(Choice("site:1", "all", "disallow", "import", OLD)) == ["created"]
    assert Preference.objects.get().valid_from == OLD
    assert say(Choice("site:1", "all", "allow", "import", OLD - timedelta(days=1))) == ["too_late"]
    assert history("site:1") == [("all", "import", "disallow", True)]


def test_a_choice_from_the_future_is_refused_and_nothing_kept() -> None:
    with pytest.raises(InvalidChoice) as refused:
        say(
            Choice("site:1", "all", "disallow", "gpc"),
            Choice("site:2", "all", "disallow", "gpc", timezone.now() + timedelta(minutes=6)),
        )
    assert refused.value.field == "valid_from"
    assert Preference.objects.count() == 0


def test_a_clock_that_is_a_little_ahead_means_now() -> None:
    assert say(Choice("site:1", "all", "disallow", "gpc", timezone.now() + timedelta(minutes=4))) == ["created"]
    assert Preference.objects.get().valid_from < timezone.now()


@pytest.mark.parametrize(
    ("opted_out", "allowed", "answer"),
    [
        ("all", "all", "opt_out_stands"),
        ("train-ai", "train-ai", "opt_out_stands"),
        ("train-ai", "all", "opt_out_stands"),
        ("all", "search", "opt_out_stands"),
        ("train-ai", "search", "created"),
    ],
)
def test_an_allow_does_not_end_an_opt_out_that_partners_are_told_about(
    opted_out: str, allowed: str, answer: str
) -> None:
    request = record(make_wish("site:1", usages=(opted_out,)))
    assert say(Choice("site:1", allowed, "allow", "explicit")) == [answer]
    standing = Preference.objects.get(request=request)
    assert (standing.value, standing.valid_to) == ("disallow", None)


def test_a_reinstatement_ends_it_and_then_all_is_open_again() -> None:
    record(make_wish("site:1"))
    record(make_wish("site:1", kind="reinstatement"))
    assert say(Choice("site:1", "all", "allow", "explicit")) == ["unchanged"]
    assert say(Choice("site:1", "search", "allow", "explicit")) == ["created"]


def test_what_others_say_does_not_touch_an_opt_out() -> None:
    record(make_wish("site:1"))
    assert say(Choice("site:1", "all", "allow", "registry")) == ["created"]
    [restriction] = restricted(["site:1"], ["search"])["site:1"]
    assert restriction.rule == "explicit"


def test_an_opt_out_takes_the_place_of_a_preference_and_is_told() -> None:
    say(Choice("site:1", "all", "disallow", "explicit"))
    request = record(make_wish("site:1"))
    assert request.repeats is None
    assert Preference.objects.get(valid_to=None).request == request


def test_all_that_stands_about_a_subject_can_be_asked() -> None:
    say(Choice("site:1", "all", "disallow", "gpc"), Choice("site:1", "all", "allow", "gpc"))
    request = record(make_wish("site:1", usages=("train-ai",)))
    found = find_preferences(subject="site:1")
    assert [(one.usage, one.source, one.request) for one in found.in_force] == [
        ("all", "gpc", None),
        ("train-ai", "explicit", request),
    ]
    assert [one.value for one in found.history] == ["disallow"]
    assert {usage: (one.value, one.rule) for usage, one in found.prevails.items()} == {
        "all": ("allow", "gpc"),
        "train-ai": ("disallow", "explicit"),
        "search": ("allow", "gpc"),
        "bulk-dataset": ("allow", "gpc"),
    }
    assert found.prevails["search"] == prevailing(
        usage="search", in_force=[InForce(found.in_force[0].pk, "all", "allow", "gpc")], default="allow"
    )
    with pytest.raises(UnknownSubject):
        find_preferences(subject="site:2")


def test_a_withdrawn_opt_out_says_nothing_any_more() -> None:
    request = record(make_wish("site:1"))
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    assert restricted(["site:1"], ["all"]) == {}


def withdraw(request: RemovalRequest) -> None:
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)


def with_requests() -> list[tuple[str, str, int | None, bool]]:
    rows = Preference.objects.order_by("id")
    return [(row.usage, row.value, row.request_id, row.valid_to is None) for row in rows]


@pytest.mark.parametrize("value", ["allow", "disallow"])
def test_withdrawing_an_opt_out_restores_what_it_took_the_place_of(value: str) -> None:
    say(Choice("site:1", "all", value, "explicit", OLD))
    request = record(make_wish("site:1"))
    withdraw(request)
    assert with_requests() == [
        ("all", value, None, False),
        ("all", "disallow", request.pk, False),
        ("all", value, None, True),
    ]
    said, refused, restored = Preference.objects.order_by("id")
    assert (said.valid_from, said.valid_to) == (OLD, refused.valid_from)
    assert refused.valid_to is not None
    assert restored.valid_from > refused.valid_to
    assert restored.source == "explicit"
    logged = LogEntry.objects.get(action="request_withdrawn")
    assert logged.about["restored"] == [{"preference": restored.pk, "as_in": said.pk}]
    kept_out = restricted(["site:1"], ["search"])
    assert [one.preference for one in kept_out.get("site:1", [])] == ([restored.pk] if value == "disallow" else [])


def test_a_restored_preference_can_be_changed_as_any_other() -> None:
    say(Choice("site:1", "all", "disallow", "explicit"))
    withdraw(record(make_wish("site:1")))
    assert say(Choice("site:1", "all", "allow", "explicit")) == ["created"]
    assert Preference.objects.get(valid_to=None).value == "allow"


def test_each_usage_of_a_withdrawn_opt_out_is_restored_by_itself() -> None:
    say(
        Choice("site:1", "train-ai", "disallow", "explicit"),
        Choice("site:1", "search", "allow", "explicit"),
        Choice("site:1", "train-ai", "allow", "registry"),
        Choice("site:2", "train-ai", "disallow", "explicit"),
    )
    withdraw(record(make_wish("site:1", usages=("train-ai", "search", "bulk-dataset"))))
    standing = find_preferences(subject="site:1").in_force
    assert [(one.usage, one.source, one.value) for one in standing] == [
        ("search", "explicit", "allow"),
        ("train-ai", "explicit", "disallow"),
        ("train-ai", "registry", "allow"),
    ]
    assert Preference.objects.filter(subject__key="site:2").count() == 1


def test_opting_out_and_withdrawing_again_and_again_ends_where_it_began() -> None:
    say(Choice("site:1", "all", "disallow", "explicit"))
    first = record(make_wish("site:1"))
    withdraw(first)
    second = record(make_wish("site:1"))
    withdraw(second)
    withdraw(second)
    assert [(request, is_open) for _, _, request, is_open in with_requests()] == [
        (None, False),
        (first.pk, False),
        (None, False),
        (second.pk, False),
        (None, True),
    ]


def test_a_repeat_that_stands_takes_the_place_of_what_is_restored() -> None:
    say(Choice("site:1", "all", "disallow", "explicit"))
    first, repeat = record(make_wish("site:1")), record(make_wish("site:1"))
    withdraw(first)
    assert Preference.objects.get(valid_to=None).request == repeat
    withdraw(repeat)
    restored = Preference.objects.get(valid_to=None)
    assert (restored.value, restored.request) == ("disallow", None)


def test_what_was_said_before_a_reinstatement_does_not_come_back() -> None:
    say(Choice("site:1", "train-ai", "disallow", "explicit"))
    back = record(make_wish("site:1", kind="reinstatement"))
    withdraw(record(make_wish("site:1", usages=("train-ai",))))
    assert [(one.usage, one.value, one.request) for one in find_preferences(subject="site:1").in_force] == [
        ("all", "allow", back)
    ]


def test_a_reinstatement_holds_again_when_the_opt_out_after_it_is_withdrawn() -> None:
    back = record(make_wish("site:1", kind="reinstatement"))
    withdraw(record(make_wish("site:1")))
    standing = Preference.objects.get(valid_to=None)
    assert (standing.value, standing.request) == ("allow", back)


def test_an_earlier_opt_out_that_was_withdrawn_does_not_come_back() -> None:
    first = record(make_wish("site:1"))
    withdraw(first)
    withdraw(record(make_wish("site:1")))
    assert not Preference.objects.filter(valid_to=None).exists()
    assert "restored" not in LogEntry.objects.filter(action="request_withdrawn").latest("id").about


def test_what_was_said_since_stands_beside_what_is_restored() -> None:
    say(Choice("site:1", "all", "allow", "explicit"))
    request = record(make_wish("site:1"))
    say(Choice("site:1", "train-ai", "disallow", "explicit"))
    withdraw(request)
    prevails = find_preferences(subject="site:1").prevails
    assert (prevails["train-ai"].value, prevails["search"].value) == ("disallow", "allow")


def broken() -> set[str]:
    with connection.cursor() as cursor:
        return {name for name, violations in invariants.count_violations(cursor).items() if violations}


def test_withdrawing_an_opt_out_leaves_what_another_one_refuses() -> None:
    first = record(make_wish("site:1", usages=("train-ai",)))
    second = record(make_wish("site:1", usages=("train-ai", "search")))
    withdraw(first)
    assert set(restricted(["site:1"], ["train-ai"])) == {"site:1"}
    standing = Preference.objects.filter(valid_to=None).order_by("usage").values_list("usage", "request_id")
    assert list(standing) == [("search", second.pk), ("train-ai", second.pk)]
    second.refresh_from_db()
    assert second.repeats_id is None
    assert broken() == set()
    withdraw(second)
    assert restricted(["site:1"], ["all"]) == {}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_refused_is_what_the_standing_opt_outs_refuse(seed: int) -> None:
    """Opt-outs, withdrawals and refusals of the person's own, in any order."""
    chance = random.Random(seed)
    standing: list[RemovalRequest] = []
    said: set[str] = set()
    for _ in range(12):
        match chance.randrange(3):
            case 0:
                standing.append(record(make_wish("site:1", usages=tuple(sorted(chance.sample(USAGES[1:], 2))))))
            case 1 if standing:
                withdraw(standing.pop(chance.randrange(len(standing))))
            case 2:
                said.add(usage := chance.choice(USAGES))
                say(Choice("site:1", usage, "disallow", "explicit"))
        refused = said | {usage for request in standing for usage in request.usages}
        for usage in USAGES[1:]:
            is_refused = bool(refused & {usage, "all"})
            assert bool(restricted(["site:1"], [usage])) is is_refused, (usage, refused)
        assert broken() == set()


def test_a_refusal_said_beside_an_opt_out_outlives_it() -> None:
    request = record(make_wish("site:1"))
    choice = Choice("site:1", "all", "disallow", "explicit")
    assert say(choice, choice) == ["created", "unchanged"]
    assert say(choice) == ["unchanged"]
    assert [one.request for one in find_preferences(subject="site:1").in_force] == [request]
    withdraw(request)
    assert [(one.value, one.request) for one in find_preferences(subject="site:1").in_force] == [("disallow", None)]
    assert set(restricted(["site:1"], ["all"])) == {"site:1"}
