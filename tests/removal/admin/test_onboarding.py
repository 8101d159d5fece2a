"""The desk runs the checks and waives them: with the right to, logged, and with every check on the page."""

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from partners.models import Partner, Verification
from removal import verification
from removal.models import LogEntry
from removal.partnerships import NewPartner, add_partner
from tests.factories import make_partner
from tests.receivers import Reply, listening
from tests.removal.careful import careful

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/partners/partner/"


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
        answer = desk.post(f"{LIST}{partner.pk}/verify/")
    assert (answer.status_code, answer["Location"]) == (302, page(partner))
    assert told(desk) == ["acme passed. What followed: went live."]
    assert Partner.objects.get().state == "live"
    assert Verification.objects.get().asked_by == f"staff:{superuser.pk}"


def test_the_page_shows_every_check_and_what_to_fix_as_plain_text(desk: Client) -> None:
    with listening(lambda _: Reply(200, b"<script>alert(1)</script>")) as receiver:
        partner = newcomer(receiver.url).partner
        desk.post(f"{LIST}{partner.pk}/verify/")
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
    desk.post(f"{LIST}{partner.pk}/waive/", {"reason": " "})
    assert "needs a reason" in told(desk)[0]
    assert Partner.objects.get().state == "onboarding"
    desk.post(f"{LIST}{partner.pk}/waive/", {"reason": "Tested by phone."})
    assert Partner.objects.get().state == "live"
    assert "Waived because: Tested by phone." in desk.get(page(partner)).content.decode()
    entry = LogEntry.objects.get(action="verification_waived")
    assert entry.actor == f"staff:{superuser.pk}"
    assert "phone" not in str(entry.about)


@pytest.mark.parametrize("deed", ["verify", "waive"])
def test_a_viewer_is_not_offered_to_and_may_not(viewer_desk: Client, deed: str) -> None:
    partner = newcomer().partner
    assert f"/{deed}/" not in viewer_desk.get(page(partner)).content.decode()
    assert viewer_desk.post(f"{LIST}{partner.pk}/{deed}/", {"reason": "Because."}).status_code == 403
    assert (Partner.objects.get().state, Verification.objects.count()) == ("onboarding", 0)


def test_whoever_may_change_partners_may_not_waive(viewer: User, viewer_desk: Client) -> None:
    partner = newcomer().partner
    viewer.user_permissions.add(Permission.objects.get(codename="change_partner"))
    shown = viewer_desk.get(page(partner)).content.decode()
    assert ("/verify/" in shown, "/waive/" in shown) == (True, False)
    assert viewer_desk.post(f"{LIST}{partner.pk}/waive/", {"reason": "Because."}).status_code == 403
    viewer.user_permissions.add(Permission.objects.get(codename="waive_verification"))
    assert viewer_desk.post(f"{LIST}{partner.pk}/waive/", {"reason": "Because."}).status_code == 302


@pytest.mark.parametrize("deed", ["verify", "waive"])
def test_looking_does_nothing(desk: Client, deed: str) -> None:
    partner = newcomer().partner
    assert desk.get(f"{LIST}{partner.pk}/{deed}/").status_code == 405


def test_the_page_shows_the_pending_url_and_the_keys_but_no_secret(desk: Client) -> None:
    made = make_partner("acme", url="http://127.0.0.1:9/")
    verification.verify(actor="test", slug="acme", url="http://127.0.0.1:10/new")
    shown = desk.get(page(made.partner)).content.decode()
    assert "http://127.0.0.1:10/new" in shown
    assert 'href="http://127.0.0.1' not in shown
    assert "HMAC-SHA256 (v1)" in shown
    assert made.secret not in shown


def test_pausing_a_partner_in_onboarding_says_why_it_cannot_be(desk: Client) -> None:
    partner = newcomer().partner
    desk.post(LIST, {"action": "resume", "_selected_action": [partner.pk]})
    assert told(desk)[0].startswith("acme is in onboarding")
    assert Partner.objects.get().state == "onboarding"


def test_nobody_edits_what_was_proved(desk: Client) -> None:
    newcomer()
    result = verification.waive(actor="test", slug="acme", reason="Because.")
    url = f"/admin/partners/verification/{result.pk}/change/"
    assert desk.get(url).status_code == 200
    assert desk.post(url, {"passed": "on", "_save": "Save"}).status_code == 403
    assert desk.get("/admin/partners/verification/").status_code == 200
