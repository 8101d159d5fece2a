"""Sets of sequence numbers, kept as ranges: what a pull has handed out, and what was confirmed."""

from collections.abc import Sequence
from typing import Any

from django.contrib.postgres.fields import BigIntegerRangeField
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func

Numbers = Sequence[tuple[int, int]]


class NumbersField(models.Field):  # type: ignore[type-arg]  # generic only in the stubs
    """An int8multirange: in Python, disjoint ranges (first, last) in order, both ends included."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "int8multirange"

    def from_db_value(self, value: Any, *_: object) -> Numbers | None:
        return None if value is None else tuple((one.lower, one.upper - 1) for one in value)

    def get_prep_value(self, value: Any) -> Any:
        value = super().get_prep_value(value)
        if not isinstance(value, tuple):
            return value
        return "{" + ",".join(f"[{first},{last}]" for first, last in value) + "}"

    def get_placeholder(self, value: Any, compiler: Any, connection: BaseDatabaseWrapper) -> str:
        return "%s::int8multirange"


class NumberRange(Func):
    """The numbers from one up to, and without, another."""

    function = "int8range"
    output_field = BigIntegerRangeField()


class Within(Func):
    """Whether the first numbers all are among the second."""

    arg_joiner = " <@ "
    template = "%(expressions)s"
    output_field = models.BooleanField()
