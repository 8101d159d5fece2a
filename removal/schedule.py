"""When to try again: pure arithmetic on tenacity's wait strategies (design §7). There is always a next time."""

from datetime import timedelta

from tenacity import RetryCallState, wait_chain, wait_fixed

# The wait before the 2nd, 3rd … attempt; the last repeats for ever.
STEPS = (
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=12),
)
LONGEST_RETRY_AFTER = timedelta(hours=24)

_step = wait_chain(*(wait_fixed(step) for step in STEPS))


def delay_before(*, attempt: int, retry_after: timedelta | None = None, jitter: float) -> timedelta:
    """Choose how long to wait before ``attempt`` (2 is the first retry). There is always a next one.

    ``jitter`` is in 0–0.5 of the step and only ever adds. Retry-After (RFC 9110 §10.2.3) raises the delay, up to 24 h.
    Raises ValueError for a first attempt, which waits for nothing, or a jitter outside its range.
    """
    if attempt < 2 or not 0 <= jitter <= 0.5:
        raise ValueError(f"no delay before attempt {attempt} with jitter {jitter}")
    call = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # only counted
    call.attempt_number = attempt - 1
    seconds = _step(call)
    delay = timedelta(seconds=seconds * (1 + jitter))
    if retry_after is None:
        return delay
    return max(delay, min(retry_after, LONGEST_RETRY_AFTER))
