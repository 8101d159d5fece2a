"""Which deadline policy holds for what, and the dates that follow from it (docs/deadlines.md).

Dates are made once: when a request is recorded, and when a notice is planned. A policy that changes later moves none.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.backends.utils import CursorWrapper
from psycopg.types.json import Jsonb

from removal import deadlines
from removal.deadlines import Calendar, Term
from removal.models import DeadlinePolicy, Holiday

# Of the policies that fit, the most specific: a partner's contract before a law, the jurisdiction itself before its
# country and that before any, some kinds before any, and the newest last. ``w`` is what a policy is looked for.
MOST_SPECIFIC = """
select p.* from {policies} p
 where (p.partner_id is null or p.partner_id = w.partner_id)
   and (p.jurisdictions = '{{}}' or w.jurisdiction = any(p.jurisdictions)
        or split_part(w.jurisdiction, '-', 1) = any(p.jurisdictions))
   and (p.kinds = '{{}}' or w.kind = any(p.kinds))
 order by p.partner_id is null, w.jurisdiction <> all(p.jurisdictions), p.jurisdictions = '{{}}', p.kinds = '{{}}',
          p.id desc
 limit 1
"""
FOR_REQUESTS = f"""
with policy as materialized (select * from removal_deadlinepolicy where clock = 'request' and in_force)
select w.kind, w.jurisdiction, c.id
  from (select kind, jurisdiction, null::bigint partner_id
          from unnest(%s::text[], %s::text[]) x(kind, jurisdiction)) w
 cross join lateral ({MOST_SPECIFIC.format(policies="policy")}) c
"""

# What holds for a notice without a policy, beside NOTICE_RESPOND_WITHIN_DAYS.
SENT_WITHIN = Term(24, "hours")
RECEIVED_WITHIN = Term(3, "business days")
OFFBOARDED_WITHIN = Term(10, "business days")  # a partner that leaves removes everything
UTC_WEEKDAYS = Calendar(ZoneInfo("UTC"))


@dataclass(frozen=True)
class Asked:
    """What a policy for a request is looked for, and when its time starts."""

    kind: str
    jurisdiction: str
    received_at: datetime


@dataclass(frozen=True)
class RequestDates:
    """A request's dates. None of ``respond_by`` and ``extendable_to`` with no policy: the default month holds."""

    policy: str = ""
    respond_by: datetime | None = None
    confirm_by: datetime | None = None
    extendable_to: datetime | None = None
    tells_person: bool = True


def request_dates(cursor: CursorWrapper, asked: Sequence[Asked]) -> list[RequestDates]:
    """Make the dates of requests, in their order. Needs an open transaction."""
    wanted = sorted({(one.kind, one.jurisdiction) for one in asked})
    cursor.execute(FOR_REQUESTS, [[kind for kind, _ in wanted], [where for _, where in wanted]])
    chosen = {(kind, where): policy_id for kind, where, policy_id in cursor.fetchall()}
    if not chosen:
        return [RequestDates()] * len(asked)
    policies = DeadlinePolicy.objects.in_bulk(set(chosen.values()))
    calendars = _calendars(policies.values())
    dates = []
    for one in asked:
        policy_id = chosen.get((one.kind, one.jurisdiction))
        if policy_id is None:
            dates.append(RequestDates())
            continue
        policy, start = policies[policy_id], one.received_at
        dates.append(
            RequestDates(
                policy=policy.name,
                respond_by=_due(policy.completed_within, start, calendars[policy_id]),
                confirm_by=_due(policy.received_within, start, calendars[policy_id]),
                extendable_to=_due(policy.extended_within, start, calendars[policy_id]),
                tells_person=policy.tells_person,
            )
        )
    return dates


def notice_rules(*, now: datetime) -> dict[str, Any]:
    """Give the planner the dates of a notice that is planned ``now``: those of each policy, and the default's."""
    policies = {
        policy.pk: policy for policy in DeadlinePolicy.objects.filter(clock=DeadlinePolicy.Clock.NOTICE, in_force=True)
    }
    calendars = _calendars(policies.values())
    rules = []
    for policy in policies.values():
        sent, received, completed = (
            _due(text, now, calendars[policy.pk])
            for text in (policy.sent_within, policy.received_within, policy.completed_within)
        )
        rules.append(
            {
                "id": policy.pk,
                "partner_id": policy.partner_id,
                "kinds": policy.kinds,
                "jurisdictions": policy.jurisdictions,
                "send_by": sent and sent.isoformat(),
                "receive_by": received and received.isoformat(),
                "respond_by": completed and completed.isoformat(),
            }
        )
    return {
        "policies": Jsonb(rules),
        "offboarded_by": deadlines.due(OFFBOARDED_WITHIN, start=now, calendar=UTC_WEEKDAYS),
        "send_by": deadlines.due(SENT_WITHIN, start=now, calendar=UTC_WEEKDAYS),
        "receive_by": deadlines.due(RECEIVED_WITHIN, start=now, calendar=UTC_WEEKDAYS),
        "respond_within": settings.NOTICE_RESPOND_WITHIN,
    }


_term = lru_cache(maxsize=100)(Term.parse)  # the same few, for each request of a block


def _due(text: str, start: datetime, calendar: Calendar) -> datetime | None:
    return deadlines.due(_term(text), start=start, calendar=calendar) if text else None


def _calendars(policies: Iterable[DeadlinePolicy]) -> dict[int, Calendar]:
    policies = list(policies)
    days: dict[str, set[date]] = defaultdict(set)
    named = {policy.calendar for policy in policies if policy.calendar}
    if named:
        for name, day in Holiday.objects.filter(calendar__in=named).values_list("calendar", "day"):
            days[name].add(day)
    return {
        policy.pk: Calendar(ZoneInfo(policy.zone), frozenset(days[policy.calendar]), policy.rolls_forward)
        for policy in policies
    }
