"""Why a person did something, as the log keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Why:
    """A word from a list, and the number of a ticket.

    No words of one's own: the log is kept for ever, and names nobody.
    """

    reason: str = ""
    ticket: str = ""

    def as_ids(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}


UNSAID = Why()
