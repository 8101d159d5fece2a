"""Each page in both sizes and schemes: readable for everybody, no wider than the screen, and quiet."""

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from partners.models import Partner
from removal.models import Delivery, Notice
from tests.browser.desk import SIZES, Desk

pytestmark = pytest.mark.django_db(transaction=True)

SERIOUS = {"serious", "critical"}


def request_page() -> str:
    told = Notice.objects.filter(stream__partner__slug="cobalt", request__state="planned").order_by("pk")[0]
    return f"/admin/removal/removalrequest/{told.request_id}/change/"


def partner_page() -> str:
    return f"/admin/partners/partner/{Partner.objects.get(slug='cobalt').pk}/change/"


def notice_page() -> str:
    return f"/admin/removal/notice/{Notice.objects.order_by('-pk')[0].pk}/change/"


def delivery_page() -> str:
    return f"/admin/removal/delivery/{Delivery.objects.filter(attempts__gt=1).order_by('pk')[0].pk}/change/"


def confirm_page() -> str:
    return f"/admin/partners/partner/act/pause/?rows={Partner.objects.get(slug='cobalt').pk}"


def closing_page() -> str:
    rows = Notice.objects.filter(stream__partner__slug="cobalt", handling="none").order_by("pk")[:2]
    return f"/admin/removal/notice/act/close/?rows={','.join(str(row.pk) for row in rows)}"


def at(address: str) -> Callable[[], str]:
    return lambda: address


# Name: who looks, and where.
PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "login": ("", at("/admin/")),
    "start": ("viewer", at("/admin/")),
    "requests": ("viewer", at("/admin/removal/removalrequest/")),
    "request": ("compliance lead", request_page),
    "notices": ("compliance lead", at("/admin/removal/notice/?late=overdue")),
    "notice": ("compliance lead", notice_page),
    "delivery": ("viewer", delivery_page),
    "partners": ("operator", at("/admin/partners/partner/")),
    "partner": ("partner manager", partner_page),
    "confirm": ("operator", confirm_page),
    "closing": ("compliance lead", closing_page),
    "policy": ("viewer", at("/admin/removal/deadlinepolicy/")),
    "who-holds": ("viewer", at("/admin/removal/disclosure/who-holds/?subject=site:3")),
    "exports": ("compliance lead", at("/admin/exports/")),
    "metrics": ("viewer", at("/admin/metrics/")),
    "glossary": ("viewer", at("/admin/glossary/")),
    "second-factor": ("viewer", at("/admin/second-factor/")),
}


def found_by(axe: Axe, page: Page, desk: Desk) -> list[str]:
    """List what axe-core finds serious or critical: the rule, and where."""
    desk.watch.is_on = False  # axe's own styles break the rules that our pages keep
    found = axe.run(page).response["violations"]
    desk.watch.is_on = True
    return [
        f"{one['id']}: {node['target']} {node['failureSummary'].splitlines()[-1].strip()} {node['html'][:200]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_and_fits(desk: Desk, axe: Axe, screenshots: Path | None, name: str, scheme: str) -> None:
    who, where = PAGES[name]
    page = desk.open(who, at=where(), scheme=scheme)

    assert page.get_by_role("heading", level=1).count() == 1
    for width, height in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        if screenshots:
            page.screenshot(path=screenshots / f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        assert found_by(axe, page, desk) == []


def test_the_api_page_works_under_the_same_rules(desk: Desk) -> None:
    page = desk.open(at="/docs")

    page.get_by_text("/v1/requests", exact=True).first.click()
    expect(page.get_by_text("Idempotency-Key").first).to_be_visible()


def test_the_watch_sees_what_it_is_for(desk: Desk) -> None:
    page = desk.open("viewer")
    assert desk.watch.problems == []

    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">red</p>')")
    page.evaluate("fetch('/admin/nothing/')")
    page.evaluate("console.error('broken')")
    page.evaluate("fetch('http://127.0.0.2:9/').catch(() => 0)")
    page.evaluate("setTimeout(() => { throw new Error('lost') })")
    page.wait_for_timeout(300)

    seen, desk.watch.problems = " ".join(desk.watch.problems), []
    for word in ("CSP: style-src", "404: ", "console: broken", "script: ", "CSP: connect-src"):
        assert word in seen, (word, seen)
