"""Which policy holds, for requests and for notices alike, and that a date once made stays."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone

from partners.models import Partner
from removal import deadlines, planning, recall
from removal.deadlines import Calendar, Term
from removal.models import DeadlinePolicy, Holiday, Notice, RemovalRequest
from removal.policies import Asked, request_dates
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)
ASKED_AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def make_policy(name: str, *, clock: str = "notice", within: str = "1 day", **said: Any) -> DeadlinePolicy:
    policy = DeadlinePolicy(name=name, clock=clock, completed_within=within, **said)
    policy.full_clean()
    policy.save()
    return policy


def ask(kind: str = "opt_out", jurisdiction: str = "", *, at: datetime = ASKED_AT) -> RemovalRequest:
    return record(make_wish(f"site:{kind}:{jurisdiction}", kind=kind, jurisdiction=jurisdiction, received_at=at))


def tell(*partners: Partner, jurisdiction: str = "", kind: str = "opt_out") -> dict[str, Notice]:
    """Plan a request that all of these hold; returns the newest notice of each."""
    subject = f"site:{timezone.now().timestamp()}"
    release = make_release(contents={subject: ["post:1"]})
    for partner in partners:
        disclose(release, partner)
    record(make_wish(subject, jurisdiction=jurisdiction, kind=kind))
    planning.plan(budget=BUDGET)
    return {
        partner.slug: Notice.objects.filter(stream=partner.pk).order_by("-sequence")[:1].get() for partner in partners
    }


@pytest.mark.parametrize(
    ("kind", "jurisdiction", "policy", "respond_by", "confirm_by", "extendable_to"),
    [
        # without a policy: a calendar month to the same time of day
        ("opt_out", "", "", "2026-02-28 12:00:00", None, "2026-04-30 12:00:00"),
        ("opt_out", "br", "", "2026-02-28 12:00:00", None, "2026-04-30 12:00:00"),
        ("opt_out", "eu", "gdpr", "2026-02-28 22:59:59", None, "2026-04-30 21:59:59"),
        ("deletion", "de", "gdpr", "2026-02-28 22:59:59", None, "2026-04-30 21:59:59"),
        ("deletion", "fr-idf", "gdpr", "2026-02-28 22:59:59", None, "2026-04-30 21:59:59"),
        ("deletion", "us-ca", "ccpa-delete", "2026-03-18 06:59:59", "2026-02-14 07:59:59", "2026-05-02 06:59:59"),
        ("opt_out", "us-ca", "ccpa-opt-out", "2026-02-24 07:59:59", None, None),
        ("opt_out", "us-ny", "", "2026-02-28 12:00:00", None, "2026-04-30 12:00:00"),
    ],
)
def test_a_request_gets_its_dates_from_the_policy_that_holds(
    kind: str, jurisdiction: str, policy: str, respond_by: str, confirm_by: str | None, extendable_to: str | None
) -> None:
    request = ask(kind, jurisdiction)
    dates = (request.respond_by, request.confirm_by, request.extendable_to)
    assert request.deadline_policy == policy
    assert tuple(date and date.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") for date in dates) == (
        respond_by,
        confirm_by,
        extendable_to,
    )


def test_a_block_of_requests_has_each_its_own_dates() -> None:
    asked = [Asked("opt_out", "eu", ASKED_AT), Asked("opt_out", "", ASKED_AT), Asked("deletion", "us-ca", ASKED_AT)]
    with connection.cursor() as cursor:
        assert [dates.policy for dates in request_dates(cursor, asked)] == ["gdpr", "", "ccpa-delete"]


def test_a_recall_has_a_policy_for_any_jurisdiction() -> None:
    make_policy("recalls", clock="request", within="5 days", kinds=["recall"])
    make_release("r", contents={"site:1": ["post:1"]})
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="r-1", releases=("r",), received_at=ASKED_AT),
        lines=[recall.Line(1, "site:1", None)],
        now=timezone.now(),
    )
    request = RemovalRequest.objects.get()
    assert (request.deadline_policy, request.respond_by) == ("recalls", datetime(2026, 2, 5, 23, 59, 59, tzinfo=UTC))
    assert request.extendable_to is None


# From the least specific on: each one wins over all before it.
PRECEDENCE: list[dict[str, Any]] = [
    {},
    {"kinds": ["opt_out"]},
    {"jurisdictions": ["us"]},
    {"jurisdictions": ["us"], "kinds": ["opt_out"]},
    {"jurisdictions": ["us-tx"]},
    {"jurisdictions": ["us-tx"], "kinds": ["opt_out", "deletion"]},
    {"partner": True},
    {"partner": True, "kinds": ["opt_out"]},
    {"partner": True, "jurisdictions": ["us-tx"]},
]


def test_the_most_specific_policy_wins_whatever_the_order_they_were_made_in() -> None:
    partner, other = make_partner("acme").partner, make_partner("globex").partner
    for order in (PRECEDENCE, PRECEDENCE[::-1]):
        DeadlinePolicy.objects.filter(clock="notice").delete()
        for place, fits in enumerate(PRECEDENCE):
            if order is PRECEDENCE:
                make_of(place, fits, partner)
        if order is not PRECEDENCE:
            for place, fits in reversed(list(enumerate(PRECEDENCE))):
                make_of(place, fits, partner)
        for place in reversed(range(len(PRECEDENCE))):
            told = tell(partner, other, jurisdiction="us-tx")
            assert days_of(told["acme"]) == place + 1
            assert days_of(told["globex"]) == min(place + 1, 6)
            DeadlinePolicy.objects.get(name=f"at {place}").delete()


def make_of(place: int, fits: dict[str, Any], partner: Partner) -> None:
    said = {**fits, "partner": partner} if fits.get("partner") else fits
    make_policy(f"at {place}", within=f"{place + 1} days", **said)


def days_of(notice: Notice) -> int:
    return (notice.respond_by.date() - notice.planned_at.date()).days


def test_of_two_that_are_alike_the_newest_wins_and_one_not_in_force_never() -> None:
    partner = make_partner("acme").partner
    make_policy("old", within="2 days")
    make_policy("new", within="3 days")
    make_policy("newest", within="4 days", in_force=False)
    assert days_of(tell(partner)["acme"]) == 3


def test_a_notice_gets_all_its_dates_from_the_contract() -> None:
    acme, globex = make_partner("acme").partner, make_partner("globex").partner
    make_policy("contract", within="24 hours", sent_within="1 hour", received_within="2 hours", partner=acme)
    told = tell(acme, globex)
    notice = told["acme"]
    dates = (notice.send_by, notice.receive_by, notice.respond_by)
    for date, hours in zip(dates, (1, 2, 24), strict=True):
        assert date is not None
        assert abs(date - notice.planned_at - timedelta(hours=hours)) < timedelta(seconds=5)
    other = told["globex"]
    assert abs(other.respond_by - other.planned_at - timedelta(days=30)) < timedelta(seconds=5)
    assert other.receive_by == deadlines.due(
        Term(3, "business days"), start=other.planned_at, calendar=Calendar(ZoneInfo("UTC"))
    )


def test_a_policy_without_a_date_for_receipt_leaves_the_defaults() -> None:
    partner = make_partner("acme").partner
    make_policy("short", within="24 hours")
    notice = tell(partner)["acme"]
    assert notice.receive_by is not None
    assert notice.send_by is not None


def test_an_offboarding_keeps_its_ten_business_days_without_a_policy() -> None:
    partner = make_partner("acme").partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("", kind="offboarding", partner="acme"))
    planning.plan(budget=BUDGET)
    notice = Notice.objects.get()
    term, weekdays = Term(10, "business days"), Calendar(ZoneInfo("UTC"))
    assert notice.respond_by == deadlines.due(term, start=notice.planned_at, calendar=weekdays)


def test_the_policys_own_holidays_are_not_counted() -> None:
    Holiday.objects.create(calendar="ours", day="2026-02-02", name="A day off")
    make_policy("ours", clock="request", within="1 business day", jurisdictions=["xx"], calendar="ours")
    assert ask("opt_out", "xx").respond_by == datetime(2026, 2, 3, 23, 59, 59, tzinfo=UTC)


def test_a_change_of_a_policy_moves_no_date() -> None:
    partner = make_partner("acme").partner
    policy = make_policy("contract", within="2 days", partner=partner)
    before, asked = tell(partner)["acme"], ask("opt_out", "eu")
    policy.completed_within = "9 days"
    policy.save()
    DeadlinePolicy.objects.filter(name="gdpr").update(completed_within="9 months", extended_within="")
    after = RemovalRequest.objects.get(pk=asked.pk)
    assert Notice.objects.get(pk=before.pk).respond_by == before.respond_by
    assert (after.respond_by, after.extendable_to) == (asked.respond_by, asked.extendable_to)
    assert days_of(tell(partner)["acme"]) == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"completed_within": "soon"},
        {"completed_within": ""},
        {"received_within": "0 days"},
        {"clock": "notice", "extended_within": "3 months"},
        {"clock": "request", "sent_within": "1 day"},
    ],
)
def test_a_policy_that_means_nothing_is_refused_by_the_database(wrong: dict[str, str]) -> None:
    with pytest.raises(IntegrityError):
        DeadlinePolicy.objects.create(**{"name": "wrong", "clock": "request", "completed_within": "1 day"} | wrong)


def test_what_comes_with_it_is_what_the_document_says() -> None:
    from tests.conftest import ROOT

    text = (ROOT / "docs/deadlines.md").read_text()
    for policy in DeadlinePolicy.objects.all():
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{policy.name}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == policy.clock
        assert cells[2].startswith("yes" if policy.in_force else "no") or (cells[2] == "no: name its partner first")
        assert (cells[4], cells[5]) == (policy.received_within, policy.completed_within)
        assert cells[6].split(",")[0] == (policy.extended_within or ("never" if policy.clock == "request" else ""))
        assert cells[7].split(",")[0] == policy.zone
