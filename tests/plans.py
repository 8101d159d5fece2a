"""What a statement reads and compares: counted by running it under ``explain (analyze)``."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.db import connection


def rows_read(sql: str, parameters: Any = None) -> Counter[str]:
    """Run a statement; returns how many rows it took from each table, those that it left out again included."""
    read: Counter[str] = Counter()
    for step in _steps(sql, parameters):
        if "Relation Name" in step:
            read[step["Relation Name"]] += step["Actual Loops"] * (
                step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
            )
    return read


def pairs_compared_in_vain(sql: str, parameters: Any = None) -> int:
    """Run a statement; returns how many pairs of rows its joins put together that did not belong together."""
    pairs = 0
    for step in _steps(sql, parameters):
        pairs += int(step["Actual Loops"] * step.get("Rows Removed by Join Filter", 0))
    return pairs


def _steps(sql: str, parameters: Any) -> Iterator[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"explain (analyze, format json) {sql}", parameters)
        [[[explained]]] = cursor.fetchall()
    plans = [explained["Plan"]]
    while plans:
        plan = plans.pop()
        plans += plan.get("Plans", ())
        yield plan


def analyze(table: str = "") -> None:
    """Have the database look at a table, or at all, as they are now, and plan by that until it looks again."""
    with connection.cursor() as cursor:
        cursor.execute(f"analyze {table}")
