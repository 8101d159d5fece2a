"""Staff are told once for each level, by every channel that is set, until it is out."""

import json
import re
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners import signing
from removal import escalation, intake, sweep
from removal.models import Escalation, Notice, StaffMessage, Stream
from tests.conftest import ROOT
from tests.factories import make_wish, record
from tests.receivers import Reply, listening
from tests.removal.test_reminders import beside, let_pass, owe, say

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

BUDGET = timedelta(seconds=5)
SECRET = signing.HmacSecret.generate()


@pytest.fixture(autouse=True)
def _real_mail(settings: Settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"


@contextmanager
def mail_server(*, refusing: bool = False) -> Iterator[tuple[int, list[EmailMessage]]]:
    """Run a small SMTP server on loopback; yields its port and what it was given."""
    got: list[EmailMessage] = []

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                match line[:4].upper():
                    case b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        lines = list(iter(self.rfile.readline, b".\r\n"))
                        got.append(message_from_bytes(b"".join(lines), policy=policy.default))
                        self.wfile.write(b"250 taken\r\n")
                    case b"QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    case b"MAIL" if refusing:
                        self.wfile.write(b"451 not now, somebody@example.com\r\n")
                    case _:
                        self.wfile.write(b"250 well\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1], got
        server.shutdown()


def set_channels(settings: Settings, *, mail_port: int = 0, url: str = "") -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mail_port
    settings.ESCALATION_EMAILS = ["desk@example.com"] if mail_port else []
    settings.OPERATOR_WEBHOOK_URL, settings.OPERATOR_WEBHOOK_SECRET = url, SECRET.to_text()


def late_request(subject: str = "site:1", *, days: float = 40) -> str:
    return record(make_wish(subject, received_at=timezone.now() - timedelta(days=days))).public_id


def raised() -> list[tuple[str, int, int]]:
    """List what was raised: of which request or partner, at what level, about how many notices."""
    rows = Escalation.objects.order_by("id").values_list(
        "request__public_id", "stream__partner__slug", "level", "notices"
    )
    return [(request or partner or "", level, notices) for request, partner, level, notices in rows]


def test_a_request_is_escalated_at_the_level_it_has_come_to_and_once() -> None:
    made = {days: late_request(f"site:{days}", days=days) for days in (5, 16, 26, 40)}
    for _ in range(3):
        escalation.look()
    assert sorted(raised(), key=lambda one: one[1]) == [(made[16], 50, 0), (made[26], 80, 0), (made[40], 100, 0)]


def test_a_request_that_is_answered_repeated_or_withdrawn_is_not_escalated() -> None:
    withdrawn = late_request("site:1")
    intake.withdraw_request(source="blogs", actor="test", public_id=withdrawn)
    first = late_request("site:2")
    late_request("site:2")
    escalation.look()
    assert raised() == [(first, 100, 0)]


def test_notices_are_escalated_together_by_partner_and_level_once_for_each() -> None:
    with listening() as receiver:
        partner = owe(receiver, notices=5)
        for sequence, days in ((1, 16), (2, 17), (3, 25), (4, 31), (5, 5)):
            let_pass(days, sequence=sequence)
        escalation.look()
        assert sorted(raised()) == [("acme", 50, 2), ("acme", 80, 1), ("acme", 100, 1)]
        assert Escalation.objects.get(level=50).sequences == [1, 2]
        let_an_hour_pass()
        escalation.look()
        assert len(raised()) == 3
        # One of them goes on to the next level.
        let_an_hour_pass()
        planned_at = timezone.now() - timedelta(days=24, minutes=30)
        Notice.objects.filter(sequence=1).update(planned_at=planned_at, respond_by=planned_at + timedelta(days=30))
        escalation.look()
        assert raised()[3:] == [("acme", 80, 1)]
        say(partner, through=5, status="completed")
        let_an_hour_pass()
        Notice.objects.update(respond_by=timezone.now() - timedelta(minutes=1))
        escalation.look()
        assert len(raised()) == 4


def let_an_hour_pass() -> None:
    Stream.objects.update(looked_at=timezone.now() - timedelta(hours=1, seconds=1))


def test_a_stream_is_looked_at_once_an_hour() -> None:
    with listening() as receiver:
        owe(receiver)
        escalation.look()
        Notice.objects.update(respond_by=timezone.now() - timedelta(seconds=1))
        escalation.look()
        assert raised() == []
        let_an_hour_pass()
        escalation.look()
        assert raised() == [("acme", 100, 1)]


def test_a_stream_can_be_locked_while_it_is_looked_at() -> None:
    with listening() as receiver:
        owe(receiver)
        let_pass(31)
        with beside(escalation.NOTICES, "select from removal_stream for no key update"):
            escalation.look()
    assert raised() == [("acme", 100, 1)]


def test_what_somebody_else_has_looked_at_meanwhile_is_not_raised_again() -> None:
    with listening() as receiver:
        owe(receiver)
        let_pass(31)
        with beside(escalation.NOTICES, "update removal_stream set looked_at = clock_timestamp()"):
            assert escalation.look() == 0
    assert raised() == []


def test_many_workers_at_once_raise_and_send_each_once(settings: Settings) -> None:
    with listening() as receiver, mail_server() as (port, mails), listening() as operator:
        set_channels(settings, mail_port=port, url=operator.url)
        owe(receiver, notices=3)
        let_pass(31)
        for n in range(20):
            late_request(f"site:{n}")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: sweep.watch_deadlines(), range(16)))
        sweep.watch_deadlines()
        told = [json.loads(message.body) for message in operator.received]
        ids = [one["id"] for message in told for one in message["data"]["escalations"]]
        assert sorted(ids) == sorted(Escalation.objects.values_list("id", flat=True))
        assert len(ids) == 21
        assert len({message.webhook_id for message in operator.received}) == len(operator.received) == len(mails)
    assert not StaffMessage.objects.filter(sent_at=None).exists()


def test_the_webhook_is_signed_and_says_ids_and_counts(settings: Settings) -> None:
    with listening() as receiver, listening() as operator:
        set_channels(settings, url=operator.url)
        owe(receiver, notices=2)
        let_pass(31)
        late = late_request("person:secret")
        sweep.watch_deadlines()
        [message] = operator.received
    signing.verify(headers=message.headers, body=message.body, keys=[SECRET], now=timezone.now())
    said = json.loads(message.body)
    of_request, of_notices = Escalation.objects.order_by("id")
    assert (said["type"], said["version"]) == ("removal.escalation", "1")
    assert (said["data"]["requests"], said["data"]["notices"]) == (1, 2)
    by_id = {one["id"]: one for one in said["data"]["escalations"]}
    assert by_id[of_request.pk]["request"] == late
    assert by_id[of_notices.pk] == {
        "id": of_notices.pk, "level": 100, "partner": "acme", "notices": 2, "sequences": [1, 2],
    }  # fmt: skip
    # The page for operators shows a body of this form.
    page = (ROOT / "docs/operations.md").read_text()
    shown = json.loads(re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)[0])
    assert [shown.keys(), shown["data"].keys()] == [said.keys(), said["data"].keys()]
    assert [one.keys() for one in shown["data"]["escalations"]] == [
        by_id[one.pk].keys() for one in (of_request, of_notices)
    ]
    assert b"secret" not in message.body
    assert message.webhook_id == str(StaffMessage.objects.get())


def test_the_mail_says_ids_and_counts(settings: Settings) -> None:
    with listening() as receiver, mail_server() as (port, mails):
        set_channels(settings, mail_port=port)
        owe(receiver, notices=12)
        let_pass(31)
        late = late_request("person:secret", days=26)
        sweep.watch_deadlines()
        sweep.watch_deadlines()
        [mail] = mails
    text = mail.get_content()
    assert (mail["To"], mail["Subject"]) == ("desk@example.com", "Removal: 1 requests and 12 notices need attention")
    assert mail["Message-ID"] == f"<{StaffMessage.objects.get().pk.hex}@removal>"
    assert re.search(r"OVERDUE:\s+12 notices of acme: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more", text)
    assert re.search(rf"80 % of the time is over:\s+request {late}, due ", text)
    assert "secret" not in text


def test_a_channel_that_fails_is_tried_again_and_keeps_the_other_from_nothing(settings: Settings) -> None:
    with mail_server(refusing=True) as (port, mails), listening(lambda _: Reply(503)) as operator:
        set_channels(settings, mail_port=port, url=operator.url)
        late_request()
        sweep.watch_deadlines()
        waiting = {one.channel: one for one in StaffMessage.objects.all()}
        assert {channel: (one.tries, one.sent_at) for channel, one in waiting.items()} == {
            "email": (1, None), "webhook": (1, None),
        }  # fmt: skip
        assert waiting["email"].fault.endswith("from the mail server")
        assert "@" not in waiting["email"].fault
        assert waiting["webhook"].fault.startswith("answered 503")
        assert all(one.due_at > timezone.now() for one in waiting.values())
        sweep.watch_deadlines()
        assert len(operator.received) == 1

        operator.script = lambda _: Reply(200)
        StaffMessage.objects.update(due_at=timezone.now())
        sweep.watch_deadlines()
        first, second = operator.received
        assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
        assert mails == []
    assert [one.channel for one in StaffMessage.objects.filter(sent_at=None)] == ["email"]


def test_without_a_channel_everything_waits_for_one(settings: Settings) -> None:
    set_channels(settings)
    late_request()
    sweep.watch_deadlines()
    assert (Escalation.objects.filter(bundled_at=None).count(), StaffMessage.objects.count()) == (1, 0)
    with listening() as operator:
        set_channels(settings, url=operator.url)
        sweep.watch_deadlines()
        assert len(operator.received) == 1


def test_what_was_escalated_is_not_deleted() -> None:
    late_request()
    escalation.look()
    from django.db import IntegrityError

    with pytest.raises(IntegrityError), connection.cursor() as cursor:
        cursor.execute("delete from removal_escalation")


def test_a_sweep_watches_deadlines_beside_its_work(settings: Settings) -> None:
    with listening() as receiver, listening() as operator:
        set_channels(settings, url=operator.url)
        owe(receiver)
        let_pass(31)
        sweeper: Any = sweep.Sweeper(
            interval=timedelta(seconds=1), reconcile_interval=timedelta(hours=1), deadlines_interval=timedelta(0)
        )
        sweeper.sweep()
        sweeper.pool.shutdown(wait=True)
        assert len(operator.received) == 1
