"""Nobody rewrites history through the desk: each model, each row, each way in, superusers included."""

from typing import Any

import pytest
from django.contrib import admin
from django.db.models import Model
from django.test import Client, RequestFactory

from tests.removal.admin.story import history, list_url, page_url, tell

pytestmark = pytest.mark.django_db


def snapshot(model: type[Model]) -> list[dict[str, Any]]:
    return list(model._default_manager.order_by("pk").values())


@pytest.fixture(params=["desk", "viewer_desk"])
def any_desk(request: pytest.FixtureRequest) -> Client:
    """The desk of a superuser, and that of a viewer."""
    desk: Client = request.getfixturevalue(request.param)
    return desk


def test_nobody_adds(any_desk: Client) -> None:
    tell()
    for model, _ in history():
        before = snapshot(model)
        assert any_desk.get(f"{list_url(model)}add/").status_code == 403
        assert any_desk.post(f"{list_url(model)}add/", {"name": "x", "state": "x"}).status_code == 403
        assert snapshot(model) == before


def test_nobody_changes(any_desk: Client) -> None:
    tell()
    for model, _ in history():
        before = snapshot(model)
        for row in model._default_manager.order_by("pk"):
            assert any_desk.post(page_url(row), {"name": "x", "state": "x", "_save": "Save"}).status_code == 403
        assert snapshot(model) == before


def test_nobody_deletes(any_desk: Client) -> None:
    tell()
    for model, _ in history():
        before = snapshot(model)
        for row in model._default_manager.order_by("pk"):
            url = page_url(row).replace("/change/", "/delete/")
            assert any_desk.get(url).status_code == 403
            assert any_desk.post(url, {"post": "yes"}).status_code == 403
        assert snapshot(model) == before


def test_nobody_deletes_many_at_once(any_desk: Client) -> None:
    tell()
    for model, _ in history():
        before = snapshot(model)
        everything = {
            "action": "delete_selected",
            "_selected_action": [row.pk for row in model._default_manager.all()],
            "index": 0,
            "post": "yes",
        }
        assert any_desk.post(list_url(model), everything).status_code == 403
        assert snapshot(model) == before


def test_no_list_offers_to_delete_accounts_included(rf: RequestFactory, superuser: Any) -> None:
    request = rf.get("/admin/")
    request.user = superuser
    offered = {
        model.__name__: set(model_admin.get_actions(request)) for model, model_admin in admin.site._registry.items()
    }
    assert {name for name, actions in offered.items() if "delete_selected" in actions} == set()
    assert {name for name, actions in offered.items() if actions} == {
        "ApiKey",
        "Extension",
        "Notice",
        "Partner",
        "RemovalRequest",
        "Waiver",
    }


def test_no_page_offers_to_save_or_delete(desk: Client) -> None:
    tell()
    for model, _ in history():
        for row in model._default_manager.order_by("pk"):
            page = desk.get(page_url(row)).content.decode()
            assert ("_save" in page, "deletelink" in page, "historylink" in page) == (False, False, False)


def test_a_stranger_sees_nothing(client: Client) -> None:
    tell()
    for model, _ in history():
        assert client.get(list_url(model)).status_code == 302  # to the login page


def test_staff_without_a_permission_sees_nothing(viewer: Any, viewer_desk: Client) -> None:
    tell()
    viewer.user_permissions.clear()
    for model, _ in history():
        assert viewer_desk.get(list_url(model)).status_code == 403
        for row in model._default_manager.order_by("pk"):
            assert viewer_desk.get(page_url(row)).status_code == 403
