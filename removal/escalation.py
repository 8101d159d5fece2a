"""Tell staff that time runs out: at 50, 80 and 100 % of each deadline, by e-mail and by the operator's webhook.

Three steps, each of which leaves a row behind, so that nothing is lost wherever it is cut off: what came to a level is
written down once (Escalation), put into a message for each channel (StaffMessage), and sent until it is out. A worker
that dies between sending and writing that down sends the same message once more, under the same id.
"""

import json
import random
import smtplib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connection, transaction

from partners import signing, webhook
from removal import schedule
from removal.crashpoints import crashpoint
from removal.deadlines import LEVELS
from removal.models import StaffMessage
from removal.payload import as_time
from removal.transactions import whole_step

log = structlog.get_logger()

LOCK = 0x4553434C  # "ESCL": of two workers at once, one looks
LOOK_EVERY = timedelta(hours=1)  # at each stream: it reads all of its open notices
MOST_REQUESTS = 10_000  # in one look; the next goes on
MOST_IN_A_MESSAGE = 500
LISTED = 100  # numbers of one escalation
LEASE = timedelta(seconds=60)

Channel = StaffMessage.Channel


# --- what came to a level ---

# The highest level that a request has come to, once for each of its dates: those before it are no news then.
REQUESTS = """
insert into removal_escalation (request_id, respond_by, level, notices, sequences, raised_at)
select r.id, r.respond_by, l.level, 0, '{}', clock_timestamp()
  from removal_removalrequest r
 cross join lateral (
      select max(level) as level from unnest(%(levels)s::int[]) level
       where r.received_at + (r.respond_by - r.received_at) * level / 100 <= clock_timestamp()) l
 where r.state in ('received', 'planned') and r.repeats_id is null and l.level is not null
   and not exists (select from removal_escalation e
                    where e.request_id = r.id and e.respond_by = r.respond_by and e.level >= l.level)
 order by r.respond_by limit %(most)s
    on conflict do nothing
"""
STREAMS = """
select partner_id from removal_stream
 where looked_at is null or looked_at < clock_timestamp() - %s order by partner_id
"""
SEE = """
select epoch, looked_at, clock_timestamp() from removal_stream
 where partner_id = %(stream)s and (looked_at is null or looked_at < clock_timestamp() - %(every)s)
"""
# Open notices by the highest level that they have come to, if they came to it since the last look.
NOTICES = """
with came as (
    select n.sequence, l.level, n.planned_at + (n.respond_by - n.planned_at) * l.level / 100 as came_at
      from removal_notice n
     cross join lateral (
          select max(level) as level from unnest(%(levels)s::int[]) level
           where n.planned_at + (n.respond_by - n.planned_at) * level / 100 <= %(now)s) l
     where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.withdrawn_at is null
       and n.closed_at is null
       and n.handling not in ('completed', 'partially_completed', 'rejected') and l.level is not null)
insert into removal_escalation (stream_id, until, level, notices, sequences, raised_at)
select %(stream)s, %(now)s, level, count(*), (array_agg(sequence order by sequence))[1:%(listed)s], clock_timestamp()
  from came where %(since)s::timestamptz is null or came_at > %(since)s
 group by level
"""
LOOKED = """
update removal_stream set looked_at = %(now)s
 where partner_id = %(stream)s and epoch = %(epoch)s and looked_at is not distinct from %(since)s::timestamptz
"""


def look() -> int:
    """Write down what came to a level since the last look; returns how many escalations that makes."""
    with connection.cursor() as cursor:
        every: list[Any] = [LOOK_EVERY]
        cursor.execute(STREAMS, every)
        streams = [partner_id for (partner_id,) in cursor.fetchall()]
    return _look_at_requests() + sum(_look_at_stream(partner_id) for partner_id in streams)


@whole_step
def _look_at_requests() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_xact_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            return 0
        cursor.execute(REQUESTS, {"levels": list(LEVELS), "most": MOST_REQUESTS})
        return int(cursor.rowcount)


@whole_step
def _look_at_stream(partner_id: int) -> int:
    with connection.cursor() as cursor:
        # Not the stream's row, which whoever plans, sends or takes an answer waits for: this takes seconds where a
        # million notices are open.
        cursor.execute("select pg_try_advisory_xact_lock(%s, %s::int)", [LOCK, partner_id])
        if not cursor.fetchone()[0]:
            return 0
        wanted: dict[str, Any] = {"stream": partner_id, "every": LOOK_EVERY}
        cursor.execute(SEE, wanted)
        found = cursor.fetchone()
        if found is None:
            return 0
        epoch, since, now = found
        seen = {"stream": partner_id, "epoch": epoch, "since": since, "now": now}
        cursor.execute(NOTICES, {**seen, "levels": list(LEVELS), "listed": LISTED})
        raised = int(cursor.rowcount)
        cursor.execute(LOOKED, seen)
        if not cursor.rowcount:  # somebody who knows nothing of the lock looked meanwhile, or it was restored
            transaction.set_rollback(True)
            return 0
        return raised


# --- what staff are told ---

BUNDLE = """
with taken as materialized (
    select id from removal_escalation where bundled_at is null order by id limit %s for no key update skip locked),
bundled as (
    update removal_escalation set bundled_at = clock_timestamp() where id in (select id from taken)
    returning id, level, request_id, respond_by, stream_id, notices, sequences)
select b.id, b.level, r.public_id, b.respond_by, p.slug, b.notices, b.sequences
  from bundled b
  left join removal_removalrequest r on r.id = b.request_id
  left join partners_partner p on p.id = b.stream_id
 order by b.id
"""


@whole_step
def bundle(*, now: datetime) -> int:
    """Put escalations into a message for each channel that is set; returns how many. Without a channel they wait."""
    channels = _channels()
    if not channels:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(BUNDLE, [MOST_IN_A_MESSAGE])
        found = [_describe(*row) for row in cursor.fetchall()]
    if not found:
        return 0
    body = {
        "type": "removal.escalation",
        "version": "1",
        "timestamp": as_time(now),
        "data": {
            "requests": sum("request" in one for one in found),
            "notices": sum(one.get("notices", 0) for one in found),
            "escalations": found,
        },
    }
    for channel in channels:
        StaffMessage.objects.create(channel=channel, body=json.dumps(body, separators=(",", ":")))
    return len(found)


def _channels() -> list[str]:
    return [
        channel
        for channel, is_set in (
            (Channel.EMAIL, settings.ESCALATION_EMAILS),
            (Channel.WEBHOOK, settings.OPERATOR_WEBHOOK_URL),
        )
        if is_set
    ]


def _describe(
    escalation_id: int,
    level: int,
    request: str | None,
    respond_by: datetime | None,
    partner: str | None,
    notices: int,
    sequences: list[int],
) -> dict[str, Any]:
    if request and respond_by:
        return {"id": escalation_id, "level": level, "request": request, "respond_by": as_time(respond_by)}
    return {"id": escalation_id, "level": level, "partner": partner, "notices": notices, "sequences": sequences}


# --- sending ---

# Claimed by a lease that ends by itself; what is not set any more waits until it is set again.
CLAIM = """
update removal_staffmessage
   set lease_until = clock_timestamp() + %(lease)s, tries = tries + 1
 where id = (select id from removal_staffmessage
              where sent_at is null and due_at <= clock_timestamp() and channel = any(%(channels)s)
                and (lease_until is null or lease_until < clock_timestamp())
              order by due_at, id limit 1 for no key update skip locked)
returning id, channel, body, tries
"""
SENT = """
update removal_staffmessage set sent_at = clock_timestamp(), lease_until = null, fault = ''
 where id = %s and sent_at is null
"""
FAILED = """
update removal_staffmessage set due_at = clock_timestamp() + %s, lease_until = null, fault = %s
 where id = %s and tries = %s and sent_at is null
"""


@dataclass(frozen=True)
class _Claim:
    id: uuid.UUID
    channel: str
    body: str
    tries: int


def send_due(*, budget: timedelta) -> int:
    """Send what staff are owed until nothing is due or ``budget`` is spent; returns how many messages went out."""
    end = time.monotonic() + budget.total_seconds()
    sent = 0
    while time.monotonic() < end and (claim := _claim()):
        crashpoint("after_staff_claim")
        fault = SEND[claim.channel](claim)
        crashpoint("after_staff_send")
        _record(claim, fault)
        sent += not fault
    return sent


@whole_step
def _claim() -> _Claim | None:
    wanted: dict[str, Any] = {"lease": LEASE, "channels": [str(channel) for channel in _channels()]}
    with connection.cursor() as cursor:
        cursor.execute(CLAIM, wanted)
        row = cursor.fetchone()
        return row and _Claim(*row)


@whole_step
def _record(claim: _Claim, fault: str) -> None:
    with connection.cursor() as cursor:
        if not fault:
            cursor.execute(SENT, [claim.id])
            return
        delay = schedule.delay_before(attempt=claim.tries + 1, jitter=random.uniform(0, 0.5))  # noqa: S311
        failed: list[Any] = [delay, fault[:200], claim.id, claim.tries]
        cursor.execute(FAILED, failed)
    log.warning("staff_not_told", channel=claim.channel, message=f"msg_{claim.id.hex}", tries=claim.tries)


def _post(claim: _Claim) -> str:
    """Send to the operator's webhook as to a partner's; returns what went wrong, or nothing."""
    body = claim.body.encode()
    key = signing.HmacSecret.from_text(settings.OPERATOR_WEBHOOK_SECRET)
    headers = signing.headers(message_id=f"msg_{claim.id.hex}", timestamp=int(time.time()), body=body, keys=[key])
    headers["Content-Type"] = "application/json"
    outcome = webhook.post(
        url=settings.OPERATOR_WEBHOOK_URL,
        headers=headers,
        body=body,
        deadline=settings.DELIVERY_DEADLINE,
        allow_http=settings.PARTNER_ALLOW_HTTP,
        allowed_networks=settings.PARTNER_ALLOWED_NETWORKS,
        own_places=settings.OWN_PLACES,
    )
    return "" if isinstance(outcome, webhook.Delivered) else webhook.explain(outcome)


def _mail(claim: _Claim) -> str:
    """Send by e-mail, one to all addresses; returns what went wrong, or nothing."""
    subject, text = write_mail(json.loads(claim.body))
    mail = EmailMessage(
        subject,
        text,
        to=settings.ESCALATION_EMAILS,
        headers={"Message-ID": f"<{claim.id.hex}@removal>", "Auto-Submitted": "auto-generated"},
    )
    try:
        mail.send()
    except (OSError, smtplib.SMTPException) as error:
        return f"{type(error).__name__} from the mail server"  # not its words: they name addresses
    return ""


SEND: dict[str, Callable[[_Claim], str]] = {Channel.EMAIL: _mail, Channel.WEBHOOK: _post}


def write_mail(message: dict[str, Any]) -> tuple[str, str]:
    """Write the subject and the text of a mail: ids and counts, no person's data."""
    data = message["data"]
    lines = ["Time runs out, or is over, for what is listed here. The compliance desk has the details.", ""]
    for level in reversed(LEVELS):
        of_level = [one for one in data["escalations"] if one["level"] == level]
        if of_level:
            lines += [f"{level} % of the time is over:" if level < 100 else "OVERDUE:"]
            lines += [f"  {_line(one)}" for one in of_level]
            lines += [""]
    lines += [f"{settings.PUBLIC_URL}/admin/"]
    subject = f"Removal: {data['requests']} requests and {data['notices']} notices need attention"
    return subject, "\n".join(lines)


def _line(one: dict[str, Any]) -> str:
    if "request" in one:
        return f"request {one['request']}, due {one['respond_by']}"
    numbers = ", ".join(str(sequence) for sequence in one["sequences"][:10])
    more = one["notices"] - min(len(one["sequences"]), 10)
    return f"{one['notices']} notices of {one['partner']}: {numbers}{f' and {more} more' if more else ''}"
