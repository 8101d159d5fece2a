"""How a partner stands, in words, for the top of its page and the tables below.

Read with the same few queries however long its history is; see ``removal.health``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.timesince import timesince

from partners.admin import shorten
from partners.models import Endpoint, Partner
from removal import flow, health
from removal.admin.filters import name_cause
from removal.admin.words import capped, moment
from removal.health import Age, Failure, Health, Position
from removal.models import Attempt, Incident, Stream

OUTCOMES = {
    Attempt.Outcome.REFUSED: "Refused",
    Attempt.Outcome.UNREACHABLE: "Not reached",
    Attempt.Outcome.ABANDONED: "Cut off: whether it arrived is not known",
}


@dataclass(frozen=True)
class AgeRow:
    age: Age
    name: str
    notices: str


@dataclass(frozen=True)
class FailureRow:
    """One try: what happened, in our words, and what the partner said, in its own."""

    failure: Failure
    happened: str
    words: str


@dataclass(frozen=True)
class PartnerPage:
    """All that the page shows of how a partner stands."""

    health: Health
    position: Position
    sentence: str
    open: str
    overdue: str
    all_waiting: str
    again: str
    quarantined: str
    held: str
    breaker: str
    success: str
    half_within: str
    most_within: str
    ages: Sequence[AgeRow]
    failures: Sequence[FailureRow]
    incidents: Sequence[tuple[Incident, str]]


def page_of(partner: Partner, *, now: datetime) -> PartnerPage:
    """Read how a partner stands. ``partner`` comes with its endpoint and stream."""
    stands = health.health_of(partner_id=partner.pk, now=now)
    position = health.position_of(partner_id=partner.pk)
    stream, endpoint = partner.stream, partner.endpoint
    open_incidents = Incident.objects.filter(stream_id=partner.pk, closed_at=None).order_by("opened_at", "pk")
    return PartnerPage(
        health=stands,
        position=position,
        sentence=say_how_it_stands(stands, position, stream, now=now),
        open=capped(stands.open),
        overdue=capped(stands.overdue),
        all_waiting=capped(position.waiting + position.again),
        again=capped(position.again),
        quarantined=capped(position.quarantined),
        held=capped(position.waiting + position.again) if is_held(stands) else "none",
        breaker=say_breaker(stands, stream, window=endpoint.window, now=now),
        success=_share(stands),
        half_within=_duration(stands.half_within),
        most_within=_duration(stands.most_within),
        ages=[
            AgeRow(age, health.name_age(age.first, age.last), capped(age.notices))
            for age in health.ages_of(partner_id=partner.pk, now=now)
        ],
        failures=[
            FailureRow(one, shorten(_happened(one), most=200), shorten(one.words, most=200))
            for one in health.failures_of(partner_id=partner.pk)
        ],
        incidents=[(incident, name_cause(incident.kind)) for incident in open_incidents[:20]],
    )


def is_held(stands: Health) -> bool:
    """Whether nothing is sent, by a decision and not for want of an answer."""
    return stands.state != Partner.State.LIVE or stands.endpoint_state != Endpoint.State.OPEN


def say_how_it_stands(stands: Health, position: Position, stream: Stream, *, now: datetime) -> str:
    """Say in one or two sentences how a partner stands: what it is, what waits, and the worst of what is wrong."""
    if stands.state == Partner.State.ONBOARDING:
        first = "In onboarding: nothing is sent to it before its endpoint has passed the checks."
    elif stands.state == Partner.State.PAUSED:
        first = "Paused by staff: nothing is sent to it until somebody resumes it."
    else:
        first = "Live."
    return f"{first} {_second(stands, position, stream, now=now)}"


def _second(stands: Health, position: Position, stream: Stream, *, now: datetime) -> str:
    waits = _waits(position)
    if stands.state != Partner.State.LIVE:
        return f"{waits}, and what it is owed gets older." if waits else "Nothing waits for it."
    if stands.endpoint_state != Endpoint.State.OPEN:
        since = f" {_ago(stands.down_since, now)} ago" if stands.down_since else ""
        said = f"its endpoint said{since} that it is gone for good (410): nothing is sent until it has a new URL."
    elif stream.probe_at is not None:
        since = f" for {_ago(stands.down_since, now)}" if stands.down_since else ""
        said = f"its endpoint has not answered{since}: {_next_try(stream.probe_at, now)}."
    elif stands.is_silent:
        said = "it is silent: messages arrived, and it has said nothing of them within the agreed time."
    elif position.quarantined:
        many = position.quarantined != 1
        said = (
            f"{capped(position.quarantined)} message{'s are' if many else ' is'} set aside, since it takes others and "
            f"not {'these' if many else 'this one'}: a person must look."
        )
    elif stream.failures:
        many = stream.failures != 1
        said = f"the last {f'{stream.failures} tries were' if many else 'try was'} not answered; they go on."
    elif stands.overdue:
        many = stands.overdue != 1
        said = f"{capped(stands.overdue)} answer{'s are' if many else ' is'} overdue."
    elif waits:
        return f"{waits}."
    else:
        return "All that it must be told was sent to it."
    return f"{waits}; {said}" if waits else said[0].upper() + said[1:]


def _waits(position: Position) -> str:
    """Say what has not been sent; an empty word where that is nothing."""
    messages, notices = position.waiting, position.unpacked
    parts = []
    if messages:
        parts.append(f"{capped(messages)} message{'' if messages == 1 else 's'}")
    if notices:
        parts.append(f"{notices:,} {'more ' if messages else ''}notice{'' if notices == 1 else 's'}")
    return f"{' and '.join(parts)} wait{'s' if messages + notices == 1 else ''}" if parts else ""


def say_breaker(stands: Health, stream: Stream, *, window: int, now: datetime) -> str:
    """Say in words how many messages may be on their way, and why (removal.flow)."""
    if is_held(stands):
        return "Nothing is sent: it is held."
    if stream.probe_at is not None:
        return f"Open after {stream.failures} tries without an answer: one message at a time is tried, the others wait."
    if stream.allowance is not None and stream.allowance < window:
        return (
            f"Just back: {max(stream.allowance, 1)} at once, and more as it answers, until {flow.TRUSTED} have arrived."
        )
    if stream.failures:
        left = max(flow.TRIES_TO_OPEN - stream.failures, 1)
        return f"Closed; the last {stream.failures} tries were not answered, and {left} more would open it."
    return "Closed: all that the window and the rate allow is sent."


def _next_try(probe_at: datetime, now: datetime) -> str:
    if probe_at <= now:
        return "the next try is due now"
    is_near = probe_at - now < timedelta(hours=24)
    return (
        f"the next try is at {timezone.localtime(probe_at):%H:%M}" if is_near else f"the next try: {moment(probe_at)}"
    )


def _ago(since: datetime, now: datetime) -> str:
    return timesince(since, now, depth=1).replace("\xa0", " ")


def _duration(took: timedelta | None) -> str:
    if took is None:
        return "no answer yet"
    start = datetime(2000, 1, 1)
    return timesince(start, start + took).replace("\xa0", " ") if took >= timedelta(minutes=1) else "less than a minute"


def _share(stands: Health) -> str:
    if stands.success_rate is None:
        return "nothing was sent yet"
    # Rounded down: 100 % means all of them.
    return f"{int(stands.success_rate * 1000) / 10:g} % of the last {stands.messages}"


def _happened(failure: Failure) -> str:
    said = OUTCOMES[Attempt.Outcome(failure.outcome)]
    return f"{said}: {failure.reason}" if failure.reason else f"{said}."
