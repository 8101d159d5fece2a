"""What the tests of removal's modules share."""

from collections.abc import Iterator

import pytest
from django.test import override_settings


@pytest.fixture(scope="module", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    """Hash passwords by what costs nothing: a third of the desk's tests would be spent on it.

    Only here, where no other process has to read them.
    """
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        yield
