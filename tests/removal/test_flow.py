"""How many messages may start: window, rate, breaker. Pure rules, as tables."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from removal import flow
from removal.flow import (
    Answers,
    Flow,
    is_worth_asking,
    room,
    senders,
    settled,
    started,
    tokens_now,
    waits_for_rate,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CALM = Flow(failures=0, probe_at=None, allowance=None, tokens=50, tokens_at=NOW)
DOWN = Flow(failures=5, probe_at=NOW + 5 * SECOND, allowance=None, tokens=50, tokens_at=NOW)


def answers(answered: int = 0, failed: int = 0, *, failing: int = 2, retry_after: timedelta | None = None) -> Answers:
    return Answers(answered, failed, failing, retry_after)


@pytest.mark.parametrize(
    ("kept", "window", "rate", "sending", "at", "expected"),
    [
        (CALM, 4, 50, 0, NOW, 4),
        (CALM, 4, 50, 3, NOW, 1),
        (CALM, 4, 50, 5, NOW, 0),  # the window was made smaller meanwhile
        (Flow(0, None, None, 2.9, NOW), 4, 50, 0, NOW, 2),  # the rate
        (Flow(0, None, None, 0, NOW), 4, 50, 0, NOW + SECOND / 10, 4),
        (Flow(0, None, None, 0, NOW), 100, 50, 0, NOW + 60 * SECOND, 50),  # no more than a second's worth is saved
        (Flow(0, None, None, 0, NOW), 4, 1, 0, NOW + SECOND / 2, 0),
        (Flow(0, None, None, 50, NOW), 4, 50, 0, NOW - SECOND, 4),  # a clock that went back takes nothing away
        (Flow(0, None, 2, 50, NOW), 4, 50, 1, NOW, 1),  # just back: as many as it has answered
        (DOWN, 4, 50, 0, NOW, 0),
        (DOWN, 4, 50, 0, NOW + 5 * SECOND, 1),  # a single probe …
        (DOWN, 4, 50, 1, NOW + 5 * SECOND, 0),  # … at a time
    ],
)
def test_how_many_may_start(kept: Flow, window: int, rate: int, sending: int, at: datetime, expected: int) -> None:
    assert room(kept, window=window, rate=rate, sending=sending, now=at) == expected


@pytest.mark.parametrize(
    ("kept", "sending", "expected"),
    [
        (Flow(0, None, None, 0.9, NOW), 3, True),
        (Flow(0, None, None, 0.9, NOW), 4, False),  # the window is full as well
        (Flow(0, None, 2, 0.9, NOW), 2, False),  # just back: so is what it is trusted with
        (Flow(0, None, 2, 1.0, NOW), 2, False),
        (Flow(5, NOW, None, 0.0, NOW), 0, False),  # a probe has its own time
        (CALM, 0, False),
    ],
)
def test_the_rate_is_waited_for_where_nothing_else_is(kept: Flow, sending: int, expected: bool) -> None:
    assert waits_for_rate(kept, window=4, rate=50, sending=sending, now=NOW) is expected


@given(
    rate=st.integers(1, 10_000),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=50),
    window=st.integers(1, 100),
)
def test_a_rate_is_never_exceeded(rate: int, pauses: list[float], window: int) -> None:
    kept = Flow(0, None, None, 0, NOW)
    now, sent = NOW, 0
    for pause in pauses:
        now += timedelta(seconds=pause)
        more = room(kept, window=window, rate=rate, sending=0, now=now)
        kept = started(kept, more, rate=rate, now=now)
        sent += more
    assert sent <= rate * (now - NOW).total_seconds() + 1
    assert kept.tokens > -1e-6


def test_a_breaker_opens_after_five_failures_of_two_messages() -> None:
    kept = settled(CALM, answers(failed=4), now=NOW, jitter=0)
    assert (kept.failures, kept.is_open) == (4, False)
    kept = settled(kept, answers(failed=3), now=NOW, jitter=0)
    assert (kept.failures, kept.probe_at) == (5, NOW + 5 * SECOND)


def test_one_message_alone_does_not_open_it() -> None:
    kept = CALM
    for _ in range(20):
        kept = settled(kept, answers(failed=1, failing=1), now=NOW, jitter=0)
    assert not kept.is_open


def test_one_answer_among_failures_keeps_it_closed() -> None:
    kept = CALM
    for _ in range(20):
        kept = settled(kept, answers(answered=1, failed=3), now=NOW, jitter=0)
    assert (kept.failures, kept.is_open) == (0, False)


def test_each_failed_probe_waits_longer_up_to_five_minutes() -> None:
    kept, now, waits = DOWN, NOW + 5 * SECOND, []
    for _ in range(4):
        kept = settled(kept, answers(failed=1, failing=9), now=now, jitter=0.5)
        assert kept.probe_at
        waits.append((kept.probe_at - now).total_seconds())
        now = kept.probe_at
    assert waits == [45, 450, 450, 450]


def test_tries_that_end_after_the_breaker_opened_change_nothing() -> None:
    assert settled(DOWN, answers(failed=7), now=NOW, jitter=0) == DOWN


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, timedelta(seconds=30)),
        (timedelta(seconds=10), timedelta(seconds=30)),
        (timedelta(hours=2), timedelta(hours=2)),
        (timedelta(days=400), timedelta(hours=24)),
    ],
)
def test_a_probe_waits_as_long_as_the_partner_asked(asked: timedelta | None, expected: timedelta) -> None:
    kept = settled(DOWN, answers(failed=1, retry_after=asked), now=NOW + 5 * SECOND, jitter=0)
    assert kept.probe_at == NOW + 5 * SECOND + expected


def test_who_is_just_back_is_trusted_with_more_from_answer_to_answer() -> None:
    kept = settled(DOWN, answers(answered=1), now=NOW, jitter=0)
    assert (kept.failures, kept.probe_at, kept.allowance) == (0, None, 1)
    allowed = []
    while kept.allowance is not None:
        allowed.append(kept.allowance)
        kept = settled(kept, answers(answered=kept.allowance), now=NOW, jitter=0)
    assert allowed == [1, 2, 4, 8, 16, 32, 64]


def test_nothing_follows_from_nothing() -> None:
    assert settled(CALM, answers(), now=NOW, jitter=0) == CALM


def test_tokens_are_kept_for_the_rate_of_now() -> None:
    assert tokens_now(CALM, rate=10, now=NOW) == 10  # the rate was lowered


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [([], 1), ([0.0005], 1), ([0.001, 0.002, 9.0], 1), ([0.01] * 5, 7), ([0.05] * 5, 32), ([15.0], 32)],
)
def test_slow_partners_get_more_connections(latencies: list[float], expected: int) -> None:
    assert senders(latencies) == expected


@pytest.mark.parametrize(
    ("latencies", "messages", "expected"),
    [([], 100, False), ([0.001], 100, False), ([0.005], 100, True), ([0.005], 30, False), ([0.05], 100, False)],
)
def test_a_partner_that_seems_slow_is_asked_again_where_it_costs_little(
    latencies: list[float], messages: int, expected: bool
) -> None:
    assert is_worth_asking(latencies, messages=messages) is expected


def test_a_breaker_is_no_shorter_than_the_first_retry() -> None:
    assert flow.PROBE_STEPS[0] == 5 * SECOND
