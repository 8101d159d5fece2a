"""Secrets at rest: encrypted with a key that is not in the database."""

from functools import lru_cache
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
        return _opened(tuple(settings.ENCRYPTION_KEYS))
    except ValueError as error:
        raise ImproperlyConfigured("ENCRYPTION_KEYS must be Fernet keys (32 bytes, URL-safe base64).") from error


@lru_cache(maxsize=2)  # all of them, and the first alone
def _opened(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def decrypt(value: str) -> str:
    """Read what an ``EncryptedTextField`` wrote. Raises CannotDecrypt."""
    try:
        return fernet().decrypt(value.encode()).decode()
    except InvalidToken as error:
        raise CannotDecrypt("Put the missing key back into ENCRYPTION_KEYS.") from error


def is_newest(value: str) -> bool:
    """Say whether the first of ENCRYPTION_KEYS opens what an ``EncryptedTextField`` wrote."""
    try:
        _opened(tuple(settings.ENCRYPTION_KEYS[:1])).decrypt(value.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(value: str) -> str:
    """Encrypt what an ``EncryptedTextField`` wrote anew, with the first of ENCRYPTION_KEYS. Raises CannotDecrypt."""
    try:
        return fernet().rotate(value.encode()).decode()
    except InvalidToken as error:
        raise CannotDecrypt("Put the missing key back into ENCRYPTION_KEYS.") from error


class EncryptedTextField(models.TextField):  # type: ignore[type-arg]  # generic only in the stubs
    """Text that is encrypted (Fernet: AES-128-CBC with HMAC-SHA256) on its way into the database.

    Every write of the same text differs, so it cannot be searched or compared in SQL.
    """

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else fernet().encrypt(str(value).encode()).decode()

    def from_db_value(self, value: str | None, *_: Any) -> str | None:
        return None if value is None else decrypt(value)
