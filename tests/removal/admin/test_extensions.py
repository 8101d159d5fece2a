"""Staff decide about more time: through the step functions, with a text, and only with the right to."""

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from removal.models import Extension, LogEntry, Notice
from tests.factories import make_partner
from tests.removal.admin.story import ask_for_time, owe

pytestmark = pytest.mark.django_db

LIST = "/admin/removal/extension/"


@pytest.fixture
def wish() -> Extension:
    from removal import delivery

    partner = make_partner("acme").partner
    owe(partner)
    delivery.claim_due(partner_id=partner.pk)
    ask_for_time(partner, reason="Backups on tape.")
    return Extension.objects.get()


def act(desk: Client, action: str, wish: Extension, decision: str) -> int:
    said = {"action": action, "_selected_action": [wish.pk], "decision": decision}
    return desk.post(LIST, said).status_code


def told(desk: Client) -> list[str]:
    return [str(message) for message in get_messages(desk.get(LIST).wsgi_request)]


def decisions() -> list[tuple[str, str]]:
    entries = LogEntry.objects.filter(action__in=["extension_granted", "extension_refused"])
    return list(entries.values_list("actor", "action"))


def test_granting_moves_the_date_and_is_logged_by_name(desk: Client, superuser: User, wish: Extension) -> None:
    assert act(desk, "grant", wish, "Tape takes longer.") == 302
    assert told(desk) == ["1 granted; 0 could not be."]
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
    act(desk, "grant", wish, "After all.")
    assert told(desk)[-1] == f"0 granted; 1 could not be. extension {wish.pk}: It was refused before."


def test_without_a_reason_nothing_is_decided(desk: Client, wish: Extension) -> None:
    act(desk, "grant", wish, " ")
    assert told(desk) == ["Say why: the text is kept with the decision."]
    assert decisions() == []


@pytest.mark.parametrize("action", ["grant", "refuse"])
def test_a_viewer_may_not(viewer: User, viewer_desk: Client, wish: Extension, action: str) -> None:
    assert act(viewer_desk, action, wish, "Yes.") == 403
    assert decisions() == []
    viewer.user_permissions.add(Permission.objects.get(codename="change_extension"))
    assert act(viewer_desk, action, wish, "Yes.") == 302
    assert len(decisions()) == 1


def test_the_list_asks_why(desk: Client, wish: Extension) -> None:
    page = desk.get(LIST).content.decode()
    assert 'name="decision"' in page
    assert "Backups on tape." in page
