"""Claim -> POST -> record, with a real partner on a real socket."""

import ipaddress
import json
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners import keys, signing, webhook
from partners.models import Endpoint, Partner
from removal import delivery, invariants, payload, planning, recovery, replay, sending, verification, wording
from removal.acknowledgement import acknowledge
from removal.models import Attempt, Delivery, Incident, Notice, Stream
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.partners import hostile
from tests.partners.hostile import Peer
from tests.receivers import Received, Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def owe(receiver: Receiver, *, notices: int, **limits: Any) -> Partner:
    """Make a partner that listens there and is owed so many notices."""
    partner = make_partner(url=receiver.url, **limits).partner
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(notices)}), partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    return partner


def make_due(partner: Partner) -> None:
    Delivery.objects.filter(stream_id=partner.pk, state="waiting").update(due_at=timezone.now() - timedelta(seconds=1))


def finished_at(*, number: int) -> datetime:
    at = Attempt.objects.get(number=number).finished_at
    assert at
    return at


def test_a_notice_is_sent_signed_and_recorded() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
        assert sending.drain(partner_id=partner.pk, budget=BUDGET) is False
    [message] = receiver.received
    assert message.sequences == [1]
    sent = Delivery.objects.get()
    assert (sent.state, sent.delivered_by, sent.attempts, sent.webhook_id) == (
        "delivered",
        "response",
        1,
        message.webhook_id,
    )
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.status, attempt.number) == ("delivered", 200, 1)
    signer = keys.signer_for(partner_id=partner.pk, now=timezone.now())
    assert attempt.key_ids == list(signer.key_ids)
    for key in signer.keys:
        verifying = key.public_key if isinstance(key, signing.Ed25519PrivateKey) else key
        signing.verify(headers=message.headers, body=message.body, keys=[verifying], now=timezone.now())


def test_a_failing_partner_is_tried_again_with_the_same_bytes_and_id() -> None:
    replies = iter([Reply(503), Reply(200)])
    with listening(lambda _: next(replies)) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        waiting = Delivery.objects.get()
        assert waiting.state == "waiting"
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    first, second = receiver.received
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    assert list(Attempt.objects.order_by("number").values_list("outcome", "status")) == [
        ("refused", 503),
        ("delivered", 200),
    ]
    assert 5 <= (waiting.due_at - finished_at(number=1)).total_seconds() <= 7.5


def test_a_backlog_leaves_in_full_messages_within_the_window() -> None:
    with listening(lambda _: Reply(500)) as receiver:
        partner = owe(receiver, notices=25, window=2, max_notices=10)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert sorted(message.sequences[0] for message in receiver.received) == [1, 11]
        assert Stream.objects.get(partner=partner).packed_through == 20
        receiver.script = lambda _: Reply(200)
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert sorted(set(receiver.sequences)) == list(range(1, 26))
    assert [len(m.sequences) for m in receiver.received[2:]] == [10, 10, 5]


def test_a_refused_message_is_halved_until_the_culprit_stands_alone() -> None:
    def refuse_the_fifth(message: Received) -> Reply:
        return Reply(422 if 5 in message.sequences else 200)

    with listening(refuse_the_fifth) as receiver:
        partner = owe(receiver, notices=8)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        # Refused once, with others delivered since: at the next refusal it is quarantined.
        assert Delivery.objects.get(first_sequence=5, last_sequence=5).state == "waiting"
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    states = Delivery.objects.exclude(state="split").order_by("first_sequence")
    assert list(states.values_list("first_sequence", "last_sequence", "state")) == [
        (1, 4, "delivered"),
        (5, 5, "quarantined"),
        (6, 6, "delivered"),
        (7, 8, "delivered"),
    ]


def test_a_lone_refused_notice_is_not_quarantined_while_nothing_else_arrives() -> None:
    with listening(lambda _: Reply(400)) as receiver:
        partner = owe(receiver, notices=1)
        for _ in range(3):
            sending.drain(partner_id=partner.pk, budget=BUDGET)
            make_due(partner)
    assert Delivery.objects.get().state == "waiting"
    assert len(receiver.received) == 3


@pytest.mark.parametrize(("status", "kind"), [(401, "http_401"), (302, "http_302"), (404, "http_404")])
def test_a_faulty_endpoint_opens_one_incident_and_splits_nothing(status: int, kind: str) -> None:
    with listening(lambda _: Reply(status)) as receiver:
        partner = owe(receiver, notices=2)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert list(Incident.objects.values_list("kind", "closed_at")) == [(kind, None)]
        receiver.script = lambda _: Reply(200)
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Delivery.objects.get().state == "delivered"
    assert Incident.objects.filter(closed_at=None).count() == 0


def test_gone_suspends_the_endpoint_and_the_notices_stay_owed() -> None:
    with listening(lambda _: Reply(410)) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        make_due(partner)
        assert recovery.due_partners() == []
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert len(receiver.received) == 1
    assert Endpoint.objects.get(partner=partner).state == "suspended"
    assert Delivery.objects.get().state == "waiting"
    assert Notice.objects.open().count() == 1


def test_retry_after_is_honoured() -> None:
    with listening(lambda _: Reply(429, headers={"Retry-After": "600"})) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    wait = Delivery.objects.get().due_at - finished_at(number=1)
    assert timedelta(seconds=599) < wait <= timedelta(seconds=601)


def test_a_worker_that_lost_its_lease_changes_nothing() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
        [old] = delivery.claim(partner_id=partner.pk).claims
        Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        assert recovery.reap() == 1
        with webhook.Line(allow_http=True, allowed_networks=LOOPBACK) as line:
            result = sending.send(old, line=line)
        delivery.record([result], partner_id=partner.pk)
    delivery_row = Delivery.objects.get()
    assert (delivery_row.state, delivery_row.fence) == ("waiting", 2)
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.late_outcome) == ("abandoned", "delivered")


def test_a_paused_partner_is_sent_nothing() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
        Partner.objects.update(state=Partner.State.PAUSED)
        assert recovery.due_partners() == []
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert receiver.received == []
    assert Stream.objects.get().packed_through == 0


def test_an_acknowledgement_in_the_response_counts_as_received() -> None:
    answer = json.dumps({"acknowledgements": [{"sequence": 1, "status": "completed"}]}).encode()
    with listening(lambda _: Reply(200, answer)) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Stream.objects.get().received_through == 1
    assert Notice.objects.get().handling == "none"  # the watermark says it; the row is spared


@pytest.mark.parametrize(
    "answer",
    [
        b"ok",
        b"<html>",
        b'{"sequence": 2, "status": "received"}',
        b'{"sequence": 1}',
        b'{"sequence": true, "status": "received"}',
        b'{"through": 1000000000000, "status": "received"}',
        b"[" * 60_000,
    ],
)
def test_any_other_response_is_a_delivery_and_no_acknowledgement(answer: bytes) -> None:
    with listening(lambda _: Reply(200, answer)) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Delivery.objects.get().state == "delivered"
    assert Stream.objects.get().received_through == 0


def let_new_suspects_be_old() -> None:
    earlier = timezone.now() - 2 * delivery.TRY_ONE_AFTER
    Delivery.objects.filter(state="waiting", suspect=True).update(created_at=earlier)


def test_a_run_of_refused_notices_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_SUSPECTS", 10)

    def refuse_the_first(message: Received) -> Reply:
        return Reply(422 if message.sequences[0] <= 20 else 200)

    with listening(refuse_the_first) as receiver:
        partner = owe(receiver, notices=30, window=2, max_notices=10)
        sending.drain(partner_id=partner.pk, budget=4 * BUDGET)
        assert Stream.objects.get().packed_through == 20
        let_new_suspects_be_old()
        sending.drain(partner_id=partner.pk, budget=4 * BUDGET)
        arrived = Delivery.objects.filter(state="delivered").order_by("first_sequence")
        assert list(arrived.values_list("first_sequence", "last_sequence")) == [(n, n) for n in range(21, 31)]
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=4 * BUDGET)
    refused = Delivery.objects.filter(state="quarantined").order_by("first_sequence")
    assert list(refused.values_list("first_sequence", "last_sequence")) == [(n, n) for n in range(1, 21)]
    assert not Delivery.objects.filter(state="waiting").exists()


def test_a_backlog_does_not_fall_apart_when_a_partner_refuses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_SUSPECTS", 10)
    with listening(lambda _: Reply(400)) as receiver:
        partner = owe(receiver, notices=20, window=1, max_notices=10)
        packed = []
        for _ in range(2):
            for _ in range(2):
                sending.drain(partner_id=partner.pk, budget=BUDGET)
                packed.append(Stream.objects.get().packed_through)
            let_new_suspects_be_old()
    assert packed == [10, 10, 11, 11]


@pytest.mark.parametrize(("lease", "violations"), [(timedelta(seconds=60), 0), (timedelta(milliseconds=1), 1)])
def test_a_stream_where_only_refused_messages_wait_is_left_standing(
    lease: timedelta, violations: int, settings: Settings
) -> None:
    with listening(lambda _: Reply(400)) as receiver:
        partner = owe(receiver, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        disclose(make_release(contents={"site:new": ["post:1"]}), partner)
        record(make_wish("site:new"))
        planning.plan(budget=BUDGET)
    settings.DELIVERY_LEASE = lease  # "long" is ten of them
    time.sleep(0.02)
    assert invariants.check()["no_stream_is_left_standing"] == violations


def test_no_more_long_notices_are_read_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "READ_AT_ONCE", 10)
    read: list[int] = []

    def watch(execute: Any, sql: str, parameters: Any, *rest: Any) -> Any:
        if sql == payload.NOTICES or sql == wording.OWN:
            read.append(parameters["last"])
        return execute(sql, parameters, *rest)

    with listening() as receiver:
        partner = make_partner(url=receiver.url, window=3).partner
        items = [f"post:{n:050}" for n in range(1000)]  # a notice of some 60 KB: four make a message
        disclose(make_release(contents={f"site:{n}": items for n in range(40)}), partner)
        for n in range(40):
            record(make_wish(f"site:{n}"))
        planning.plan(budget=BUDGET)
        with connection.execute_wrapper(watch):
            claims = delivery.claim(partner_id=partner.pk).claims
    assert [(claim.first, claim.last) for claim in claims] == [(1, 4), (5, 8), (9, 12)]
    assert max(read) == 20
    assert [len(json.loads(claim.body)["data"]["notices"]) for claim in claims] == [4, 4, 4]


def test_a_success_before_the_refusal_does_not_put_a_message_in_quarantine() -> None:
    replies = iter([503, 200])
    with listening(lambda _: Reply(next(replies, 400))) as receiver:
        partner = owe(receiver, notices=2, max_notices=1, window=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)  # 1 is refused for now, and holds the window
        Delivery.objects.update(suspect=True)
        sending.drain(partner_id=partner.pk, budget=BUDGET)  # 2 arrives
        Delivery.objects.update(suspect=False)
        for _ in range(3):
            make_due(partner)
            sending.drain(partner_id=partner.pk, budget=BUDGET)
    states = Delivery.objects.order_by("first_sequence").values_list("state", flat=True)
    assert list(states) == ["waiting", "delivered"]


def test_a_message_answered_while_its_post_failed_frees_its_place() -> None:
    def answer_and_fail(message: Received) -> Reply:
        said = Statement(status="received", text="{}", sequence=message.sequences[0])
        acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[said])
        connection.close()  # this thread's
        return Reply(500)

    with listening(answer_and_fail) as receiver:
        partner = owe(receiver, notices=2, max_notices=1, window=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert list(Delivery.objects.values_list("state", "delivered_by")) == [("delivered", "acknowledged")] * 2


def test_a_new_address_is_tried_at_once() -> None:
    with listening(lambda _: Reply(410)) as gone, listening() as receiver:
        partner = owe(gone, notices=1)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert recovery.due_partners() == []
        verification.waive(actor="test", slug=partner.slug, url=receiver.url, reason="it answered our call")
        assert [due.partner_id for due in recovery.due_partners()] == [partner.pk]
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert receiver.sequences == [1]


@pytest.mark.parametrize("status", [401, 410, 422, 503])
def test_what_fails_at_an_old_address_says_nothing_of_the_new_one(status: int) -> None:
    with listening(lambda _: Reply(status, headers={"Retry-After": "600"})) as old, listening() as receiver:
        partner = owe(old, notices=2)
        [claim] = delivery.claim(partner_id=partner.pk).claims
        verification.waive(actor="test", slug=partner.slug, url=receiver.url, reason="they moved")
        with webhook.Line(allow_http=True, allowed_networks=LOOPBACK) as line:
            delivery.record([sending.send(claim, line=line)], partner_id=partner.pk)
        attempt = Attempt.objects.get()
        assert (attempt.outcome, attempt.status, attempt.url) == ("refused", status, old.url)
        message = Delivery.objects.get()
        assert (message.state, message.failures, message.suspect) == ("waiting", 0, False)
        assert Stream.objects.get().failures == 0
        assert not Incident.objects.exists()
        assert Endpoint.objects.get().state == "open"
        sending.drain(partner_id=partner.pk, budget=BUDGET)  # it is due already
    assert receiver.sequences == [1, 2]


def test_a_partner_that_is_down_holds_a_worker_for_one_batch() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=3, max_notices=1, window=1)
    assert sending.drain(partner_id=partner.pk, budget=BUDGET) is False
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.reason.partition(":")[0]) == ("unreachable", "connection")


def test_nothing_is_sent_after_the_lease() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=1)
        [claim] = delivery.claim(partner_id=partner.pk).claims
        frozen = replace(claim, lease_ends=time.monotonic())
        with webhook.Line(allow_http=True, allowed_networks=LOOPBACK) as line:
            result = sending.send(frozen, line=line)
    assert receiver.received == []
    assert isinstance(result.outcome, webhook.Unreachable)


def test_a_rate_is_kept() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=12, max_notices=1, window=100, rate_per_second=10)
        started = time.monotonic()
        while sending.drain(partner_id=partner.pk, budget=BUDGET) or len(receiver.received) < 12:
            time.sleep(0.05)
    assert sorted(receiver.sequences) == list(range(1, 13))
    assert time.monotonic() - started > 0.15  # a burst of ten, and two that wait a tenth of a second each


def test_a_partner_that_is_down_is_probed_with_one_message_and_resumes_by_itself() -> None:
    is_down = True
    with listening(lambda _: Reply(503 if is_down else 200)) as receiver:
        partner = owe(receiver, notices=40, max_notices=1, window=8)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        stream = Stream.objects.get()
        assert stream.failures == 5
        assert stream.probe_at
        tried = len(receiver.received)
        assert tried <= 8
        make_due(partner)
        assert recovery.due_partners() == []  # not before the probe's time
        assert sending.drain(partner_id=partner.pk, budget=BUDGET) is False

        Stream.objects.update(probe_at=timezone.now())
        [due] = recovery.due_partners()
        assert due.kind == "probe"
        assert sending.drain(partner_id=partner.pk, budget=BUDGET, probing=False) is False
        assert len(receiver.received) == tried  # a hint does not probe
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert len(receiver.received) == tried + 1
        assert Stream.objects.get().failures == 6

        is_down = False
        Stream.objects.update(probe_at=timezone.now())
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Stream.objects.get().probe_at is None
    assert set(Delivery.objects.values_list("state", flat=True)) == {"delivered"}
    assert sorted(set(receiver.sequences)) == list(range(1, 41))


def test_a_probe_is_a_message_whose_time_has_come() -> None:
    with listening(lambda _: Reply(503)) as receiver:
        partner = owe(receiver, notices=5, max_notices=1, window=5)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        tried = len(receiver.received)
        Stream.objects.update(probe_at=timezone.now())
        Delivery.objects.update(due_at=timezone.now() + timedelta(hours=12))
        assert recovery.due_partners() == []
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert len(receiver.received) == tried
        make_due(partner)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        assert len(receiver.received) == tried + 1


def test_only_a_rate_says_when_to_come_again() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=3, max_notices=1, rate_per_second=10)
        Stream.objects.update(allowance=1)
        assert len(delivery.claim(partner_id=partner.pk).claims) == 1
        # It is just back, and as many as it may have are under way.
        assert delivery.claim(partner_id=partner.pk) == delivery.Claimed([])
        Stream.objects.update(allowance=None, tokens=0, tokens_at=timezone.now())
        assert delivery.claim(partner_id=partner.pk) == delivery.Claimed([], after=timedelta(seconds=0.1))


def test_messages_sent_again_open_the_breaker_too() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=20, max_notices=1, window=20)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        replay.send_again(actor="test", slug=partner.slug)
        receiver.script = lambda _: Reply(503)
        for _ in range(3):
            make_due(partner)
            sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Stream.objects.get().probe_at
    assert len(receiver.received) < 20 + 20


def test_a_partner_whose_bodies_never_end_is_slow_and_gets_several_at_once() -> None:
    with Peer(hostile.slow_body) as peer:
        partner = owe(Receiver(peer.url(), lambda _: Reply()), notices=20, max_notices=1, window=20)
        assert sending.drain(partner_id=partner.pk, budget=timedelta(seconds=10)) is False
    assert set(Delivery.objects.values_list("state", flat=True)) == {"delivered"}


def test_those_that_have_not_answered_are_probed_by_turns() -> None:
    partners = [make_partner(slug).partner for slug in ("a", "b", "c", "well")]
    for partner in partners:
        disclose(make_release(f"r-{partner.slug}", contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    now = timezone.now()
    for partner, minutes in zip(partners, (1, 3, 2), strict=False):
        Stream.objects.filter(pk=partner.pk).update(failures=6, probe_at=now - timedelta(minutes=minutes))
    by_turns = [partners[3], partners[1], partners[2], partners[0]]
    assert [due.partner_id for due in recovery.due_partners()] == [partner.pk for partner in by_turns]
    [_] = delivery.claim(partner_id=partners[1].pk).claims  # somebody is at it
    assert [due.partner_id for due in recovery.due_partners()] == [by_turns[n].pk for n in (0, 2, 3)]


def test_what_was_claimed_beside_a_hanging_message_is_given_back_unsent(settings: Settings) -> None:
    settings.DELIVERY_DEADLINE = timedelta(seconds=0.3)

    def hang(_: Received) -> Reply:
        time.sleep(0.6)
        return Reply(200)

    with listening(hang) as receiver:
        partner = owe(receiver, notices=20, max_notices=1, window=20)
        started = time.monotonic()
        assert sending.drain(partner_id=partner.pk, budget=BUDGET) is False
        assert time.monotonic() - started < 2
    outcomes = list(Attempt.objects.values_list("outcome", flat=True))
    assert outcomes.count("unreachable") >= 1
    assert outcomes.count("unsent") == 20 - outcomes.count("unreachable")
    failures = Delivery.objects.filter(tries__outcome="unsent").values_list("failures", "state").distinct()
    assert list(failures) == [(0, "waiting")]


def test_a_message_that_kills_five_workers_is_halved_until_the_notice_stands_aside() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=2)
        for _ in range(5):
            [claim] = delivery.claim(partner_id=partner.pk).claims
            Delivery.objects.filter(pk=claim.delivery_id).update(lease_until=timezone.now() - timedelta(seconds=1))
            assert recovery.reap() == 1
            make_due(partner)
        assert Delivery.objects.get(pk=claim.delivery_id).state == "split"
        sick, well = Delivery.objects.filter(parent=claim.delivery_id).order_by("first_sequence")
        for _ in range(6):  # the one that is well takes a turn
            claims = delivery.claim(partner_id=partner.pk).claims
            assert {one.delivery_id for one in claims} <= {sick.pk, well.pk}
            for one in claims:
                if one.delivery_id == well.pk:
                    with webhook.Line(allow_http=True, allowed_networks=LOOPBACK) as line:
                        delivery.record([sending.send(one, line=line)], partner_id=partner.pk)
            under_way = Delivery.objects.filter(pk=sick.pk, state="sending")
            under_way.update(lease_until=timezone.now() - timedelta(seconds=1))
            recovery.reap()
            make_due(partner)
    sick.refresh_from_db()
    assert sick.state == "quarantined"
    assert receiver.sequences == [2]


def test_a_message_whose_worker_died_is_tried_alone() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=3, max_notices=1)
        first = delivery.claim(partner_id=partner.pk, most=1).claims
        Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        recovery.reap()
        make_due(partner)
        again = delivery.claim(partner_id=partner.pk).claims
        assert [one.delivery_id for one in again] == [one.delivery_id for one in first]
        assert len(delivery.claim(partner_id=partner.pk).claims) == 2
