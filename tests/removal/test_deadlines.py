"""Due dates by the calendar: each line of docs/deadlines.md, and what holds for every term and start."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from removal.deadlines import Calendar, InvalidTerm, Term, add_months, due, end_of, passes, state_of
from tests.conftest import ROOT

UTC_ZONE = ZoneInfo("UTC")
CALENDARS = {
    "weekends": Calendar(UTC_ZONE),
    "EU": Calendar(ZoneInfo("Europe/Brussels"), {date(2026, 12, 25), date(2027, 1, 1)}),
    "EU, rolls": Calendar(ZoneInfo("Europe/Brussels"), {date(2026, 12, 25), date(2027, 1, 1)}, rolls_forward=True),
    "California": Calendar(ZoneInfo("America/Los_Angeles"), {date(2026, 7, 3), date(2026, 11, 26)}),
}


def examples() -> list[tuple[str, str, str, str]]:
    """Read the worked examples of the document: term, calendar, start, end; the last two as the zone's clock shows."""
    rows = []
    text = (ROOT / "docs/deadlines.md").read_text().split("## Worked examples")[1].split("\n## ")[0]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0][:1].isdigit():
            rows.append((cells[0], cells[1], cells[2].split(" (")[0], cells[3].split(" (")[0]))
    return rows


def test_the_document_has_examples() -> None:
    assert len(examples()) >= 12


@pytest.mark.parametrize(("term", "calendar", "start", "end"), examples())
def test_each_example_of_the_document_is_what_the_code_says(term: str, calendar: str, start: str, end: str) -> None:
    counted = CALENDARS[calendar]
    begins = datetime.fromisoformat(start).replace(tzinfo=counted.zone)
    ends = due(Term.parse(term), start=begins, calendar=counted)
    assert ends.astimezone(counted.zone).strftime("%Y-%m-%d %H:%M:%S") == end


MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))
# Zones with clocks that change at midnight, by half an hour, and one that skipped a whole day.
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Brussels",
        "America/Los_Angeles",
        "America/Sao_Paulo",
        "Africa/Cairo",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Asia/Kathmandu",
        "America/Havana",
    ]
).map(ZoneInfo)
HOLIDAYS = st.sets(st.dates(date(2000, 1, 1), date(2091, 1, 1)), max_size=20)
TERMS = st.builds(Term, st.integers(1, 100), st.sampled_from(["days", "business days", "months"]))


@given(TERMS, MOMENTS, ZONES, HOLIDAYS, st.booleans())
def test_a_term_ends_with_the_last_second_of_a_day_after_its_start(
    term: Term, start: datetime, zone: ZoneInfo, holidays: set[date], rolls: bool
) -> None:
    end = due(term, start=start, calendar=Calendar(zone, holidays, rolls))
    assert end > start
    first, last = start.astimezone(zone).date(), end.astimezone(zone).date()
    assert (end + timedelta(seconds=1)).astimezone(zone).date() > last
    if zone.key != "Pacific/Apia":  # where a last day may be the one that was skipped
        assert last > first
        assert (term.unit != "business days" and not rolls) or Calendar(zone, holidays).is_working(last)


@given(TERMS, MOMENTS, MOMENTS, ZONES, HOLIDAYS, st.booleans())
def test_who_starts_later_is_never_due_earlier(
    term: Term, one: datetime, other: datetime, zone: ZoneInfo, holidays: set[date], rolls: bool
) -> None:
    calendar = Calendar(zone, holidays, rolls)
    early, late = sorted((one, other))
    assert due(term, start=early, calendar=calendar) <= due(term, start=late, calendar=calendar)


@given(st.integers(1, 99), MOMENTS, ZONES, HOLIDAYS, st.sampled_from(["days", "business days", "months"]))
def test_more_time_is_never_less(amount: int, start: datetime, zone: ZoneInfo, holidays: set[date], unit: str) -> None:
    calendar = Calendar(zone, holidays)
    shorter, longer = (due(Term(n, unit), start=start, calendar=calendar) for n in (amount, amount + 1))
    assert shorter <= longer


@given(st.integers(1, 60), MOMENTS, HOLIDAYS)
def test_so_many_working_days_lie_in_a_term_of_business_days(days: int, start: datetime, holidays: set[date]) -> None:
    calendar = Calendar(UTC_ZONE, holidays)
    end = due(Term(days, "business days"), start=start, calendar=calendar)
    between = [start.date() + timedelta(days=n) for n in range(1, (end.date() - start.date()).days + 1)]
    assert sum(calendar.is_working(day) for day in between) == days
    assert calendar.is_working(end.date())


@given(st.dates(date(2000, 1, 1), date(2090, 1, 1)), st.integers(1, 60))
def test_a_month_ends_on_the_same_day_or_on_the_months_last(day: date, months: int) -> None:
    end = add_months(day, months)
    assert (end.year * 12 + end.month) - (day.year * 12 + day.month) == months
    assert end.day == day.day or (end.day < day.day and (end + timedelta(days=1)).day == 1)


@given(st.integers(1, 999), MOMENTS)
def test_hours_are_counted_whatever_the_clocks_do(hours: int, start: datetime) -> None:
    calendar = CALENDARS["California"]
    assert due(Term(hours, "hours"), start=start, calendar=calendar) == start + timedelta(hours=hours)


def test_a_day_ends_where_midnight_is_skipped_or_comes_twice() -> None:
    # Cuba turned its clocks at midnight to 1:00, and back at 1:00 to midnight.
    havana = ZoneInfo("America/Havana")
    assert end_of(date(2026, 3, 7), zone=havana) == datetime(2026, 3, 8, 4, 59, 59, tzinfo=UTC)
    assert end_of(date(2026, 10, 31), zone=havana) == datetime(2026, 11, 1, 3, 59, 59, tzinfo=UTC)
    # Egypt goes back at midnight: the day has its last hour twice.
    cairo = ZoneInfo("Africa/Cairo")
    assert end_of(date(2026, 10, 29), zone=cairo) == datetime(2026, 10, 29, 21, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("text", ["1 month", "2 months", "10 business days", "1 business day", "24 hours", "45 days"])
def test_a_term_is_written_as_it_is_read(text: str) -> None:
    assert str(Term.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "0 days", "1", "days", "1 week", "1000 days", "1 month ", "-1 days", "1\u0663 days"]
)
def test_what_is_no_term_is_refused(text: str) -> None:
    with pytest.raises(InvalidTerm):
        Term.parse(text)


def test_a_start_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        due(Term(1, "months"), start=datetime(2026, 1, 31), calendar=CALENDARS["EU"])


@pytest.mark.parametrize(
    ("days", "gone", "state"),
    [
        (30, 23.9, "on_track"),
        (30, 24.0, "due_soon"),
        (30, 30.0, "due_soon"),
        (30, 30.1, "overdue"),
        (90, 82.9, "on_track"),  # the last fifth, but at most a week
        (90, 83.0, "due_soon"),
        (1, 0.79, "on_track"),
        (1, 0.8, "due_soon"),
    ],
)
def test_the_state_follows_from_the_time_that_is_over(days: float, gone: float, state: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(days=days)
    assert state_of(start=start, end=end, now=start + timedelta(days=gone)) == state


def test_levels_are_shares_of_the_time() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(days=10)
    assert [passes(level, start=start, end=end).day for level in (50, 80, 100)] == [6, 9, 11]
