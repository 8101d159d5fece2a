"""What an invariant is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Invariant:
    """A sentence that must hold, the promise it is a part of, and a query for how many rows break it."""

    name: str
    promise: int
    sql: str
