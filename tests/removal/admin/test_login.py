"""Who gets in: the second factor, the lock-out, the session's end, and whose address counts."""

import re
import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice
from pytest_django import Settings

from removal import staff
from removal.config.headers import client_address
from removal.models import LogEntry

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
LOGIN = "/admin/login/?next=/admin/"
SETUP = "/admin/second-factor/"


@pytest.fixture
def member() -> User:
    return User.objects.create_user("member", password=PASSWORD, is_staff=True)


@pytest.fixture
def strict(settings: Settings) -> None:
    settings.REQUIRE_TOTP = True


def log_in(client: Client, password: str = PASSWORD, code: str = "", **headers: Any) -> Any:
    return client.post(LOGIN, {"username": "member", "password": password, "code": code, "next": "/admin/"}, **headers)


def code_of(device: TOTPDevice, *, steps: int = 0) -> str:
    totp = TOTP(device.bin_key)
    totp.time = time.time() + 30 * steps
    return f"{totp.token():06d}"


def enrol(user: User) -> tuple[TOTPDevice, list[str]]:
    device = staff.begin_enrolment(user=user)
    return staff.confirm_enrolment(user=user, code=code_of(device, steps=-1))


def is_in(client: Client) -> bool:
    return bool(client.get("/admin/").status_code == 200)


def test_a_password_is_enough_where_the_demo_says_so(client: Client, member: User) -> None:
    assert log_in(client).status_code == 302
    assert is_in(client)


@pytest.mark.usefixtures("strict")
def test_whoever_has_no_second_factor_sets_one_up_first(client: Client, member: User) -> None:
    assert log_in(client).status_code == 302
    for page in ("/admin/", "/admin/removal/notice/", "/admin/glossary/", "/admin/password_change/"):
        assert client.get(page)["Location"] == SETUP
    assert client.post("/admin/partners/partner/act/pause/?rows=1")["Location"] == SETUP

    page = client.post(SETUP, {"do": "begin"}).content.decode()
    device = TOTPDevice.objects.get(user=member)
    assert '<svg class="qr"' in page
    assert "style=" not in page.split('<svg class="qr"')[1].split("</svg>")[0]
    assert not is_in(client)

    page = client.post(SETUP, {"do": "confirm", "code": "000000"}).content.decode()
    assert "This is not the code" in page
    assert '<svg class="qr"' in page  # the same key, to try again
    assert not is_in(client)

    page = client.post(SETUP, {"do": "confirm", "code": code_of(device)}).content.decode()
    assert is_in(client)
    codes = list(StaticToken.objects.values_list("token", flat=True))
    assert len(codes) == staff.RECOVERY_CODES
    assert [code for code in codes if code not in page] == []
    assert LogEntry.objects.filter(action="second_factor_set_up", about={"user": member.pk}).count() == 1


@pytest.mark.usefixtures("strict")
def test_the_code_is_asked_for_and_counts_once(member: User) -> None:
    device, _ = enrol(member)
    for code, said in (("", "Write the code"), ("000000", "This code is wrong"), ("zzzzzzzzzz", "This code is wrong")):
        stranger = Client()
        page = log_in(stranger, code=code)
        assert (page.status_code, said in page.content.decode()) == (200, True)
        assert PASSWORD not in page.content.decode()
        assert not is_in(stranger)
    TOTPDevice.objects.update(throttling_failure_count=0, throttling_failure_timestamp=None)
    code = code_of(device)
    first, second = Client(), Client()
    assert log_in(first, code=code).status_code == 302
    assert is_in(first)
    assert log_in(second, code=code).status_code == 200  # used up
    assert not is_in(second)


@pytest.mark.usefixtures("strict")
def test_wrong_codes_make_even_the_right_one_wait(client: Client, member: User, settings: Settings) -> None:
    settings.OTP_TOTP_THROTTLE_FACTOR = 60  # longer than a slow machine takes
    device, _ = enrol(member)
    for _ in range(4):
        log_in(client, code="000000")
    assert log_in(client, code=code_of(device)).status_code == 200
    assert not is_in(client)


@pytest.mark.usefixtures("strict")
def test_a_recovery_code_lets_in_once(member: User) -> None:
    _, codes = enrol(member)
    first, second = Client(), Client()
    assert log_in(first, code=codes[0].upper()).status_code == 302
    assert is_in(first)
    assert log_in(second, code=codes[0]).status_code == 200


def test_a_second_factor_is_asked_for_where_none_is_required(client: Client, member: User) -> None:
    enrol(member)
    client.force_login(member)  # as a session that has only seen the password
    assert client.get("/admin/")["Location"].startswith("/admin/login/")
    assert client.post(SETUP, {"do": "begin"})["Location"].startswith("/admin/login/")
    assert TOTPDevice.objects.filter(confirmed=False).count() == 0


def test_the_second_factor_is_not_changed_in_an_old_session(client: Client, member: User) -> None:
    client.force_login(member)
    assert "proof-password" in client.post(SETUP, {"do": "begin"}).content.decode()
    assert TOTPDevice.objects.count() == 0
    assert "Set it up" in client.post(SETUP, {"proof-password": PASSWORD}).content.decode()
    client.post(SETUP, {"do": "begin"})
    assert TOTPDevice.objects.count() == 1


def test_a_lost_second_factor_is_reset_and_its_sessions_end(client: Client, member: User) -> None:
    device, _ = enrol(member)
    log_in(client, code=code_of(device))
    assert is_in(client)
    assert staff.reset_second_factor(actor="test", name="member")
    assert not is_in(client)
    assert not staff.has_second_factor(member)


def test_after_five_wrong_passwords_name_and_address_wait(member: User) -> None:
    client = Client()
    answers = [log_in(client, password="wrong").status_code for _ in range(6)]
    assert answers[:4] == [200] * 4
    assert answers[5] == 429
    locked = log_in(client)  # the right one
    assert (locked.status_code, "15 minutes" in locked.content.decode()) == (429, True)
    assert not is_in(client)
    assert log_in(Client(), REMOTE_ADDR="192.0.2.7").status_code == 302  # nobody is locked out by a stranger elsewhere


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "203.0.113.5", "10.0.0.1"),
        (1, "203.0.113.5", "203.0.113.5"),
        (1, "1.2.3.4, 203.0.113.5", "203.0.113.5"),  # the caller made the first one up
        (2, "1.2.3.4, 203.0.113.5, 10.0.0.9", "203.0.113.5"),
        (2, "203.0.113.5", "10.0.0.1"),
        (1, "", "10.0.0.1"),
        (1, "<script>", "10.0.0.1"),
        (1, "2001:db8::1", "2001:db8::1"),
    ],
)
def test_an_address_is_what_our_own_proxies_say(
    rf: RequestFactory, settings: Settings, proxies: int, forwarded: str, address: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    request = rf.get("/", REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=forwarded)
    assert client_address(request) == address


def test_a_session_ends_by_itself_and_later_with_each_page(client: Client, member: User, settings: Settings) -> None:
    settings.SESSION_COOKIE_AGE = 1800
    log_in(client)
    first = client.session.get_expiry_date()
    time.sleep(0.01)
    client.get("/admin/")
    assert client.session.get_expiry_date() > first
    assert client.session.get_expiry_age() <= timedelta(minutes=30).total_seconds()


def test_a_session_that_ends_in_the_middle_says_so(client: Client, member: User) -> None:
    sent = client.post("/admin/partners/partner/act/pause/?rows=1", {"token": "x"})
    assert sent["Location"] == "/admin/login/?next=/admin/partners/partner/act/pause/%3Frows%3D1"
    page = client.get(sent["Location"]).content.decode()
    assert "Your session had ended, so nothing was done." in page


@pytest.mark.parametrize("to", ["//evil.example/", "https://evil.example/", "javascript:alert(1)"])
def test_login_leads_nowhere_else(client: Client, member: User, to: str) -> None:
    sent = client.post("/admin/login/", {"username": "member", "password": PASSWORD, "next": to})
    assert sent["Location"] == "/accounts/profile/" or "evil" not in sent["Location"]
    assert not re.match(r"//|https?:|javascript:", sent["Location"])


def test_a_page_without_its_token_is_refused_in_words(member: User) -> None:
    client = Client(enforce_csrf_checks=True)
    refused = client.post(LOGIN, {"username": "member", "password": PASSWORD})
    assert (refused.status_code, "This page was too old" in refused.content.decode()) == (403, True)
