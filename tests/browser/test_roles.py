"""What each role finds, and is refused, with the mouse and with the keyboard."""

import re
from typing import Any

import pytest
from django.contrib import admin
from django.utils import timezone
from playwright.sync_api import expect

from removal.admin.actions import ActingAdmin
from removal.models import Confirmation, LogEntry, Notice
from tests.browser.desk import Desk

pytestmark = pytest.mark.django_db(transaction=True)


def acts() -> list[tuple[str, Any]]:
    """Name every action that there is, by its address without rows, and its model. Nothing new is forgotten."""
    return [
        (f"/admin/{model._meta.app_label}/{model._meta.model_name}/act/{act.name}/", model)
        for model, model_admin in admin.site._registry.items()
        if isinstance(model_admin, ActingAdmin)
        for act in model_admin.acts
    ]


def test_a_viewer_finds_the_overdue_partner_in_two_clicks(desk: Desk) -> None:
    late = Notice.objects.open().filter(respond_by__lt=timezone.now()).values_list("stream__partner__slug", flat=True)
    assert set(late) == {"cobalt"}
    page = desk.open("viewer")

    page.get_by_role("link", name=re.compile("cobalt", re.IGNORECASE)).first.click()
    page.locator('#content a[href*="late="]').first.click()

    expect(page.locator("#content")).to_contain_text("overdue")
    expect(page.locator("#content")).to_contain_text("cobalt")


def test_a_viewer_is_refused_everything_there_is_to_do(desk: Desk) -> None:
    logged, todo = LogEntry.objects.count(), acts()
    assert len(todo) >= 15
    page = desk.open("viewer")
    desk.watch.expected = {403}
    for address, model in todo:
        row = model._default_manager.order_by("pk").first()
        answer = page.goto(f"{address}?rows={row.pk if row else 1}")
        assert answer, address
        assert answer.status == 403, address
        expect(page.get_by_role("button")).to_have_count(0)
        expect(page.get_by_text("You may see this desk")).to_be_visible()
    for address in ("/admin/exports/", "/admin/auth/user/", "/admin/auth/user/add/"):
        answer = page.goto(address)
        assert answer, address
        assert answer.status == 403, address
    assert (LogEntry.objects.count(), Confirmation.objects.filter(finished_at=None).count()) == (logged, 0)


def test_a_viewer_is_offered_nothing_that_would_be_refused(desk: Desk) -> None:
    page = desk.open("viewer")
    for model, model_admin in admin.site._registry.items():
        if isinstance(model_admin, ActingAdmin):
            page.goto(f"/admin/{model._meta.app_label}/{model._meta.model_name}/")
            expect(page.locator("select[name=action]")).to_have_count(0)
            row = model._default_manager.order_by("pk").first()
            if row:
                page.goto(f"/admin/{model._meta.app_label}/{model._meta.model_name}/{row.pk}/change/")
                expect(page.locator('a[href*="/act/"]')).to_have_count(0)
