"""Staff decide about more time: through the step functions, with a text, and only with the right to."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from partners.models import Partner
from removal import extensions
from removal.admin.extensions import GRANT
from removal.models import Extension, LogEntry, Notice
from tests.factories import make_partner
from tests.removal.admin.conftest import act_url, carry_out
from tests.removal.admin.story import ask_for_time, owe, say

pytestmark = pytest.mark.django_db

LIST = "/admin/removal/extension/"


@pytest.fixture
def wish() -> Extension:
    from removal import delivery

    partner = make_partner("acme").partner
    owe(partner)
    delivery.claim(partner_id=partner.pk)
    ask_for_time(partner, reason="Backups on tape.")
    return Extension.objects.get()


def act(desk: Client, action: str, wish: Extension, decision: str) -> int:
    return carry_out(desk, action, wish, decision=decision).status_code


def told(desk: Client) -> list[str]:
    return [str(message) for message in get_messages(desk.get(LIST).wsgi_request)]


def decisions() -> list[tuple[str, str]]:
    entries = LogEntry.objects.filter(action__in=["extension_granted", "extension_refused"])
    return list(entries.values_list("actor", "action"))


def test_granting_moves_the_date_and_is_logged_by_name(desk: Client, superuser: User, wish: Extension) -> None:
    assert act(desk, "grant", wish, "Tape takes longer.") == 302
    assert told(desk) == ["1 granted."]
    assert Notice.objects.get().respond_by == wish.extend_until
    wish.refresh_from_db()
    assert (wish.state, wish.decided_by, wish.decision) == (
        "granted",
        f"staff:{superuser.pk}",
        "Tape takes longer.",
    )
    assert decisions() == [(f"staff:{superuser.pk}", "extension_granted")]


def test_refusing_keeps_the_date_and_is_logged(desk: Client, superuser: User, wish: Extension) -> None:
    before = Notice.objects.get().respond_by
    act(desk, "refuse", wish, "Not needed.")
    assert Notice.objects.get().respond_by == before
    assert decisions() == [(f"staff:{superuser.pk}", "extension_refused")]
    assert told(desk) == ["1 refused."]
    assert act(desk, "grant", wish, "After all.") == 302
    assert (
        told(desk)[-1]
        == f"“{GRANT.label}” does not go with extension {wish.pk}, as things stand. It was refused before."
    )


def test_of_two_people_who_decide_the_second_is_told(desk: Client, wish: Extension) -> None:
    [token] = re.findall(r'name="token" value="([^"]+)"', desk.get(act_url("grant", wish)).content.decode())
    extensions.refuse(extension_id=wish.pk, actor="staff:7", decision="Not needed.")
    page = desk.post(act_url("grant", wish), {"token": token, "decision": "Tape takes longer."}).content.decode()
    assert f"Extension {wish.pk}: It was refused before." in page
    assert "Tape takes longer." in page
    assert decisions() == [("staff:7", "extension_refused")]


def test_what_needs_no_later_date_is_not_granted_and_says_so(desk: Client, wish: Extension) -> None:
    say(Partner.objects.get(), 1, "completed", outcomes={"removed": 2})
    page = carry_out(desk, "grant", wish, decision="Yes.").content.decode()
    assert "The notice has ended, or its date is as late already. Refuse the wish." in page
    assert decisions() == []


def test_without_a_reason_nothing_is_decided(desk: Client, wish: Extension) -> None:
    page = carry_out(desk, "grant", wish, decision=" ").content.decode()
    assert "This field is required." in page
    with pytest.raises(extensions.DecisionNeeded):
        extensions.grant(extension_id=wish.pk, actor="staff:7", decision=" ")
    assert decisions() == []


@pytest.mark.parametrize("action", ["grant", "refuse"])
def test_a_viewer_may_not(viewer: User, viewer_desk: Client, wish: Extension, action: str) -> None:
    assert act(viewer_desk, action, wish, "Yes.") == 403
    assert decisions() == []
    viewer.user_permissions.add(Permission.objects.get(codename="extend"))
    assert act(viewer_desk, action, wish, "Yes.") == 302
    assert len(decisions()) == 1


def test_the_list_shows_the_wish_and_the_page_that_follows_asks_why(desk: Client, wish: Extension) -> None:
    assert "Backups on tape." in desk.get(LIST).content.decode()
    assert 'name="decision"' in desk.get(act_url("grant", wish)).content.decode()
