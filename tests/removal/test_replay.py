"""What a partner had already is sent again: same numbers, same webhook-id, same bytes."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError
from django.utils import timezone

from partners.models import Partner
from removal import delivery, invariants, planning, replay, sending
from removal.models import Delivery, LogEntry
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)


def serve(receiver: Receiver, *, notices: int) -> Partner:
    """Make a partner that was sent so many notices, three to a message."""
    partner = make_partner(url=receiver.url, max_notices=3).partner
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(notices + 1)}), partner)
    for n in range(notices):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    sending.drain(partner_id=partner.pk, budget=BUDGET)
    return partner


def send_again(partner: Partner, *, first: int = 1, last: int | None = None) -> replay.Extent:
    extent = replay.send_again(actor="test", slug=partner.slug, first=first, last=last)
    sending.drain(partner_id=partner.pk, budget=BUDGET)
    return extent


def test_a_range_goes_out_again_under_the_same_ids_with_the_same_bytes() -> None:
    with listening() as receiver:
        partner = serve(receiver, notices=9)
        before = {message.webhook_id: message.body for message in receiver.received}
        delivered_at = Delivery.objects.get(first_sequence=4).delivered_at
        receiver.received.clear()
        assert replay.extent_of(slug=partner.slug, first=5, last=5) == replay.Extent(1, 3)
        assert receiver.received == []
        assert send_again(partner, first=5, last=5) == replay.Extent(1, 3)
    [message] = receiver.received
    assert message.sequences == [4, 5, 6]
    assert before[message.webhook_id] == message.body
    again = Delivery.objects.get(first_sequence=4)
    assert (again.state, again.attempts, again.delivered_at) == ("delivered", 2, delivered_at)
    assert LogEntry.objects.get(action="messages_sent_again").about == {
        "partner": partner.pk,
        "epoch": 1,
        "messages": 1,
        "numbers": [[4, 6]],
    }
    assert not any(invariants.check().values())


def test_what_was_delivered_since_a_moment_goes_out_again() -> None:
    with listening() as receiver:
        partner = serve(receiver, notices=9)
        since = Delivery.objects.order_by("delivered_at").last()
        assert since
        receiver.received.clear()
        extent = replay.send_again(actor="test", slug=partner.slug, since=since.delivered_at)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert len(receiver.received) == extent.messages >= 1


def test_new_notices_do_not_wait_behind_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as receiver:
        partner = serve(receiver, notices=30)
        receiver.received.clear()
        monkeypatch.setattr(replay, "BATCH", 2)
        assert replay.send_again(actor="test", slug=partner.slug).messages == 10
        record(make_wish("site:30"))
        planning.plan(budget=BUDGET)
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert 31 in [number for message in receiver.received[:4] for number in message.sequences]
    assert len(receiver.received) == 11


def test_a_message_sent_again_goes_on_after_a_failure() -> None:
    is_down = False
    with listening(lambda _: Reply(503 if is_down else 200)) as receiver:
        partner = serve(receiver, notices=3)
        is_down = True
        send_again(partner)
        assert Delivery.objects.get().state == "waiting"
        is_down = False
        Delivery.objects.update(due_at=timezone.now())
        sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Delivery.objects.get().state == "delivered"


def test_a_person_can_take_a_notice_out_of_quarantine() -> None:
    with listening() as receiver:
        partner = serve(receiver, notices=1)
        receiver.received.clear()
        record(make_wish("site:1"))
        planning.plan(budget=BUDGET)
        [claim] = delivery.claim(partner_id=partner.pk).claims
        Delivery.objects.filter(pk=claim.delivery_id).update(state="quarantined", lease_until=None, suspect=True)
        send_again(partner, first=2, last=2)
    assert Delivery.objects.get(pk=claim.delivery_id).state == "delivered"
    assert receiver.sequences == [2]


def test_an_ended_message_goes_out_again_only_when_asked_for() -> None:
    with listening() as receiver:
        serve(receiver, notices=1)
    with pytest.raises(IntegrityError, match="does not go from delivered to waiting"):
        Delivery.objects.update(state="waiting")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resend", "nobody"], "No partner is called nobody"),
        (["resend", "archive", "--from", "0"], "Numbers start at 1"),
        (["resend", "archive", "--from", "3", "--to", "2"], "Numbers start at 1"),
        (["resend", "archive", "--from", "9"], "None of these numbers is in a message"),
        (["resend", "archive", "--since", "2026-11-24T09:00"], "time zone"),
        (["resend", "archive", "--since", "yesterday"], "invalid fromisoformat value"),
    ],
)
def test_what_cannot_be_sent_again_is_said(arguments: list[str], message: str) -> None:
    make_partner("archive")
    with pytest.raises(CommandError, match=message):
        call_command("partner", *arguments)


def test_the_command_counts_first(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as receiver:
        partner = serve(receiver, notices=4)
        call_command("partner", "resend", partner.slug, "--dry-run")
        assert "Would send 4 notices in 2 messages again." in capsys.readouterr().out
        call_command("partner", "resend", partner.slug, "--to", "1")
        assert "Sending 3 notices in 1 message again." in capsys.readouterr().out
