"""What staff do is asked about first, done once, and by whoever they say they are."""

import re
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.utils import timezone

from partners.models import ApiKey, Endpoint, Partner, Secret
from removal import closing, staff
from removal.models import Closing, Confirmation, LogEntry, Notice, RemovalRequest
from tests.factories import make_partner
from tests.removal.admin.conftest import open_desk
from tests.removal.admin.story import owe, tell
from tests.removal.admin.test_login import PASSWORD, code_of, enrol

pytestmark = pytest.mark.django_db

SAID = {"reason": "no_longer_held", "text": "Their letter of Monday."}


@pytest.fixture
def lead(db: None) -> User:
    return User.objects.create_superuser("lead", password=PASSWORD)


def ask(desk: Client, url: str) -> tuple[str, str]:
    """Open the page that asks; returns it with its token."""
    response = desk.get(url)
    assert response.status_code == 200, response
    page = response.content.decode()
    [token] = re.findall(r'name="token" value="([^"]+)"', page)
    return page, token


def told(desk: Client) -> list[str]:
    return [str(message) for message in get_messages(desk.get("/admin/").wsgi_request)]


def closing_url(*notices: Notice) -> str:
    return f"/admin/removal/notice/act/close/?rows={','.join(str(notice.pk) for notice in notices)}"


def age(desk: Client) -> None:
    """Let the password have been given eleven minutes ago."""
    session = desk.session
    session["proven_at"] = (timezone.now() - timedelta(minutes=11)).timestamp()
    session.save()


def log_in_with(code: str) -> Client:
    desk = Client()
    sent = {"username": "lead", "password": PASSWORD, "code": code, "next": "/admin/"}
    desk.post("/admin/login/?next=/admin/", sent)
    return desk


def test_looking_changes_nothing_and_says_what_will_happen(lead: User) -> None:
    owe(make_partner("acme").partner)
    desk = open_desk(lead)
    logged = LogEntry.objects.count()
    page, _ = ask(desk, closing_url(Notice.objects.get()))
    assert "Notice 1 of acme: 2 items" in page
    assert "It cannot be taken back" in page
    assert (LogEntry.objects.count(), Confirmation.objects.count(), Closing.objects.count()) == (logged, 0, 0)


def test_closing_needs_a_reason_and_words(lead: User) -> None:
    owe(make_partner().partner)
    desk, url = open_desk(lead), closing_url(Notice.objects.get())
    _, token = ask(desk, url)
    for said in ({}, {"reason": "duplicate"}, {"text": "x"}, {"reason": "waived", "text": "x"}, {**SAID, "text": "  "}):
        answer = desk.post(url, {"token": token, **said})
        assert answer.status_code == 200
    assert Closing.objects.count() == 0
    assert desk.post(url, {"token": token, **SAID}).status_code == 302
    assert told(desk) == ["1 closed by hand."]
    assert Closing.objects.get().closed_by == lead


def test_what_was_sent_twice_is_done_once(lead: User) -> None:
    owe(make_partner().partner)
    desk, url = open_desk(lead), closing_url(Notice.objects.get())
    _, token = ask(desk, url)
    assert [desk.post(url, {"token": token, **SAID}).status_code for _ in range(2)] == [302, 302]
    assert told(desk) == ["1 closed by hand.", "This was sent twice and done once. 1 closed by hand."]
    assert (Closing.objects.count(), LogEntry.objects.filter(action="notice_closed").count()) == (1, 1)


def test_somebody_elses_page_is_not_an_answer(lead: User, superuser: User) -> None:
    partner = make_partner().partner
    desk = open_desk(lead)
    url = f"/admin/partners/partner/act/pause/?rows={partner.pk}"
    _, token = ask(desk, url)
    desk.post(url, {"token": token, "reason": "fault"})
    other = open_desk(superuser)
    other.post(url, {"token": token, "reason": "fault"})
    assert told(other) == ["This page was answered by somebody else. Nothing was done; begin again."]


def test_after_a_crash_the_page_does_not_pretend_to_know(lead: User) -> None:
    partner = make_partner().partner
    token = uuid.uuid4()
    Confirmation.objects.create(token=token, user=lead, action="pause")
    desk = open_desk(lead)
    desk.post(f"/admin/partners/partner/act/pause/?rows={partner.pk}", {"token": token, "reason": "fault"})
    assert told(desk) == [
        "This was sent twice; the first is at work, or was cut off. The log says whether it was done."
    ]
    assert Partner.objects.get().state == "live"


@pytest.mark.django_db(transaction=True)
@pytest.mark.faults
def test_a_double_click_at_the_same_moment_rotates_once(loopback_partners: None) -> None:
    lead = User.objects.create_superuser("lead", password=PASSWORD)
    partner = make_partner().partner
    desk = open_desk(lead)
    url = f"/admin/partners/partner/act/rotate/?rows={partner.pk}"
    _, token = ask(desk, url)
    start, pages = threading.Barrier(4), []

    def click() -> None:
        client = open_desk(lead)
        start.wait()
        pages.append(client.post(url, {"token": token, "reason": "leaked", "overlap_hours": 1}))
        connection.close()

    clicks = [threading.Thread(target=click) for _ in range(4)]
    for one in clicks:
        one.start()
    for one in clicks:
        one.join(timeout=30)
    shown = [page for page in pages if page.status_code == 200 and "whsec_" in page.content.decode()]
    assert (len(shown), LogEntry.objects.filter(action="secret_rotated").count()) == (1, 1)
    assert Secret.objects.filter(partner=partner, direction="outbound").count() == 2


DANGEROUS = [
    "close",
    "waive",
    "waive-verification",
    "withdraw",
    "rotate",
    "change-url",
    "resend",
    "new-key",
    "revoke",
    "export",
]


def test_every_dangerous_action_says_so() -> None:
    from tests.removal.admin.test_roles import acting

    dangerous = {act.name for _, _, act in acting() if act.is_dangerous}
    assert dangerous == {*DANGEROUS, "approve"}


def test_an_old_session_is_asked_who_it_is_and_loses_nothing(lead: User) -> None:
    owe(make_partner().partner)
    desk, url = open_desk(lead), closing_url(Notice.objects.get())
    age(desk)
    page, token = ask(desk, url)
    assert "proof-password" in page
    for password in ("", "wrong"):
        page = desk.post(url, {"token": token, "proof-password": password, **SAID}).content.decode()
        assert "Their letter of Monday." in page
        assert re.search(r'value="no_longer_held"[^>]* checked', page)
        assert Closing.objects.count() == 0
    assert "The password is wrong. Nothing was done." in page
    assert desk.post(url, {"token": token, "proof-password": PASSWORD, **SAID}).status_code == 302
    assert Closing.objects.count() == 1
    page, _ = ask(desk, f"/admin/partners/partner/act/rotate/?rows={Partner.objects.get().pk}")
    assert "proof-password" not in page  # for ten minutes


def test_whoever_has_a_second_factor_shows_it_again(lead: User) -> None:
    device, codes = enrol(lead)
    owe(make_partner().partner)
    desk = log_in_with(codes[0])
    age(desk)
    url = closing_url(Notice.objects.get())
    _, token = ask(desk, url)
    sent = {"token": token, "proof-password": PASSWORD, **SAID}
    assert desk.post(url, sent).status_code == 200
    assert Closing.objects.count() == 0
    assert desk.post(url, {**sent, "proof-code": code_of(device)}).status_code == 302
    assert Closing.objects.count() == 1


def test_what_is_wrong_on_the_page_does_not_use_up_the_code(lead: User) -> None:
    _, codes = enrol(lead)
    owe(make_partner().partner)
    desk = log_in_with(codes[0])
    age(desk)
    url = closing_url(Notice.objects.get())
    _, token = ask(desk, url)
    sent = {"token": token, "proof-password": PASSWORD, "proof-code": codes[1]}
    assert "This field is required." in desk.post(url, {**sent, "reason": "no_longer_held"}).content.decode()
    assert desk.post(url, {**sent, **SAID}).status_code == 302
    assert Closing.objects.count() == 1


def test_guessing_the_password_there_locks_out_too(lead: User) -> None:
    owe(make_partner().partner)
    desk, url = open_desk(lead), closing_url(Notice.objects.get())
    age(desk)
    _, token = ask(desk, url)
    answers = [desk.post(url, {"token": token, "proof-password": "wrong", **SAID}).status_code for _ in range(6)]
    assert answers[-1] == 429
    assert desk.post(url, {"token": token, "proof-password": PASSWORD, **SAID}).status_code == 429
    assert Closing.objects.count() == 0


def test_two_people_at_once_and_the_second_is_told(lead: User, superuser: User) -> None:
    owe(make_partner("acme").partner)
    url = closing_url(Notice.objects.get())
    first, second = open_desk(lead), open_desk(superuser)
    tokens = [ask(desk, url)[1] for desk in (first, second)]
    assert first.post(url, {"token": tokens[0], **SAID}).status_code == 302
    page = second.post(url, {"token": tokens[1], **SAID})
    assert (page.status_code, Closing.objects.count()) == (200, 1)
    assert "Somebody closed notice 1 of acme before." in page.content.decode()
    assert "Their letter of Monday." in page.content.decode()


def test_of_several_rows_those_that_can_be_are_done(lead: User) -> None:
    partner = make_partner("acme").partner
    owe(partner)
    owe(partner)
    notices = list(Notice.objects.order_by("pk"))
    desk, url = open_desk(lead), closing_url(*notices)
    _, token = ask(desk, url)
    closing.close_notice(user_id=lead.pk, notice_id=notices[0].pk, reason="duplicate", text="x")
    assert desk.post(url, {"token": token, **SAID}).status_code == 302
    assert told(desk) == ["1 closed by hand. Somebody closed notice 1 of acme before."]


def test_a_waiver_takes_two_people_on_the_pages_too(lead: User, superuser: User) -> None:
    owe(make_partner().partner)
    first, second = open_desk(lead), open_desk(superuser)
    url = closing_url(Notice.objects.get()).replace("close", "waive")
    _, token = ask(first, url)
    first.post(url, {"token": token, "text": "Nobody is left there."})
    waiver = Notice.objects.get().waivers.get()
    url = f"/admin/removal/waiver/act/approve/?rows={waiver.pk}"
    page = first.post(url, {"token": ask(first, url)[1]}).content.decode()
    assert "another person must approve it" in page
    assert "Nobody is left there." in ask(second, url)[0]
    assert second.post(url, {"token": ask(second, url)[1]}).status_code == 302
    assert Closing.objects.get().reason == "waived"


def test_a_secret_is_shown_once_and_never_stored(lead: User) -> None:
    partner = make_partner().partner
    desk = open_desk(lead)
    for name, sent, pattern in (
        ("rotate", {"reason": "leaked", "overlap_hours": 0}, r"whsec_[A-Za-z0-9+/=]+"),
        ("new-key", {"reason": "lost"}, r"rk_[A-Za-z0-9_-]{20,}"),
    ):
        url = f"/admin/partners/partner/act/{name}/?rows={partner.pk}"
        _, token = ask(desk, url)
        shown = desk.post(url, {"token": token, **sent})
        [secret] = re.findall(pattern, shown.content.decode())
        assert "no-store" in shown["Cache-Control"]
        assert secret not in Confirmation.objects.get(token=token).said
        assert secret not in desk.post(url, {"token": token, **sent}, follow=True).content.decode()


def test_the_other_things_that_staff_do(lead: User) -> None:
    partner = tell()
    desk = open_desk(lead)

    def carry_out(where: str, **said: Any) -> list[str]:
        _, token = ask(desk, where)
        desk.post(where, {"token": token, **said})
        return told(desk)

    partner_url = "/admin/partners/partner/act/{}/?rows=" + str(partner.pk)
    resend = partner_url.format("resend")
    _, token = ask(desk, resend)
    asked = desk.post(resend, {"token": token, "reason": "restored", "first": 1}).content.decode()
    effect = "Will send 1 notice in 1 message again."
    assert effect in asked
    assert LogEntry.objects.filter(action="messages_sent_again").count() == 0  # shown before it is done
    [said] = carry_out(resend, reason="restored", first=1, effect=effect)
    assert said == "Sent again, behind all that is new: 1 notice in 1 message."
    before = Endpoint.objects.get(partner=partner).url
    [said] = carry_out(partner_url.format("change-url"), reason="gone", ticket="OPS-7", url="http://127.0.0.1:9/new")
    assert said == f"{partner.slug} did not pass. What followed: nothing."
    endpoint = Endpoint.objects.get(partner=partner)
    assert (endpoint.url, endpoint.pending_url) == (before, "http://127.0.0.1:9/new")
    page = desk.post(
        partner_url.format("change-url"), {"token": uuid.uuid4(), "url": "javascript:alert(1)"}
    ).content.decode()
    assert 'value="javascript:alert(1)"' in page  # refused, and there to be mended
    key = ApiKey.objects.get(partner=partner)
    revoke = f"/admin/partners/apikey/act/revoke/?rows={key.pk}"
    assert carry_out(revoke, reason="leaked") == ["1 ended at once."]
    assert LogEntry.objects.get(action="api_key_revoked").about == {"api_key": key.pk, "reason": "leaked"}
    page = desk.post(revoke, {"token": uuid.uuid4(), "reason": "leaked"}).content.decode()
    assert f"The key {key.prefix}… was ended before." in page
    request = owe(partner)
    withdraw = f"/admin/removal/removalrequest/act/withdraw/?rows={request.pk}"
    assert f"{request.public_id}: opt-out, planned" in desk.get(withdraw).content.decode()
    assert carry_out(withdraw, reason="person_asked") == ["1 withdrawn."]
    assert RemovalRequest.objects.get(pk=request.pk).outcome == "withdrawn"
    done = LogEntry.objects.filter(actor=f"staff:{lead.pk}").order_by("pk").values_list("action", flat=True)
    assert list(done) == [
        "messages_sent_again", "endpoint_proposed", "verification_failed", "api_key_revoked", "request_withdrawn",
    ]  # fmt: skip
    assert LogEntry.objects.get(action="messages_sent_again").about["reason"] == "restored"
    assert LogEntry.objects.get(action="request_withdrawn").about["reason"] == "person_asked"
    assert LogEntry.objects.get(action="endpoint_proposed").about == {
        "partner": partner.pk, "reason": "gone", "ticket": "OPS-7",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["pause", "rotate", "resend", "change-url", "verify", "new-key"])
def test_what_stops_moves_or_repeats_messages_needs_a_reason_and_takes_no_prose(lead: User, name: str) -> None:
    partner = tell()
    desk, url = open_desk(lead), f"/admin/partners/partner/act/{name}/?rows={partner.pk}"
    logged = LogEntry.objects.count()
    rest = {"overlap_hours": 1, "first": 1, "url": "http://127.0.0.1:9/new", "effect": "x"}
    for said in ({}, {"reason": "because"}, {"reason": "partner_asked", "ticket": "Ann called"}):
        _, token = ask(desk, url)
        assert "errorlist" in desk.post(url, {"token": token, **rest, **said}).content.decode()
    assert LogEntry.objects.count() == logged


def test_a_row_offers_what_goes_with_it(lead: User) -> None:
    partner = make_partner().partner
    desk = open_desk(lead)
    page = desk.get(f"/admin/partners/partner/{partner.pk}/change/").content.decode()
    assert ("act/pause/" in page, "act/resume/" in page) == (True, False)


def test_accounts_from_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import CommandError, call_command

    call_command("staff", "add", "ann", "--role", "operator")
    password = capsys.readouterr().out.split()[-1]
    ann = User.objects.get(username="ann")
    assert (ann.check_password(password), ann.is_staff, ann.is_superuser) == (True, True, False)
    assert ann.has_perms(["removal.pause", "removal.view_notice"])
    assert not ann.has_perm("removal.close")
    call_command("staff", "roles", "ann", "--role", "viewer")
    assert not User.objects.get(username="ann").has_perm("removal.pause")
    client = Client()
    client.force_login(ann)
    call_command("staff", "disable", "ann")
    assert client.get("/admin/").status_code == 302
    enrol(ann)
    call_command("staff", "reset-totp", "ann")
    assert not staff.has_second_factor(ann)
    capsys.readouterr()
    call_command("staff", "list")
    assert capsys.readouterr().out == "ann\tviewer\tdisabled\tno second factor\n"
    for wrong, said in (
        (("add", "ANN"), "it is taken"),
        (("add", "bob", "--role", "boss"), "There are: viewer, operator"),
        (("disable", "zoe"), "No account is called zoe"),
    ):
        with pytest.raises(CommandError, match=said):
            call_command("staff", *wrong)
    actions = ["staff_added", "staff_roles_set", "staff_disabled", "second_factor_set_up", "second_factor_reset"]
    assert list(LogEntry.objects.order_by("pk").values_list("action", flat=True)) == actions
