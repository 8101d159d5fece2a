"""The ledger answers who holds what, and what happened meanwhile."""

from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, delivery, holdings, ledger, planning, recall
from removal.holdings import Handover, ReleaseWith, holders_of, holdings_of, releases_with, window_of
from removal.intake import UnknownRequest
from removal.models import Disclosure, Notice, Release, RemovalRequest
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.plans import analyze, rows_read

pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = datetime.fromisoformat("2024-02-29T12:00:00Z")


@pytest.fixture
def acme() -> Partner:
    return make_partner("acme").partner


@pytest.fixture
def globex() -> Partner:
    return make_partner("globex").partner


def plan() -> None:
    planning.plan(budget=timedelta(seconds=5))


def answer(partner: Partner, sequence: int, status: str = "completed") -> None:
    """Have a partner be sent what it is owed, and answer one notice."""
    delivery.claim(partner_id=partner.pk)
    said = acknowledgement.acknowledge(
        partner_id=partner.pk, key_prefix="rk_test", statements=[Statement(text="", sequence=sequence, status=status)]
    )
    assert said.accepted == 1


def hand_over(release: Release, partner: Partner, at: datetime) -> Disclosure:
    disclosure, _ = ledger.record_disclosure(
        actor="test",
        release=release.name,
        partner=partner.slug,
        reference=f"at {at}",
        disclosed_at=at,
        now=timezone.now(),
    )
    return disclosure


def holding(subject: str = "site:1", as_of: datetime | None = None) -> list[tuple[str, str, list[str], bool]]:
    found = holders_of(subject=subject, as_of=as_of or timezone.now())
    return [(holder.partner, holder.release, holder.items, holder.removed_at is not None) for holder in found]


# Who holds


def test_holders_are_listed_with_what_they_were_given(acme: Partner, globex: Partner) -> None:
    older = make_release("2024-02", contents={"site:1": ["post:1", "post:2"], "site:2": ["post:1"]})
    newer = make_release("2025-01", contents={"site:1": ["post:3"]})
    make_release("unshared", contents={"site:1": ["post:1"]})
    first = hand_over(older, acme, LONG_AGO)
    hand_over(newer, globex, LONG_AGO + timedelta(days=1))
    hand_over(newer, acme, LONG_AGO + timedelta(days=2))

    assert holding() == [
        ("acme", "2024-02", ["post:1", "post:2"], False),
        ("globex", "2025-01", ["post:3"], False),
        ("acme", "2025-01", ["post:3"], False),
    ]
    [holder] = holders_of(subject="site:2", as_of=timezone.now())
    assert holder == holdings.Holder("acme", "2024-02", 1, ["post:1"], first.usages, LONG_AGO, f"at {LONG_AGO}", None)
    assert holding("site:9") == []


def test_the_past_is_answered_as_it_was(acme: Partner) -> None:
    hand_over(make_release("2024-02", contents={"site:1": ["post:1"]}), acme, LONG_AGO)
    record(make_wish("site:1"))
    plan()
    answer(acme, 1)
    removed_at = Notice.objects.get().acknowledged_at
    assert removed_at is not None
    assert holding(as_of=LONG_AGO - timedelta(seconds=1)) == []
    assert holding(as_of=LONG_AGO) == [("acme", "2024-02", ["post:1"], False)]
    assert holding(as_of=removed_at - timedelta(microseconds=1)) == [("acme", "2024-02", ["post:1"], False)]
    assert holding(as_of=removed_at) == [("acme", "2024-02", ["post:1"], True)]


@pytest.mark.parametrize(
    ("items", "status", "is_removed"),
    [
        (None, "completed", True),
        (("post:1", "post:2", "post:3"), "completed", True),
        (("post:1",), "completed", False),
        (None, "partially_completed", False),
        (None, "received", False),
    ],
)
def test_only_a_completed_notice_about_all_of_it_ends_a_holding(
    acme: Partner, items: tuple[str, ...] | None, status: str, is_removed: bool
) -> None:
    disclose(make_release("r", contents={"site:1": ["post:1", "post:2"]}), acme)
    record(make_wish("site:1", kind="deletion", items=items))
    plan()
    answer(acme, 1, status)
    assert holding() == [("acme", "r", ["post:1", "post:2"], is_removed)]


def test_what_is_handed_over_again_is_held_again(acme: Partner) -> None:
    release = make_release("r", contents={"site:1": ["post:1"]})
    disclose(release, acme)
    record(make_wish("site:1"))
    plan()
    answer(acme, 1)
    disclose(release, acme)
    plan()
    assert [is_removed for *_, is_removed in holding()] == [True, False]


def test_an_offboarding_ends_all_holdings(acme: Partner, globex: Partner) -> None:
    release = make_release("r", contents={"site:1": ["post:1"]})
    disclose(release, acme)
    disclose(release, globex)
    record(make_wish("", kind="offboarding", partner="acme", reason="licence_ended"))
    plan()
    answer(acme, 1)
    assert [(partner, is_removed) for partner, _, _, is_removed in holding()] == [("acme", True), ("globex", False)]


def test_a_thousand_items_are_listed_and_all_are_counted(acme: Partner) -> None:
    disclose(make_release("r", contents={"site:1": [f"post:{n}" for n in range(1001)]}), acme)
    [holder] = holders_of(subject="site:1", as_of=timezone.now())
    assert (len(holder.items), holder.items_total) == (1000, 1001)


# What a partner holds and owes


def test_a_partner_is_summed_up(acme: Partner, globex: Partner) -> None:
    older = make_release("2024-02", contents={"site:1": ["post:1", "post:2"], "site:2": ["post:1"]})
    newer = make_release("2025-01", contents={"site:1": ["post:1"]})
    first = hand_over(older, acme, LONG_AGO)
    again = hand_over(older, acme, LONG_AGO + timedelta(days=1))
    only = hand_over(newer, acme, LONG_AGO + timedelta(days=2))
    disclose(newer, globex)
    wishes = [record(make_wish(f"site:{n}")) for n in (1, 2)]
    plan()
    answer(acme, 1)

    found = holdings_of(partner="acme", now=timezone.now())
    assert found.releases == [
        holdings.HeldRelease("2024-02", "sealed", 2, 3, 2, first.disclosed_at, again.disclosed_at),
        holdings.HeldRelease("2025-01", "sealed", 1, 1, 1, only.disclosed_at, only.disclosed_at),
    ]
    owed = Notice.objects.get(stream=acme.pk, sequence=2)
    assert (found.items, found.open_notices, found.overdue_notices) == (4, 1, 0)
    assert found.oldest == holdings.OpenNotice(2, wishes[1].public_id, owed.planned_at, owed.respond_by)
    assert holdings_of(partner="acme", now=owed.respond_by + timedelta(seconds=1)).overdue_notices == 1


def test_a_partner_without_anything_owes_nothing(acme: Partner) -> None:
    assert holdings_of(partner="acme", now=timezone.now()) == holdings.Holdings("acme", 0, [], 0, 0, None)
    with pytest.raises(holdings.UnknownPartner):
        holdings_of(partner="nobody", now=timezone.now())


# The window between a request and its effect


def windows(request: RemovalRequest) -> dict[str, tuple[bool, list[str]]]:
    found = window_of(source="blogs", public_id=request.public_id)
    return {
        window.partner: (window.told_at is not None, [handover.release for handover in window.handovers])
        for window in found
    }


def test_the_window_shows_what_was_handed_over_before_a_partner_was_told(acme: Partner, globex: Partner) -> None:
    before, meanwhile, after = (make_release(name, contents={"site:1": ["post:1"]}) for name in ("a", "b", "c"))
    disclose(before, acme)
    disclose(before, globex)
    request = record(make_wish("site:1"))
    plan()
    assert windows(request) == {"acme": (False, []), "globex": (False, [])}

    slipped = disclose(meanwhile, acme)
    disclose(make_release("other", contents={"site:2": ["post:1"]}), acme)
    plan()
    assert windows(request) == {"acme": (False, ["b"]), "globex": (False, [])}

    answer(acme, 1, "received")
    answer(globex, 1, "received")
    disclose(after, acme)
    disclose(after, globex)
    plan()
    assert windows(request) == {"acme": (True, ["b"]), "globex": (True, [])}
    [acme_window, _] = window_of(source="blogs", public_id=request.public_id)
    assert acme_window.handovers == [Handover("b", slipped.reference, slipped.disclosed_at, slipped.recorded_at)]


def test_a_window_ends_with_the_partners_first_word(acme: Partner) -> None:
    first, later = (make_release(name, contents={"site:1": ["post:1"]}) for name in ("a", "b"))
    disclose(first, acme)
    request = record(make_wish("site:1"))
    plan()
    answer(acme, 1, "in_progress")
    [before] = window_of(source="blogs", public_id=request.public_id)
    disclose(later, acme)
    plan()
    answer(acme, 1)
    assert window_of(source="blogs", public_id=request.public_id) == [before]


def test_a_request_that_repeats_another_has_its_own_window(acme: Partner) -> None:
    before, meanwhile = (make_release(name, contents={"site:1": ["post:1"]}) for name in ("a", "b"))
    disclose(before, acme)
    first = record(make_wish("site:1"))
    disclose(meanwhile, acme)
    repeat = record(make_wish("site:1"))
    plan()
    assert windows(first) == {"acme": (False, ["b"])}
    assert windows(repeat) == {"acme": (False, [])}


def test_a_request_of_another_platform_is_unknown(acme: Partner) -> None:
    request = record(make_wish("site:1"), source="photos")
    for ask in (window_of, releases_with):
        with pytest.raises(UnknownRequest):
            ask(source="blogs", public_id=request.public_id)


# Which releases


def test_releases_with_content_of_a_recall_are_listed_wherever_it_is() -> None:
    contents = {f"site:{n}": ["post:1", "post:2"] for n in range(4)}
    make_release("named", contents=contents)
    make_release("building", contents={"site:1": ["post:1"], "site:2": ["post:9"]}, sealed=False)
    make_release("without", contents={"site:1": ["post:7"], "site:9": ["post:1"]})
    done = recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="k", releases=("named",)),
        lines=[recall.Line(1, "site:1", ["post:1"]), recall.Line(2, "site:2", None)],
        now=timezone.now(),
    )
    assert releases_with(source="blogs", public_id=done.public_id) == [
        ReleaseWith("named", "sealed", 2, 3),
        ReleaseWith("building", "building", 2, 2),
    ]


def call_back(*subjects: str, release: str) -> str:
    lines = [recall.Line(n, subject, None) for n, subject in enumerate(subjects, start=1)]
    said = recall.Recall(idempotency_key="k", releases=(release,))
    return recall.record_recall(source="blogs", actor="test", recall=said, lines=lines, now=timezone.now()).public_id


@pytest.mark.parametrize("along_indexes", ["on", "off"])
def test_of_very_many_targets_a_sample_from_first_to_last_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, along_indexes: str
) -> None:
    monkeypatch.setattr(holdings, "COUNTED_TARGETS", 1)
    monkeypatch.setattr(holdings, "SAMPLED_TARGETS", 4)
    subjects = [f"site:{n:02}" for n in range(41)]
    make_release("named", contents={subject: ["post:1"] for subject in subjects})
    for n in (0, 10, 20, 30, 40):
        make_release(f"with-{n:02}", contents={subjects[n]: ["post:2"]})
    make_release("without", contents={"site:99": ["post:1"]})
    record(make_wish("site:05", kind="deletion"))
    public_id = call_back(*reversed(subjects), release="named")
    with transaction.atomic(), connection.cursor() as cursor:  # however the statement is planned
        for way in ("indexscan", "indexonlyscan", "bitmapscan"):
            cursor.execute(f"set local enable_{way} = {along_indexes}")
        found = [release.release for release in releases_with(source="blogs", public_id=public_id)]
    assert found == ["named", "with-00", "with-10", "with-20", "with-30", "with-40"]


def test_a_named_release_is_found_however_little_of_it_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "COUNTED_TARGETS", 1)
    monkeypatch.setattr(holdings, "SAMPLED_TARGETS", 1)
    subjects = [f"site:{n}" for n in range(9)]
    make_release("all", contents={subject: ["post:1"] for subject in subjects})
    make_release("little", contents={"site:4": ["post:1"]})
    make_release("nothing", contents={"site:99": ["post:1"]})
    done = recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="k", releases=("all", "little", "nothing")),
        lines=[recall.Line(n, subject, None) for n, subject in enumerate(subjects, start=1)],
        now=timezone.now(),
    )
    found = [release.release for release in releases_with(source="blogs", public_id=done.public_id)]
    assert found == ["all", "little"]


@pytest.mark.parametrize("known", ["nothing", "a few", "all"])
def test_what_is_read_to_find_releases_does_not_grow_with_the_targets(known: str) -> None:
    for n in range(10):
        record(make_wish(f"elsewhere:{n}"))
    if known == "a few":
        analyze("removal_requesttarget")
    subjects = [f"site:{n}" for n in range(20_000)]
    make_release("a", contents={subject: ["post:1"] for subject in subjects})
    for n in range(5):
        make_release(f"without-{n}", contents={f"other:{n}": ["post:1"]})
    public_id = call_back(*subjects, release="a")
    if known == "all":
        analyze("removal_requesttarget")
    # in one transaction, so that it is explained under the settings that it was run with
    with transaction.atomic(), CaptureQueriesContext(connection) as asked:
        assert [release.release for release in releases_with(source="blogs", public_id=public_id)] == ["a"]
        [statement] = [query["sql"] for query in asked if "ends as materialized" in query["sql"]]
        assert rows_read(statement).total() < 5_000


def test_what_is_too_much_to_count_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "COUNTED_TARGETS", 0)
    make_release("with", contents={"site:1": ["post:1"]})
    make_release("without", contents={"site:1": ["post:2"], "site:2": ["post:1"]})
    request = record(make_wish("site:1", kind="deletion", items=("post:1",)))
    assert releases_with(source="blogs", public_id=request.public_id) == [ReleaseWith("with", "sealed", None, None)]
