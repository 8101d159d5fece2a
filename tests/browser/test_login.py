"""The front door, with a second factor as in production."""

import base64

import pytest
from playwright.sync_api import Page, expect

from tests.browser.desk import Desk, Person, code_of, hire

pytestmark = pytest.mark.django_db(transaction=True)


def log_in(page: Page, person: Person, code: str = "") -> None:
    page.get_by_label("Username").fill(person.user.username)
    page.get_by_label("Password").fill(person.password)
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Log in").click()


def test_a_newcomer_sets_up_a_second_factor_and_is_asked_for_it_from_then_on(desk: Desk) -> None:
    newcomer = hire("newcomer", "viewer", enrolled=False)
    page = desk.open()
    log_in(page, newcomer)
    expect(page.get_by_role("heading", name="Your second factor")).to_be_visible()

    page.get_by_role("button", name="Set it up").click()
    picture = page.get_by_role("img", name="QR code")
    expect(picture).to_be_visible()
    assert picture.evaluate("it => it.tagName") == "svg"
    # Dark on light in both schemes, or telephones do not see it.
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        fills = picture.evaluate("it => ['rect', 'path'].map(one => getComputedStyle(it.querySelector(one)).fill)")
        assert fills == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    key = base64.b32decode(page.locator("#content code").inner_text())
    page.get_by_role("textbox", name="Code").fill(code_of(key))
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator("#content")).to_contain_text("recovery codes")
    assert len(page.locator("#content pre").inner_text().split()) == 10
    page.get_by_role("link", name="Go to the desk").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Compliance desk")

    page.get_by_role("button", name="Log out").click()
    page.goto("/admin/")
    log_in(page, newcomer)
    expect(page.locator(".errornote")).to_contain_text("Write the code that your authenticator app shows, too.")
    log_in(page, newcomer, code_of(key, steps=1))
    expect(page.get_by_role("heading", level=1)).to_contain_text("Compliance desk")


def test_a_stranger_sees_the_login_page_and_comes_to_where_he_wanted(desk: Desk) -> None:
    lead = hire("latecomer", "viewer")
    page = desk.open(at="/admin/removal/notice/?late=overdue")
    log_in(page, lead, lead.code())
    page.wait_for_url("**/admin/removal/notice/?late=overdue")
