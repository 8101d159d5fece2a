"""What partners said, written down: each statement as a row with its words, the notices moved, a line in the log.

Which statements stand is decided before, in ``removal.statements`` and ``removal.acknowledgement``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from django.db.backends.utils import CursorWrapper

from removal.models import Acknowledgement, AcknowledgementText, LogEntry, Stream
from removal.statements import Statement


@dataclass(frozen=True)
class Origin:
    """How statements came: over which channel, with which API key, in which signed request."""

    channel: str = Acknowledgement.Channel.API
    key_prefix: str = ""
    signed_answer_id: int | None = None

    @property
    def actor(self) -> str:
        return f"api:{self.key_prefix}" if self.key_prefix else "worker"


# said   the statements, in order
# row    each as a row, with the digest of its words
# words  its words beside it
# log    what the log says of it
# last   a number answered twice in one block: the later statement is the current one
# moved  the notices, each at the last that was said of it
WRITE = """
with
said as materialized (
    select nextval(pg_get_serial_sequence('removal_acknowledgement', 'id')) id, x.*
      from json_to_recordset(%(lines)s) x(sequence bigint, status text, reason text, amends boolean, outcomes jsonb,
                                          attestations jsonb, completed_at timestamptz, text text)),
row as (
    insert into removal_acknowledgement (id, stream_id, epoch, first_sequence, last_sequence, status, reason, amends,
                                         outcomes, attestations, completed_at, channel, key_prefix, text_digest,
                                         signed_answer_id)
    select id, %(stream)s, %(epoch)s, sequence, sequence, status, reason, amends, outcomes, attestations, completed_at,
           %(channel)s, %(key_prefix)s, sha256(convert_to(text, 'UTF8')), %(signed_answer)s
      from said),
words as (insert into removal_acknowledgementtext (acknowledgement_id, text) select id, text from said),
log as (
    insert into removal_logentry (actor, action, about)
    select %(actor)s, 'acknowledged', jsonb_build_object('partner', %(stream)s, 'sequence', sequence, 'status', status)
      from said order by id),
last as (select distinct on (sequence) sequence, status from said order by sequence, id desc),
moved as (
    update removal_notice n set handling = x.status, acknowledged_at = clock_timestamp()
      from last x
     where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence = x.sequence
    returning n.request_id, n.handling)
select distinct request_id from moved where removal_handling_rank(handling) = 3
"""


def write(cursor: CursorWrapper, stream: Stream, statements: Sequence[Statement], origin: Origin) -> list[int]:
    """Append statements about one number each, and move their notices.

    Returns the requests whose notices have ended. Needs a transaction with the stream's row locked.
    """
    if not statements:
        return []
    lines = [
        {
            "sequence": statement.sequence,
            "status": statement.status,
            "reason": statement.reason,
            "amends": statement.amends,
            "outcomes": statement.outcomes,
            "attestations": statement.attestations,
            "completed_at": statement.completed_at,
            "text": statement.text,
        }
        for statement in statements
    ]
    cursor.execute(
        WRITE,
        {
            "lines": msgspec.json.encode(lines).decode(),
            "stream": stream.pk,
            "epoch": stream.epoch,
            "channel": origin.channel,
            "key_prefix": origin.key_prefix,
            "signed_answer": origin.signed_answer_id,
            "actor": origin.actor,
        },
    )
    return [request_id for (request_id,) in cursor.fetchall()]


def write_range(stream: Stream, statement: Statement, first: int, last: int, origin: Origin) -> None:
    """Append a statement about a range of numbers. Needs a transaction with the stream's row locked."""
    row = Acknowledgement.objects.create(
        stream=stream,
        epoch=stream.epoch,
        first_sequence=first,
        last_sequence=last,
        status=statement.status,
        reason=statement.reason,
        amends=statement.amends,
        outcomes=statement.outcomes,
        attestations=list(statement.attestations),
        completed_at=statement.completed_at,
        channel=origin.channel,
        key_prefix=origin.key_prefix,
        signed_answer_id=origin.signed_answer_id,
        text_digest=hashlib.sha256(statement.text.encode()).digest(),
    )
    AcknowledgementText.objects.create(acknowledgement=row, text=statement.text)
    LogEntry.objects.create(
        actor=origin.actor,
        action="acknowledged",
        about={"partner": stream.pk, "from": first, "through": last, "status": statement.status},
    )
