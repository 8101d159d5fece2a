"""The request's page: what comes next, what happened, and the exact words, for those who may read them."""

import hashlib
import html
import json

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from removal import timeline
from removal.labels import set_label
from removal.models import (
    Acknowledgement,
    AcknowledgementText,
    Delivery,
    DeliveryBody,
    Notice,
    RemovalRequest,
    SignedAnswer,
)
from tests.factories import make_partner, make_release, make_wish, record
from tests.receivers import listening
from tests.removal.admin.story import list_url, owe, page_url, say, send, tell
from tests.removal.admin.test_pages import OVERRIDE, SCRIPT, make_hostile_rows
from tests.removal.admin.test_requests import listed, table

pytestmark = pytest.mark.django_db

EXACT = "/admin/removal/removalrequest/exact/"


def read(desk: Client, url: str) -> str:
    response = desk.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def together() -> tuple[Notice, Notice]:
    """Send two notices in one message, and have both answered."""
    with listening() as receiver:
        partner = make_partner(url=receiver.url).partner
        owe(partner, subject="site:mine"), owe(partner, subject="site:other")
        send(partner)
    for sequence in (1, 2):
        say(partner, sequence, "rejected", reason="no_match", text=json.dumps({"about": sequence}))
    mine, other = Notice.objects.order_by("sequence")
    return mine, other


def test_each_line_says_what_happens_next(desk: Client) -> None:
    request = owe(make_partner("acme").partner, subject="site:owed")
    assert table(read(desk, page_url(request)), "partners")[0][9] == "Goes with the next message. Exact words"
    tell(subject="site:done")
    done = RemovalRequest.objects.latest("id")
    assert table(read(desk, page_url(done)), "partners")[0][9] == "Nothing: completed. Exact words"


def test_the_page_tells_what_happened(desk: Client) -> None:
    tell(response=b"Who are you?")
    request = RemovalRequest.objects.get()
    lines = table(read(desk, page_url(request)), "timeline")
    assert [line[1] for line in lines] == [
        "received", "planned", "refused", "delivered", "extended", "asked", "completed", "fulfilled",
    ]  # fmt: skip
    assert "Who are you?" in lines[2][4]
    assert lines[-2][4].startswith("Says: completed; 2 removed;")
    assert "signed" in lines[-2][4]


def test_earlier_entries_have_pages_of_their_own(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tell()
    monkeypatch.setattr(timeline.timeline_of, "__kwdefaults__", {"before": None, "most": 5})
    page = read(desk, page_url(RemovalRequest.objects.get()))
    assert len(table(page, "timeline")) == 5
    url = html.unescape(page.split('">Earlier ones')[0].rpartition('href="')[2])
    earlier = read(desk, url)
    assert earlier.split('class="timeline"')[1].count("<tr>") == 1 + 3
    assert "Earlier ones" not in earlier


@pytest.mark.parametrize("query", ["at=yesterday", "at=2026-11-24T00:00:00", "at=2026-11-24T00:00:00Z&kind=%00"])
def test_a_place_that_is_none_is_refused(desk: Client, query: str) -> None:
    request = record(make_wish())
    assert desk.get(f"{list_url(RemovalRequest)}{request.pk}/timeline/?{query}").status_code == 400


def test_what_happened_needs_the_right_to_read_what_was_written(viewer: User, viewer_desk: Client) -> None:
    tell()
    request = RemovalRequest.objects.get()
    url = f"{list_url(RemovalRequest)}{request.pk}/timeline/"
    assert 'id="timeline-heading"' in read(viewer_desk, page_url(request))
    assert viewer_desk.get(url).status_code == 200
    viewer.user_permissions.remove(viewer.user_permissions.get(codename="view_attempt"))
    assert 'id="timeline-heading"' not in read(viewer_desk, page_url(request))
    assert viewer_desk.get(url).status_code == 403


def test_exact_words_are_this_notices_alone(desk: Client) -> None:
    mine, _ = together()
    page = html.unescape(read(desk, f"{EXACT}{mine.pk}/"))
    assert "site:mine" in page
    assert "site:other" not in page
    assert '{"about": 1}' in page
    assert '{"about": 2}' not in page
    assert "1\n    other notice, about other requests, left out here." in page
    delivery = Delivery.objects.get()
    assert bytes(delivery.body_digest or b"").hex() in page
    assert delivery.webhook_id in page


def test_bytes_are_downloaded_as_they_were(desk: Client) -> None:
    tell(text='{"odd":   "spaces"}')
    delivery, answer, signed = Delivery.objects.get(), Acknowledgement.objects.get(), SignedAnswer.objects.get()
    for url, digest in (
        (f"message/{delivery.pk}/", delivery.body_digest),
        (f"answer/{answer.pk}/", answer.text_digest),
        (f"signed/{signed.pk}/", signed.body_digest),
    ):
        response = desk.get(EXACT + url)
        assert response.status_code == 200
        assert hashlib.sha256(response.content).digest() == bytes(digest or b"")
        assert response["Content-Type"] == "application/octet-stream"
        assert response["Content-Disposition"].startswith('attachment; filename="')
        assert response["X-Content-Type-Options"] == "nosniff"
    assert desk.get(EXACT + f"message/{delivery.pk}/")["Content-Disposition"] == (
        f'attachment; filename="{delivery.webhook_id}.json"'
    )


def test_what_is_erased_says_so_with_its_digest(desk: Client) -> None:
    mine, _ = together()
    DeliveryBody.objects.all().delete()
    AcknowledgementText.objects.all().delete()
    page = read(desk, f"{EXACT}{mine.pk}/")
    assert page.count("Erased: its time was over. The digest above is that of the bytes") == 1
    assert page.count("Erased: its time was over. The digest above is that of its words") == 1
    assert bytes(Delivery.objects.get().body_digest or b"").hex() in page
    assert "Download" not in page
    assert desk.get(f"{EXACT}message/{Delivery.objects.get().pk}/").status_code == 404


def test_what_was_never_sent_or_answered_says_so(desk: Client) -> None:
    owe(make_partner().partner)
    page = read(desk, f"{EXACT}{Notice.objects.get().pk}/")
    assert "It is in no message yet." in page
    assert "has said nothing about this notice" in page


@pytest.mark.parametrize(
    ("permission", "urls"),
    [
        ("view_deliverybody", ["{notice}/", "message/{message}/"]),
        ("view_acknowledgementtext", ["{notice}/", "answer/{answer}/"]),
        ("view_signedanswerbody", ["signed/{signed}/"]),
        ("view_delivery", ["{notice}/", "message/{message}/"]),
    ],
)
def test_exact_words_need_their_permissions(
    viewer: User, viewer_desk: Client, permission: str, urls: list[str]
) -> None:
    tell()
    names = {
        "notice": Notice.objects.get().pk,
        "message": Delivery.objects.get().pk,
        "answer": Acknowledgement.objects.get().pk,
        "signed": SignedAnswer.objects.get().pk,
    }
    for url in urls:
        assert viewer_desk.get(EXACT + url.format(**names)).status_code == 200
    viewer.user_permissions.remove(viewer.user_permissions.get(codename=permission))
    for url in urls:
        assert viewer_desk.get(EXACT + url.format(**names)).status_code == 403


def test_hostile_words_are_shown_and_do_nothing(desk: Client) -> None:
    make_hostile_rows()
    for notice in Notice.objects.all():
        page = read(desk, f"{EXACT}{notice.pk}/")
        assert "<script>alert" not in page
        assert OVERRIDE not in page
    first = Notice.objects.order_by("pk")[0]
    assert html.escape(SCRIPT) in read(desk, f"{EXACT}{first.pk}/")
    page = read(desk, page_url(first.request))
    assert "<script>alert" not in page.split('id="timeline-heading"')[1]
    assert html.escape(SCRIPT) in page.split('id="timeline-heading"')[1]


def test_an_exact_page_costs_the_same_however_much_was_said(desk: Client) -> None:
    mine, _ = together()

    def price() -> int:
        with CaptureQueriesContext(connection) as queries:
            read(desk, f"{EXACT}{mine.pk}/")
        return len(queries)

    price()
    before = price()
    amended = {"amends": True, "detail": "We looked again."}
    say(mine.stream.partner, 1, "completed", outcomes={"removed": 2}, **amended)
    say(mine.stream.partner, 1, "rejected", reason="no_match", **amended)
    assert Acknowledgement.objects.filter(last_sequence=1).count() == 3
    assert price() == before


def test_searches_take_a_label_or_how_it_begins(desk: Client) -> None:
    partner = make_partner("acme").partner
    request = owe(partner, subject="site:1")
    set_label(actor="test", subject="site:1", label=f"https://blog.example/{SCRIPT}")
    for term in ("https://blog.example", "HTTPS://BLOG", "site:1", request.public_id):
        assert listed(desk, f"?q={term}") == [request.public_id], term
        assert page_url(Notice.objects.get()) in read(desk, f"{list_url(Notice)}?q={term}"), term
        assert html.escape("https://blog.example") in read(desk, f"/admin/removal/disclosure/who-holds/?subject={term}")
    assert page_url(Notice.objects.get()) in read(desk, f"{list_url(Notice)}?q=acme+1")
    assert listed(desk, "?q=blog.example") == []
    assert f"({html.escape(f'https://blog.example/{SCRIPT}')})" in read(desk, page_url(request))


def test_a_label_that_ends_with_a_number_finds_notices_too(desk: Client) -> None:
    owe(make_partner("acme").partner, subject="site:1")
    set_label(actor="test", subject="site:1", label="Blog 12")
    assert page_url(Notice.objects.get()) in read(desk, f"{list_url(Notice)}?q=Blog+12")


def test_who_holds_asks_which_subject_is_meant(desk: Client) -> None:
    make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]})
    for key in ("site:1", "site:2"):
        set_label(actor="test", subject=key, label=f"https://blog.example/{key}")
    page = read(desk, "/admin/removal/disclosure/who-holds/?subject=https://blog")
    assert table(page, "choices") == [
        ["site:1", "https://blog.example/site:1"],
        ["site:2", "https://blog.example/site:2"],
    ]
    assert "subject=site%3A1" in page
