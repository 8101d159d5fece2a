"""The start page: its figures are true, and each leads to a list with exactly the rows that it counts."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from removal import health
from removal.models import Alarm, Delivery, Extension, Incident, Notice, RemovalRequest, Waiver
from removal.partnerships import set_paused
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.admin.conftest import open_desk
from tests.removal.admin.story import give_up, list_url, owe, page_url, send, tell
from tests.removal.admin.test_streams import keys, listed

pytestmark = pytest.mark.django_db


def start(desk: Client) -> str:
    response = desk.get("/admin/")
    assert response.status_code == 200
    return response.content.decode()


def figures(page: str) -> dict[str, tuple[str, str]]:
    """Read what each figure says, and where it leads, by its label or, where there is nothing, its words."""
    found = {}
    for url, text in re.findall(r'<li class="figure[^"]*">\s*<a href="([^"]+)">(.*?)</a>', page, flags=re.DOTALL):
        number = re.search(r"<strong>([^<]+)</strong>", text)
        label = re.sub(r"<(strong|small)>.*?</\1>", "", text).strip()
        found[unescape(label)] = (number.group(1) if number else "", unescape(url))
    return found


def partner_rows(page: str) -> list[str]:
    table = page.split('id="partners"')[1].split("</table>")[0]
    return re.findall(r'<td><a href="/admin/partners/partner/\d+/change/">([a-z0-9-]+)</a></td>', table)


def test_an_empty_installation_says_in_words_that_there_is_nothing(desk: Client) -> None:
    page = start(desk)
    assert {number for number, _ in figures(page).values()} == {""}
    assert "No request is overdue." in page
    assert "Every partner has been told everything." in page
    assert "No partner yet. Add the first one with: manage.py partner add" in page
    assert '<svg class="chart"' not in page


@pytest.fixture
def late(loopback_partners: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Partner]:
    """One partner that is silent, one that cannot be reached, a paused one, and one that is on time; all owed."""
    with listening() as receiver, listening(lambda _: Reply(410)) as gone:
        silent, on_time = (make_partner(slug, url=receiver.url).partner for slug in ("silent", "on-time"))
        closed, paused = make_partner("closed", url=gone.url).partner, make_partner("paused").partner
        owe(silent, on_time, closed, paused)
        for partner in (silent, on_time, closed):
            send(partner)
    set_paused(actor="test", slug="paused", paused=True)
    yesterday = timezone.now() - timedelta(days=1)
    monkeypatch.setattr(health, "SILENT_AFTER_ARRIVAL", timedelta())
    Notice.objects.exclude(stream=on_time.pk).update(respond_by=yesterday, receive_by=yesterday, send_by=yesterday)
    return {"silent": silent, "on_time": on_time, "closed": closed, "paused": paused}


def test_each_figure_leads_to_the_rows_it_counts(desk: Client, late: dict[str, Partner]) -> None:
    found = figures(start(desk))
    for label, model, rows in (
        ("answers of partners overdue", Notice, Notice.objects.exclude(stream=late["on_time"].pk)),
        ("notices not sent in time", Notice, Notice.objects.filter(stream__in=[late["closed"].pk, late["paused"].pk])),
        ("partners silent", Partner, [late["silent"]]),
        ("partners not told", Partner, [late["closed"], late["paused"]]),
        ("incidents open", Incident, Incident.objects.filter(stream=late["closed"].pk)),
    ):
        number, url = found[label]
        assert url.startswith(list_url(model))
        shown = listed(desk, model, url.removeprefix(list_url(model)))
        assert (number, sorted(shown)) == (str(len(rows)), sorted(keys(*rows))), label


def test_what_was_not_sent_in_time_is_listed_by_partner(desk: Client, late: dict[str, Partner]) -> None:
    of_paused = f"?late=unsent&stream__partner__id__exact={late['paused'].pk}"
    assert listed(desk, Notice, of_paused) == keys(Notice.objects.get(stream=late["paused"].pk))
    assert listed(desk, Notice, f"?late=unsent&stream__partner__id__exact={late['silent'].pk}") == []


def test_silence_begins_with_the_date_of_the_receipt(desk: Client, late: dict[str, Partner]) -> None:
    Notice.objects.update(respond_by=timezone.now() + timedelta(days=9))
    assert figures(start(desk))["partners silent"] == ("1", f"{list_url(Partner)}?standing=silent")
    assert listed(desk, Partner, "?standing=silent") == keys(late["silent"])
    assert 'badge-bad">silent' in desk.get(f"{list_url(Notice)}?late=open").content.decode()
    assert "t is silent: messages arrived" in desk.get(page_url(late["silent"])).content.decode()


def test_decisions_and_alarms_are_counted_with_their_lists(desk: Client) -> None:
    give_up(tell())  # with a wish for time, an alarm, and a waiver that is decided already
    asker = User.objects.create_user("another")
    notice = owe(make_partner().partner).notices.get()
    waiver = Waiver.objects.create(notice=notice, text="gone", asked_by=asker)
    answered = owe(make_partner("another").partner).notices.get()
    Waiver.objects.create(notice=answered, text="gone", asked_by=asker)
    Notice.objects.filter(pk=answered.pk).update(handling="completed", acknowledged_at=timezone.now())
    found = figures(start(desk))
    for label, model, rows in (
        ("wishes for more time to decide", Extension, Extension.objects.filter(state="asked")),
        ("waivers to decide", Waiver, [waiver]),
        ("alarms in the last 7 days", Alarm, Alarm.objects.all()),
    ):
        number, url = found[label]
        shown = listed(desk, model, url.removeprefix(list_url(model)))
        assert (number, shown) == (str(len(rows)), keys(*rows)), label
        assert len(rows) == 1


def test_why_partners_are_not_told_is_said(desk: Client, late: dict[str, Partner]) -> None:
    page = start(desk)
    assert "1 held: paused or in onboarding" in page
    assert "1 410 gone" in page


def test_a_count_goes_no_further_than_its_cap(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("removal.desk.COUNTED", 2)
    partner = make_partner().partner
    for _ in range(3):
        owe(partner)
    Notice.objects.update(respond_by=timezone.now() - timedelta(days=1))
    number, _ = figures(start(desk))["answers of partners overdue"]
    assert number == "1+"


def test_the_worst_partner_stands_first_and_is_found_in_two_clicks(
    viewer_desk: Client, late: dict[str, Partner]
) -> None:
    page = start(viewer_desk)
    rows = partner_rows(page)
    assert rows[0] == "silent"
    assert rows[-1] == "on-time"
    url = f"/admin/removal/notice/?late=overdue&stream__partner__id__exact={late['silent'].pk}"
    assert url in unescape(page)
    overdue = Notice.objects.get(stream=late["silent"].pk)
    assert listed(viewer_desk, Notice, url.removeprefix(list_url(Notice))) == keys(overdue)


def test_days_count_what_came_and_link_to_it(desk: Client) -> None:
    request = owe(make_partner().partner)
    page = start(desk)
    day = request.received_at.strftime("%Y-%m-%d")
    assert '<svg class="chart"' in page
    assert f'<a href="/admin/removal/removalrequest/?received={day}">1</a>' in page
    assert f'<a href="/admin/removal/removalrequest/?closed={day}">0</a>' in page
    assert listed(desk, RemovalRequest, f"?received={day}") == keys(request)
    assert listed(desk, RemovalRequest, f"?closed={day}") == []
    assert listed(desk, RemovalRequest, "?received=2001-01-01") == []
    assert listed(desk, RemovalRequest, "?received=nonsense") == []


def test_a_section_is_for_those_who_may_see_its_rows(viewer: User) -> None:
    owe(make_partner().partner)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_delivery"))
    page = start(open_desk(viewer))
    assert list(figures(page)) == ["No message is quarantined."]
    assert 'id="partners"' not in page
    assert '<svg class="chart"' not in page
    assert listed(open_desk(viewer), Delivery) == []


def test_the_page_costs_as_many_queries_with_three_partners_as_with_one(desk: Client) -> None:
    def price() -> int:
        with CaptureQueriesContext(connection) as queries:
            start(desk)
        return len(queries)

    tell()
    price()  # what is read once per process is read now
    with_one = price()
    tell()
    tell()
    assert price() == with_one


def test_lists_have_no_filter_that_no_index_serves(desk: Client) -> None:
    """Those that were taken away: see the comment in the admin of each."""
    for query in ("removal/attempt/?delivery__stream__partner__id__exact=1", "removal/preference/?value__exact=allow",
                  "removal/acknowledgement/?channel__exact=api"):  # fmt: skip
        assert desk.get(f"/admin/{query}").status_code == 400
