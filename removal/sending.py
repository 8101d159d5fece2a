"""Send what is due to one partner: claim (commit) -> POST, with no transaction open -> record (commit, fenced).

A partner that answers at once is sent one message after another; to a slower one, several are under way on as many
connections. Results are recorded many at a time.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import OperationalError
from psycopg.errors import LockNotAvailable

from partners import signing, webhook
from removal import delivery, flow
from removal.crashpoints import crashpoint
from removal.delivery import Claim, Claimed, Result
from removal.verdict import judge

# Results are recorded together: so many, or at the latest after this time, since the first of them waits in memory.
RECORD_AT_ONCE = 100
RECORD_EVERY_SECONDS = 0.25
# A try ends this long before its lease does, for the time that recording it takes.
LEASE_MARGIN_SECONDS = 1.0
MOST_AT_ONCE = 32
# After so many failures in a row, what was claimed beside them is given back. One that took its whole time counts so
# many by itself.
MISSES = 3
# A rate that allows the next message within this time is waited for; a slower one is left to the next sweep.
WORTH_WAITING_SECONDS = 0.25

# When the last messages of this process were answered, or failed, and when it last took a hint; by time.monotonic().
_ended: deque[float] = deque(maxlen=100)
_hinted: deque[float] = deque(maxlen=1)


def is_busy() -> bool:
    """Say whether this process sends as fast as it can, or takes one hint after the other.

    One thread more would only take turns with those at work.
    """
    now = time.monotonic()
    takes_hints = bool(_hinted) and now - _hinted[0] < 1
    return takes_hints or (len(_ended) == _ended.maxlen and now - _ended[0] < 1)


def take_hint() -> None:
    """Note that this process is at work on a hint, and has not been long at it."""
    _hinted.append(time.monotonic())


def drain(
    *,
    partner_id: int,
    budget: timedelta,
    patient: bool = True,
    probing: bool = True,
    stopping: threading.Event | None = None,
) -> bool:
    """Claim, send and record until the partner is due nothing or ``budget`` is spent; True when there may be more.

    ``patient`` and ``probing`` are those of ``delivery.claim``. Once ``stopping`` is set, nothing more is started.
    """
    end = time.monotonic() + budget.total_seconds()
    if stopping and stopping.is_set():
        return True
    claimed = _claim(partner_id=partner_id, patient=patient, probing=probing)
    with _Sender(stopping) as sender:
        while claimed.claims:
            crashpoint("after_claim_commit")
            following = _send_and_record(sender, claimed, partner_id=partner_id, probing=probing, end=end)
            if following is None:
                return time.monotonic() >= end or sender.is_stopping
            claimed = following
            while not claimed.claims and claimed.after and claimed.after.total_seconds() <= WORTH_WAITING_SECONDS:
                time.sleep(WORTH_WAITING_SECONDS)
                if time.monotonic() >= end or sender.is_stopping:
                    return True
                claimed = _claim(partner_id=partner_id, patient=patient, probing=probing)
    return False


def _claim(*, partner_id: int, patient: bool, probing: bool) -> Claimed:
    try:
        return delivery.claim(partner_id=partner_id, patient=patient, probing=probing)
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            return Claimed([])  # another drain of this partner has been at it for two seconds; so it is not idle
        raise


def _send_and_record(
    sender: "_Sender", claimed: Claimed, *, partner_id: int, probing: bool, end: float
) -> Claimed | None:
    """Send what was claimed, and claim what is next with the last results; None where the drain is to end.

    It ends when its time is over, and when the partner is down or hangs: that holds a worker for one deadline, no more.
    """
    answered = False
    for done in sender.send_all(claimed.claims, end=end):
        crashpoint("after_response")
        answered |= any(not isinstance(result.outcome, webhook.Unreachable) for result in done.results)
        if done.is_last and answered and time.monotonic() < end and not sender.is_stopping:
            following = delivery.record_and_claim(
                done.results, unsent=done.unsent, partner_id=partner_id, probing=probing
            )
            crashpoint("after_record_commit")
            return following
        delivery.record(done.results, unsent=done.unsent, partner_id=partner_id)
        crashpoint("after_record_commit")
    return None


@dataclass(frozen=True)
class _Done:
    """What has come in since the last time, what was given up unsent, and whether that is all of a claim."""

    results: Sequence[Result]
    unsent: Sequence[Claim]
    is_last: bool


class _Sender:
    """A line to one partner for the time of one drain, and what was learnt of how fast it answers."""

    def __init__(self, stopping: threading.Event | None) -> None:
        self.stopping = stopping
        self.line = webhook.Line(
            allow_http=settings.PARTNER_ALLOW_HTTP,
            allowed_networks=settings.PARTNER_ALLOWED_NETWORKS,
            own_places=settings.OWN_PLACES,
            in_flight=MOST_AT_ONCE,
        )
        self.pool = ThreadPoolExecutor(MOST_AT_ONCE)  # starts a thread only when it has work for it
        self.latencies: deque[float] = deque(maxlen=20)
        self.misses = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        self.line.close()

    @property
    def is_stopping(self) -> bool:
        return self.stopping is not None and self.stopping.is_set()

    def send_all(self, claims: Sequence[Claim], *, end: float) -> Iterator[_Done]:
        """Send claims, and yield results as they come in, with the claims that were given up unsent.

        Nothing new is started after ``end`` (by time.monotonic()), when the partner seems to be down, or when this
        process is about to end.
        """
        queue = deque(claims)
        if flow.is_worth_asking(self.latencies, messages=len(claims)):
            self.latencies.clear()
        under_way: set[Future[Result]] = set()
        done: list[Result] = []
        first_done = 0.0
        while queue or under_way:
            results, under_way = self._step(queue, under_way)
            self._learn(results)
            if results and not done:
                first_done = time.monotonic()
            done += results
            unsent = self._give_up(queue, end=end)
            waited = time.monotonic() - first_done > RECORD_EVERY_SECONDS
            is_last = not queue and not under_way
            if is_last or unsent or len(done) >= RECORD_AT_ONCE or (done and waited):
                yield _Done(done, unsent, is_last)
                done = []

    def _step(self, queue: deque[Claim], under_way: set[Future[Result]]) -> tuple[list[Result], set[Future[Result]]]:
        """Start what may start, and return what has ended and what is under way."""
        at_once = flow.senders(self.latencies, most=MOST_AT_ONCE)
        if at_once == 1 and not under_way:
            return [send(queue.popleft(), line=self.line)], under_way
        while queue and len(under_way) < at_once:
            under_way.add(self.pool.submit(send, queue.popleft(), line=self.line))
        ended, under_way = wait(under_way, timeout=RECORD_EVERY_SECONDS, return_when=FIRST_COMPLETED)
        return [future.result() for future in ended], under_way

    def _learn(self, results: Sequence[Result]) -> None:
        for result in results:
            _ended.append(time.monotonic())
            self.latencies.append(result.outcome.latency.total_seconds())
            if result.verdict.is_answer:
                self.misses = 0
            else:
                has_hung = isinstance(result.outcome, webhook.Unreachable) and result.outcome.reason == "timeout"
                self.misses += MISSES if has_hung else 1

    def _give_up(self, queue: deque[Claim], *, end: float) -> list[Claim]:
        """Take what must not be started any more out of the queue."""
        now = time.monotonic()
        is_in_time = now < end and (not queue or time_left(queue[0]) >= settings.DELIVERY_DEADLINE)
        if is_in_time and self.misses < MISSES and not self.is_stopping:
            return []
        unsent = list(queue)
        queue.clear()
        return unsent


def time_left(claim: Claim) -> timedelta:
    """Say how long a try may take: past its lease, somebody else may be sending the same message."""
    return timedelta(seconds=claim.lease_ends - time.monotonic() - LEASE_MARGIN_SECONDS)


def send(claim: Claim, *, line: webhook.Line) -> Result:
    """POST one message. No transaction is open; never raises for anything that the partner or the network does."""
    headers = signing.headers(
        message_id=claim.webhook_id, timestamp=int(time.time()), body=claim.body, keys=claim.signer.keys
    )
    headers["Content-Type"] = "application/json"
    deadline = min(settings.DELIVERY_DEADLINE, time_left(claim))
    if deadline > timedelta(0):
        outcome = line.post(url=claim.url, headers=headers, body=claim.body, deadline=deadline)
    else:
        outcome = webhook.Unreachable("timeout", "The lease was over before the first byte.", timedelta(0))
    verdict = judge(
        outcome,
        notices=claim.notices,
        attempt=claim.failures + 1,
        jitter=random.uniform(0, 0.5),  # noqa: S311  # spreads retries; nothing secret
    )
    return Result(claim, outcome, verdict)
