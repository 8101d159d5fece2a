"""The outermost transaction of a step."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import OperationalError, transaction
from psycopg.errors import DeadlockDetected, SerializationFailure
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

P = ParamSpec("P")
T = TypeVar("T")


def _lost_to_another(error: BaseException) -> bool:
    """Whether the database ended a transaction only because another one was in its way (40P01, 40001)."""
    return isinstance(error, OperationalError) and isinstance(error.__cause__, DeadlockDetected | SerializationFailure)


def whole_step(step: Callable[P, T]) -> Callable[P, T]:
    """Run a step in one durable transaction, and as a whole again, up to five times, if it loses to another.

    For steps that change nothing but the database. Inside a test's own transaction it runs once.
    """
    again = retry(
        retry=retry_if_exception(_lost_to_another), stop=stop_after_attempt(5), wait=wait_random(0, 0.1), reraise=True
    )

    @wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return again(transaction.atomic(durable=True)(step))(*args, **kwargs)

    return run
