"""The outermost transaction of a step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg.errors import DeadlockDetected, SerializationFailure
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def one_transaction() -> Iterator[None]:
    """Run a block in one durable READ COMMITTED transaction, whatever the session's own default is.

    Our steps lock first and look then: a snapshot that is older than the lock would show them the past (design §6).
    """
    is_nested = connection.in_atomic_block  # in a test that rolls back; there the level is settled already
    with transaction.atomic(durable=True):
        if not is_nested:
            with connection.cursor() as cursor:
                cursor.execute("set transaction isolation level read committed")
        yield


def read_along_indexes(cursor: CursorWrapper) -> None:
    """For the rest of the transaction, have the first rows in an index's order read along it, and no others.

    With statistics from before rows came, the database thinks that they are few, and that it may as well sort them all.
    """
    cursor.execute("set local enable_bitmapscan = off")


def whole_step(step: Callable[P, T]) -> Callable[P, T]:
    """Run a step in ``one_transaction``, and as a whole again, up to five times, if it loses to another one.

    For steps that change nothing but the database.
    """

    @wraps(step)
    @retry(
        retry=retry_if_exception(_lost_to_another), stop=stop_after_attempt(5), wait=wait_random(0, 0.1), reraise=True
    )
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with one_transaction():
            return step(*args, **kwargs)

    return run


def _lost_to_another(error: BaseException) -> bool:
    """Whether the database ended a transaction only because another one was in its way (40P01, 40001)."""
    return isinstance(error, OperationalError) and isinstance(error.__cause__, DeadlockDetected | SerializationFailure)
