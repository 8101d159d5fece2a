"""Secrets at rest: encrypted with a key that is not in the database."""

from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models


class CannotDecrypt(Exception):
    """None of ENCRYPTION_KEYS opens this value: a key was removed before its values were re-encrypted."""


def fernet() -> MultiFernet:
    """Open the keys of ENCRYPTION_KEYS: the first encrypts, each of them decrypts."""
    try:
        return MultiFernet([Fernet(key) for key in settings.ENCRYPTION_KEYS])
    except ValueError as error:
        raise ImproperlyConfigured("ENCRYPTION_KEYS must be Fernet keys (32 bytes, URL-safe base64).") from error


class EncryptedTextField(models.TextField):  # type: ignore[type-arg]  # generic only in the stubs
    """Text that is encrypted (Fernet: AES-128-CBC with HMAC-SHA256) on its way into the database.

    Every write of the same text differs, so it cannot be searched or compared in SQL.
    """

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else fernet().encrypt(str(value).encode()).decode()

    def from_db_value(self, value: str | None, *_: Any) -> str | None:
        if value is None:
            return None
        try:
            return fernet().decrypt(value.encode()).decode()
        except InvalidToken as error:
            raise CannotDecrypt("Put the missing key back into ENCRYPTION_KEYS.") from error
