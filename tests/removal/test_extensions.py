"""More time: asked by the partner, decided once by a person, and the date stands until then."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, closing, delivery, extensions, intake, planning
from removal.models import Extension, LogEntry, Notice, RemovalRequest
from removal.statements import Answer, Said, Statement, Wish
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


@pytest.fixture
def partner() -> Partner:
    return make_partner("acme").partner


def tell(partner: Partner, *, notices: int = 1, sent: bool = True) -> None:
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    if sent:
        delivery.claim(partner_id=partner.pk)


def wish(sequence: int = 1, *, until: datetime | None = None, reason: str = "Backups.", **more: Any) -> Wish:
    return Wish(sequence, until or in_days(60), reason, "{}", **more)


def in_days(days: int) -> datetime:
    return (timezone.now() + timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)


def say(partner: Partner, *said: Said) -> Answer:
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=said)


def counts(answer: Answer) -> tuple[int, int, list[str]]:
    return answer.accepted, answer.unchanged, [refusal.code for refusal in answer.refused]


def log() -> list[tuple[str, str]]:
    entries = LogEntry.objects.filter(action__startswith="extension_").order_by("pk")
    return list(entries.values_list("actor", "action"))


def test_the_date_stands_until_it_is_granted(partner: Partner) -> None:
    tell(partner)
    before = Notice.objects.get().respond_by
    assert counts(say(partner, wish())) == (1, 0, [])
    assert Notice.objects.get().respond_by == before

    asked = Extension.objects.get()
    extensions.grant(extension_id=asked.pk, actor="staff:7", decision=" Tape backups take longer. ")

    assert Notice.objects.get().respond_by == in_days(60)
    asked.refresh_from_db()
    assert (asked.state, asked.decided_by, asked.decision) == ("granted", "staff:7", "Tape backups take longer.")
    assert asked.decided_at
    assert log() == [("api:rk_test", "extension_asked"), ("staff:7", "extension_granted")]
    about = LogEntry.objects.get(action="extension_granted").about
    assert about == {
        "partner": partner.pk, "epoch": 1, "sequence": 1, "extension": asked.pk,
        "until": f"{in_days(60):%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    assert RemovalRequest.objects.get().state == "planned"


def test_a_partner_that_is_told_days_cannot_find_out_the_moment_by_trying() -> None:
    partner = make_partner("hashed", identifiers="hmac_sha256").partner
    tell(partner)
    due = Notice.objects.get().respond_by
    day = due.replace(hour=0, minute=0, second=0, microsecond=0)

    for until in (due - timedelta(seconds=1), due + timedelta(seconds=1), day + timedelta(hours=23, minutes=59)):
        [refusal] = say(partner, wish(until=until)).refused
        assert refusal.code == "not_later"
        assert refusal.message == f"The answer is due by {day:%Y-%m-%d}T00:00:00Z. Ask for a later date."
    assert counts(say(partner, wish(until=day + timedelta(days=1)))) == (1, 0, [])


def test_no_time_is_asked_or_given_for_a_notice_that_a_person_closed(partner: Partner) -> None:
    tell(partner, notices=2)
    say(partner, wish(1))
    lead = User.objects.create_user("lead", is_staff=True)
    for notice in Notice.objects.order_by("sequence"):
        closing.close_notice(user_id=lead.pk, notice_id=notice.pk, reason="duplicate", text="The same wish as before.")

    assert counts(say(partner, wish(2))) == (0, 0, ["already_ended"])
    with pytest.raises(extensions.NothingToExtend):
        extensions.grant(extension_id=Extension.objects.get().pk, actor="staff:7", decision="Tapes.")


def test_a_refused_wish_changes_no_date_and_another_may_be_asked(partner: Partner) -> None:
    tell(partner)
    before = Notice.objects.get().respond_by
    say(partner, wish())
    extensions.refuse(extension_id=Extension.objects.get().pk, actor="staff:7", decision="Not needed.")
    assert Notice.objects.get().respond_by == before
    assert counts(say(partner, wish())) == (0, 1, [])  # that was decided
    assert counts(say(partner, wish(reason="A court order."))) == (1, 0, [])
    assert [action for _, action in log()] == ["extension_asked", "extension_refused", "extension_asked"]


def test_one_wish_is_open_and_one_is_granted(partner: Partner) -> None:
    tell(partner)
    answer = say(partner, wish(), wish(), wish(until=in_days(90)))
    assert counts(answer) == (1, 1, ["extension_pending"])
    extensions.grant(extension_id=Extension.objects.get().pk, actor="staff:7", decision="Yes.")
    assert counts(say(partner, wish(), wish(until=in_days(90)))) == (0, 1, ["already_extended"])


@pytest.mark.parametrize(
    ("days", "code"), [(-400, "not_later"), (-1, "not_later"), (29, "not_later"), (365, ""), (367, "too_far")]
)
def test_a_date_is_later_than_the_one_that_stands_and_within_a_year(partner: Partner, days: int, code: str) -> None:
    tell(partner)
    assert counts(say(partner, wish(until=in_days(days))))[2] == ([code] if code else [])


def test_a_date_that_has_passed_is_refused_although_it_is_later_than_the_notices(partner: Partner) -> None:
    tell(partner)
    Notice.objects.update(respond_by=in_days(-10))
    assert counts(say(partner, wish(until=in_days(-1)))) == (0, 0, ["not_later"])


def test_what_has_ended_is_not_extended(partner: Partner) -> None:
    tell(partner, notices=2)
    intake.withdraw_request(
        source="blogs", actor="test", public_id=RemovalRequest.objects.get(notices__sequence=2).public_id
    )
    Notice.objects.filter(sequence=2).update(withdrawn_at=timezone.now())
    completed = Statement(status="completed", text="{}", sequence=1)
    assert counts(say(partner, completed, wish(), wish(2))) == (1, 0, ["already_ended", "already_ended"])


def test_lines_are_taken_in_their_order(partner: Partner) -> None:
    tell(partner)
    completed = Statement(status="completed", text="{}", sequence=1)
    assert counts(say(partner, wish(), completed)) == (2, 0, [])
    asked = Extension.objects.get()
    with pytest.raises(extensions.NothingToExtend):
        extensions.grant(extension_id=asked.pk, actor="staff:7", decision="Yes.")


def test_only_numbers_of_the_partners_own_are_extended(partner: Partner) -> None:
    tell(partner)
    stranger = make_partner("globex").partner
    assert counts(say(stranger, wish())) == (0, 0, ["unknown_sequence"])
    assert counts(say(partner, wish(2), wish(epoch=2))) == (0, 0, ["unknown_sequence", "wrong_epoch"])


def test_a_number_that_was_not_sent_is_not_extended(partner: Partner) -> None:
    tell(partner, sent=False)
    assert counts(say(partner, wish())) == (0, 0, ["not_yet_sent"])


def test_a_decision_needs_a_text_and_is_made_once(partner: Partner) -> None:
    tell(partner)
    say(partner, wish())
    asked = Extension.objects.get()
    with pytest.raises(extensions.DecisionNeeded):
        extensions.grant(extension_id=asked.pk, actor="staff:7", decision=" ")
    extensions.refuse(extension_id=asked.pk, actor="staff:7", decision="No.")
    with pytest.raises(extensions.NotAsked):
        extensions.grant(extension_id=asked.pk, actor="staff:8", decision="Yes.")


def test_of_two_decisions_at_once_one_stands(partner: Partner) -> None:
    tell(partner)
    say(partner, wish())
    pk = Extension.objects.get().pk
    ready = threading.Barrier(2)
    done: list[str] = []

    def decide(step: Any) -> None:
        try:
            ready.wait()
            step(extension_id=pk, actor="staff:7", decision="So be it.")
            done.append(step.__name__)
        except extensions.NotAsked:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=decide, args=(step,)) for step in (extensions.grant, extensions.refuse)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert Extension.objects.get().state == {"grant": "granted", "refuse": "refused"}[done[0]]
    assert len(log()) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"extend_until": datetime(2030, 1, 1, tzinfo=timezone.get_current_timezone())},
        {"reason": "Another."},
        {"sequence": 2},
    ],
)
def test_what_was_asked_is_history(partner: Partner, change: dict[str, Any]) -> None:
    tell(partner)
    say(partner, wish())
    with pytest.raises(DatabaseError, match="for ever what was asked"), transaction.atomic():
        Extension.objects.update(**change)
    with pytest.raises(DatabaseError, match="is history"), transaction.atomic():
        Extension.objects.all().delete()
    extensions.refuse(extension_id=Extension.objects.get().pk, actor="staff:7", decision="No.")
    with pytest.raises(DatabaseError, match="decided once"), transaction.atomic():
        Extension.objects.update(state="granted")
