"""The ledger's answers on pages: who holds what, what a partner holds and owes, and what slipped through."""

import re
from datetime import datetime, timedelta
from html import escape, unescape
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Partner
from removal import holdings, intake, ledger, planning
from removal.admin import questions
from removal.models import Disclosure, Notice, Release, RemovalRequest
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import listening
from tests.removal.admin.story import BUDGET, owe, page_url, say, send
from tests.removal.admin.test_pages import OVERRIDE, SCRIPT
from tests.removal.admin.test_requests import table

pytestmark = pytest.mark.django_db

URL = "/admin/removal/disclosure/who-holds/"
LONG_AGO = datetime.fromisoformat("2024-02-29T12:00:00Z")
EVIL = f"{SCRIPT}{OVERRIDE}gpj.exe"


def ask(desk: Client, subject: str, **asked: str) -> str:
    response = desk.get(URL, {"subject": subject, **asked})
    assert response.status_code == 200
    return response.content.decode()


def read(desk: Client, row: Any) -> str:
    response = desk.get(page_url(row))
    assert response.status_code == 200
    return response.content.decode()


def hand_over(release: Release, partner: Partner, at: datetime) -> Disclosure:
    disclosure, _ = ledger.record_disclosure(
        actor="test",
        release=release.name,
        partner=partner.slug,
        reference=f"at {at}",
        disclosed_at=at,
        now=timezone.now(),
    )
    return disclosure


def errors(page: str, field: str) -> list[str]:
    """Read what stands beside a field of the form."""
    row = page.split(f"field-{field}")[1].split("</div>")[0]
    return [unescape(error) for error in re.findall(r"<li>(.*?)</li>", row)]


def price(desk: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert desk.get(url).status_code == 200
    return len(queries)


# --- who holds what ---


def test_holders_are_listed_with_what_they_were_given(desk: Client) -> None:
    with listening() as receiver:
        acme, globex = make_partner("acme", url=receiver.url).partner, make_partner("globex").partner
        release = make_release("2024-02", contents={"site:1": ["post:1", "post:2"], "site:2": ["post:3"]})
        hand_over(release, acme, LONG_AGO)
        hand_over(release, globex, LONG_AGO + timedelta(days=1))
        record(make_wish("site:1"))
        planning.plan(budget=BUDGET)
        send(acme)
    say(acme, 1, "completed")
    page = ask(desk, "site:1")
    lines = table(page, "holders")
    assert [[line[0], line[1], line[3], line[4], line[5], line[6]] for line in lines] == [
        ["acme", "2024-02", f"at {LONG_AGO}", "all", "2", "post:1, post:2"],
        ["globex", "2024-02", f"at {LONG_AGO + timedelta(days=1)}", "all", "2", "post:1, post:2"],
    ]
    assert [line[7].split()[0] for line in lines] == ["removed", "holds"]
    assert "1 of the partners still" in page
    for row in (acme, globex, release):
        assert f'href="{page_url(row)}"' in page


def test_the_past_is_answered_as_it_was(desk: Client) -> None:
    hand_over(make_release(contents={"site:1": ["post:1"]}), make_partner("acme").partner, LONG_AGO)
    assert "Nobody had been given anything of it by then." in ask(desk, "site:1", as_of="2024-02-29 11:59")
    page = ask(desk, "site:1", as_of="2024-02-29T12:00:00Z")
    assert [line[0] for line in table(page, "holders")] == ["acme"]
    # An hour east of Greenwich it is already later there.
    assert "Nobody had been given" in ask(desk, "site:1", as_of="2024-02-29T12:59:00+01:00")


def test_a_subject_that_nobody_holds_is_told_from_one_that_nobody_knows(desk: Client) -> None:
    make_release(contents={"site:1": ["post:1"]})
    assert "Nobody was given anything of it." in ask(desk, "site:1")
    for unknown in ("site:2", "site", "Site:1", "site:1 "):
        assert "No subject with this key is known" in ask(desk, unknown)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("", "Write the key or the label of a subject."),
        ("x" * 513, "It must have 1 to 512 bytes in UTF-8."),
        ("a\0", "Null characters are not allowed."),
    ],
)
def test_a_key_that_cannot_be_is_refused_beside_its_field(desk: Client, subject: str, message: str) -> None:
    page = ask(desk, subject)
    assert (errors(page, "subject"), errors(page, "as_of")) == ([message], [])
    assert "holders-heading" not in page


@pytest.mark.parametrize(
    ("as_of", "message"),
    [
        ("yesterday", "Write a date and a time, such as 2026-11-24 00:20."),
        ("2026-02-30 00:20", "Write a date and a time, such as 2026-11-24 00:20."),
        ("9999-12-31T23:59:59Z", "It lies in the future, which nobody knows. Leave it empty to ask about now."),
        ("0001-01-01T00:00:00+14:00", "Nothing was recorded so long ago."),
        ("9999-12-31T23:59:59-14:00", "Nothing was recorded so long ago."),
    ],
)
def test_a_moment_that_cannot_be_is_refused_beside_its_field(desk: Client, as_of: str, message: str) -> None:
    page = ask(desk, "site:1", as_of=as_of)
    assert (errors(page, "subject"), errors(page, "as_of")) == ([], [message])
    assert "holders-heading" not in page


def test_the_empty_form_asks_nothing(desk: Client) -> None:
    page = desk.get(URL).content.decode()
    assert (errors(page, "subject"), "holders-heading" in page) == ([], False)


def test_long_lists_are_cut_and_counted(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_HOLDERS", 2)
    release = make_release(contents={"site:1": [f"post:{n}" for n in range(1001)]})
    for _ in range(3):
        disclose(release, make_partner().partner)
    page = ask(desk, "site:1")
    lines = table(page, "holders")
    assert [line[6].endswith("post:19 and 981 more") for line in lines] == [True, True]
    assert "and 1 later handovers more" in page
    assert "3 of the partners still" in page


def test_an_answer_costs_as_many_queries_with_three_handovers_as_with_one(desk: Client) -> None:
    releases = [make_release(contents={f"site:{n}": ["post:1"]}) for n in (1, 2)]
    disclose(releases[0], make_partner().partner)
    for _ in range(3):
        disclose(releases[1], make_partner().partner)
    price(desk, URL)
    assert price(desk, f"{URL}?subject=site:1") == price(desk, f"{URL}?subject=site:2")


def test_hostile_text_is_escaped_and_no_page_has_a_script_of_its_own(desk: Client) -> None:
    partner = make_partner("acme").partner
    release = make_release(contents={EVIL: [EVIL]})
    before = record(make_wish(EVIL))
    Disclosure.objects.create(release=release, partner=partner, usages=[EVIL, "all"], reference=EVIL)
    planning.plan(budget=BUDGET)
    pages = [ask(desk, EVIL), ask(desk, EVIL + "?", as_of=EVIL), read(desk, partner), read(desk, before)]
    assert "table" in pages[0]
    assert table(pages[0], "holders")[0][6] == EVIL.replace(OVERRIDE, "[U+202E]")
    for page in pages:
        assert "<script>alert" not in page
        assert OVERRIDE not in page
        assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=", page) == []


# --- who may ask ---


def test_a_viewer_may_ask_and_finds_the_way(viewer_desk: Client) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner("acme").partner)
    assert [line[0] for line in table(ask(viewer_desk, "site:1"), "holders")] == ["acme"]
    for page in ("/admin/", "/admin/removal/disclosure/"):
        assert f'href="{URL}"' in viewer_desk.get(page).content.decode()


@pytest.mark.parametrize("permission", ["view_disclosure", "view_release", "view_partner"])
def test_without_a_permission_nobody_asks(viewer: User, viewer_desk: Client, permission: str) -> None:
    viewer.user_permissions.remove(viewer.user_permissions.get(codename=permission))
    assert viewer_desk.get(URL, {"subject": "site:1"}).status_code == 403
    assert URL not in viewer_desk.get("/admin/").content.decode()


def test_a_stranger_is_sent_to_log_in(client: Client) -> None:
    assert client.get(URL, {"subject": "site:1"}).status_code == 302


def test_nothing_can_be_sent_to_the_page(desk: Client) -> None:
    assert desk.post(URL, {"subject": "site:1"}).status_code == 405


def test_answers_are_hidden_from_those_who_may_not_see_what_they_are_made_of(viewer: User, viewer_desk: Client) -> None:
    partner = make_partner().partner
    request = owe(partner, subject="site:1")
    for permission in ("view_disclosure", "view_notice"):
        viewer.user_permissions.remove(viewer.user_permissions.get(codename=permission))
    with CaptureQueriesContext(connection) as queries:
        pages = [read(viewer_desk, partner), read(viewer_desk, request)]
    for heading in ("owed", "holdings", "window", "releases"):
        assert [f'id="{heading}-heading"' in page for page in pages] == [False, False]
    assert [query for query in queries if "removal_disclosure" in query["sql"]] == []
    assert URL not in pages[1]


# --- what a partner holds and owes ---


def test_the_partners_page_sums_it_up(desk: Client) -> None:
    partner = make_partner("acme").partner
    older = make_release("2024-02", contents={"site:1": ["post:1", "post:2"], "site:2": ["post:1"]})
    newer = make_release("2025-01", contents={"site:1": ["post:1"]})
    hand_over(older, partner, LONG_AGO)
    hand_over(older, partner, LONG_AGO + timedelta(days=1))
    hand_over(newer, partner, LONG_AGO + timedelta(days=2))
    for subject in ("site:1", "site:2"):
        record(make_wish(subject))
    planning.plan(budget=BUDGET)
    Notice.objects.filter(sequence=2).update(respond_by=timezone.now() - timedelta(days=1))

    page = read(desk, partner)
    assert [line[:5] for line in table(page, "holdings")] == [
        ["2025-01", "sealed", "1", "1", "1"],
        ["2024-02", "sealed", "2", "3", "2"],
    ]
    assert "2 releases with 4 items in all" in " ".join(page.split())
    owed = [line[0] for line in table(page, "owed")]
    assert owed[:2] == ["2", "1"]
    assert owed[2].startswith("notice 1 , planned")
    urls = re.findall(r'href="([^"]*)"', page.split('id="owed-heading"')[1].split("</table>")[0])
    assert [desk.get(unescape(url)).content.decode().count('class="field-partner') for url in urls] == [2, 1, 1]
    assert page_url(newer) in page


def test_the_page_of_a_partner_without_anything_says_so(desk: Client) -> None:
    page = read(desk, make_partner().partner)
    assert "No release was handed to it yet." in page
    assert [line[0] for line in table(page, "owed")] == ["0", "0", "none: it has answered everything"]


def test_many_releases_are_cut_and_counted(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_RELEASES", 2)
    partner = make_partner().partner
    for n in range(3):
        hand_over(make_release(f"r{n}", contents={"site:1": ["post:1"]}), partner, LONG_AGO + timedelta(days=n))
    page = read(desk, partner)
    assert [line[0] for line in table(page, "holdings")] == ["r2", "r1"]
    assert "and 1 older more" in page


def test_a_partners_page_costs_as_many_queries_with_three_releases_as_with_one(desk: Client) -> None:
    partners = [make_partner().partner for _ in range(2)]
    for partner, releases in zip(partners, (1, 3), strict=True):
        for _ in range(releases):
            owe(partner)
    price(desk, page_url(partners[0]))
    assert price(desk, page_url(partners[0])) == price(desk, page_url(partners[1]))


# --- the window, and the releases ---


def test_the_requests_page_shows_what_slipped_through(desk: Client) -> None:
    with listening() as receiver:
        acme, globex = make_partner("acme", url=receiver.url).partner, make_partner("globex").partner
        before, meanwhile, after = (make_release(name, contents={"site:1": ["post:1"]}) for name in ("a", "b", "c"))
        disclose(before, acme)
        disclose(before, globex)
        request = record(make_wish("site:1"))
        slipped = disclose(meanwhile, acme)
        planning.plan(budget=BUDGET)
        send(acme)
        disclose(after, acme)
        planning.plan(budget=BUDGET)
    page = read(desk, request)
    told, owed = table(page, "window")
    assert (told[0], told[1] == "not yet") == ("acme", False)
    assert told[2].startswith(f"b ({slipped.reference}, ")
    assert owed == ["globex", "not yet", "nothing"]
    assert table(page, "releases") == [[name, "sealed", "1", "1"] for name in ("a", "b", "c")]
    for row in (acme, globex, before, meanwhile, after):
        assert f'href="{page_url(row)}"' in page
    assert f'href="{URL}?subject=site%3A1">site:1<' in page


def test_a_withdrawn_request_is_told_to_nobody(desk: Client) -> None:
    request = owe(make_partner("acme").partner)
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    assert table(read(desk, request), "window") == [["acme", "never: withdrawn", "nothing"]]


def test_content_in_no_release_and_that_of_a_partner_are_said_in_words(desk: Client) -> None:
    assert "No release holds what this is about." in read(desk, record(make_wish("site:1")))
    partner = make_partner("acme").partner
    request = record(make_wish("", kind="offboarding", partner="acme", reason="licence_ended"))
    page = read(desk, request)
    assert "It is about all that one partner holds" in page
    assert f'href="{page_url(partner)}">its page<' in page


def test_what_is_too_much_to_count_is_said_so(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "COUNTED_TARGETS", 0)
    monkeypatch.setattr(questions, "COUNTED_TARGETS", 0)
    make_release("r", contents={"site:1": ["post:1"]})
    page = read(desk, record(make_wish("site:1")))
    assert table(page, "releases") == [["r", "sealed", "not counted", "not counted"]]
    assert "may be missing" in page


def test_a_requests_page_costs_as_many_queries_with_three_releases_as_with_one(desk: Client) -> None:
    def slip_through(subject: str, times: int) -> RemovalRequest:
        releases = [make_release(contents={subject: ["post:1"]}) for _ in range(times)]
        request = record(make_wish(subject))
        for release in releases:
            disclose(release, make_partner().partner)
        planning.plan(budget=BUDGET)
        return request

    one, three = slip_through("site:1", 1), slip_through("site:2", 3)
    price(desk, page_url(one))
    assert price(desk, page_url(one)) == price(desk, page_url(three))


def test_the_key_in_the_form_is_what_was_asked(desk: Client) -> None:
    page = ask(desk, ' site:"1" ')
    assert 'value="{}"'.format(escape(' site:"1" ')) in page
