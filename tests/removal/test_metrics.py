"""The numbers are those of the rows, they come from small tables and partial indexes, and they name nobody."""

import re
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from partners.models import Endpoint, Partner
from removal import delivery, escalation, metrics, planning, recovery, sample
from removal.models import Delivery, Heartbeat, Incident, LogEntry, Notice, StaffMessage, Stream
from removal.sweep import Sweeper
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)
LINE = re.compile(r'^([a-z_]+(?:\{partner="[a-z0-9-]+"\})?) (\+Inf|[0-9.E+-]+)$')


def numbers(*, with_partners: bool = False) -> dict[str, float]:
    """Read what is shown as Prometheus does; every line must have its form."""
    lines = metrics.read(with_partners=with_partners).splitlines()
    found = {}
    for line in lines:
        if not line.startswith(("# HELP ", "# TYPE ")):
            match = LINE.match(line)
            assert match, line
            found[match[1]] = float(match[2])
    return found


def changed(before: dict[str, float]) -> dict[str, float]:
    """Say what is other than it was, but for what the clock or the server moves by itself."""
    moves = {"removal_oldest_transaction_seconds", "removal_delivery_dead_rows"}
    return {
        name: value
        for name, value in numbers().items()
        if value != before[name] and name not in moves and not name.endswith("_age_seconds")
    }


def owe(*, notices: int, **limits: Any) -> Partner:
    """Make a partner that is owed so many notices, planned and in no message yet."""
    partner = make_partner(**limits).partner
    if not notices:
        return partner
    names = [f"{partner.slug}:{n}" for n in range(notices)]
    disclose(make_release(contents={name: ["post:1"] for name in names}), partner)
    for name in names:
        record(make_wish(name))
    planning.plan(budget=BUDGET)
    return partner


def ago(**time: float) -> Any:
    return timezone.now() - timedelta(**time)


def test_nothing_is_shown_of_an_empty_ledger_but_that_nobody_has_worked_yet() -> None:
    shown = numbers()
    assert shown.pop("removal_oldest_transaction_seconds") >= 0
    assert shown.pop("removal_delivery_dead_rows") >= 0
    assert {name: value for name, value in shown.items() if value} == {
        "removal_last_sweep_age_seconds": float("inf"),
        "removal_last_reconcile_age_seconds": float("inf"),
    }
    assert len(shown) == len(metrics.GAUGES) - 2


def test_what_waits_for_the_planner_is_counted_with_the_age_of_the_oldest() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    before = numbers()
    assert (before["removal_unplanned_requests"], before["removal_unplanned_disclosures"]) == (1, 1)
    assert 0 < before["removal_oldest_unplanned_age_seconds"] < 30
    planning.plan(budget=BUDGET)
    shown = numbers()
    assert (shown["removal_unplanned_requests"], shown["removal_unplanned_disclosures"]) == (0, 0)
    assert shown["removal_oldest_unplanned_age_seconds"] == 0


def test_messages_are_counted_on_their_whole_way() -> None:
    before = numbers()
    partner = owe(notices=3, max_notices=1, window=2)
    assert changed(before) == {"removal_unpacked_notices": 3}
    assert 0 < numbers()["removal_oldest_unpacked_age_seconds"] < 30

    delivery.claim(partner_id=partner.pk)
    assert changed(before) == {"removal_unpacked_notices": 1, "removal_sending_messages": 2}

    Delivery.objects.update(lease_until=ago(seconds=1))
    assert changed(before) == {
        "removal_unpacked_notices": 1, "removal_sending_messages": 2, "removal_expired_leases": 2,
    }  # fmt: skip

    recovery.reap()
    assert changed(before) == {"removal_unpacked_notices": 1, "removal_waiting_messages": 2}

    Delivery.objects.update(due_at=ago(minutes=1))
    assert changed(before) == {
        "removal_unpacked_notices": 1, "removal_waiting_messages": 2, "removal_due_messages": 2,
    }  # fmt: skip
    assert 60 < numbers()["removal_oldest_due_age_seconds"] < 90

    delivery.claim(partner_id=partner.pk)
    Delivery.objects.filter(state="sending").update(state="quarantined", lease_until=None)
    assert changed(before) == {
        "removal_unpacked_notices": 1, "removal_waiting_messages": 1, "removal_due_messages": 1,
        "removal_quarantined_messages": 1,
    }  # fmt: skip


def test_what_is_late_is_counted_and_what_staff_were_not_told_of() -> None:
    before = numbers()
    partner = owe(notices=3)
    Notice.objects.filter(sequence__lte=2).update(respond_by=ago(minutes=1))
    assert changed(before) == {"removal_unpacked_notices": 3, "removal_overdue_notices": 2}
    Notice.objects.filter(sequence=1).update(withdrawn_at=ago(seconds=1))
    record(make_wish(f"{partner.slug}:late", received_at=ago(days=40)))
    escalation.look()
    StaffMessage.objects.create(channel="email", body="{}")
    assert changed(before) == {
        "removal_unpacked_notices": 3, "removal_overdue_notices": 1, "removal_overdue_requests": 1,
        "removal_unplanned_requests": 1, "removal_untold_escalations": 2, "removal_unsent_staff_messages": 1,
    }  # fmt: skip


def test_a_message_asked_for_again_is_due_too() -> None:
    partner = owe(notices=1)
    delivery.claim(partner_id=partner.pk)
    Delivery.objects.update(state="waiting", lease_until=None, resent=True, due_at=ago(minutes=1))
    shown = numbers()
    assert (shown["removal_waiting_messages"], shown["removal_due_messages"]) == (1, 1)


@pytest.mark.parametrize(
    ("what", "gauge"),
    [
        ("paused", "removal_paused_partners"),
        ("onboarding", "removal_onboarding_partners"),
        ("suspended", "removal_suspended_endpoints"),
        ("down", "removal_open_breakers"),
    ],
)
def test_a_partner_that_cannot_be_sent_to_makes_nothing_overdue(what: str, gauge: str) -> None:
    partner = owe(notices=2, max_notices=1, window=1)
    delivery.claim(partner_id=partner.pk)
    Delivery.objects.update(state="waiting", lease_until=None, due_at=ago(hours=1))
    before = numbers()
    assert before["removal_due_messages"] == 1
    match what:
        case "paused" | "onboarding":
            Partner.objects.update(state=what)
        case "suspended":
            Endpoint.objects.update(state="suspended")
        case _:
            Stream.objects.update(probe_at=ago(seconds=1))
    assert changed(before) == {"removal_due_messages": 0, gauge: 1}
    shown = numbers()
    assert (shown["removal_oldest_due_age_seconds"], shown["removal_oldest_unpacked_age_seconds"]) == (0, 0)
    assert (shown["removal_waiting_messages"], shown["removal_unpacked_notices"]) == (1, 1)


def test_incidents_are_counted_while_they_are_open() -> None:
    partner = owe(notices=0)
    Incident.objects.create(stream_id=partner.pk, kind="tls")
    Incident.objects.create(stream_id=partner.pk, kind="gone", closed_at=timezone.now())
    assert numbers()["removal_open_incidents"] == 1


def test_a_sweep_leaves_word_of_itself() -> None:
    sweeper = Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(minutes=1))
    sweeper.reconcile_at = float("inf")
    sweeper.sweep()
    shown = numbers()
    assert shown["removal_worker_processes"] == 1
    assert 0 <= shown["removal_last_sweep_age_seconds"] < 30
    assert shown["removal_last_reconcile_age_seconds"] == float("inf")
    reconcile(sweeper)
    shown = numbers()
    assert shown["removal_worker_processes"] == 1
    assert 0 <= shown["removal_last_reconcile_age_seconds"] < 30
    assert shown["removal_planner_missed_notices"] == 0
    sweeper.pool.shutdown()


def reconcile(sweeper: Sweeper) -> None:
    """Have a sweep begin to look for what the planner missed, and the next one say what was found."""
    sweeper.reconcile_at = 0
    sweeper.sweep()
    end = time.monotonic() + 10
    while sweeper.reconcile_at == float("inf"):
        assert time.monotonic() < end
        time.sleep(0.01)
    sweeper.reconcile_at = float("inf")
    sweeper.sweep()


def test_what_a_reconcile_found_is_shown_ever_after() -> None:
    partner = make_partner().partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    planning.plan(budget=BUDGET)
    record(make_wish("site:1"))
    with connection.cursor() as cursor:  # as a planner would that loses a pair
        cursor.execute("update removal_removalrequest set round = 1, state = 'planned'")
    sweeper = Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(0))
    reconcile(sweeper)
    reconcile(sweeper)
    sweeper.pool.shutdown()
    assert numbers()["removal_planner_missed_notices"] == 1
    assert LogEntry.objects.filter(action="reconciled").count() == 1

    Heartbeat.objects.update(process="gone:1", swept_at=ago(days=1))
    Heartbeat.objects.create(process="gone:2", swept_at=ago(days=1))
    sweeper.process = "here:1"
    sweeper.pool = Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(0)).pool
    reconcile(sweeper)
    sweeper.pool.shutdown()
    assert set(Heartbeat.objects.values_list("process", flat=True)) == {"gone:1", "here:1"}
    shown = numbers()
    assert (shown["removal_planner_missed_notices"], shown["removal_worker_processes"]) == (1, 1)


def test_an_open_transaction_is_seen() -> None:
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("select 1, pg_sleep(0.1)")
        assert numbers()["removal_oldest_transaction_seconds"] >= 0.1
    finally:
        other.rollback()
        other.close()


def test_no_number_reads_a_large_table_through() -> None:
    sample.make(requests=3000, now=timezone.now())
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("analyze removal_notice, removal_removalrequest")  # as autovacuum sometimes has
        cursor.execute("set local enable_seqscan = off")
        cursor.execute("explain " + metrics.READ)
        plan = "\n".join(row for (row,) in cursor.fetchall())
    for table in ("removal_notice", "removal_delivery", "removal_removalrequest", "removal_logentry"):
        assert f"Seq Scan on {table}" not in plan, plan


# --- as it is asked for ---


def test_partners_are_named_only_to_who_has_the_token(settings: Settings) -> None:
    small, large = owe(notices=1), owe(notices=2)
    owe(notices=0)
    public = Client().get("/metrics")
    assert (public.status_code, public["Content-Type"]) == (200, metrics.CONTENT_TYPE)
    assert small.slug not in public.content.decode()

    settings.METRICS_TOKEN = "let-me-see"
    for wrong in ("", "Bearer let-me", "Bearer ", "let-me-see", "Bearer lét-me-see"):
        refused = Client(headers={"Authorization": wrong}).get("/metrics")
        assert (refused.status_code, refused.content, refused["WWW-Authenticate"]) == (401, b"unauthorized\n", "Bearer")
    shown = Client(headers={"Authorization": "Bearer let-me-see"}).get("/metrics").content.decode().splitlines()
    assert [line for line in shown if "{" in line] == [
        f'removal_partner_unpacked_notices{{partner="{large.slug}"}} 2',
        f'removal_partner_unpacked_notices{{partner="{small.slug}"}} 1',
    ]


def test_without_a_database_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise OperationalError("could not connect to db.internal")

    monkeypatch.setattr(metrics, "read", fail)
    response = Client().get("/metrics")
    assert (response.status_code, response.content) == (503, b"database_unreachable\n")
    assert response["Content-Type"] == "text/plain"


def test_numbers_are_of_no_person() -> None:
    partner = owe(notices=0)
    disclose(make_release(contents={"canary@person.example": ["post:1"]}), partner)
    record(make_wish("canary@person.example"))
    assert "canary" not in metrics.read(with_partners=True)
