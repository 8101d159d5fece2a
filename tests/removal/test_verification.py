"""A partner goes live, and its URL changes, by proof or by a named person's word; no race lets anything else in."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.utils import timezone
from pytest_django import Settings

from partners.keys import signer_for
from partners.models import Endpoint, Partner, Secret, Verification
from partners.signing import HmacSecret, verify
from removal import partnerships, planning, recovery, reports, sending, verification
from removal.models import Incident, LogEntry, Notice
from removal.partnerships import NewPartner, add_partner
from removal.sweep import Sweeper
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Received, Receiver, Reply, Script, listening
from tests.removal.careful import careful

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)
ELSEWHERE = "http://127.0.0.1:9/"


def newcomer(url: str) -> NewPartner:
    return add_partner(actor="test", slug="acme", name="", url=url, now=timezone.now())


def prove(**options: Any) -> Verification:
    return verification.verify(actor="staff:7", slug="acme", **options)


def listen_as(made: dict[str, NewPartner]) -> Script:
    """Be careful, with the secret of whoever ``made`` holds when the message comes."""
    return lambda message: careful(message, secret=made["acme"].secret)


def endpoint() -> Endpoint:
    return Endpoint.objects.select_related("partner").get()


def standing() -> tuple[str, str, str]:
    """The partner's state, the URL in use and the pending one."""
    now = endpoint()
    return now.partner.state, now.url, now.pending_url


def owe(partner: Partner) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)


def test_a_partner_is_sent_what_it_is_owed_once_it_has_passed() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)
        owe(made["acme"].partner)
        [line] = reports.partner_lines(Notice.objects.get().request)
        assert (line.delivery, recovery.due_partners()) == ("held", [])
        sending.drain(partner_id=made["acme"].partner.pk, budget=BUDGET)
        assert receiver.received == []

        result = prove()
        assert (result.passed, result.effect, result.asked_by) == (True, "live", "staff:7")
        assert standing() == ("live", receiver.url, "")
        samples = len(receiver.received)
        sending.drain(partner_id=made["acme"].partner.pk, budget=BUDGET)
    [real] = receiver.received[samples:]
    assert (real.sequences, real.data["epoch"]) == ([1], 1)
    assert {message.data["epoch"] for message in receiver.received[1:samples]} == {0}
    entry = LogEntry.objects.get(action="verification_passed")
    assert entry.actor == "staff:7"
    assert entry.about == {"partner": made["acme"].partner.pk, "verification": result.pk, "effect": "live"}


def test_a_partner_that_takes_anything_stays_in_onboarding() -> None:
    with listening(lambda _: Reply(200)) as receiver:
        newcomer(receiver.url)
        result = prove()
    assert (result.passed, result.effect, standing()[0]) == (False, "none", "onboarding")
    assert {check["name"] for check in result.checks if not check["passed"]} == {
        "sample notice", "repeat under a new id", "unsigned", "wrong signature", "stale timestamp",
        "captured signature", "another partner's",
    }  # fmt: skip
    assert Incident.objects.count() == 0  # nothing is wrong with what nobody uses


def test_a_new_url_is_used_once_it_has_passed_and_the_old_one_until_then() -> None:
    made = {"acme": make_partner("acme", url=ELSEWHERE)}
    with listening(lambda _: Reply(200)) as careless, listening(listen_as(made)) as receiver:
        assert prove(url=careless.url).passed is False
        assert standing() == ("live", ELSEWHERE, careless.url)
        assert prove(url=receiver.url).effect == "url"
        assert standing() == ("live", receiver.url, "")
        # The URL in use, proposed again, takes a proposal back.
        prove(url=careless.url)
        prove(url=receiver.url)
    assert standing() == ("live", receiver.url, "")


def test_a_suspended_endpoint_opens_by_proof() -> None:
    made = {"acme": make_partner("acme")}
    with listening(listen_as(made)) as receiver:
        Endpoint.objects.update(url=receiver.url, state="suspended", state_reason="It answered 410 Gone.")
        assert prove().effect == "opened"
    assert (endpoint().state, endpoint().state_reason) == ("open", "")


def test_a_paused_partner_stays_paused_when_it_passes() -> None:
    made = {"acme": make_partner("acme")}
    partnerships.set_paused(actor="test", slug="acme", paused=True)
    with listening(listen_as(made)) as receiver:
        prove(url=receiver.url)
        assert standing() == ("paused", receiver.url, "")


@pytest.mark.parametrize("paused", [True, False])
def test_onboarding_cannot_be_left_by_pausing_and_resuming(paused: bool) -> None:
    newcomer(ELSEWHERE)
    with pytest.raises(partnerships.StillOnboarding):
        partnerships.set_paused(actor="test", slug="acme", paused=paused)
    assert standing()[0] == "onboarding"


def test_a_url_in_use_that_fails_opens_an_incident_that_only_proof_ends() -> None:
    made = {"acme": make_partner("acme")}
    with listening(lambda _: Reply(200)) as receiver:
        Endpoint.objects.update(url=receiver.url)
        owe(made["acme"].partner)
        prove()
        prove()
        incident = Incident.objects.get()
        assert (incident.kind, standing()[0]) == ("verification", "live")
        sending.drain(partner_id=made["acme"].partner.pk, budget=BUDGET)  # what it takes proves nothing
        assert Notice.objects.filter(stream__deliveries__state="delivered").count() == 1
        incident.refresh_from_db()
        assert incident.closed_at is None
        receiver.script = listen_as(made)
        prove()
    incident.refresh_from_db()
    assert incident.closed_at is not None


def test_a_waiver_needs_a_reason_and_something_to_waive_and_is_kept() -> None:
    made = newcomer(ELSEWHERE)
    with pytest.raises(verification.NothingToWaive, match="reason"):
        verification.waive(actor="staff:7", slug="acme", reason="  ")
    assert standing()[0] == "onboarding"
    waived = verification.waive(actor="staff:7", slug="acme", reason="Tested together by phone.")
    assert (waived.passed, waived.effect, waived.waived_because) == (False, "live", "Tested together by phone.")
    assert standing()[0] == "live"
    entry = LogEntry.objects.latest("id")
    assert (entry.actor, entry.action) == ("staff:7", "verification_waived")
    assert entry.about == {"partner": made.partner.pk, "verification": waived.pk, "effect": "live"}
    with pytest.raises(verification.NothingToWaive, match="needs no waiver"):
        verification.waive(actor="staff:7", slug="acme", reason="Again.")


def test_what_was_proved_cannot_be_rewritten() -> None:
    newcomer(ELSEWHERE)
    waived = verification.waive(actor="staff:7", slug="acme", reason="By phone.")
    for change in (
        lambda: Verification.objects.update(passed=True),
        waived.delete,
        lambda: connection.cursor().execute("truncate partners_verification"),
    ):
        with pytest.raises(IntegrityError, match="is history"):
            change()


# --- races ---


class Gate:
    """A receiver that stops at a message until it is let go on."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, message: Received) -> Reply:
        self.reached.set()
        assert self.go_on.wait(10)
        return self.script(message)


def while_verifying(receiver: Receiver, do: Callable[[], object]) -> Verification:
    """Run a verification, and something else after its first message has arrived."""
    gate = Gate(receiver.script)
    receiver.script = gate

    def in_a_thread() -> Verification:
        with closing(connection):
            return prove()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(in_a_thread)
        assert gate.reached.wait(10)
        try:
            do()
        finally:
            gate.go_on.set()
        return running.result()


def test_a_second_verification_at_once_is_refused_and_the_first_stands() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)

        def second() -> None:
            with pytest.raises(verification.Underway, match="under way") as refused:
                prove()
            assert 0 < refused.value.wait_seconds <= 90

        assert while_verifying(receiver, second).effect == "live"
    assert Verification.objects.count() == 1


def test_passing_while_the_url_changes_changes_nothing() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)
        result = while_verifying(receiver, lambda: Endpoint.objects.update(url=ELSEWHERE))
        assert (result.passed, result.effect, result.url) == (True, "stale", receiver.url)
        assert standing() == ("onboarding", ELSEWHERE, "")
        Endpoint.objects.update(url=receiver.url)
        assert prove().effect == "live"


def test_passing_while_a_newer_url_is_waived_does_not_bring_the_older_one_back() -> None:
    made = {"acme": make_partner("acme", url=ELSEWHERE)}
    newer = "http://127.0.0.1:10/"
    with listening(listen_as(made)) as receiver:
        Endpoint.objects.update(pending_url=receiver.url)
        result = while_verifying(
            receiver, lambda: verification.waive(actor="staff:7", slug="acme", reason="Moved.", url=newer)
        )
        assert (result.passed, result.effect, standing()) == (True, "stale", ("live", newer, ""))


def test_passing_while_the_keys_change_changes_nothing() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)
        result = while_verifying(
            receiver, lambda: partnerships.rotate_secret(actor="test", slug="acme", now=timezone.now())
        )
        assert (result.passed, result.effect, standing()[0]) == (True, "stale", "onboarding")


def test_one_whose_lease_was_lost_changes_nothing_and_leaves_the_next_ones_alone() -> None:
    made: dict[str, NewPartner] = {}
    theirs = timezone.now() + timedelta(seconds=80)
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)
        result = while_verifying(receiver, lambda: Endpoint.objects.update(verifying_until=theirs))
    assert (result.effect, standing()[0], endpoint().verifying_until) == ("stale", "onboarding", theirs)


def test_the_lease_of_one_that_died_ends_by_itself() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)
        Endpoint.objects.update(verifying_until=timezone.now() - timedelta(seconds=1))
        assert prove().effect == "live"


def test_no_transaction_is_open_while_the_endpoint_answers() -> None:
    made: dict[str, NewPartner] = {}
    with listening(listen_as(made)) as receiver:
        made["acme"] = newcomer(receiver.url)

        def look() -> None:
            with connection.cursor() as cursor:
                cursor.execute(
                    "select count(*) from pg_stat_activity where datname = current_database()"
                    " and state like 'idle in transaction%'"
                )
                assert cursor.fetchone() == (0,)

        assert while_verifying(receiver, look).passed


# --- keys ---


def test_halfway_through_a_rotation_a_worker_finds_out_whether_the_new_secret_is_known() -> None:
    made = {"acme": make_partner("acme")}
    with listening(listen_as(made)) as receiver:
        Endpoint.objects.update(url=receiver.url)
        before = timezone.now()
        secret = partnerships.rotate_secret(actor="test", slug="acme", now=before, overlap=timedelta(hours=10))
        due = endpoint().verify_due_at
        assert due is not None
        assert abs(due - before - timedelta(hours=5)) < timedelta(seconds=10)
        assert verification.next_due() is None

        sweep_when_due()
        result = Verification.objects.get()
        assert [check["name"] for check in result.checks if not check["passed"]] == ["newest secret alone"]
        assert (standing()[0], Incident.objects.get().kind) == ("live", "verification")
        assert verification.next_due() is None

        made["acme"] = NewPartner(made["acme"].partner, secret, made["acme"].api_key)
        assert prove().passed
    assert Incident.objects.filter(closed_at=None).count() == 0


def sweep_when_due() -> None:
    """Let a worker's timer do what is due, now."""
    Endpoint.objects.update(verify_due_at=timezone.now() - timedelta(seconds=1))
    sweeper = Sweeper(interval=timedelta(seconds=1), reconcile_interval=timedelta(hours=1))
    sweeper.sweep()
    assert sweeper.verifying
    sweeper.verifying.result(timeout=20)


def test_a_partner_that_is_not_live_is_not_verified_by_workers() -> None:
    newcomer(ELSEWHERE)
    partnerships.rotate_secret(actor="test", slug="acme", now=timezone.now(), overlap=timedelta(0))
    assert endpoint().verify_due_at is None


def test_a_retry_is_not_signed_with_a_secret_that_was_revoked() -> None:
    with listening(lambda _: Reply(503)) as receiver:
        made = make_partner("acme", url=receiver.url)
        owe(made.partner)
        sending.drain(partner_id=made.partner.pk, budget=BUDGET)
        [old] = Secret.objects.filter(partner=made.partner)
        new = partnerships.revoke_secret(actor="test", slug="acme", key_id=old.key_id, now=timezone.now(), replace=True)
        with connection.cursor() as cursor:
            cursor.execute("update removal_delivery set due_at = clock_timestamp()")
        sending.drain(partner_id=made.partner.pk, budget=BUDGET)
    first, second = receiver.received
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    for message, secret in ((first, made.secret), (second, new)):
        keys = [HmacSecret.from_text(secret)]
        verify(headers=message.headers, body=message.body, keys=keys, now=timezone.now())
    assert len(second.headers["webhook-signature"].split()) == 2  # the new secret's and the service's, and no more
    assert old.key_id not in signer_for(partner_id=made.partner.pk, now=timezone.now()).key_ids
    assert verification.next_due() == "acme"


def test_the_limit_on_how_often_a_partner_may_ask(settings: Settings) -> None:
    settings.DELIVERY_DEADLINE = timedelta(seconds=1)
    newcomer(ELSEWHERE)
    prove(gap=verification.GAP)
    with pytest.raises(verification.TooSoon) as refused:
        prove(url="http://127.0.0.1:10/", gap=verification.GAP)
    assert 50 <= refused.value.wait_seconds <= 60
    assert endpoint().url == ELSEWHERE  # nothing was changed either
    assert prove().effect == "none"  # staff may, at any time


def test_one_that_hangs_takes_one_deadline(settings: Settings) -> None:
    settings.DELIVERY_DEADLINE = timedelta(seconds=1)

    def hang(_: Received) -> Reply:
        time.sleep(3)
        return Reply()

    started = time.monotonic()
    with listening(hang) as receiver:
        newcomer(receiver.url)
        result = prove()
    assert time.monotonic() - started < 6
    assert [check["name"] for check in result.checks if check["passed"] is False] == ["good signature", "time limit"]
