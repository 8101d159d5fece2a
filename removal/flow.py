"""How many messages a stream may start now: its window, its rate, and a breaker that lets one probe through at a time.

Pure rules over what the stream's row keeps; times are the database's (design §7).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

# A breaker opens after so many tries in a row without an answer that says "here I am", if they were of at least two
# messages: one message that its partner cannot digest says nothing about the others.
TRIES_TO_OPEN = 5
MESSAGES_TO_OPEN = 2
# How long an open breaker lets nothing through after each probe that failed; the last repeats until one is answered. A
# probe is a message whose own time has come (removal.schedule): after days, that may take hours.
PROBE_STEPS = (timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=5))
LONGEST_PROBE_WAIT = timedelta(hours=24)
# Tokens are saved for so long: a partner that was quiet gets a second's worth at once.
BURST_SECONDS = 1.0
# An endpoint that came back is trusted with as many at once as it has answered; above this its window is enough.
TRUSTED = 100
# A partner this fast is sent one message at a time; a slower one, as many as fit into its latency.
FAST_SECONDS = 0.003
SENDING_SECONDS = 0.0015


@dataclass(frozen=True)
class Flow:
    """What a stream's row keeps.

    ``failures`` counts tries in a row that were not answered; while the breaker is open, those before it opened count
    as TRIES_TO_OPEN. ``probe_at``, where the breaker is open, is when one message may be tried. ``allowance``, after it
    closed again, is how many may be under way. ``tokens`` messages could start at ``tokens_at``.
    """

    failures: int
    probe_at: datetime | None
    allowance: int | None
    tokens: float
    tokens_at: datetime

    @property
    def is_open(self) -> bool:
        return self.probe_at is not None


@dataclass(frozen=True)
class Answers:
    """What a moment's tries say about an endpoint: how many were answered, and how many failed.

    ``failing_messages`` counts the stream's messages that wait after a failure; ``retry_after`` is the longest wait
    that an answer asked for.
    """

    answered: int
    failed: int
    failing_messages: int
    retry_after: timedelta | None


def tokens_now(flow: Flow, *, rate: int, now: datetime) -> float:
    passed = max((now - flow.tokens_at).total_seconds(), 0.0)
    return min(flow.tokens + passed * rate, max(rate * BURST_SECONDS, 1.0))


def room(flow: Flow, *, window: int, rate: int, sending: int, now: datetime) -> int:
    """Say how many messages may start now, beside those that are under way."""
    if flow.is_open:
        return 0 if sending or now < (flow.probe_at or now) else min(1, int(tokens_now(flow, rate=rate, now=now)))
    return max(min(_at_once(flow, window) - sending, int(tokens_now(flow, rate=rate, now=now))), 0)


def waits_for_rate(flow: Flow, *, window: int, rate: int, sending: int, now: datetime) -> bool:
    """Say whether the rate alone keeps the next message from starting now."""
    return not flow.is_open and sending < _at_once(flow, window) and tokens_now(flow, rate=rate, now=now) < 1


def _at_once(flow: Flow, window: int) -> int:
    return window if flow.allowance is None else min(window, flow.allowance)


def started(flow: Flow, messages: int, *, rate: int, now: datetime) -> Flow:
    """Take the tokens of messages that start now."""
    return replace(flow, tokens=tokens_now(flow, rate=rate, now=now) - messages, tokens_at=now)


def settled(flow: Flow, answers: Answers, *, now: datetime, jitter: float) -> Flow:
    """Say what follows from a moment's answers. ``jitter`` is in 0–0.5 of the wait before a probe, and only adds."""
    if answers.answered:
        # An open one closes, and its partner, just back, is not overrun.
        before = 0 if flow.is_open else flow.allowance
        allowance = None if before is None or before + answers.answered > TRUSTED else before + answers.answered
        return replace(flow, failures=0, probe_at=None, allowance=allowance)
    # What was under way when the breaker opened says nothing new.
    if not answers.failed or (flow.probe_at and now < flow.probe_at):
        return flow
    if flow.is_open:
        failures = flow.failures + 1
    else:
        failures = min(flow.failures + answers.failed, TRIES_TO_OPEN)
        if failures < TRIES_TO_OPEN or answers.failing_messages < MESSAGES_TO_OPEN:
            return replace(flow, failures=failures)
    return replace(flow, failures=failures, probe_at=now + _wait(failures, answers.retry_after, jitter=jitter))


def _wait(failures: int, retry_after: timedelta | None, *, jitter: float) -> timedelta:
    step = PROBE_STEPS[min(failures - TRIES_TO_OPEN, len(PROBE_STEPS) - 1)]
    return max(step * (1 + jitter), min(retry_after or timedelta(0), LONGEST_PROBE_WAIT))


def senders(latencies: Sequence[float], *, most: int = 32) -> int:
    """Choose how many messages to have under way, from the last latencies in seconds.

    One at a time while the partner answers about as fast as we can send: a second thread would only be in the way. With
    nothing known, the first one shows.
    """
    if not latencies:
        return 1
    middle = _middle(latencies)
    return 1 if middle < FAST_SECONDS else min(int(middle / SENDING_SECONDS) + 1, most)


def is_worth_asking(latencies: Sequence[float], *, messages: int) -> bool:
    """Say whether to send the first of so many messages alone again, to learn how fast the partner really is.

    Several senders may wait for each other, and a partner that was slow once then looks slow on. Waiting for one
    answer may cost a tenth of what sending them all does.
    """
    return senders(latencies) > 1 and _middle(latencies) * 10 < messages * SENDING_SECONDS


def _middle(latencies: Sequence[float]) -> float:
    return sorted(latencies)[len(latencies) // 2]
