"""Ask an endpoint to prove that it verifies what it takes: messages that it must accept, and ones that it must refuse.

Nothing here knows what a notice is. What the samples say, and how an acknowledgement of them reads, comes in; samples
oblige nobody. "Does it once" is seen from outside only as the same answer to a repeat.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from partners import signing, webhook
from partners.signing import Ed25519PrivateKey, HmacSecret, SigningKey
from partners.webhook import Delivered, Line, Outcome, Refused, Unreachable

# The whole suite ends by then, however slowly an endpoint answers; within it, each check has the usual deadline.
TIME_LIMIT = timedelta(seconds=60)
# Slower answers pass, with advice: they hold up what comes behind them.
ADVISED = timedelta(seconds=5)
STALE = timedelta(minutes=10)  # twice the tolerance of Standard Webhooks
QUOTED_BYTES = 500


@dataclass(frozen=True)
class Samples:
    """What is sent: bodies that name no real subject. The last one is addressed to another partner.

    ``read_receipt`` returns what an answer acknowledges of ``notice``, or nothing if it cannot be read.
    """

    ping: bytes
    notice: bytes
    to_another: bytes
    read_receipt: Callable[[bytes], object]


@dataclass(frozen=True)
class Check:
    """One thing that was tried. ``passed`` is None when it was not.

    ``fix`` is advice too where it passed. ``detail`` is for the staff alone: it may name addresses.
    """

    name: str
    passed: bool | None
    sent: str
    came_back: str
    fix: str = ""
    detail: str = ""


def has_passed(checks: Sequence[Check]) -> bool:
    return all(check.passed for check in checks)


def run(
    *,
    line: Line,
    url: str,
    keys: Sequence[SigningKey],
    lasting_keys: Sequence[SigningKey],
    samples: Samples,
    deadline: timedelta = webhook.DEADLINE,
    time_limit: timedelta = TIME_LIMIT,
) -> list[Check]:
    """Run all checks in order, each within ``deadline`` and together within ``time_limit``.

    ``keys`` are those that sign now, ``lasting_keys`` those that still will when a rotation is over. Nothing that the
    endpoint does raises. Where it does not take the first message the others are not sent: refusing everything proves
    nothing.
    """
    suite = _Suite(line, url, samples, deadline, time.monotonic() + time_limit.total_seconds())
    first, *others = _cases(suite, samples, keys=keys, lasting_keys=lasting_keys)
    checks = [suite.check(first)]
    if checks[0].passed:
        checks += [suite.check(case) for case in others]
    else:
        reason = "Not sent: the endpoint must take a good message first."
        checks += [Check(case.name, None, case.sent, reason) for case in others]
    return [*checks, suite.timing()]


def _cases(
    suite: "_Suite", samples: Samples, *, keys: Sequence[SigningKey], lasting_keys: Sequence[SigningKey]
) -> list["_Case"]:
    ping, notice, to_another = samples.ping, samples.notice, samples.to_another
    newest = _Case("newest secret alone", "A ping, without the secret that retires", ping, lasting_keys, _must_know)
    return [
        _Case("good signature", "A ping, signed as every message is", ping, keys, _must_take),
        _Case("sample notice", "A sample notice, signed", notice, keys, suite.must_acknowledge, suite.capture),
        _Case("unsigned", "The notice without webhook-signature", notice, keys, _must_refuse(UNSIGNED), _unsigned),
        _Case("wrong signature", "The notice, signed with unknown keys", notice, _strangers(), _must_refuse(WRONG)),
        _Case("stale timestamp", "The notice, signed 10 minutes ago", notice, keys, _must_refuse(OLD), age=STALE),
        _Case(
            "captured signature",
            "The notice with the signature from above, under a changed id",
            notice,
            keys,
            _must_refuse(CAPTURED),
            suite.captured_under_another_id,
        ),
        _Case("another partner's", "A notice for another partner, signed", to_another, keys, _must_refuse(ANOTHERS)),
        # Behind those to refuse: whoever has begun to refuse everything does not pass.
        _Case("repeat under a new id", "The same notice under another id, signed", notice, keys, suite.must_repeat),
        *([newest] if list(lasting_keys) != list(keys) else []),
    ]


# How a message is refused for what it is. Others may come from what stands in front of a receiver, such as 429.
REFUSALS = {400, 401, 403, 422}

# What to fix where a message was taken that must be refused.
UNSIGNED = "It took a message that nobody signed: verify each one before you do anything with it."
WRONG = "It took a signature by unknown keys: verify it with your secret, over the raw bytes of the body."
OLD = "It took an old message: refuse a webhook-timestamp that is more than 5 minutes away from now."
CAPTURED = "It took a signature made for another webhook-id: what is signed is id.timestamp.body, the id included."
ANOTHERS = "It took a message for somebody else: refuse a data.partner that is not you. One Ed25519 key signs for all."

Judge = Callable[[Outcome], str]  # what to fix; nothing when all is well
Spoil = Callable[[Mapping[str, str]], dict[str, str]]


@dataclass(frozen=True)
class _Case:
    """A message, and what must come back. ``spoil`` changes its headers after they were made, ``age`` its time."""

    name: str
    sent: str
    body: bytes
    keys: Sequence[SigningKey]
    judge: Judge
    spoil: Spoil = dict
    age: timedelta = timedelta(0)


class _Suite:
    """The checks of one run, and what was learnt on the way."""

    def __init__(self, line: Line, url: str, samples: Samples, deadline: timedelta, ends_at: float) -> None:
        self.line = line
        self.url = url
        self.samples = samples
        self.deadline = deadline
        self.ends_at = ends_at
        self.slowest = timedelta(0)
        self.is_late = False
        self.receipt: object = None
        self.captured: dict[str, str] = {}

    def check(self, case: _Case) -> Check:
        left = timedelta(seconds=self.ends_at - time.monotonic())
        if left < timedelta(seconds=1):
            self.is_late = True
            return Check(case.name, None, case.sent, "Not sent: the time for all checks together was over.")
        message_id = f"check_{secrets.token_hex(12)}"
        headers = case.spoil(
            signing.headers(
                message_id=message_id,
                timestamp=int(time.time() - case.age.total_seconds()),
                body=case.body,
                keys=case.keys,
            )
        )
        headers["Content-Type"] = "application/json"
        outcome = self.line.post(url=self.url, headers=headers, body=case.body, deadline=min(self.deadline, left))
        self.slowest = max(self.slowest, outcome.latency)
        self.is_late |= isinstance(outcome, Unreachable) and outcome.reason == "timeout"
        fix = case.judge(outcome)
        return replace(
            _came_back(outcome),
            name=case.name,
            passed=not fix,
            sent=f"{case.sent} (webhook-id {headers[signing.ID_HEADER]}).",
            fix=fix,
        )

    def capture(self, headers: Mapping[str, str]) -> dict[str, str]:
        self.captured = dict(headers)
        return dict(headers)

    def captured_under_another_id(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**self.captured, signing.ID_HEADER: headers[signing.ID_HEADER]}

    def must_acknowledge(self, outcome: Outcome) -> str:
        fix = _must_take(outcome)
        if fix or not isinstance(outcome, Delivered):
            return fix
        self.receipt = self.samples.read_receipt(outcome.answer)
        return "" if self.receipt else _no_receipt(outcome.answer)

    def must_repeat(self, outcome: Outcome) -> str:
        fix = _must_take(outcome)
        if fix or not isinstance(outcome, Delivered):
            return fix
        receipt = self.samples.read_receipt(outcome.answer)
        if not receipt:
            return _no_receipt(outcome.answer)
        if receipt != self.receipt:
            return "A repeat is answered as the first time: know a notice by its epoch and sequence, not by webhook-id."
        return ""

    def timing(self) -> Check:
        """Judge how long the slowest answer took."""
        seconds = self.slowest.total_seconds()
        said = f"The slowest answer took {seconds:.1f} s."
        limit = f"{self.deadline.total_seconds():g} s"
        fix = ""
        if self.is_late:
            said = f"{said} At least one did not come in time."
        if self.is_late or self.slowest > ADVISED:
            fix = (
                f"Answer within {ADVISED.total_seconds():g} s, and never later than {limit}: "
                "write the message down, answer, and do the work afterwards."
            )
        return Check("time limit", not self.is_late, f"All of the above; each may take {limit}.", said, fix)


# --- what comes back ---

_UNREACHABLE = {
    "dns": ("Its host name was not found.", "Check the URL's host name, and that its DNS record is public."),
    "address_refused": (
        "Its address may not be called.",
        "Use a name that leads to public addresses only, none of them in a private network.",
    ),
    "connection": (
        "The connection failed, or ended before an answer.",
        "Check that the receiver runs, that its port is open to the internet, and that it does not die of a message.",
    ),
    "tls": ("The TLS handshake failed.", "Serve a certificate of a public authority for this name, with its chain."),
    "timeout": ("No answer came in time.", "Answer before you do the work; a message is sent again until you do."),
    "protocol": ("What came back is no HTTP answer.", "Answer in HTTP/1.1; look for a proxy that cuts it off."),
}


def _came_back(outcome: Outcome) -> Check:
    if isinstance(outcome, Unreachable):
        return Check("", None, "", _UNREACHABLE[outcome.reason][0], detail=webhook.excerpt(outcome.detail.encode()))
    said = f"It {webhook.explain(outcome)}."
    quoted = webhook.excerpt(outcome.answer[:QUOTED_BYTES]).strip()
    return Check("", None, "", f"{said} {quoted}".strip())


def _must_take(outcome: Outcome) -> str:
    if isinstance(outcome, Delivered):
        return ""
    if isinstance(outcome, Unreachable):
        return _UNREACHABLE[outcome.reason][1]
    return _no_answer(outcome) or (
        "It refuses a good signature: check the raw bytes against webhook-signature with your secret."
        if outcome.status in {401, 403}
        else "Nothing takes POST at this path: check the URL."
        if outcome.status in {404, 405, 410}
        else "It refuses a good message: answer 2xx, also to types and fields that you do not know."
    )


def _must_know(outcome: Outcome) -> str:
    if isinstance(outcome, Refused) and outcome.status in {401, 403}:
        return "Put the newest secret in place: the older one will not sign much longer."
    return _must_take(outcome)


def _must_refuse(fix: str) -> Judge:
    def judge(outcome: Outcome) -> str:
        if isinstance(outcome, Delivered):
            return fix
        if isinstance(outcome, Unreachable):
            return f"Refuse it with 401 instead. {_UNREACHABLE[outcome.reason][1]}"
        if 400 <= outcome.status < 500 and outcome.status not in REFUSALS:
            return f"{outcome.status} says nothing of the signature. Refuse it with 401."
        return _no_answer(outcome)

    return judge


def _no_answer(outcome: Refused) -> str:
    """Say what to fix about a status that neither takes nor refuses a message."""
    if 400 <= outcome.status < 500:
        return ""
    if 300 <= outcome.status < 400:
        return "Redirects are never followed: give the URL that answers by itself."
    return "A server's failure says neither yes nor no. Take good messages with 2xx, and refuse others with 401."


def _no_receipt(answer: bytes) -> str:
    wanted = 'Answer {"acknowledgements": [{"sequence": 1, "status": "received"}]} as application/json.'
    if answer.lstrip()[:1] == b"<":
        return f"It answered with an HTML page: is that your receiver, or what stands in front of it? {wanted}"
    if not answer.strip():
        return f"It answered with nothing. {wanted}"
    return f"Its answer cannot be read as an acknowledgement of number 1. {wanted}"


# --- what is wrong with a message ---


def _strangers() -> list[SigningKey]:
    return [HmacSecret.generate(), Ed25519PrivateKey.generate()]


def _unsigned(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != signing.SIGNATURE_HEADER}
