"""A partner's page: how it stands in a sentence, the figures with their lists, its failures, whom to ask there."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry as AdminEntry
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from partners.models import Contact, Endpoint, Partner
from removal import health, partnerships
from removal.admin.partner_page import page_of
from removal.models import Delivery, LogEntry, Notice, Stream
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.admin.conftest import carry_out, open_desk
from tests.removal.admin.story import owe, page_url, send, set_aside, tell

pytestmark = pytest.mark.django_db

HOSTILE = '"><script>alert(1)</script>\N{RIGHT-TO-LEFT OVERRIDE}{{7*7}}'
CONTACT = {"role": "legal", "name": "Ann Bright", "email": "ann@partner.example", "phone": ""}


def read(desk: Client, partner: Partner) -> str:
    response = desk.get(page_url(partner))
    assert response.status_code == 200
    return response.content.decode()


def sentence(partner: Partner, *, in_days: float = 0) -> str:
    partner = Partner.objects.select_related("endpoint", "stream").get(pk=partner.pk)
    return page_of(partner, now=timezone.now() + timedelta(days=in_days)).sentence


def failing(answer: Reply, *, messages: int = 3, times: int = 3) -> Partner:
    """Make a partner whose endpoint fails every try."""
    with listening(lambda _: answer) as receiver:
        partner = make_partner(url=receiver.url).partner
        Endpoint.objects.update(max_notices=1)
        for _ in range(messages):
            owe(partner)
        for _ in range(times):
            send(partner)
    return partner


def test_a_partner_that_has_everything_is_live_and_nothing_else() -> None:
    partner = make_partner("acme").partner
    assert sentence(partner) == "Live. All that it must be told was sent to it."


def test_what_is_in_no_message_yet_waits() -> None:
    partner = make_partner("acme").partner
    owe(partner)
    assert sentence(partner) == "Live. 1 notice waits."
    owe(partner)
    assert sentence(partner) == "Live. 2 notices wait."


def test_an_endpoint_that_is_down_is_said_to_be_with_the_time_of_the_next_try() -> None:
    partner = failing(Reply(503))
    now = timezone.now()
    Stream.objects.update(probe_at=now + timedelta(minutes=10))
    at = f"{timezone.localtime(now + timedelta(minutes=10)):%H:%M}"
    said = sentence(partner)
    assert re.fullmatch(
        rf"Live\. 3 messages wait; its endpoint has not answered for .+: the next try is at {at}\.", said
    )
    assert sentence(partner, in_days=1).endswith("for 1 day: the next try is due now.")


def test_a_suspended_endpoint_needs_a_new_url() -> None:
    partner = failing(Reply(410), messages=1, times=1)
    assert "that it is gone for good (410): nothing is sent until it has a new URL." in sentence(partner)
    assert sentence(partner).startswith("Live. 1 message waits; its endpoint said")


def test_paused_and_onboarding_say_what_is_held(desk: Client) -> None:
    partner = make_partner("acme").partner
    owe(partner)
    partnerships.set_paused(actor="test", slug="acme", paused=True)
    held = "1 notice waits, and what it is owed gets older."
    assert sentence(partner) == f"Paused by staff: nothing is sent to it until somebody resumes it. {held}"
    assert "Nothing is sent: it is held." in read(desk, partner)
    Partner.objects.update(state="onboarding")
    first = "In onboarding: nothing is sent to it before its endpoint has passed the checks."
    assert sentence(partner) == f"{first} {held}"


def test_a_silent_partner_and_a_message_set_aside_are_named() -> None:
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        owe(partner)
        send(partner)
    assert sentence(partner) == "Live. All that it must be told was sent to it."
    said = "It is silent: messages arrived, and it has said nothing of them within the agreed time."
    assert sentence(partner, in_days=400) == f"Live. {said}"
    other = failing(Reply(500), messages=1, times=1)
    assert sentence(other) == "Live. 1 message waits; the last try was not answered; they go on."
    set_aside(Delivery.objects.get(stream=other.stream))
    assert sentence(other) == (
        "Live. 1 message is set aside, since it takes others and not this one: a person must look."
    )


def test_failed_tries_stand_there_in_plain_words_and_the_partners_own_are_only_text(desk: Client) -> None:
    partner = failing(Reply(503, HOSTILE.encode()), messages=1, times=1)
    page = read(desk, partner)
    assert "Refused: answered 503; its server is not available now" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\N{REPLACEMENT CHARACTER}{{7*7}}" in page
    assert "<script>alert" not in page


def test_every_figure_leads_to_a_list_that_shows_it(desk: Client) -> None:
    partner = tell()
    owe(partner)
    Notice.objects.filter(sequence=2).update(planned_at=timezone.now() - timedelta(days=40))
    page = read(desk, partner)
    part = page.split('id="standing-heading"')[1].split('id="proof-heading"')[0]
    urls = {unescape(url) for url in re.findall(r'href="([^"]+)"', part)}
    assert len(urls) > 12
    assert {desk.get(url).status_code for url in urls} == {200}
    of = f"/admin/removal/notice/?stream__partner__id__exact={partner.pk}"
    shown = {
        age: desk.get(f"{of}&age={age}").content.decode().count('class="field-partner')
        for age in ("any", "0", "8", "31", "91")
    }
    counted = {str(age.first): age.notices for age in health.ages_of(partner_id=partner.pk, now=timezone.now())}
    assert shown == {"any": 1, **counted} == {"any": 1, "0": 0, "8": 0, "31": 1, "91": 0}


def test_a_count_that_stopped_says_so(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST", 1)
    partner = make_partner("acme").partner
    for _ in range(3):
        owe(partner)
    assert ">1+</a>" in read(desk, partner).split('id="owed-heading"')[1].split("</table>")[0]


def test_the_page_costs_the_same_queries_however_much_there_is(desk: Client) -> None:
    def price(partner: Partner) -> int:
        with CaptureQueriesContext(connection) as queries:
            read(desk, partner)
        return len(queries)

    little, much = make_partner("little").partner, failing(Reply(500))
    for number in range(3):
        Contact.objects.create(partner=much, role="legal", name=f"n{number}", email="a@b.example")
    owe(little)
    price(little)
    assert price(little) == price(much)


def test_every_table_has_its_own_box_to_scroll_in(desk: Client) -> None:
    partner = failing(Reply(500, b"x" * 300))
    Contact.objects.create(partner=partner, role="legal", name="n" * 200, email="a@b.example")
    page = read(desk, partner)
    main = page[page.index('id="content-main"') :]
    assert len(re.findall(r"<table", main)) == len(re.findall(r'<div class="wide">\s*<table', main)) > 6
    assert not re.search(r'\sstyle="|\son[a-z]+="|<script>', main)


# --- contacts ---


@pytest.fixture
def manager(db: None) -> User:
    user = User.objects.create_user("manager", is_staff=True)
    user.groups.set(Group.objects.filter(name="partner manager"))
    return user


def test_a_contact_is_kept_by_the_partner_manager_and_named_in_no_log(manager: User) -> None:
    partner, desk = make_partner("acme").partner, open_desk(manager)
    assert f"contact/add/?partner={partner.pk}" in read(desk, partner)
    add = "/admin/partners/contact/add/"
    assert (
        "an e-mail address or a telephone"
        in desk.post(add, CONTACT | {"partner": partner.pk, "email": ""}).content.decode()
    )
    assert desk.post(add, CONTACT | {"partner": partner.pk}).status_code == 302
    contact = Contact.objects.get()
    assert desk.post(page_url(contact), CONTACT | {"partner": partner.pk, "phone": "+33 1 99"}).status_code == 302
    assert "Ann Bright" in read(desk, partner)
    assert desk.post(page_url(contact).replace("/change/", "/delete/"), {"post": "yes"}).status_code == 302
    assert Contact.objects.count() == 0
    entries = LogEntry.objects.filter(action__startswith="contact_").order_by("pk")
    assert [(entry.actor, entry.action) for entry in entries] == [
        (f"staff:{manager.pk}", f"contact_{done}") for done in ("added", "changed", "deleted")
    ]
    logged = [str(entry.about) for entry in LogEntry.objects.all()]
    logged += [f"{entry.object_repr} {entry.change_message}" for entry in AdminEntry.objects.all()]
    assert [text for text in logged if re.search("Ann|Bright|ann@|33 1", text)] == []
    assert "Nobody is named." in read(desk, partner)


def test_other_roles_read_contacts_and_write_none() -> None:
    partner = make_partner("acme").partner
    contact = Contact.objects.create(partner=partner, **CONTACT)
    for role in ("viewer", "operator", "compliance lead"):
        user = User.objects.create_user(role.replace(" ", "-"), is_staff=True)
        user.groups.set(Group.objects.filter(name=role))
        desk = open_desk(user)
        assert "ann@partner.example" in read(desk, partner)
        assert "contact/add/" not in read(desk, partner).split('id="contacts-heading"')[1].split("</fieldset>")[0]
        assert desk.post("/admin/partners/contact/add/", CONTACT | {"partner": partner.pk}).status_code == 403
        assert desk.post(page_url(contact), CONTACT | {"partner": partner.pk, "name": "x"}).status_code == 403
        assert desk.post(page_url(contact).replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    assert list(Contact.objects.values_list("name", flat=True)) == ["Ann Bright"]


def test_hostile_names_are_text(desk: Client) -> None:
    partner = make_partner("acme").partner
    Contact.objects.create(partner=partner, role="privacy", name=HOSTILE, email="a@b.example", phone="<b>1")
    page = read(desk, partner)
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;1" in page
    assert "<script>alert" not in page


def test_the_reason_stands_in_the_log_as_a_word_and_a_ticket(desk: Client) -> None:
    partner = make_partner("acme").partner
    assert carry_out(desk, "pause", partner, reason="contract", ticket="OPS-12").status_code == 302
    about = LogEntry.objects.get(action="partner_paused").about
    assert about == {"partner": partner.pk, "reason": "contract", "ticket": "OPS-12"}
