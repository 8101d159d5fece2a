"""Finding notices, messages and incidents as staff ask for them."""

import re
from datetime import timedelta

import pytest
from django.db.models import Model
from django.test import Client
from django.utils import timezone

from removal.models import Delivery, Incident, LogEntry, Notice, Stream
from removal.partnerships import set_paused
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.admin.story import list_url, owe, say, send, tell

pytestmark = pytest.mark.django_db


def listed(desk: Client, model: type[Model], query: str = "") -> list[str]:
    """List the primary keys of the rows on a list."""
    response = desk.get(f"{list_url(model)}{query}")
    assert response.status_code == 200
    row = re.compile(rf'<th class="field-[a-z_ ]+"><a href="{list_url(model)}([^/]+)/change/')
    return row.findall(response.content.decode())


def keys(*rows: Model) -> list[str]:
    return [str(row.pk) for row in rows]


def test_a_notice_is_found_by_its_public_name(desk: Client) -> None:
    acme, other = make_partner("acme").partner, make_partner("other").partner
    owe(acme)
    owe(acme, other)
    second_of_acme = Notice.objects.get(stream=acme.pk, sequence=2)
    first_of_other = Notice.objects.get(stream=other.pk)
    assert listed(desk, Notice, "?q=acme+2") == keys(second_of_acme)
    assert listed(desk, Notice, "?q=other+1") == keys(first_of_other)
    assert listed(desk, Notice, "?q=2") == keys(second_of_acme)
    assert listed(desk, Notice, "?q=acme") == []
    assert listed(desk, Notice, f"?q={'9' * 30}") == []


def test_late_notices_are_found(desk: Client) -> None:
    with listening() as receiver:
        silent, heard, done = (make_partner(url=receiver.url).partner for _ in range(3))
        unsent, on_time = make_partner().partner, make_partner().partner
        owe(silent, heard, done, unsent, on_time)
        for partner in (silent, heard, done):
            send(partner)
    say(heard, 1, "in_progress")
    say(done, 1, "completed")
    Notice.objects.exclude(stream=on_time.pk).update(respond_by=timezone.now() - timedelta(days=1))
    notice_of = {notice.stream_id: notice for notice in Notice.objects.all()}

    overdue = listed(desk, Notice, "?late=overdue")
    assert sorted(overdue) == sorted(keys(notice_of[silent.pk], notice_of[heard.pk], notice_of[unsent.pk]))
    assert listed(desk, Notice, "?late=silent") == keys(notice_of[silent.pk])
    assert listed(desk, Notice, "?handling=completed") == keys(notice_of[done.pk])


def test_what_is_received_and_open_is_found_newest_first(desk: Client) -> None:
    said, covered, closed, quiet = (make_partner().partner for _ in range(4))
    owe(said, covered, closed, quiet)
    owe(said)
    told = Notice.objects.filter(stream__in=[said.pk, closed.pk])
    told.update(handling="received", acknowledged_at=timezone.now())
    Stream.objects.filter(pk=covered.pk).update(packed_through=1, received_through=1)
    Notice.objects.filter(stream=closed.pk).update(closed_at=timezone.now())

    newest_first = Notice.objects.filter(stream__in=[said.pk, covered.pk]).order_by("-planned_at", "-pk")
    assert listed(desk, Notice, "?handling=received") == keys(*newest_first)
    assert len(newest_first) == 3
    of_one = f"?handling=received&stream__partner__id__exact={said.pk}"
    assert listed(desk, Notice, of_one) == keys(*Notice.objects.filter(stream=said.pk).order_by("-sequence"))


def test_what_is_open_is_listed_by_age_oldest_first(desk: Client) -> None:
    partner = make_partner().partner
    owe(partner)
    owe(partner)
    first, second = Notice.objects.order_by("pk")
    now = timezone.now()
    Notice.objects.filter(pk=first.pk).update(planned_at=now - timedelta(days=100))
    Notice.objects.filter(pk=second.pk).update(planned_at=now - timedelta(days=200))
    assert listed(desk, Notice, "?age=91") == keys(second, first)
    assert listed(desk, Notice, "?age=8") == []


def test_a_message_is_found_by_its_webhook_id(desk: Client) -> None:
    tell()
    tell()
    for delivery in Delivery.objects.all():
        assert listed(desk, Delivery, f"?q={delivery.webhook_id}") == keys(delivery)
    assert listed(desk, Delivery, "?q=msg_nothing") == []


def test_messages_of_a_paused_partner_are_held(desk: Client) -> None:
    with listening(lambda _: Reply(500)) as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        owe(partner)
        send(partner)
    set_paused(actor="test", slug="acme", paused=True)
    for model in (Delivery, Notice):
        page = desk.get(list_url(model)).content.decode()
        assert page.count('<span class="badge badge-wait">held</span>') == 1


def test_incidents_are_found_by_whether_they_go_on(desk: Client) -> None:
    tell()  # its incident was closed by the next success
    with listening(lambda _: Reply(403)) as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner)
        send(partner)
    closed, ongoing = Incident.objects.order_by("pk")
    assert listed(desk, Incident, "?state=ongoing") == keys(ongoing)
    assert listed(desk, Incident, "?state=closed") == keys(closed)


def test_the_log_is_searched_by_actor_or_action(desk: Client) -> None:
    partner = make_partner("acme").partner
    set_paused(actor="staff:7", slug="acme", paused=True)
    entry = LogEntry.objects.get(actor="staff:7")
    assert listed(desk, LogEntry, "?q=staff:7") == listed(desk, LogEntry, "?q=partner_paused") == keys(entry)
    assert entry.about == {"partner": partner.pk}
