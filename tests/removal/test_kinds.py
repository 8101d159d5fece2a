"""Recall, offboarding, reinstatement: the same path, told to those who hold it."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from partners.models import Partner
from removal import delivery, intake, invariants, large, ledger, payload, planning, recall
from removal.acknowledgement import acknowledge
from removal.models import MatchedPiece, Notice, Preference, RemovalRequest
from removal.policies import notice_rules
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=30)


def plan() -> None:
    planning.plan(budget=BUDGET)


def stream_of(partner: Partner) -> list[payload.Notice]:
    notices = payload.read_notices(stream_id=partner.pk, epoch=1, first=1, last=1000)
    encoded = payload.read_encoded(stream_id=partner.pk, epoch=1, first=1, last=len(notices))
    assert [json.loads(notice) for notice in encoded] == notices
    return notices


def call_back(releases: tuple[str, ...], *lines: tuple[str, list[str] | None], key: str = "r-1") -> recall.Recalled:
    return recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key=key, releases=releases),
        lines=(recall.Line(n, subject, items) for n, (subject, items) in enumerate(lines, start=1)),
        now=timezone.now(),
    )


def test_a_recall_is_one_notice_to_each_holder_of_the_named_releases() -> None:
    holder, other = make_partner().partner, make_partner().partner
    release = make_release("2025-01", contents={f"site:{n}": ["post:1", "post:2"] for n in range(4)})
    elsewhere = make_release("2024-02", contents={"site:1": ["post:1"]})
    disclose(release, holder)
    disclose(elsewhere, other)

    done = call_back(("2025-01",), ("site:1", ["post:1"]), ("site:2", None))
    plan()

    assert (done.created, done.accepted, done.refused_count) == (True, [(1, 2)], 0)
    [notice] = stream_of(holder)
    assert stream_of(other) == []
    assert (notice["kind"], notice["reason"], notice["items_total"]) == ("recall", "shared_in_error", 3)
    assert (notice["subjects_total"], notice["releases"]) == (2, ["2025-01"])
    assert notice["items_url"] == "http://testserver/v1/stream/1/items"
    assert "subject" not in notice
    assert "held" not in notice


def test_lines_that_were_never_in_the_releases_are_refused_and_the_others_stand() -> None:
    make_release("2025-01", contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    done = call_back(
        ("2025-01",), ("site:1", ["post:1"]), ("site:9", None), ("site:2", ["post:1", "post:7"]), ("site:1", None)
    )
    assert (done.accepted, done.accepted_count) == ([(1, 1)], 1)
    assert [(refused.line, refused.code) for refused in done.refused] == [
        (2, "not_in_these_releases"),
        (3, "item_not_in_these_releases"),
        (4, "repeated_subject"),
    ]
    assert RemovalRequest.objects.get().target_count == 1


@pytest.mark.parametrize("releases", [("nope",), ("building",), ()])
def test_a_recall_of_what_nobody_was_given_is_refused(releases: tuple[str, ...]) -> None:
    make_release("building", contents={"site:1": ["post:1"]}, sealed=False)
    with pytest.raises(intake.InvalidWish):
        call_back(releases, ("site:1", None))
    assert RemovalRequest.objects.count() == 0


def test_a_recall_under_the_same_key_is_recorded_once() -> None:
    make_release("r", contents={"site:1": ["post:1"]})
    first = call_back(("r",), ("site:1", None))
    assert call_back(("r",), ("site:1", None)) == recall.Recalled(first.public_id, created=False)
    with pytest.raises(intake.KeyReused):
        call_back(("r",), ("site:1", ["post:1"]))
    assert RemovalRequest.objects.count() == 1


def test_a_large_recall_is_matched_in_pieces_and_can_go_on_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 10)
    monkeypatch.setattr(large, "PIECE", 7)
    holder, late = make_partner().partner, make_partner().partner
    contents = {f"site:{n}": ["post:1", "post:2"] for n in range(30)}
    disclosures = [disclose(make_release(name, contents=contents), holder).pk for name in ("a", "b")]
    plan()
    late_release = make_release("late", contents={"site:1": ["post:9"]})
    call_back(("a", "b"), *[(subject, None) for subject in contents])
    plan()
    assert Notice.objects.count() == 0

    large._start()
    assert large._match_piece() == (RemovalRequest.objects.get().pk, False)
    # An opt-out and a late handover beside it are planned as ever.
    opt_out = record(make_wish("site:3"))
    disclose(late_release, late)
    plan()
    assert Notice.objects.get().request == opt_out
    assert planning.reconcile() == planning.Round(0, 0, 0, ())

    assert large.advance(budget=BUDGET) == {holder.pk}

    [first, second] = stream_of(holder)
    assert (first["kind"], second["kind"]) == ("opt_out", "recall")
    assert (second["items_total"], second["subjects_total"], second["releases"]) == (60, 30, ["a", "b"])
    assert Notice.objects.get(kind="recall").disclosures == disclosures
    assert MatchedPiece.objects.count() == 0
    request = RemovalRequest.objects.get(kind="recall")
    assert (request.state, request.is_matching) == ("planned", False)
    assert planning.reconcile() == planning.Round(0, 0, 0, ())


def test_a_large_recall_that_met_nobody_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    make_release("a", contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    call_back(("a",), ("site:1", None), ("site:2", None))
    assert large.advance(budget=BUDGET) == set()
    assert RemovalRequest.objects.values_list("state", "outcome").get() == ("closed", "nothing_disclosed")


def test_a_handover_during_a_large_recall_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    first, late = make_partner().partner, make_partner().partner
    release = make_release("a", contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    disclose(release, first)
    plan()
    call_back(("a",), ("site:1", None), ("site:2", None))
    large._start()
    disclose(release, late)
    plan()
    large.advance(budget=BUDGET)
    assert sorted(Notice.objects.values_list("stream_id", "item_count")) == sorted([(first.pk, 2), (late.pk, 2)])


def answer(partner: Partner) -> None:
    """Have the partner complete its first notice."""
    delivery.claim(partner_id=partner.pk)
    said = Statement(status="completed", text="{}", sequence=1)
    assert acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[said]).accepted == 1


def offboard(slug: str) -> RemovalRequest:
    wish = make_wish("", kind="offboarding", partner=slug, reason="licence_ended")
    return record(wish)


def test_an_offboarding_is_about_everything_that_one_partner_holds() -> None:
    leaving, staying = make_partner("acme").partner, make_partner().partner
    release = make_release("2025-01", contents={"site:1": ["post:1"], "site:2": ["post:1", "post:2"]})
    disclose(release, leaving)
    disclose(release, staying)
    offboard("acme")
    plan()
    [notice] = stream_of(leaving)
    assert (notice["kind"], notice["releases"], notice["items_total"]) == ("offboarding", ["2025-01"], 3)
    assert "items_url" not in notice
    assert stream_of(staying) == []
    # What it is given by mistake afterwards is told as well.
    disclose(make_release("2025-02", contents={"site:1": ["post:3"]}), leaving)
    plan()
    assert [(n["kind"], n["releases"]) for n in stream_of(leaving)] == [
        ("offboarding", ["2025-01"]),
        ("offboarding", ["2025-02"]),
    ]
    assert planning.reconcile() == planning.Round(0, 0, 0, ())


def test_an_offboarding_has_ten_business_days() -> None:
    friday = datetime(2026, 11, 27, 15, tzinfo=UTC)
    assert notice_rules(now=friday)["offboarded_by"] == datetime(2026, 12, 11, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"kind": "offboarding", "subject": "site:1"}, "partner"),
        ({"kind": "offboarding", "subject": ""}, "partner"),
        ({"kind": "offboarding", "subject": "", "partner": "nobody"}, "partner"),
        ({"kind": "opt_out", "subject": "site:1", "partner": "acme"}, "subject"),
        ({"kind": "reinstatement", "subject": "site:1", "usages": ("search",)}, "usages"),
    ],
)
def test_a_wish_of_another_kind_that_contradicts_itself_is_refused(said: dict[str, object], field: str) -> None:
    with pytest.raises(intake.InvalidWish) as refused:
        record(make_wish(**said))  # type: ignore[arg-type]
    assert refused.value.field == field


def test_a_reinstatement_is_told_to_those_who_were_told_and_names_what_it_undoes() -> None:
    holder, other = make_partner().partner, make_partner().partner
    release = make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    disclose(release, holder)
    disclose(make_release(contents={"site:3": ["post:1"]}), other)
    record(make_wish("site:2"))
    record(make_wish("site:1"))
    plan()
    record(make_wish("site:1", kind="reinstatement"))
    plan()
    assert [(n["sequence"], n["kind"], n.get("undoes")) for n in stream_of(holder)] == [
        (1, "opt_out", None),
        (2, "opt_out", None),
        (3, "reinstatement", [2]),
    ]
    assert stream_of(other) == []
    assert list(Preference.objects.filter(valid_to=None, subject__key="site:1").values_list("usage", "value")) == [
        ("all", "allow")
    ]


def test_wishes_within_a_second_keep_their_order() -> None:
    holder = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), holder)
    wishes = [make_wish("site:1"), make_wish("site:1", kind="reinstatement"), make_wish("site:1")]
    intake.record_requests(source="blogs", actor="test", wishes=wishes, now=timezone.now())
    plan()
    assert [(n["kind"], n.get("undoes")) for n in stream_of(holder)] == [
        ("opt_out", None),
        ("reinstatement", [1]),
        ("opt_out", None),
    ]
    first, _, last = RemovalRequest.objects.order_by("id")
    assert (first.ended_by_id is not None, last.ended_by_id, last.repeats) == (True, None, None)
    assert Preference.objects.get(valid_to=None).value == "disallow"


def test_a_late_handover_of_an_ended_wish_is_followed_by_its_reinstatement_again() -> None:
    holder, late = make_partner().partner, make_partner().partner
    release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, holder)
    record(make_wish("site:1"))
    before = timezone.now()
    plan()
    record(make_wish("site:1", kind="reinstatement"))
    plan()
    # Recorded now, but it happened before the person opted back in.
    ledger.record_disclosure(
        actor="test", release=release.name, partner=late.slug, reference="late", disclosed_at=before, now=timezone.now()
    )
    disclose(release, holder)  # after it: allowed
    plan()
    assert [n["kind"] for n in stream_of(late)] == ["opt_out", "reinstatement"]
    assert [n["kind"] for n in stream_of(holder)] == ["opt_out", "reinstatement"]
    assert planning.reconcile() == planning.Round(0, 0, 0, ())


def test_a_reinstatement_is_not_withdrawn() -> None:
    request = record(make_wish("site:1", kind="reinstatement"))
    with pytest.raises(intake.CannotWithdraw):
        intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)


def test_a_withdrawn_large_recall_is_matched_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    disclose(make_release("a", contents={"site:1": ["post:1"], "site:2": ["post:1"]}), make_partner().partner)
    plan()
    done = call_back(("a",), ("site:1", None), ("site:2", None))
    large._start()
    large._match_piece()
    request = RemovalRequest.objects.get()
    intake.withdraw_request(source="blogs", actor="test", public_id=done.public_id)
    assert large.advance(budget=BUDGET) == set()
    assert large._finish(request.pk) == planning.Round(0, 0, 0, ())  # it was at the last step already
    assert Notice.objects.count() == MatchedPiece.objects.count() == 0
    request.refresh_from_db()
    assert (request.state, request.outcome) == ("closed", "withdrawn")


def test_a_large_recall_stays_open_for_the_notice_of_a_late_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    release = make_release("a", contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    call_back(("a",), ("site:1", None), ("site:2", None))
    large._start()
    holder = make_partner().partner
    disclose(release, holder)
    plan()
    large.advance(budget=BUDGET)
    assert RemovalRequest.objects.get().state == "planned"
    answer(holder)
    assert RemovalRequest.objects.get().outcome == "fulfilled"


def test_a_large_recall_whose_late_notice_is_answered_early_closes_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LARGE", 1)
    release = make_release("a", contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    call_back(("a",), ("site:1", None), ("site:2", None))
    large._start()
    holder = make_partner().partner
    disclose(release, holder)
    plan()
    answer(holder)
    assert RemovalRequest.objects.get().state == "planned"
    large.advance(budget=BUDGET)
    assert RemovalRequest.objects.values_list("state", "outcome").get() == ("closed", "fulfilled")


def test_of_a_reinstatement_and_an_opt_out_at_once_the_later_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reinstatement is held where its request is written and its subject is not yet looked at."""
    record(make_wish("site:1"))
    written, go_on = threading.Event(), threading.Event()
    settle = intake._settle_preferences

    def hold(*arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            written.set()
            go_on.wait(2)
        settle(*arguments)

    monkeypatch.setattr(intake, "_settle_preferences", hold)

    def come_back() -> None:
        try:
            record(make_wish("site:1", kind="reinstatement"))
        finally:
            connection.close()

    thread = threading.Thread(target=come_back)
    thread.start()
    assert written.wait(5)
    threading.Timer(0.3, go_on.set).start()
    again = record(make_wish("site:1", usages=("train-ai",)))  # waits for the reinstatement
    thread.join()
    again.refresh_from_db()
    assert (again.repeats, again.ended_by) == (None, None)
    broken = {name: count for name, count in invariants.check().items() if count}
    assert broken == {}
