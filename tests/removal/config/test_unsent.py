"""What was written when a session ended: there again after the login, without passwords, at its own address only."""

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.test import Client

from removal.config import unsent
from tests.factories import make_partner

pytestmark = pytest.mark.django_db

RANGE = "/admin/partners/partner/act/resend/?rows={}"


def send_without_session(url: str, **written: str) -> Client:
    stranger = Client()
    answer = stranger.post(url, {"token": "1", "proof-password": "secret", "proof-code": "123456", **written})
    assert (answer.status_code, answer["Location"].partition("?")[0]) == (302, "/admin/login/")
    return stranger


def test_it_is_there_again_once_and_nowhere_else() -> None:
    url = RANGE.format(make_partner().partner.pk)
    stranger = send_without_session(url, first="7", last="9")
    cookie = stranger.cookies[unsent.COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", 900)
    assert signing.loads(cookie.value, salt=unsent.COOKIE) == {"at": url, "words": {"first": "7", "last": "9"}}

    stranger.force_login(User.objects.create_superuser("superuser"))
    other = stranger.get(RANGE.format(make_partner().partner.pk)).content.decode()
    assert 'value="7"' not in other
    assert 'value="7"' in stranger.get(url).content.decode()
    assert 'value="7"' not in stranger.get(url).content.decode()


def test_too_much_is_not_kept_and_not_promised() -> None:
    noise = "".join(chr(0x4E00 + 7919 * number % 20000) for number in range(2000))
    stranger = send_without_session(RANGE.format(1), first=noise)
    assert unsent.COOKIE not in stranger.cookies
    page = stranger.get("/admin/login/").content.decode()
    assert "Your session had ended, so nothing was done." in page
    assert "What you wrote" not in page


def test_a_forged_one_is_not_believed() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("superuser"))
    url = RANGE.format(make_partner().partner.pk)
    client.cookies[unsent.COOKIE] = signing.dumps({"at": url, "words": {"first": "7"}}, salt="another")
    assert 'value="7"' not in client.get(url).content.decode()
