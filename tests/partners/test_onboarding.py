"""Receivers with one fault each: the checks name it. A good one, and our own reference receiver, pass."""

import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from partners import onboarding, signing
from partners.onboarding import Check, Samples
from partners.reference.partner import Partner
from partners.reference.receiver import Receiver
from partners.reference.store import Store
from partners.signing import Ed25519PrivateKey, HmacSecret, SigningKey, VerifyingKey
from partners.webhook import Line
from tests.receivers import Received, Reply, listening

SECRET, OLD_SECRET = HmacSecret.generate(), HmacSecret.generate()
SERVICE_KEY = Ed25519PrivateKey.generate()
KEYS: tuple[SigningKey, ...] = (SECRET, SERVICE_KEY)


def body(partner: str, *, kind: str = "removal.notices") -> bytes:
    notice = {"sequence": 1, "kind": "opt_out", "subject": "sample:1", "items_total": 1,
              "held": [{"release": "sample", "items_total": 1, "items": ["sample:1"]}]}  # fmt: skip
    data: dict[str, Any] = {"partner": partner, "epoch": 0, "first": 1, "last": 1, "head": 1, "notices": [notice]}
    if kind == "removal.ping":
        data = {"partner": partner, "epoch": 1, "head": 7}
    return json.dumps({"type": kind, "version": "1", "timestamp": "2026-11-24T00:20:00Z", "data": data}).encode()


def read_receipt(answer: bytes) -> object:
    try:
        return json.loads(answer)["acknowledgements"]
    except (ValueError, LookupError, TypeError):
        return None


SAMPLES = Samples(body("acme", kind="removal.ping"), body("acme"), body("globex"), read_receipt)
RECEIPT = json.dumps({"acknowledgements": [{"sequence": 1, "status": "received"}]}).encode()
HTML = b"<!doctype html><title>Welcome</title>"

Verdict = Callable[[Received], Reply]


def careful(
    message: Received, *, keys: tuple[VerifyingKey, ...] = (SECRET,), tolerance: timedelta = signing.TOLERANCE
) -> Reply:
    """Do everything right."""
    try:
        signing.verify(
            headers=message.headers, body=message.body, keys=keys, now=datetime.now(UTC), tolerance=tolerance
        )
    except signing.NotVerified:
        return Reply(401)
    return for_acme(message)


def for_acme(message: Received) -> Reply:
    return Reply(200, RECEIPT) if message.data["partner"] == "acme" else Reply(403)


known: set[str | None] = set()


def remembers(message: Received) -> Reply:
    """Trust a signature that was good once, whatever it stands under."""
    reply = careful(message)
    if reply.status == 200:
        known.add(message.headers["webhook-signature"])
    return for_acme(message) if message.headers.get("webhook-signature") in known else reply


def verify(script: Verdict, **options: Any) -> list[Check]:
    with listening(script) as receiver:
        return run(receiver.url, **options)


def run(url: str, **options: Any) -> list[Check]:
    asked: dict[str, Any] = {"keys": KEYS, "lasting_keys": KEYS, "deadline": timedelta(seconds=5), **options}
    with Line(allow_http=True, allowed_networks=[ipaddress.ip_network("127.0.0.0/8")]) as line:
        return onboarding.run(line=line, url=url, samples=SAMPLES, **asked)


def failed(checks: list[Check]) -> list[str]:
    assert [check.name for check in checks if check.passed is False and not check.fix] == []
    return [check.name for check in checks if check.passed is False]


def skipped(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is None]


ALL = [
    "good signature", "sample notice", "unsigned", "wrong signature", "stale timestamp", "captured signature",
    "another partner's", "repeat under a new id", "time limit",
]  # fmt: skip


@pytest.mark.parametrize("keys", [(SECRET,), (SERVICE_KEY.public_key,)])
def test_a_receiver_that_verifies_passes_with_either_kind_of_key(keys: tuple[VerifyingKey, ...]) -> None:
    checks = verify(lambda message: careful(message, keys=keys))
    assert [(check.name, check.passed, check.fix) for check in checks] == [(name, True, "") for name in ALL]
    assert onboarding.has_passed(checks)


@pytest.mark.parametrize(
    ("script", "faults"),
    [
        (for_acme, ["unsigned", "wrong signature", "stale timestamp", "captured signature"]),
        (lambda message: careful(message, tolerance=timedelta(days=1)), ["stale timestamp"]),
        (remembers, ["captured signature"]),
        (lambda message: takes_what_is_for_others(message), ["another partner's"]),
        (lambda message: Reply(careful(message).status, HTML), ["sample notice", "repeat under a new id"]),
        (lambda message: Reply(careful(message).status), ["sample notice", "repeat under a new id"]),
        (
            lambda message: careful(message) if careful(message).status == 200 else Reply(500),
            ["unsigned", "wrong signature", "stale timestamp", "captured signature", "another partner's"],
        ),
        *(
            (
                lambda message, status=status: careful(message) if careful(message).status == 200 else Reply(status),
                ["unsigned", "wrong signature", "stale timestamp", "captured signature", "another partner's"],
            )
            for status in (404, 408, 413, 425, 429)
        ),
    ],
)
def test_each_fault_is_named(script: Verdict, faults: list[str]) -> None:
    known.clear()
    checks = verify(script)
    assert failed(checks) == faults
    assert skipped(checks) == []
    assert not onboarding.has_passed(checks)


def test_one_that_refuses_everything_after_a_while_does_not_pass() -> None:
    asked: list[Received] = []
    script: Verdict = lambda message: asked.append(message) or Reply(401 if len(asked) > 2 else 200, RECEIPT)  # type: ignore[func-returns-value]  # noqa: E731
    assert failed(verify(script)) == ["repeat under a new id"]


def takes_what_is_for_others(message: Received) -> Reply:
    return Reply(200, RECEIPT) if careful(message).status == 403 else careful(message)


def test_a_page_of_html_is_named_as_one() -> None:
    checks = verify(lambda message: Reply(careful(message).status, HTML))
    sample = next(check for check in checks if check.name == "sample notice")
    assert "HTML page" in sample.fix
    assert sample.came_back == f"It answered 200; delivered. {HTML.decode()}"


def test_a_repeat_that_is_answered_otherwise_is_named() -> None:
    answers: Iterator[bytes] = iter([b"", RECEIPT, RECEIPT.replace(b"received", b"rejected")])
    script: Verdict = lambda message: (  # noqa: E731
        Reply(200, next(answers, b"")) if careful(message).status == 200 else careful(message)
    )
    assert failed(verify(script)) == ["repeat under a new id"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refuses a good signature"),
        (404, "Nothing takes POST"),
        (302, "never followed"),
        (500, "server's failure"),
    ],
)
def test_where_no_good_message_is_taken_the_others_are_not_sent(status: int, said: str) -> None:
    with listening(lambda _: Reply(status)) as receiver:
        checks = run(receiver.url)
    assert failed(checks) == ["good signature"]
    assert said in checks[0].fix
    assert skipped(checks) == ALL[1:-1]
    assert len(receiver.received) == 1


def test_a_redirect_is_named_wherever_it_comes() -> None:
    moved = Reply(302, headers={"location": "/login"})
    checks = verify(lambda message: reply if (reply := careful(message)).status == 200 else moved)
    assert failed(checks) == ["unsigned", "wrong signature", "stale timestamp", "captured signature",
                              "another partner's"]  # fmt: skip
    assert all("never followed" in check.fix for check in checks if not check.passed)


def test_one_that_hangs_is_named_and_takes_a_deadline() -> None:
    started = time.monotonic()

    def hang(_: Received) -> Reply:
        time.sleep(3)
        return Reply()

    checks = verify(hang, deadline=timedelta(seconds=0.5))
    assert time.monotonic() - started < 5
    assert failed(checks) == ["good signature", "time limit"]
    assert checks[0].came_back == "No answer came in time."


def test_all_checks_together_have_a_time_limit() -> None:
    def dawdle(message: Received) -> Reply:
        time.sleep(0.6)
        return careful(message)

    started = time.monotonic()
    checks = verify(dawdle, time_limit=timedelta(seconds=2.5))
    assert time.monotonic() - started < 4
    assert failed(checks) == ["time limit"]
    assert "time for all checks" in checks[-2].came_back
    assert not onboarding.has_passed(checks)


@pytest.mark.parametrize("at", [1, 2])
def test_one_that_dies_in_the_middle_of_its_answer_is_named(at: int) -> None:
    with dying(at) as url:
        checks = run(url)
    assert failed(checks)[0] == ALL[at - 1]


@contextmanager
def dying(at: int) -> Iterator[str]:
    """Answer as a careful receiver, but hang up in the middle of the status line of answer number ``at``."""
    count = 0

    def script(message: Received) -> Reply:
        nonlocal count
        count += 1
        if count == at:
            raise ConnectionAbortedError  # the server closes the connection without an answer
        return careful(message)

    with listening(script) as receiver:
        yield receiver.url


def test_nobody_listening_is_named_and_only_staff_are_told_the_address() -> None:
    with listening() as receiver:
        url = receiver.url
    checks = run(url)
    assert failed(checks) == ["good signature"]
    assert "127.0.0.1" not in checks[0].came_back + checks[0].fix
    assert "refused" in checks[0].detail


def test_the_newest_secret_is_asked_for_alone_while_another_one_retires() -> None:
    both = (SECRET, OLD_SECRET, SERVICE_KEY)
    lasting = (SECRET, SERVICE_KEY)
    behind = verify(lambda message: careful(message, keys=(OLD_SECRET,)), keys=both, lasting_keys=lasting)
    assert failed(behind) == ["newest secret alone"]
    assert "newest secret in place" in next(check.fix for check in behind if check.passed is False)
    assert onboarding.has_passed(verify(careful, keys=both, lasting_keys=lasting))


def test_the_reference_receiver_passes_and_does_nothing_about_a_sample(tmp_path: Path) -> None:
    store = Store(tmp_path / "partner.sqlite3")
    partner = Partner(slug="acme", store=store, keys=[SECRET], key_service=None, refuse_first=0)
    server = Receiver(("127.0.0.1", 0), partner=partner, delay_seconds=0)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        checks = run(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()
    assert failed(checks) == skipped(checks) == []
    assert store.rows("SELECT * FROM notices") == store.rows("SELECT * FROM answers") == []
    store.close()
