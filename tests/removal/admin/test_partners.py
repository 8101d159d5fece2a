"""Pause and resume: through the step function, logged, and only with the right to."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from partners.models import Partner
from removal.models import LogEntry
from removal.partnerships import set_paused
from tests.factories import make_partner
from tests.removal.admin.story import owe

pytestmark = pytest.mark.django_db

LIST = "/admin/partners/partner/"


def act(desk: Client, action: str, *partners: Partner) -> int:
    """Choose partners on the list, and confirm on the page that follows."""
    chosen = desk.post(LIST, {"action": action, "_selected_action": [partner.pk for partner in partners]})
    if chosen.status_code != 302 or not action:
        return chosen.status_code
    page = desk.get(chosen["Location"])
    if page.status_code != 200:
        return page.status_code
    [token] = re.findall(r'name="token" value="([^"]+)"', page.content.decode())
    return desk.post(chosen["Location"], {"token": token, "reason": "partner_asked"}).status_code


def told(desk: Client) -> list[str]:
    return [str(message) for message in get_messages(desk.get(LIST).wsgi_request)]


def states() -> list[str]:
    return list(Partner.objects.order_by("pk").values_list("state", flat=True))


def logged() -> list[tuple[str, str, dict[str, int]]]:
    entries = LogEntry.objects.exclude(action="partner_added").order_by("pk")
    return [(entry.actor, entry.action, entry.about) for entry in entries]


def test_pausing_and_resuming_changes_the_selected_partners_and_is_logged(desk: Client, superuser: User) -> None:
    first, second, _ = (make_partner().partner for _ in range(3))

    assert act(desk, "pause", first, second) == 302
    assert told(desk) == ["2 paused."]
    assert states() == ["paused", "paused", "live"]

    assert act(desk, "resume", second) == 302
    assert told(desk) == ["1 resumed."]
    assert states() == ["paused", "live", "live"]

    staff = f"staff:{superuser.pk}"
    assert logged() == [
        (staff, "partner_paused", {"partner": first.pk, "reason": "partner_asked"}),
        (staff, "partner_paused", {"partner": second.pk, "reason": "partner_asked"}),
        (staff, "partner_resumed", {"partner": second.pk, "reason": "partner_asked"}),
    ]


def test_pausing_again_changes_nothing_and_says_so(desk: Client) -> None:
    partner = make_partner().partner
    act(desk, "pause", partner)
    told(desk)
    assert act(desk, "pause", partner) == 302
    assert told(desk) == [
        f"“Pause: hold messages” does not go with {partner.slug}, as things stand. {partner.slug} is paused already."
    ]
    assert len(logged()) == 1


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_viewer_may_not(viewer_desk: Client, action: str) -> None:
    partner = make_partner().partner
    assert act(viewer_desk, action, partner) == 403
    assert (states(), logged()) == (["live"], [])


def test_a_viewer_is_not_offered_to(viewer_desk: Client) -> None:
    make_partner()
    assert 'name="action"' not in viewer_desk.get(LIST).content.decode()


def test_whoever_has_the_right_may_pause_them(viewer: User, viewer_desk: Client) -> None:
    partner = make_partner().partner
    viewer.user_permissions.add(Permission.objects.get(codename="pause"))
    assert act(viewer_desk, "pause", partner) == 302
    assert logged() == [(f"staff:{viewer.pk}", "partner_paused", {"partner": partner.pk, "reason": "partner_asked"})]


def test_pausing_and_resuming_say_how_much_it_is_about(desk: Client) -> None:
    partner = make_partner("acme").partner
    owe(partner)
    assert "acme: 0 messages wait, 1 notices are in none yet. All of it will be held." in asked(desk, "pause", partner)
    set_paused(actor="test", slug="acme", paused=True)
    assert "1 notices are in none yet. All of it will be sent." in asked(desk, "resume", partner)


def asked(desk: Client, action: str, partner: Partner) -> str:
    return desk.get(f"{LIST}act/{action}/?rows={partner.pk}").content.decode()


def test_choosing_no_action_changes_nothing(desk: Client) -> None:
    partner = make_partner().partner
    assert act(desk, "", partner) == 302
    assert (states(), logged()) == (["live"], [])


def test_the_page_shows_where_messages_go(desk: Client) -> None:
    partner = make_partner("acme", url="https://acme.example/removal").partner
    page = desk.get(f"{LIST}{partner.pk}/change/").content.decode()
    assert "https://acme.example/removal" in page
    assert 'href="https://acme.example' not in page  # a partner chooses it, so it is text and never a link
