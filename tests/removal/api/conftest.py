"""Callers of the API: a platform and a partner, each with its key."""

from pathlib import Path

import pytest
from pytest_django import Settings


@pytest.fixture(autouse=True)
def _static_root(settings: Settings) -> None:
    """The static files' middleware warns where there was no collectstatic, and warnings are errors."""
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)
