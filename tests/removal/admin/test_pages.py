"""Every list and every page: it renders, at a constant price, and shows nothing that it must not."""

import html
import json
import re

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from partners.admin import ReadOnlyAdmin
from partners.models import ApiKey, Endpoint, Partner, Secret
from removal.models import (
    Acknowledgement,
    AcknowledgementText,
    Attempt,
    Closing,
    Delivery,
    DeliveryBody,
    Disclosure,
    Incident,
    LogEntry,
    Notice,
    Release,
    RemovalRequest,
    Stream,
)
from tests.factories import make_partner, make_release, make_wish, record
from tests.removal.admin.story import give_up, history, list_url, owe, page_url, pages, tell

pytestmark = pytest.mark.django_db

SCRIPT = '"><script>alert(1)</script>'
OVERRIDE = "\N{RIGHT-TO-LEFT OVERRIDE}"
ESCAPE = "\x1b[31m\x9b"  # what a terminal, or a careless tool, would obey
TEMPLATE = "{{7*7}}{% debug %}"


def read(desk: Client, url: str) -> str:
    response = desk.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def test_every_list_and_every_page_renders_real_rows(desk: Client) -> None:
    give_up(tell())
    assert {model.__name__ for model, _ in history() if not model._default_manager.exists()} == set()
    for url in pages():
        read(desk, url)


def test_everything_that_has_a_page_is_named() -> None:
    assert {model.__name__ for model, _ in history()} == {
        "Acknowledgement",
        "Alarm",
        "ApiKey",
        "Attempt",
        "Closing",
        "Dataset",
        "Delivery",
        "Disclosure",
        "Escalation",
        "Export",
        "Extension",
        "Incident",
        "LogEntry",
        "Notice",
        "Partner",
        "Preference",
        "Release",
        "RemovalRequest",
        "RequestExtension",
        "Secret",
        "SignedAnswer",
        "StaffMessage",
        "Stream",
        "Verification",
        "Waiver",
    }


def test_a_list_costs_as_many_queries_with_three_rows_as_with_one(desk: Client) -> None:
    def prices() -> dict[str, int]:
        found = {}
        for model, _ in history():
            with CaptureQueriesContext(connection) as queries:
                read(desk, list_url(model))
            found[model.__name__] = len(queries)
        return found

    give_up(tell())
    prices()  # what is read once per process is read now
    with_one = prices()
    give_up(tell())
    give_up(tell())
    assert prices() == with_one


def test_lists_count_no_further_than_they_page(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partners.admin.MOST_LISTED", 2)
    monkeypatch.setattr(ReadOnlyAdmin, "list_per_page", 1)
    for subject in ("site:1", "site:2", "site:3"):
        record(make_wish(subject))
    page = read(desk, "/admin/removal/removalrequest/?p=2")
    assert "Only the first 2 are listed." in page
    assert page.count('class="field-kind"') == 1
    assert "?p=3" not in page


def test_a_later_page_goes_on_where_the_one_before_ended(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadOnlyAdmin, "list_per_page", 2)
    requests = [record(make_wish(subject)) for subject in ("site:1", "site:2", "site:3")]
    shown = [re.findall(r"/removalrequest/(\d+)/change/", read(desk, f"/admin/removal/removalrequest/?p={number}"))
             for number in (1, 2)]  # fmt: skip
    assert shown == [[str(requests[2].pk), str(requests[1].pk)], [str(requests[0].pk)]]


def test_an_empty_list_says_what_to_do(desk: Client) -> None:
    for model, model_admin in history():
        assert html.escape(model_admin.when_empty) in read(desk, list_url(model)), model
        assert model_admin.when_empty


def test_a_search_without_a_match_says_so(desk: Client) -> None:
    tell()
    assert "Nothing matches." in read(desk, "/admin/removal/notice/?q=acme+1203")


def test_secrets_are_on_no_page(desk: Client) -> None:
    tell()
    made = make_partner()
    with connection.cursor() as cursor:
        cursor.execute("select key from partners_secret")
        stored = [key for (key,) in cursor.fetchall()]
    secret = [made.secret, made.api_key, *stored, *(secret.key for secret in Secret.objects.all())]
    secret += [bytes(key.digest).hex() for key in ApiKey.objects.all()]
    shown = "".join(read(desk, url) for url in pages())
    assert [text for text in secret if text in shown] == []
    assert re.findall(r"whs[ek]_", shown) == []


def test_pages_of_keys_need_no_encryption_key(desk: Client, settings: Settings) -> None:
    tell()
    settings.ENCRYPTION_KEYS = ["3IrNrFv1z5vQ0V9wYwDqj0lVQmYJm0nJk1k2u8v9sXY="]
    read(desk, list_url(Secret))
    for secret in Secret.objects.defer("key"):
        read(desk, page_url(secret))


def make_hostile_rows() -> None:
    evil = f"{SCRIPT}{OVERRIDE}gpj.exe"
    partner = tell(
        subject=f"site:{evil}",
        response=evil.encode(),
        text=evil + "x" * 1_000_000,
        reason=evil[:40],
        attestations=[{"claim": evil, "detail": "y" * 1_000_000}],
    )
    Partner.objects.filter(pk=partner.pk).update(name=f"{ESCAPE}{evil}" + "n" * 140)
    Endpoint.objects.filter(partner=partner).update(url=f"javascript:alert('{evil}')", state_reason=ESCAPE + evil)
    give_up(partner, text=f"{ESCAPE}{evil}")
    owe(partner, subject=f"site:{TEMPLATE}")
    Incident.objects.update(kind=evil[:40])
    release = make_release(contents={f"blog:{evil}": [evil]}, sealed=False)
    Release.objects.filter(pk=release.pk).update(source=evil)
    sealed = make_release(contents={f"blog:{evil}": [evil]})
    Disclosure.objects.create(release=sealed, partner=partner, usages=[evil], reference=evil)
    LogEntry.objects.create(actor=evil, action=evil, about={evil: evil + "z" * 1_000_000})
    record(
        make_wish(f"blog:{evil}", kind="deletion", items=(evil,), key=evil, jurisdiction=evil[:20]), source=evil[:63]
    )


def test_hostile_text_is_escaped_on_every_page(desk: Client) -> None:
    make_hostile_rows()
    partner = Partner.objects.order_by("pk").first()
    acts = [
        f"/admin/partners/partner/act/change-url/?rows={partner.pk if partner else 0}",
        f"/admin/removal/notice/act/close/?rows={Notice.objects.open().order_by('pk').values_list('pk', flat=True)[0]}",
    ]
    for url in [*pages(), *acts]:
        page = read(desk, url)
        assert "<script>alert" not in page, url
        assert {OVERRIDE, "\x1b", "\x9b"} & set(page) == set(), url
        assert 'href="javascript' not in page.lower(), url


def test_hostile_text_is_there_to_be_read(desk: Client) -> None:
    make_hostile_rows()
    statement = Acknowledgement.objects.get(channel="api")
    assert html.escape(f"{SCRIPT}[U+202E]gpj.exe") in read(desk, page_url(statement))
    refused = Attempt.objects.get(outcome="refused")
    assert html.escape(SCRIPT) in read(desk, page_url(refused))
    assert html.escape(f"[U+001B][31m[U+009B]{SCRIPT}[U+202E]") in read(desk, page_url(Closing.objects.get()))
    assert html.escape(TEMPLATE) in read(
        desk, page_url(RemovalRequest.objects.get(targets__subject__key__endswith="}"))
    )


def test_lists_cut_long_text(desk: Client) -> None:
    make_hostile_rows()
    for model, _ in history():
        assert len(read(desk, list_url(model))) < 40_000, model


def test_a_long_statement_is_cut_and_says_how_much_is_missing(desk: Client) -> None:
    tell(text="a" * 1_000_007)
    page = read(desk, page_url(Acknowledgement.objects.get()))
    assert "a" * 1_000_000 in page
    assert "a" * 1_000_001 not in page
    assert "and 7 more characters" in page


def test_no_page_has_a_script_or_style_of_its_own(desk: Client) -> None:
    """A strict content security policy refuses them (reliability C7)."""
    tell()
    for url in pages():
        page = read(desk, url)
        assert re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", page) == [], url
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=", page) == [], url


def test_pages_wear_the_name_and_the_style(desk: Client) -> None:
    page = read(desk, "/admin/")
    assert "<title>Compliance desk | Removal</title>" in page
    assert '<link rel="stylesheet" href="/static/removal/admin.css">' in page
    assert finders.find("removal/admin.css") is not None


def test_what_partners_claim_is_called_attested(desk: Client) -> None:
    tell()
    page = read(desk, page_url(Acknowledgement.objects.get()))
    assert "Attested by the partner" in page
    assert "verified" not in page


def test_other_columns_cannot_be_probed_through_the_address(desk: Client) -> None:
    for query in (
        "partners/apikey/?digest__gte=x",
        "removal/delivery/?body__body__contains=x",
        "removal/delivery/?state__regex=(",
        "removal/delivery/?state__exact=%00",
    ):
        assert desk.get(f"/admin/{query}").status_code == 400


def test_no_address_makes_a_list_sort_a_whole_table(desk: Client) -> None:
    for subject in ("site:1", "site:2"):
        record(make_wish(subject))
    for query in ("", "?o=0", "?o=-6.1", "?o=x"):
        [newest, older] = re.findall(
            r"/removalrequest/(\d+)/change/", read(desk, f"/admin/removal/removalrequest/{query}")
        )
        assert int(newest) > int(older)


def test_a_row_that_cannot_be_chosen_is_refused(desk: Client) -> None:
    make_partner()
    sent = {"action": "pause", "_selected_action": "1 or 1"}
    assert desk.post("/admin/partners/partner/", sent).status_code == 403


def test_a_message_is_shown_as_it_was_sent(desk: Client) -> None:
    tell()
    delivery = Delivery.objects.get()
    sent = json.loads(bytes(delivery.body.body))
    page = read(desk, page_url(delivery))
    assert html.escape(json.dumps(sent, indent=2)) in page
    assert bytes(delivery.body_digest or b"").hex() in page
    assert page.count("field-result") == 2  # both attempts


def test_what_is_not_there_is_said_in_words(desk: Client) -> None:
    owe(make_partner().partner)
    page = read(desk, page_url(Notice.objects.get()))
    assert "in none yet" in page
    assert "none yet" in page.split("field-statements")[1]
    tell()
    DeliveryBody.objects.all().delete()
    AcknowledgementText.objects.all().delete()
    assert "Not packed yet, or erased." in read(desk, page_url(Delivery.objects.get()))
    assert "Erased: its time was over." in read(desk, page_url(Acknowledgement.objects.get()))
    for url in pages():
        assert ">None<" not in read(desk, url), url


@pytest.mark.parametrize(
    ("permission", "model"), [("deliverybody", Delivery), ("acknowledgementtext", Acknowledgement)]
)
def test_verbatim_text_needs_a_permission_of_its_own(
    viewer: User, viewer_desk: Client, permission: str, model: type[Delivery] | type[Acknowledgement]
) -> None:
    tell(subject="site:secret-place", text="site:secret-place")
    url = page_url(model._default_manager.get())
    assert "site:secret-place" in read(viewer_desk, url)
    viewer.user_permissions.remove(viewer.user_permissions.get(codename=f"view_{permission}"))
    assert "site:secret-place" not in read(viewer_desk, url)


def test_the_notice_page_tells_the_whole_way(desk: Client) -> None:
    tell()
    notice = Notice.objects.get()
    page = read(desk, page_url(notice))
    assert 'badge-good">delivered<' in page
    assert 'badge-good">completed<' in page
    for row in (Delivery.objects.get(), Acknowledgement.objects.get(), Disclosure.objects.get(), notice.request):
        assert page_url(row) in page


def test_a_stream_links_to_what_is_in_it(desk: Client) -> None:
    partner = tell()
    owe(partner)
    other = tell()
    page = read(desk, page_url(Stream.objects.get(partner=partner)))
    [url] = re.findall(r'href="(/admin/removal/notice/[^"]*)"', page.split("field-contents")[1])
    notices = read(desk, url)
    rows = re.findall(r"<tr>.*?</tr>", notices.split("<tbody>")[1], flags=re.DOTALL)
    assert [page_url(partner) in row for row in rows] == [True, True]
    assert [page_url(other) in row for row in rows] == [False, False]
