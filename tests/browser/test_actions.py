"""What staff do in a browser: asked first, done once, and never half."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from partners.models import Partner
from removal.models import Delivery, LogEntry, Notice, Waiver
from tests.browser.desk import Desk, press_tab_until

pytestmark = pytest.mark.django_db(transaction=True)


def page_of(slug: str) -> str:
    return f"/admin/partners/partner/{Partner.objects.get(slug=slug).pk}/change/"


def begin(page: Page, action: str) -> None:
    """Choose an action on a row's page, and its first reason where one is asked for."""
    page.locator("#content").get_by_role("link", name=re.compile(f"^{action}")).first.click()
    page.wait_for_url("**/act/**")
    if reasons(page).count():
        reasons(page).first.check()


def reasons(page: Page) -> Locator:
    return page.locator('#content input[type="radio"]')


def send(page: Page) -> None:
    page.locator("#content").locator('.submit-row input[type="submit"]').click()


def said(page: Page, text: str) -> None:
    expect(page.locator(".messagelist")).to_contain_text(text)


def test_an_operator_pauses_resends_and_resumes(desk: Desk) -> None:
    messages = Delivery.objects.filter(stream__partner__slug="harbor", state="waiting").count()
    page = desk.open("operator", at=page_of("harbor"))

    begin(page, "Pause")
    send(page)
    said(page, "paused")
    expect(page.locator("#content")).to_contain_text("paused")
    assert Partner.objects.get(slug="harbor").state == "paused"

    begin(page, "Send again")
    page.get_by_label("From number").fill("1")
    page.get_by_label("To number").fill("20")
    send(page)
    effect = page.locator("#what-will-happen")
    expect(effect).to_contain_text("Will send 20 notices in 2 messages again.")
    assert Delivery.objects.filter(stream__partner__slug="harbor", state="waiting").count() == messages
    send(page)
    said(page, "Sent again, behind all that is new: 20 notices in 2 messages.")
    assert Delivery.objects.filter(stream__partner__slug="harbor", state="waiting").count() == messages + 2

    begin(page, "Resume")
    send(page)
    said(page, "resumed")
    assert Partner.objects.get(slug="harbor").state == "live"


def test_a_lead_waives_with_a_second_person_only(desk: Desk) -> None:
    notice = Notice.objects.filter(stream__partner__slug="glacier", handling="in_progress").latest("pk")
    first = desk.open("compliance lead", at=f"/admin/removal/notice/{notice.pk}/change/")
    begin(first, "Ask to waive")
    first.get_by_label("Why, in your words").fill("The partner was wound up; its data were destroyed.")
    send(first)
    said(first, "1 put to a second person.")
    waiver = Waiver.objects.get(notice=notice)

    first.goto(f"/admin/removal/waiver/{waiver.pk}/change/")
    begin(first, "Approve")
    send(first)
    said(first, "another person")
    assert Notice.objects.get(pk=notice.pk).closed_at is None

    second = desk.open("second lead", at="/admin/removal/waiver/")
    second.locator("#result_list").get_by_role("link").first.click()
    begin(second, "Approve")
    expect(second.locator("#content")).to_contain_text("The partner was wound up")
    send(second)
    said(second, "1 waived.")
    notice.refresh_from_db()
    assert (notice.closed_at is not None, notice.handling) == (True, "in_progress")


def test_two_clicks_do_it_once(desk: Desk) -> None:
    paused = LogEntry.objects.filter(action="partner_paused").count()
    page = desk.open("partner manager", at=page_of("borealis"))
    begin(page, "Pause")
    send_button = page.locator('#content .submit-row input[type="submit"]')

    # Both leave before an answer comes: a form that is sent again while it is under way.
    page.evaluate("""
        const form = document.querySelector('#content form');
        const sent = new URLSearchParams(new FormData(form));
        const post = () => fetch(location.href, {method: 'POST', body: sent}).then((answer) => answer.status);
        window.statuses = Promise.all([post(), post(), post()]);
    """)
    assert page.evaluate("window.statuses") == [200, 200, 200]
    send_button.dblclick(no_wait_after=True)
    expect(page.locator(".messagelist")).to_contain_text("done once")

    assert Partner.objects.get(slug="borealis").state == "paused"
    assert LogEntry.objects.filter(action="partner_paused").count() == paused + 1
    begin(page, "Resume")
    send(page)
    said(page, "resumed")


def test_the_password_is_asked_again_before_what_cannot_be_taken_back(desk: Desk) -> None:
    lead = desk.people["second lead"]
    notices = Notice.objects.filter(stream__partner__slug="glacier", handling="in_progress").order_by("pk")
    page = desk.open("second lead", at=f"/admin/removal/notice/{notices[0].pk}/change/", proven=False)
    begin(page, "Close by hand")
    page.get_by_label("In your words").fill("Its corpus was destroyed.")
    page.get_by_label("Your password, again").fill("wrong")
    send(page)
    expect(page.locator("#content")).to_contain_text("The password is wrong. Nothing was done.")
    expect(page.get_by_label("In your words")).to_have_value("Its corpus was destroyed.")

    page.get_by_label("Your password, again").fill(lead.password)
    page.get_by_label("Code").fill(lead.code())
    send(page)
    said(page, "1 closed by hand.")
    assert Notice.objects.get(pk=notices[0].pk).closed_at is not None


def test_a_session_that_ends_in_the_middle_says_so_and_loses_nothing(desk: Desk) -> None:
    lead = desk.people["compliance lead"]
    notice = Notice.objects.filter(stream__partner__slug="glacier", handling="in_progress").order_by("pk")[5]
    page = desk.open("compliance lead", at=f"/admin/removal/notice/{notice.pk}/change/")
    begin(page, "Close by hand")
    page.get_by_label("In your words").fill("Its corpus was destroyed.")
    asked_at = page.url

    page.context.clear_cookies(name="sessionid")
    send(page)
    expect(page.locator("#container")).to_contain_text("Your session had ended, so nothing was done.")
    assert Notice.objects.get(pk=notice.pk).closed_at is None

    page.get_by_label("Username").fill(lead.user.username)
    page.get_by_label("Password").fill(lead.password)
    page.get_by_label("Code").fill(lead.code())
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(asked_at)
    expect(reasons(page).first).to_be_checked()
    expect(page.get_by_label("In your words")).to_have_value("Its corpus was destroyed.")
    send(page)
    said(page, "1 closed by hand.")
    assert Notice.objects.get(pk=notice.pk).closed_at is not None


def test_everything_is_done_by_the_keyboard(desk: Desk) -> None:
    page = desk.open("operator", at="/admin/partners/partner/")
    press_tab_until(page, "glacier")
    page.keyboard.press("Enter")
    page.wait_for_url("**/change/")

    press_tab_until(page, "Pause: hold messages")
    page.keyboard.press("Enter")
    page.wait_for_url("**/act/pause/**")
    press_tab_until(page, "partner_asked")
    page.keyboard.press("Space")
    press_tab_until(page, "Pause: hold messages", roles=["INPUT"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/change/**")
    said(page, "paused")
    assert Partner.objects.get(slug="glacier").state == "paused"

    press_tab_until(page, "Resume: send messages again")
    page.keyboard.press("Enter")
    page.wait_for_url("**/act/resume/**")
    press_tab_until(page, "over")
    page.keyboard.press("Space")
    press_tab_until(page, "Resume: send messages again", roles=["INPUT"])
    page.keyboard.press("Enter")
    said(page, "resumed")
