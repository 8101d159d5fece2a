"""Each role against each page and each action, generated from the registry: nothing new is forgotten."""

import re
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.db.models import Model
from django.test import Client

from removal import roles
from removal.admin.actions import ActingAdmin, Action
from removal.models import Confirmation, LogEntry, Notice, Waiver
from tests.removal.admin.conftest import open_desk
from tests.removal.admin.story import give_up, history, list_url, owe, page_url, pages, tell
from tests.removal.admin.test_actions import age
from tests.removal.admin.test_login import PASSWORD

pytestmark = pytest.mark.django_db

NOBODY = {"LogEntry", "Disclosure", "Attempt", "Acknowledgement", "Closing", "Notice", "Delivery"}


def desk_of(role: str) -> Client:
    user = User.objects.create_user(role.replace(" ", "-"), is_staff=True)
    user.groups.set(Group.objects.filter(name=role))
    assert user.groups.count() == 1
    return open_desk(user)


def acting() -> list[tuple[type[Model], ActingAdmin, Action]]:
    return [
        (model, model_admin, act)
        for model, model_admin in history()
        if isinstance(model_admin, ActingAdmin)
        for act in model_admin.acts
    ]


def test_roles_name_rights_that_there_are() -> None:
    known = {
        f"{one.content_type.app_label}.{one.codename}" for one in Permission.objects.select_related("content_type")
    }
    assert {right for rights in roles.ROLES.values() for right in rights} - known == set()
    assert {act.permission for _, _, act in acting()} - known == set()


def test_whoever_has_a_role_sees_every_model() -> None:
    for role in roles.ROLES:
        granted = set(Group.objects.get(name=role).permissions.values_list("codename", flat=True))
        assert {f"view_{model._meta.model_name}" for model, _ in history()} - granted == set(), role


def test_making_the_roles_again_changes_nothing() -> None:
    from django.apps import apps

    before = [(group.name, set(group.permissions.values_list("pk", flat=True))) for group in Group.objects.all()]
    permissions = Permission.objects.count()
    roles.sync_roles(apps)
    assert before == [
        (group.name, set(group.permissions.values_list("pk", flat=True))) for group in Group.objects.all()
    ]
    assert Permission.objects.count() == permissions


def test_a_viewer_sees_everything_and_does_nothing() -> None:
    partner = tell()
    give_up(partner)
    owe(partner)
    Waiver.objects.exists()
    desk = desk_of("viewer")
    logged = LogEntry.objects.count()
    for url in pages():
        response = desk.get(url)
        assert response.status_code == 200, url
        assert 'name="action"' not in response.content.decode(), url
        assert "/act/" not in response.content.decode(), url
    for model, _ in history():
        assert desk.get(f"{list_url(model)}add/").status_code == 403
        row = model._default_manager.order_by("pk").first()
        assert row is not None
        assert desk.post(page_url(row), {"_save": "Save"}).status_code == 403
        assert desk.post(page_url(row).replace("/change/", "/delete/"), {"post": "yes"}).status_code == 403
    for url in ("/admin/exports/", "/admin/auth/user/", "/admin/auth/user/add/"):
        assert desk.get(url).status_code == 403, url
        assert desk.post(url).status_code == 403, url
    assert desk.get("/admin/metrics/").status_code == 200
    assert (LogEntry.objects.count(), Confirmation.objects.count()) == (logged, 0)


@pytest.mark.parametrize("role", [*roles.ROLES, "nobody"])
def test_each_role_may_do_what_it_is_for_and_nothing_else(role: str) -> None:
    partner = tell()
    give_up(partner)
    if role == "nobody":
        desk, granted = open_desk(User.objects.create_user("nobody", is_staff=True)), set()
    else:
        desk, granted = desk_of(role), set(roles.ROLES[role])
    logged = LogEntry.objects.count()
    for model, _, act in acting():
        row: Any = model._default_manager.order_by("pk").first()
        url = f"{list_url(model)}act/{act.name}/?rows={row.pk}"
        allowed = act.permission in granted
        asked = desk.get(url).status_code
        assert asked in ({200, 302} if allowed else {403}), (role, act)  # 302: does not go with this row
        chosen = desk.post(list_url(model), {"action": act.name, "_selected_action": [row.pk]}).status_code
        assert chosen == (302 if allowed else 403), (role, act)
        if not allowed:
            assert desk.post(url, {"reason": "duplicate", "text": "x"}).status_code == 403, (role, act)
    assert (LogEntry.objects.count(), Confirmation.objects.count()) == (logged, 0)


def test_no_role_and_no_superuser_may_write_history(superuser: User) -> None:
    desk = open_desk(superuser)
    request = desk.get("/admin/").wsgi_request
    for model, model_admin in history():
        may = (
            model_admin.has_add_permission(request),
            model_admin.has_change_permission(request),
            model_admin.has_delete_permission(request),
        )
        assert may == (False, False, False), model
    assert {model.__name__ for model, _ in history()} >= NOBODY


def test_accounts_are_for_superusers_and_never_deleted(superuser: User) -> None:
    desk = open_desk(superuser)
    assert desk.get("/admin/auth/user/").status_code == 200
    assert desk.get(f"/admin/auth/user/{superuser.pk}/change/").status_code == 200
    assert desk.post(f"/admin/auth/user/{superuser.pk}/delete/", {"post": "yes"}).status_code == 403
    registered = {
        model.__name__ for model in admin.site._registry if model._meta.app_label not in {"removal", "partners"}
    }
    assert registered == {"User"}  # no page with anybody's key of a second factor, or that changes a role


def test_accounts_are_touched_only_by_whoever_has_just_said_who_they_are(superuser: User) -> None:
    superuser.set_password(PASSWORD)
    superuser.save()
    desk = open_desk(superuser)
    age(desk)
    account = f"/admin/auth/user/{superuser.pk}"
    for url in (f"{account}/change/", f"{account}/password/", "/admin/auth/user/add/"):
        page = desk.post(url, {"username": "another", "usable_password": "true", "is_superuser": "on"})
        assert "proof-password" in page.content.decode()
    assert User.objects.count() == 1
    answer = desk.post(f"{account}/password/", {"proof-password": PASSWORD})
    assert (answer.status_code, answer["Location"]) == (302, f"{account}/password/")
    assert "proof-password" not in desk.get(f"{account}/password/").content.decode()


def test_a_change_of_an_account_is_in_our_log(superuser: User) -> None:
    desk = open_desk(superuser)
    member = User.objects.create_user("member", is_staff=True)
    viewer = Group.objects.get(name="viewer")
    form = desk.get(f"/admin/auth/user/{member.pk}/change/").context["adminform"].form
    sent: dict[str, Any] = {
        name: value for name, value in form.initial.items() if isinstance(value, str | int) and value
    }
    sent |= {"groups": [viewer.pk], "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00", "is_staff": "on"}
    assert desk.post(f"/admin/auth/user/{member.pk}/change/", sent).status_code == 302
    entry = LogEntry.objects.get(action="staff_changed")
    assert entry.actor == f"staff:{superuser.pk}"
    assert entry.about == {"user": member.pk, "roles": ["viewer"], "is_active": True, "is_superuser": False}


@pytest.mark.parametrize("lookup", ["pk__gt=0", "{field}__secret__startswith=x", "stream__partner__name__contains=a"])
def test_forged_lookups_are_refused_on_every_list(desk: Client, lookup: str) -> None:
    for model, _ in history():
        field = next((one.name for one in model._meta.fields if one.is_relation), "request")
        assert desk.get(f"{list_url(model)}?{lookup.format(field=field)}").status_code == 400, model


def test_rows_are_looked_up_and_never_believed(desk: Client) -> None:
    tell()
    notice = Notice.objects.get()
    for rows in ("", "0", "x", f"{notice.pk},0", "1;drop table", f"{notice.pk},%00", "9" * 30):
        answer = desk.get(f"/admin/removal/notice/act/close/?rows={rows}")
        assert answer.status_code == 302, rows
    assert re.search("not there", desk.get("/admin/removal/notice/").content.decode())
    assert desk.get(f"/admin/removal/notice/act/nothing/?rows={notice.pk}").status_code == 403
