"""A database that was restored from a backup: what partners were told since is unknown, and nobody is told it twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone
from psycopg.sql import SQL, Identifier

from partners.models import Partner
from removal import acknowledgement, closing, intake, invariants, planning, pulling, sending
from removal.models import LogEntry, Notice, RemovalRequest, Stream
from removal.statements import Answer, Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Receiver, listening

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)
REMOVED: dict[str, Any] = {"outcomes": {"removed": 1}}


@pytest.fixture
def receiver(loopback_partners: None) -> Iterator[Receiver]:
    with listening() as receiver:
        yield receiver


@pytest.fixture
def partner(receiver: Receiver) -> Partner:
    partner = make_partner("acme", url=receiver.url).partner
    disclose(make_release(contents={f"site:{n}": ["post:1"] for n in range(1, 9)}), partner)
    return partner


@contextmanager
def backup() -> Iterator[Callable[[], None]]:
    """Copy the database as it is now; what is yielded puts the copy in its place."""
    parameters: dict[str, Any] = connection.get_connection_params()
    own = str(parameters["dbname"])
    plain = {name: value for name, value in parameters.items() if name in {"host", "port", "user", "password"}}

    def copy(source: str, to: str) -> None:
        connections.close_all()
        with psycopg.connect(**plain, dbname="postgres", autocommit=True) as server:
            server.execute(SQL("drop database if exists {} with (force)").format(Identifier(to)))
            server.execute(SQL("create database {} template {}").format(Identifier(to), Identifier(source)))

    copy(own, f"{own}_backup")
    yield lambda: copy(f"{own}_backup", own)
    with psycopg.connect(**plain, dbname="postgres", autocommit=True) as server:
        server.execute(SQL("drop database {}").format(Identifier(f"{own}_backup")))


def tell(partner: Partner, *subjects: str, kind: str = "opt_out", sent: bool = True) -> None:
    for subject in subjects:
        record(make_wish(subject, kind=kind))
    planning.plan(budget=BUDGET)
    if sent:
        sending.drain(partner_id=partner.pk, budget=BUDGET)


def say(partner: Partner, sequence: int, status: str = "completed", **said: Any) -> Answer:
    statement = Statement(status=status, text="{}", sequence=sequence, **said)
    return acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])


def restored() -> None:
    call_command("restored", "--yes")


def told() -> list[tuple[int, str, str]]:
    """List what the stream says in its present epoch: number, kind, subject."""
    notices = Notice.objects.filter(epoch=Stream.objects.get().epoch).order_by("sequence")
    return [(one.sequence, one.kind, one.request.targets.get().subject.key) for one in notices]


def broken() -> dict[str, int]:
    return {name: count for name, count in invariants.check().items() if count}


def test_nothing_that_a_partner_took_since_the_backup_hides_a_later_notice(
    partner: Partner, receiver: Receiver
) -> None:
    tell(partner, "site:1", "site:2")
    say(partner, 1, **REMOVED)
    with backup() as restore:
        tell(partner, "site:3")  # the partner keeps it; here it is lost
        assert receiver.sequences == [1, 2, 3]
        restore()
    assert not RemovalRequest.objects.filter(targets__subject__key="site:3").exists()
    restored()
    tell(partner, "site:4")
    assert told() == [(1, "opt_out", "site:2"), (2, "opt_out", "site:4")]
    sent = [(one.data["epoch"], one.data["first"], one.data["last"]) for one in receiver.received]
    assert sent == [(1, 1, 2), (1, 3, 3), (2, 1, 2)]
    for number in (1, 2):
        assert say(partner, number, epoch=2, **REMOVED).accepted == 1
    assert set(RemovalRequest.objects.values_list("state", "outcome")) == {("closed", "fulfilled")}
    assert broken() == {}


def test_wishes_keep_their_order_whatever_was_answered(partner: Partner) -> None:
    tell(partner, "site:1")
    tell(partner, "site:2")
    tell(partner, "site:2", kind="reinstatement")
    tell(partner, "site:2")
    said: list[tuple[int, dict[str, Any]]] = [(1, REMOVED), (3, {}), (4, REMOVED)]
    for number, how in said:
        assert say(partner, number, **how).accepted == 1
    restored()
    assert told() == [(1, "opt_out", "site:2"), (2, "reinstatement", "site:2"), (3, "opt_out", "site:2")]
    assert broken() == {}


def test_what_was_in_no_message_yet_or_only_pulled_is_said_too(partner: Partner) -> None:
    tell(partner, "site:1", "site:2", "site:3", sent=False)
    for after in (0, 2):
        pulling.pull(partner_id=partner.pk, key_prefix="rk_test", after=after, limit=2)
    restored()
    assert [number for number, *_ in told()] == [1, 2, 3]
    sending.drain(partner_id=partner.pk, budget=BUDGET)
    assert Stream.objects.get().packed_through == 3
    assert broken() == {}


def test_what_was_withdrawn_or_closed_by_hand_is_not_asked_for_again(partner: Partner) -> None:
    tell(partner, "site:1", "site:2", "site:3")
    withdrawn = RemovalRequest.objects.get(targets__subject__key="site:2")
    intake.withdraw_request(source=withdrawn.source, actor="test", public_id=withdrawn.public_id)
    lead = User.objects.create_user("lead", is_staff=True)
    given_up = Notice.objects.get(sequence=3)
    closing.close_notice(user_id=lead.pk, notice_id=given_up.pk, reason="duplicate", text="x")
    restored()
    assert told() == [(1, "opt_out", "site:1")]
    assert broken() == {}


def test_each_partner_has_as_long_as_it_had(partner: Partner) -> None:
    tell(partner, "site:1")
    before = Notice.objects.get()
    planned_at = timezone.now() - timedelta(days=20)
    Notice.objects.update(planned_at=planned_at, respond_by=planned_at + timedelta(days=30), receive_by=None)
    restored()
    after = Notice.objects.get(epoch=2)
    assert (after.respond_by - after.planned_at, after.receive_by) == (timedelta(days=30), None)
    assert after.planned_at > before.planned_at
    assert say(partner, 1, epoch=1, **REMOVED).refused[0].code == "wrong_epoch"


def test_a_partner_that_owes_nothing_begins_with_an_empty_stream(partner: Partner) -> None:
    tell(partner, "site:1")
    say(partner, 1, **REMOVED)
    restored()
    assert (told(), Stream.objects.get().head) == ([], 0)
    assert broken() == {}


def test_the_command_says_first_what_it_would_do(partner: Partner, capsys: pytest.CaptureFixture[str]) -> None:
    tell(partner, "site:1")
    call_command("restored")
    assert "1 streams would begin anew" in capsys.readouterr().out
    assert Stream.objects.get().epoch == 1
    restored()
    assert capsys.readouterr().out == "acme: epoch 2, 1 notices are said again\n"
    entry = LogEntry.objects.get(action="epoch_opened")
    assert entry.about == {"partner": partner.pk, "epoch": 2, "notices": 1}
