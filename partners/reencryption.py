"""Encrypt anew what an older key of ENCRYPTION_KEYS encrypted, so that the older key can be removed.

Works on what is stored, in SQL: to a model's field, such a value is plain text.
"""

from dataclasses import asdict, dataclass

from django.apps import apps
from django.db import connection

from partners.encryption import CannotDecrypt, EncryptedTextField, is_newest, reencrypt

# So many rows are locked while they are encrypted: a few hundredths of a second.
STEP = 500

READ = 'select "{id}", "{name}" from "{table}" where "{id}" > %s and "{name}" is not null order by "{id}" limit %s'
LOCK = " for no key update"
WRITE = 'update "{table}" set "{name}" = %s where "{id}" = %s'


class Unreadable(Exception):
    """None of ENCRYPTION_KEYS opens a stored value. The message names its row, and nothing of what is in it."""


@dataclass(frozen=True)
class Column:
    """An encrypted column, and the primary key of its table, which is a number from 1."""

    table: str
    name: str
    id: str

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


@dataclass(frozen=True)
class Step:
    """What a step looked at: up to which row, how many values, and how many of them needed an older key."""

    last_id: int
    values: int
    older: int


def columns() -> list[Column]:
    """List every encrypted column of every model."""
    found = [
        Column(model._meta.db_table, str(field.column), str(model._meta.pk.column))
        for model in apps.get_models()
        for field in model._meta.local_concrete_fields
        if isinstance(field, EncryptedTextField)
    ]
    return sorted(found, key=str)


def take_step(column: Column, *, after: int, write: bool) -> Step | None:
    """Look at the next values behind row ``after``; ``write`` encrypts with the first key those that need an older one.

    None when there are no more. With ``write`` it needs an open transaction. Raises Unreadable, before it writes
    anything.
    """
    names = asdict(column)
    with connection.cursor() as cursor:
        cursor.execute(READ.format(**names) + (LOCK if write else ""), [after, STEP])
        rows: list[tuple[int, str]] = cursor.fetchall()
        if not rows:
            return None
        anew = [(_reencrypt(column, row_id, value), row_id) for row_id, value in rows if not is_newest(value)]
        if write:
            cursor.executemany(WRITE.format(**names), anew)
    return Step(rows[-1][0], len(rows), len(anew))


def _reencrypt(column: Column, row_id: int, value: str) -> str:
    try:
        return reencrypt(value)
    except CannotDecrypt as error:
        message = f"None of ENCRYPTION_KEYS opens {column} of row {row_id}. Put the missing key back behind the others."
        raise Unreadable(message) from error
