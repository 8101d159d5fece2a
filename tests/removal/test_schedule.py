"""When to try again: floors, jitter, Retry-After, and no end."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from removal.schedule import STEPS, delay_before


def test_steps_follow_the_design_and_the_last_repeats() -> None:
    delays = [delay_before(attempt=attempt, jitter=0) for attempt in range(2, 12)]
    assert delays == [*STEPS, STEPS[-1], STEPS[-1]]


@given(attempt=st.integers(2, 500), jitter=st.floats(0, 0.5), retry_after=st.integers(0, 10**9) | st.none())
def test_a_delay_is_never_below_its_step_and_never_absurd(attempt: int, jitter: float, retry_after: int | None) -> None:
    asked = None if retry_after is None else timedelta(seconds=retry_after)
    delay = delay_before(attempt=attempt, retry_after=asked, jitter=jitter)
    step = STEPS[min(attempt - 2, len(STEPS) - 1)]
    assert step <= delay <= max(step * 1.5, timedelta(hours=24))


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1, timedelta(seconds=5)), (60, timedelta(seconds=60)), (10**6, timedelta(hours=24))]
)
def test_retry_after_only_raises_the_delay_up_to_a_day(seconds: int, expected: timedelta) -> None:
    assert delay_before(attempt=2, retry_after=timedelta(seconds=seconds), jitter=0) == expected


@pytest.mark.parametrize(("attempt", "jitter"), [(1, 0.0), (2, -0.1), (2, 0.6)])
def test_what_makes_no_sense_is_refused(attempt: int, jitter: float) -> None:
    with pytest.raises(ValueError, match="no delay"):
        delay_before(attempt=attempt, jitter=jitter)
