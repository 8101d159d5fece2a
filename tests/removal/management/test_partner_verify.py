"""``manage.py partner verify`` names what is wrong with a receiver, and lets none of these go live."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from partners import signing
from partners.models import Partner
from removal.models import Incident
from removal.partnerships import add_partner
from tests.receivers import Received, Receiver, Reply, Script, listening
from tests.removal.careful import careful

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

DEADLINE = timedelta(seconds=1)

Faulty = Callable[[Received, str], Reply]


def ignores_signatures(message: Received, secret: str) -> Reply:
    return careful(_signed_again(message, secret), secret=secret)


def accepts_stale_timestamps(message: Received, secret: str) -> Reply:
    key = signing.HmacSecret.from_text(secret)
    at = int(message.headers.get("webhook-timestamp", "0"))
    try:
        signing.verify(
            headers=message.headers,
            body=message.body,
            keys=[key],
            now=datetime.fromtimestamp(at, UTC),
        )
    except signing.NotVerified:
        return Reply(401)
    return careful(_signed_again(message, secret), secret=secret)


def answers_html(message: Received, secret: str) -> Reply:
    return Reply(200, b"<!doctype html><title>Welcome</title>", {"content-type": "text/html"})


def takes_too_long(message: Received, secret: str) -> Reply:
    time.sleep(2 * DEADLINE.total_seconds())
    return careful(message, secret=secret)


def redirects(message: Received, secret: str) -> Reply:
    return Reply(302, headers={"location": "https://partner.example/login"})


def dies(message: Received, secret: str) -> Reply:
    raise ConnectionAbortedError  # closes the connection, and never answers again


def _signed_again(message: Received, secret: str) -> Received:
    """Make any message look well signed, as to a receiver that does not look."""
    key = signing.HmacSecret.from_text(secret)
    return Received(
        signing.headers(message_id="x", timestamp=timezone.now(), body=message.body, keys=[key]), message.body
    )


@pytest.mark.parametrize(
    ("faulty", "failed", "words"),
    [
        (ignores_signatures, ["unsigned", "wrong signature", "stale timestamp", "captured signature"], "verif"),
        (accepts_stale_timestamps, ["stale timestamp"], "minutes"),
        (answers_html, ["sample notice", "unsigned", "wrong signature", "stale timestamp", "captured signature",
                        "another partner's", "repeat under a new id"], "HTML page"),
        (takes_too_long, ["good signature", "time limit"], "No answer came in time."),
        (redirects, ["good signature"], "never followed"),
        (dies, ["good signature"], ""),
    ],
)  # fmt: skip
def test_a_faulty_receiver_fails_and_its_fault_is_named(
    faulty: Faulty, failed: list[str], words: str, settings: Settings
) -> None:
    settings.DELIVERY_DEADLINE = DEADLINE
    secret: list[str] = []
    script: Script = lambda message: faulty(message, secret[0])  # noqa: E731
    with listening(script) as receiver:
        secret.append(_add(receiver))
        said = _verify()
    # "FAILED" takes 8 places, the check's name 24.
    assert [line[8:32].strip() for line in said if line.startswith("FAILED")] == failed
    assert words in "\n".join(said)
    assert Partner.objects.get().state == Partner.State.ONBOARDING


def test_a_careful_one_passes(settings: Settings) -> None:
    secret: list[str] = []
    with listening(lambda message: careful(message, secret=secret[0])) as receiver:
        secret.append(_add(receiver))
        out = StringIO()
        call_command("partner", "verify", "acme", stdout=out)
    assert "acme is live" in out.getvalue()


def test_a_live_partner_that_fails_stays_live_and_has_an_incident(settings: Settings) -> None:
    settings.DELIVERY_DEADLINE = DEADLINE
    with listening(lambda _: Reply(503)) as receiver:
        _add(receiver)
        Partner.objects.update(state=Partner.State.LIVE)
        with pytest.raises(CommandError, match="an incident is open until it passes"):
            call_command("partner", "verify", "acme", stdout=StringIO())
    assert Partner.objects.get().state == Partner.State.LIVE
    assert Incident.objects.get(closed_at=None).kind == "verification"


def _add(receiver: Receiver) -> str:
    return add_partner(actor="test", slug="acme", name="", url=receiver.url, now=timezone.now()).secret


def _verify() -> list[str]:
    out = StringIO()
    with pytest.raises(CommandError, match="did not pass"):
        call_command("partner", "verify", "acme", stdout=out)
    return out.getvalue().splitlines()
