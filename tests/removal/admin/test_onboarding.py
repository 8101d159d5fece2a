"""The desk runs the checks and waives them: with the right to, logged, and with every check on the page."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from partners.models import Endpoint, Partner, Verification
from removal import verification
from removal.models import LogEntry
from removal.partnerships import NewPartner, add_partner
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.admin.conftest import act_url, carry_out
from tests.removal.careful import careful

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/partners/partner/"
WAIVE = "waive-verification"


def page(partner: Partner) -> str:
    return f"{LIST}{partner.pk}/change/"


def newcomer(url: str = "http://127.0.0.1:9/") -> NewPartner:
    return add_partner(actor="test", slug="acme", name="", url=url, now=timezone.now())


def told(desk: Client) -> list[str]:
    return [str(message) for message in get_messages(desk.get(LIST).wsgi_request)]


def test_verifying_makes_a_careful_partner_live(desk: Client, superuser: User) -> None:
    made: list[NewPartner] = []
    with listening(lambda message: careful(message, secret=made[0].secret)) as receiver:
        made.append(newcomer(receiver.url))
        partner = made[0].partner
        answer = carry_out(desk, "verify", partner, reason="new")
    assert (answer.status_code, answer["Location"]) == (302, page(partner))
    assert told(desk) == ["acme passed. What followed: went live."]
    assert Partner.objects.get().state == "live"
    assert Verification.objects.get().asked_by == f"staff:{superuser.pk}"


def test_the_page_shows_every_check_and_what_to_fix_as_plain_text(desk: Client) -> None:
    with listening(lambda _: Reply(200, b"<script>alert(1)</script>")) as receiver:
        partner = newcomer(receiver.url).partner
        carry_out(desk, "verify", partner, reason="new")
    assert told(desk) == ["acme did not pass. What followed: nothing."]
    result = Verification.objects.get()
    for url in (page(partner), f"/admin/partners/verification/{result.pk}/change/"):
        shown = desk.get(url).content.decode()
        assert [check["name"] for check in result.checks if check["name"].replace("'", "&#x27;") not in shown] == []
        assert "is that your receiver" in shown
        assert "&lt;script&gt;alert(1)" in shown
        assert "<script>alert(1)" not in shown


def test_a_waiver_needs_a_reason_that_the_page_shows(desk: Client, superuser: User) -> None:
    partner = newcomer().partner
    assert "This field is required." in carry_out(desk, WAIVE, partner, reason=" ").content.decode()
    assert Partner.objects.get().state == "onboarding"
    effect = "Will send what acme is owed to http://127.0.0.1:9/."
    assert effect in carry_out(desk, WAIVE, partner, reason="Tested by phone.").content.decode()
    assert Partner.objects.get().state == "onboarding"  # shown before it is done
    carry_out(desk, WAIVE, partner, reason="Tested by phone.", effect=effect)
    assert Partner.objects.get().state == "live"
    assert "Waived because: Tested by phone." in desk.get(page(partner)).content.decode()
    entry = LogEntry.objects.get(action="verification_waived")
    assert entry.actor == f"staff:{superuser.pk}"
    assert "phone" not in str(entry.about)


def test_a_waiver_is_asked_again_when_the_address_changed_meanwhile(desk: Client) -> None:
    partner = make_partner("acme", url="http://127.0.0.1:9/old").partner
    Endpoint.objects.filter(partner=partner).update(pending_url="http://127.0.0.1:9/seen")
    seen = "Will send what acme is owed to http://127.0.0.1:9/seen."
    assert seen in carry_out(desk, WAIVE, partner, reason="By phone.").content.decode()
    Endpoint.objects.filter(partner=partner).update(pending_url="http://127.0.0.1:9/another")
    shown = carry_out(desk, WAIVE, partner, reason="By phone.", effect=seen)
    assert "http://127.0.0.1:9/another." in shown.content.decode()
    assert Endpoint.objects.get().url == "http://127.0.0.1:9/old"


def test_where_there_is_nothing_to_waive_the_page_says_so(desk: Client) -> None:
    partner = make_partner("acme", url="http://127.0.0.1:9/").partner
    effect = "Will send what acme is owed to http://127.0.0.1:9/."
    shown = carry_out(desk, WAIVE, partner, reason="Just so.", effect=effect).content.decode()
    assert "Acme needs no waiver: it is live, and http://127.0.0.1:9/ is in use." in shown
    assert "Just so." in shown
    assert Verification.objects.count() == 0


def test_of_two_clicks_on_verify_one_verifies(desk: Client) -> None:
    made: list[NewPartner] = []
    with listening(lambda message: careful(message, secret=made[0].secret)) as receiver:
        made.append(newcomer(receiver.url))
        url = act_url("verify", made[0].partner)
        [token] = re.findall(r'name="token" value="([^"]+)"', desk.get(url).content.decode())
        sent = {"token": token, "reason": "new"}
        assert [desk.post(url, sent).status_code for _ in range(2)] == [302, 302]
    done = "acme passed. What followed: went live."
    assert told(desk) == [done, f"This was sent twice and done once. {done}"]
    assert Verification.objects.count() == 1


def test_while_a_verification_runs_another_one_is_refused_and_says_when(desk: Client) -> None:
    partner = newcomer().partner
    Endpoint.objects.filter(partner=partner).update(verifying_until=timezone.now() + timedelta(seconds=40))
    shown = carry_out(desk, "verify", partner, reason="routine").content.decode()
    assert "A verification of acme is under way; it takes a minute at most. Try again after it." in shown
    assert Verification.objects.count() == 0


@pytest.mark.parametrize("deed", ["verify", WAIVE])
def test_a_viewer_is_not_offered_to_and_may_not(viewer_desk: Client, deed: str) -> None:
    partner = newcomer().partner
    assert f"/{deed}/" not in viewer_desk.get(page(partner)).content.decode()
    assert carry_out(viewer_desk, deed, partner).status_code == 403
    assert viewer_desk.post(act_url(deed, partner), {"reason": "Because."}).status_code == 403
    assert (Partner.objects.get().state, Verification.objects.count()) == ("onboarding", 0)


def test_whoever_may_verify_may_not_waive(viewer: User, viewer_desk: Client) -> None:
    partner = newcomer().partner
    viewer.user_permissions.add(Permission.objects.get(codename="verify"))
    shown = viewer_desk.get(page(partner)).content.decode()
    assert ("/verify/" in shown, f"/{WAIVE}/" in shown) == (True, False)
    assert carry_out(viewer_desk, WAIVE, partner).status_code == 403
    viewer.user_permissions.add(Permission.objects.get(codename="waive_verification"))
    effect = "Will send what acme is owed to http://127.0.0.1:9/."
    assert carry_out(viewer_desk, WAIVE, partner, reason="Because.", effect=effect).status_code == 302
    assert Partner.objects.get().state == "live"


@pytest.mark.parametrize("deed", ["verify", WAIVE])
def test_looking_does_nothing(desk: Client, deed: str) -> None:
    partner = newcomer().partner
    assert desk.get(act_url(deed, partner)).status_code == 200
    assert (Partner.objects.get().state, Verification.objects.count()) == ("onboarding", 0)


def test_the_page_shows_the_pending_url_and_the_keys_but_no_secret(desk: Client) -> None:
    made = make_partner("acme", url="http://127.0.0.1:9/")
    verification.verify(actor="test", slug="acme", url="http://127.0.0.1:10/new")
    shown = desk.get(page(made.partner)).content.decode()
    assert "http://127.0.0.1:10/new" in shown
    assert 'href="http://127.0.0.1' not in shown
    assert "HMAC-SHA256 (v1)" in shown
    assert made.secret not in shown


@pytest.mark.parametrize("deed", ["pause", "resume"])
def test_pausing_a_partner_in_onboarding_says_why_it_cannot_be(desk: Client, deed: str) -> None:
    partner = newcomer().partner
    why = "cme is in onboarding: nothing is sent to it before its endpoint has passed the checks."
    assert carry_out(desk, deed, partner).status_code == 302
    assert told(desk)[0].endswith(f"does not go with acme, as things stand. a{why}")
    assert (
        f"A{why}" in desk.post(act_url(deed, partner), {"reason": "partner_asked"}).content.decode()
    )  # by a page that was opened before
    assert Partner.objects.get().state == "onboarding"


def test_nobody_edits_what_was_proved(desk: Client) -> None:
    newcomer()
    result = verification.waive(actor="test", slug="acme", reason="Because.")
    url = f"/admin/partners/verification/{result.pk}/change/"
    assert desk.get(url).status_code == 200
    assert desk.post(url, {"passed": "on", "_save": "Save"}).status_code == 403
    assert desk.get("/admin/partners/verification/").status_code == 200
