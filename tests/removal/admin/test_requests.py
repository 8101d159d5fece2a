"""The request's page: what was asked, about what, and where each partner stands with it."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from removal import acknowledgement, intake, planning
from removal.models import Notice, RemovalRequest
from removal.partnerships import set_paused
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Receiver, Reply, listening
from tests.removal.admin.story import BUDGET, list_url, owe, page_url, say, send, tell

pytestmark = pytest.mark.django_db


def cells(row: str) -> list[str]:
    found = re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in found]


def table(page: str, heading: str) -> list[list[str]]:
    """Read a table of a page, as text."""
    body = page.split(f'id="{heading}-heading"')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [cells(row) for row in re.findall(r"<tr>.*?</tr>", body, flags=re.DOTALL)]


def listed(desk: Client, query: str = "") -> list[str]:
    """List the public ids on the list of requests."""
    page = desk.get(f"{list_url(RemovalRequest)}{query}").content.decode()
    return re.findall(r'field-public_id"><a [^>]*>([^<]+)<', page)


def read(desk: Client, request: RemovalRequest) -> str:
    response = desk.get(page_url(request))
    assert response.status_code == 200
    return response.content.decode()


def partner_at(receiver: Receiver, slug: str) -> Partner:
    return make_partner(slug, url=receiver.url).partner


def test_each_partner_has_a_line_in_words(desk: Client) -> None:
    with listening() as good, listening(lambda _: Reply(500)) as failing:
        done, silent, down, paused = (
            partner_at(good, "done"),
            partner_at(good, "silent"),
            partner_at(failing, "down"),
            partner_at(good, "paused"),
        )
        request = owe(done, silent, down, paused, subject="site:1")
        set_paused(actor="test", slug="paused", paused=True)
        for partner in (done, silent, down, paused):
            send(partner)
    say(done, 1, "completed", outcomes={"removed": 2})
    Notice.objects.update(respond_by=timezone.now() - timedelta(days=1))

    lines = table(read(desk, request), "partners")
    assert [(line[0], line[1], line[2], line[3], line[4], line[6]) for line in lines] == [
        ("done", "1", "2", "delivered", "1", "completed"),
        ("down", "1", "2", "waiting", "1", "no word yet"),
        ("paused", "1", "2", "held", "0", "no word yet"),
        ("silent", "1", "2", "delivered", "1", "no word yet"),
    ]
    assert [line[8].split()[-1] for line in lines][1:] == ["overdue", "overdue", "silent"]
    assert [line[5] == "-" for line in lines] == [False, True, True, False]
    assert [line[7] == "-" for line in lines] == [False, True, True, True]


def test_each_line_links_to_its_notice(desk: Client) -> None:
    partners = [make_partner().partner, make_partner().partner]
    request = owe(*partners)
    page = read(desk, request)
    assert [page_url(notice) in page for notice in Notice.objects.all()] == [True, True]


def test_a_receipt_by_watermark_is_shown_as_received(desk: Client) -> None:
    with listening() as receiver:
        partner = partner_at(receiver, "acme")
        request = owe(partner)
        send(partner)
    through = Statement(status="received", text="{}", through=1)
    acknowledgement.acknowledge(partner_id=partner.pk, key_prefix="rk_prefix", statements=[through])
    [line] = table(read(desk, request), "partners")
    assert line[6] == "received"
    notices = desk.get(list_url(Notice)).content.decode()
    assert re.findall(r'field-handled"><span class="badge badge-wait">([^<]+)<', notices) == ["received"]


def test_a_withdrawn_notice_is_never_late(desk: Client) -> None:
    request = owe(make_partner().partner)
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    Notice.objects.update(respond_by=timezone.now() - timedelta(days=1))
    page = read(desk, request)
    [line] = table(page, "partners")
    assert line[3] == "withdrawn"
    assert "badge-bad" not in page
    assert "closed: withdrawn" in page


def test_a_repeat_shows_the_lines_of_the_earlier_request(desk: Client) -> None:
    partner = make_partner("acme").partner
    earlier = owe(partner, subject="site:1")
    repeat = record(make_wish("site:1"))
    page = read(desk, repeat)
    assert "repeats an earlier one" in page
    assert [line[0] for line in table(page, "partners")] == ["acme"]
    assert page_url(earlier) in page
    intake.withdraw_request(source="blogs", actor="test", public_id=repeat.public_id)
    assert "closed: withdrawn" in read(desk, repeat)


def test_a_request_that_met_nothing_says_so(desk: Client) -> None:
    request = record(make_wish("site:1"))
    assert "Nobody has been told yet" in read(desk, request)
    planning.plan(budget=BUDGET)
    page = read(desk, request)
    assert "No partner received anything that this is about." in page
    assert "closed: nothing disclosed" in page


def test_targets_are_shown_with_their_number_of_items(desk: Client) -> None:
    whole = record(make_wish("site:1"))
    part = record(make_wish("site:2", kind="deletion", items=("post:1", "post:2")))
    assert table(read(desk, whole), "targets") == [["site:1", "everything"]]
    assert table(read(desk, part), "targets") == [["site:2", "2"]]


def test_many_targets_are_cut_and_counted(desk: Client) -> None:
    request = record(make_wish("site:0"))
    with connection.cursor() as cursor:
        cursor.execute("insert into removal_subject (key) select 'site:' || n from generate_series(1, 120) n")
        cursor.execute(
            "insert into removal_requesttarget (subject_id, request_id) select id, %s from removal_subject"
            " where key <> 'site:0'",
            [request.pk],
        )
    RemovalRequest.objects.update(target_count=121)
    page = read(desk, request)
    assert len(table(page, "targets")) == 100
    assert "and 21 more" in page


def test_a_manifest_is_cut_and_counted(desk: Client) -> None:
    release = make_release(contents={f"site:{n}": ["post:1"] for n in range(103)})
    page = desk.get(page_url(release)).content.decode()
    assert len(table(page, "entries")) == 100
    assert "and 3 more" in page


def test_a_page_costs_as_many_queries_with_three_partners_as_with_one(desk: Client) -> None:
    one = owe(make_partner().partner)
    three = owe(*(make_partner().partner for _ in range(3)))
    read(desk, one)
    prices = []
    for request in (one, three):
        with CaptureQueriesContext(connection) as queries:
            read(desk, request)
        prices.append(len(queries))
    assert prices[0] == prices[1]


def test_the_list_says_the_state_in_word_and_colour(desk: Client) -> None:
    tell()
    owe(make_partner().partner)
    record(make_wish())
    page = desk.get(list_url(RemovalRequest)).content.decode()
    assert re.findall(r'field-standing"><span class="badge badge-(\w+)">([^<]+)<', page) == [
        ("wait", "received"),
        ("wait", "planned"),
        ("good", "closed: fulfilled"),
    ]


def test_search_finds_an_id_or_a_subject_and_nothing_that_is_only_alike(desk: Client) -> None:
    about_1, other = record(make_wish("site:1")), record(make_wish("site:12"))
    again = record(make_wish("site:1", kind="deletion"))
    assert listed(desk, f"?q={other.public_id}") == [other.public_id]
    assert listed(desk, f"?q={other.public_id.lower()}") == [other.public_id]
    assert listed(desk, "?q=site:1") == [again.public_id, about_1.public_id]
    assert listed(desk, "?q=site") == []
    assert listed(desk, f"?q={other.public_id[:10]}") == []


def test_filters_narrow_by_state_kind_and_outcome(desk: Client) -> None:
    release = make_release(contents={"site:1": ["post:1"]})
    disclose(release, make_partner().partner)
    planned, empty = record(make_wish("site:1")), record(make_wish("site:2"))
    planning.plan(budget=BUDGET)
    deletion = record(make_wish("site:3", kind="deletion"))
    assert listed(desk, "?state__exact=planned") == [planned.public_id]
    assert listed(desk, "?kind__exact=deletion") == [deletion.public_id]
    assert listed(desk, "?outcome__exact=nothing_disclosed") == [empty.public_id]


def test_times_are_written_as_everywhere_else(desk: Client) -> None:
    request = owe(make_partner().partner)
    for page in (desk.get(list_url(RemovalRequest)).content.decode(), read(desk, request)):
        for at in (request.received_at, request.respond_by):
            assert f">{at:%Y-%m-%d %H:%M}<" in page
