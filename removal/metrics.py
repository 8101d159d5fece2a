"""What a monitoring system asks every few seconds, as Prometheus reads it.

Every number comes from a small table or a partial index, whatever the ledger has grown to. What has ended well is not
counted here: there are millions of it. No number is about a person.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connection, transaction

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The most partners whose backlog is named, the largest first.
MOST_PARTNERS = 100
# Counts of what is waiting to be planned stop here; more than this is no news.
COUNTED = 100_000
# Asking must never be what the database is busy with.
TIMEOUT = "5s"


@dataclass(frozen=True)
class Gauge:
    """A number, and how the statement below finds it."""

    name: str
    help: str
    sql: str


def _age(moment: str) -> str:
    """Turn a time into seconds until now; 0 where there is none."""
    return f"coalesce(extract(epoch from clock_timestamp() - {moment}), 0)"


def _silence(moment: str) -> str:
    """Turn the time of what should happen again and again into seconds; infinite if it never has."""
    return f"coalesce(extract(epoch from clock_timestamp() - {moment}), 'infinity')"


STREAMS = """
with stream as materialized (
    select s.partner_id, s.epoch, s.packed_through, s.head - s.packed_through unpacked, s.probe_at is not null is_down,
           p.slug, p.state partner_state, e.state endpoint_state,
           p.state = 'live' and e.state = 'open' and s.probe_at is null may_send
      from removal_stream s
      join partners_partner p on p.id = s.partner_id
      join partners_endpoint e on e.partner_id = s.partner_id),
-- Windows keep these few.
waiting as materialized (
    select stream_id, due_at from removal_delivery where state = 'waiting' and not resent
     union all select stream_id, due_at from removal_delivery where state = 'waiting' and resent),
due as materialized (
    select w.due_at from waiting w join stream s on s.partner_id = w.stream_id and s.may_send
     where w.due_at <= clock_timestamp()),
next_unpacked as materialized (
    select n.planned_at
      from stream s
      join removal_notice n on n.stream_id = s.partner_id and n.epoch = s.epoch and n.sequence = s.packed_through + 1
     where s.may_send and s.unpacked > 0),
unplanned_request as materialized (
    select recorded_at from removal_removalrequest
     where round is null and repeats_id is null and withdrawn_at is null order by id limit {counted}),
overdue as materialized (
    select from removal_notice
     where respond_by < statement_timestamp() and withdrawn_at is null and closed_at is null
       and handling not in ('completed', 'partially_completed', 'rejected') limit {counted}),
unplanned_disclosure as materialized (
    select d.recorded_at from removal_disclosure d
     where not exists (select from removal_planneddisclosure p where p.disclosure_id = d.id) limit {counted})
"""

GAUGES = (
    Gauge(
        "removal_due_messages",
        "Messages that a worker should be sending now: their partner is live and seems to be up.",
        "(select count(*) from due)",
    ),
    Gauge(
        "removal_oldest_due_age_seconds",
        "How long the oldest of these has been due.",
        _age("(select min(due_at) from due)"),
    ),
    Gauge(
        "removal_unpacked_notices",
        "Notices that are in no message yet, for whatever reason.",
        "(select coalesce(sum(unpacked), 0) from stream)",
    ),
    Gauge(
        "removal_oldest_unpacked_age_seconds",
        "How long ago the oldest of these was planned, of partners that are live and seem to be up.",
        _age("(select min(planned_at) from next_unpacked)"),
    ),
    Gauge(
        "removal_unplanned_requests",
        f"Requests that the planner has still to match, counted up to {COUNTED}.",
        "(select count(*) from unplanned_request)",
    ),
    Gauge(
        "removal_unplanned_disclosures",
        f"Disclosures that the planner has still to match, counted up to {COUNTED}.",
        "(select count(*) from unplanned_disclosure)",
    ),
    Gauge(
        "removal_oldest_unplanned_age_seconds",
        "How long ago the oldest of both was recorded.",
        _age(
            "(select min(recorded_at) from (select recorded_at from unplanned_request"
            " union all select recorded_at from unplanned_disclosure) u)"
        ),
    ),
    Gauge(
        "removal_waiting_messages", "Messages that wait for their time, all of them.", "(select count(*) from waiting)"
    ),
    Gauge(
        "removal_sending_messages",
        "Messages that a worker holds.",
        "(select count(*) from removal_delivery where state = 'sending')",
    ),
    Gauge(
        "removal_expired_leases",
        "Of these, messages whose worker is gone. The next sweep frees them.",
        "(select count(*) from removal_delivery where state = 'sending' and lease_until < clock_timestamp())",
    ),
    Gauge(
        "removal_quarantined_messages",
        "Messages that need a person.",
        "(select count(*) from removal_delivery where state = 'quarantined')",
    ),
    Gauge(
        "removal_open_breakers",
        "Partners that seem to be down; one message at a time is tried.",
        "(select count(*) from stream where is_down)",
    ),
    Gauge(
        "removal_suspended_endpoints",
        "Endpoints that answered 410 Gone, and need a new address.",
        "(select count(*) from stream where endpoint_state = 'suspended')",
    ),
    Gauge(
        "removal_onboarding_partners",
        "Partners whose endpoint has proved nothing yet; what they are owed is held.",
        "(select count(*) from stream where partner_state = 'onboarding')",
    ),
    Gauge(
        "removal_paused_partners",
        "Partners that staff have paused.",
        "(select count(*) from stream where partner_state = 'paused')",
    ),
    Gauge(
        "removal_open_incidents",
        "What is wrong with endpoints.",
        "(select count(*) from removal_incident where closed_at is null)",
    ),
    Gauge(
        "removal_overdue_notices",
        f"Notices whose partner should have answered by now, counted up to {COUNTED}.",
        "(select count(*) from overdue)",
    ),
    Gauge(
        "removal_overdue_requests",
        f"Requests that the person should have an answer to by now, counted up to {COUNTED}.",
        "(select count(*) from (select from removal_removalrequest where respond_by < statement_timestamp()"
        f" and state in ('received', 'planned') and repeats_id is null limit {COUNTED}) r)",
    ),
    Gauge(
        "removal_untold_escalations",
        f"What staff should have been told of and is in no message yet, counted up to {COUNTED}.",
        f"(select count(*) from (select from removal_escalation where bundled_at is null limit {COUNTED}) e)",
    ),
    Gauge(
        "removal_unsent_staff_messages",
        "Messages to staff that have not gone out.",
        "(select count(*) from removal_staffmessage where sent_at is null)",
    ),
    Gauge(
        "removal_planner_missed_notices",
        "Notices that reconciles had to plan because a planner round had not. Always 0; anything else is a defect.",
        "(select coalesce(sum(missed_notices), 0) from removal_heartbeat)",
    ),
    Gauge(
        "removal_worker_processes",
        "Worker processes that looked for work within the last minute.",
        "(select count(*) from removal_heartbeat where swept_at > clock_timestamp() - interval '1 minute')",
    ),
    Gauge(
        "removal_last_sweep_age_seconds",
        "How long ago any of them looked for work.",
        _silence("(select max(swept_at) from removal_heartbeat)"),
    ),
    Gauge(
        "removal_last_reconcile_age_seconds",
        "How long ago any of them checked that the planner missed nothing.",
        _silence("(select max(reconciled_at) from removal_heartbeat)"),
    ),
    Gauge(
        "removal_oldest_transaction_seconds",
        "How long the oldest open transaction has been open; while it is, PostgreSQL can tidy up nothing.",
        _age(
            "(select min(xact_start) from pg_stat_activity"
            " where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid())"
        ),
    ),
    Gauge(
        "removal_delivery_dead_rows",
        "Rows of removal_delivery that PostgreSQL has still to tidy up.",
        "(select coalesce(max(n_dead_tup), 0) from pg_stat_user_tables where relid = 'removal_delivery'::regclass)",
    ),
)

READ = STREAMS.format(counted=COUNTED) + "select " + ",\n".join(gauge.sql for gauge in GAUGES)

BACKLOGS = """
select p.slug, s.head - s.packed_through unpacked
  from removal_stream s join partners_partner p on p.id = s.partner_id
 where s.head > s.packed_through order by unpacked desc, p.slug limit %s
"""


def read(*, with_partners: bool) -> str:
    """Write all gauges down in Prometheus's text format, version 0.0.4; ``with_partners`` those that name partners too.

    Raises django.db.Error where the database does not answer in time.
    """
    return "".join(f"{line}\n" for line in _lines(with_partners=with_partners))


def _lines(*, with_partners: bool) -> Iterator[str]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"set local statement_timeout = '{TIMEOUT}'")
        cursor.execute(READ)
        values = cursor.fetchone()
        backlogs: list[tuple[str, int]] = []
        if with_partners:
            cursor.execute(BACKLOGS, [MOST_PARTNERS])
            backlogs = cursor.fetchall()
    for gauge, value in zip(GAUGES, values, strict=True):
        yield from _heading(gauge.name, gauge.help)
        yield f"{gauge.name} {_number(value)}"
    if with_partners:
        yield from _heading("removal_partner_unpacked_notices", "Notices that are in no message yet, by partner.")
        for slug, unpacked in backlogs:
            yield f'removal_partner_unpacked_notices{{partner="{slug}"}} {unpacked}'


def _heading(name: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} gauge"


def _number(value: object) -> str:
    return "+Inf" if str(value) == "Infinity" else str(value)
