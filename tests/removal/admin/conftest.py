"""Staff at the desk, and partners on loopback."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from pytest_django import Settings


@pytest.fixture(autouse=True)
def _partners_on_loopback(loopback_partners: None) -> None:
    """For every test here."""


@pytest.fixture(autouse=True)
def _static_root(settings: Settings) -> None:
    """The static files' middleware warns where there was no collectstatic, and warnings are errors."""
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("superuser")


@pytest.fixture
def viewer(db: None) -> User:
    """Someone who may see everything, and nothing more."""
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return viewer


def open_desk(user: User) -> Client:
    """Open a browser in which somebody has just logged in."""
    client = Client()
    client.force_login(user)
    session = client.session
    session["proven_at"] = timezone.now().timestamp()
    session.save()
    return client


def act_url(name: str, *rows: Model) -> str:
    """Name the page that asks about an action with these rows."""
    options = rows[0]._meta
    keys = ",".join(str(row.pk) for row in rows)
    return f"/admin/{options.app_label}/{options.model_name}/act/{name}/?rows={keys}"


def carry_out(desk: Client, name: str, *rows: Model, **said: Any) -> HttpResponse:
    """Open the page that asks, and answer it; where it does not ask, that answer is returned."""
    url = act_url(name, *rows)
    asked: Any = desk.get(url)
    if asked.status_code != 200:
        return asked  # type: ignore[no-any-return]  # the test client's own kind
    [token] = re.findall(r'name="token" value="([^"]+)"', asked.content.decode())
    answer: Any = desk.post(url, {"token": token, **said})
    return answer  # type: ignore[no-any-return]


@pytest.fixture
def desk(superuser: User) -> Client:
    """A browser in which a superuser is logged in."""
    return open_desk(superuser)


@pytest.fixture
def viewer_desk(viewer: User) -> Client:
    return open_desk(viewer)
