"""Staff at the desk, and partners on loopback."""

from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
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


@pytest.fixture
def desk(superuser: User) -> Client:
    """A browser in which a superuser is logged in."""
    return open_desk(superuser)


@pytest.fixture
def viewer_desk(viewer: User) -> Client:
    return open_desk(viewer)
