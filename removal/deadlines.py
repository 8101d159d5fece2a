"""When something is due: pure arithmetic with calendar months, business days, days and hours (docs/deadlines.md).

The day on which a period starts is not counted. A period in days, business days or months ends with the last second of
its last day in the policy's time zone; one in hours, so many hours later (Regulation (EEC, Euratom) No 1182/71
Art. 3(1) and (2); California Code of Civil Procedure §12).
"""

import re
from calendar import monthrange
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

# What may stand in a policy. The database has the same as a constraint.
PATTERN = r"^[1-9][0-9]{0,2} (hours?|days?|business days?|months?)$"
UNITS = ("hours", "days", "business days", "months")
WEEKEND = frozenset({5, 6})  # Saturday and Sunday, as date.weekday() counts
# Shares of a deadline's time at which partners are reminded and staff are told.
LEVELS = (50, 80, 100)
# What is left of the time when something is due soon: the last fifth, and never more than a week.
SOON_LEVEL = 80
SOON_AT_MOST = timedelta(days=7)


class InvalidTerm(ValueError):
    """This is no term; the message says how one is written."""


@dataclass(frozen=True)
class Term:
    """A length of time as law and contracts write it: ``1 month``, ``10 business days``, ``45 days``, ``24 hours``."""

    amount: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a term. Raises InvalidTerm."""
        if not re.fullmatch(PATTERN, text):
            raise InvalidTerm(f"Write 1 to 999 and one of {', '.join(UNITS)}, such as: 10 business days.")
        amount, _, unit = text.partition(" ")
        return cls(int(amount), unit if unit.endswith("s") else f"{unit}s")

    def __str__(self) -> str:
        return f"{self.amount} {self.unit if self.amount != 1 else self.unit.removesuffix('s')}"


@dataclass(frozen=True)
class Calendar:
    """How a policy counts days: its time zone, its holidays, and whether an end on a day off moves to the next day.

    ``rolls_forward`` is about periods in days and months: the last day that is a Saturday, a Sunday or a holiday is
    replaced by the next working day (Regulation 1182/71 Art. 3(4); Code of Civil Procedure §12a).
    """

    zone: ZoneInfo
    holidays: Collection[date] = frozenset()
    rolls_forward: bool = False

    def is_working(self, day: date) -> bool:
        return day.weekday() not in WEEKEND and day not in self.holidays


def due(term: Term, *, start: datetime, calendar: Calendar) -> datetime:
    """Say when a term that starts at ``start`` is over: the last moment, in UTC, that is still in time.

    A month without the day ends on its last day: 31 January plus one month is the last of February (GDPR Art. 12(3)).
    Raises ValueError for a start without a time zone.
    """
    if start.tzinfo is None:
        raise ValueError("a start needs a time zone")
    if term.unit == "hours":
        return start.astimezone(UTC) + timedelta(hours=term.amount)
    first = start.astimezone(calendar.zone).date()
    match term.unit:
        case "days":
            last = first + timedelta(days=term.amount)
        case "months":
            last = add_months(first, term.amount)
        case _:
            return end_of(_business_days_after(first, term.amount, calendar), zone=calendar.zone)
    while calendar.rolls_forward and not calendar.is_working(last):
        last += timedelta(days=1)
    return end_of(last, zone=calendar.zone)


def add_months(day: date, months: int) -> date:
    """Find the same day so many calendar months later, or that month's last one if it has no such day."""
    years, month = divmod(day.month - 1 + months, 12)
    year, month = day.year + years, month + 1
    return date(year, month, min(day.day, monthrange(year, month)[1]))


def _business_days_after(day: date, days: int, calendar: Calendar) -> date:
    while days:
        day += timedelta(days=1)
        days -= calendar.is_working(day)
    return day


def end_of(day: date, *, zone: ZoneInfo) -> datetime:
    """Say when a day ends in a zone: its last second, in UTC, whatever the clocks do that night.

    The start of the next day is what counts: where midnight is skipped, zoneinfo puts it at the change of the clocks;
    where it comes twice, the first one ends the day.
    """
    midnight = datetime.combine(day + timedelta(days=1), time(), zone)
    return midnight.astimezone(UTC) - timedelta(seconds=1)


def passes(level: int, *, start: datetime, end: datetime) -> datetime:
    """Say when ``level`` percent of the time between are over."""
    return start + (end - start) * level / 100


def state_of(*, start: datetime, end: datetime, now: datetime) -> str:
    """Say how something unanswered stands: ``on_track``, ``due_soon`` or ``overdue`` (design §5, derived)."""
    if now > end:
        return "overdue"
    soon = max(passes(SOON_LEVEL, start=start, end=end), end - SOON_AT_MOST)
    return "due_soon" if now >= soon else "on_track"
