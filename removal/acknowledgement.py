"""The partner's word: taken line by line, only ever forward (design §5, §10).

A statement is looked up by (authenticated partner, sequence): no partner can name another's notice. Every line of a
request gets its answer. Which statements stand is in ``removal.statements``; here they are looked up and written down.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal.models import Acknowledgement, AcknowledgementText, LogEntry, Notice, Stream
from removal.statements import Answer, Refusal, Statement, read_response, refuse, refuse_alone, refuse_unknown, repeats
from removal.transactions import whole_step

Handling = Notice.Handling

# Statements about one number each are taken in blocks, statements about a range in steps, each with its own commit.
# A block is in memory as a whole, and a single line may have 64 MiB: so many lines fill it, or so much text.
BLOCK = 1000
BLOCK_BYTES = 8 * 1024 * 1024
STEP = 10_000


def acknowledge(*, partner_id: int, key_prefix: str, statements: Iterable[Statement]) -> Answer:
    """Take a partner's statements in order, in blocks that each commit: what was counted stands, whatever comes after.

    Repeating a request is safe. Opens its own transactions.
    """
    answer = Answer()
    block: list[Statement] = []
    block_bytes = 0
    for statement in statements:
        if statement.through is None:
            block.append(statement)
            block_bytes += len(statement.text.encode())
        if statement.through is not None or len(block) == BLOCK or block_bytes >= BLOCK_BYTES:
            answer.add(_take_block(partner_id, key_prefix, block))
            block, block_bytes = [], 0
        if statement.through is not None:
            for part in _take_range(partner_id, key_prefix, statement):
                answer.add(part)
    answer.add(_take_block(partner_id, key_prefix, block))
    return answer


@whole_step
def _take_block(partner_id: int, key_prefix: str, block: Sequence[Statement]) -> Answer:
    if not block:
        return Answer()
    stream = Stream.objects.select_for_update(no_key=True).filter(partner_id=partner_id).first()
    if stream is None:
        return Answer(refused=[refuse_unknown(statement) for statement in block])
    answer = _take(stream, block, key_prefix)
    with connection.cursor() as cursor:
        settle_deliveries(cursor, stream_id=partner_id)
    return answer


def _take(stream: Stream, block: Sequence[Statement], key_prefix: str) -> Answer:
    """Judge statements about single numbers of a locked stream, and write those that stand."""
    answer = Answer()
    notices = {
        notice.sequence: notice
        for notice in Notice.objects.filter(
            stream=stream, epoch=stream.epoch, sequence__in=[statement.sequence for statement in block]
        )
    }
    accepted: list[Statement] = []
    for statement in block:
        notice = notices.get(statement.sequence or 0)
        if notice is None:
            answer.refused.append(refuse_unknown(statement))
            continue
        if notice.sequence > stream.packed_through:
            message = "This number has not been sent to you yet. Answer when it comes."
            answer.refused.append(Refusal(notice.sequence, "not_yet_sent", message))
            continue
        if notice.handling == Handling.NONE and notice.sequence <= stream.received_through:
            notice.handling = Handling.RECEIVED  # said by `through`; the row was spared the update
        items = 0 if notice.withdrawn_at else notice.item_count
        refusal = refuse(statement, handling=notice.handling, items=items)
        if refusal:
            answer.refused.append(refusal)
        elif repeats(statement, handling=notice.handling):
            answer.unchanged += 1
        else:
            answer.accepted += 1
            accepted.append(statement)
            notice.handling = statement.status
    _write(stream, accepted, key_prefix)
    return answer


MOVE = """
update removal_notice n set handling = x.status, acknowledged_at = clock_timestamp()
  from unnest(%(sequences)s::bigint[], %(statuses)s::text[]) x(sequence, status)
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence = x.sequence
returning n.request_id
"""


def _write(stream: Stream, accepted: Sequence[Statement], key_prefix: str) -> None:
    """Append the statements, move their notices, and close the requests that have all their answers."""
    if not accepted:
        return
    rows = Acknowledgement.objects.bulk_create(
        _row(stream, statement, number, number, Acknowledgement.Channel.API, key_prefix)
        for statement in accepted
        if (number := statement.sequence)
    )
    AcknowledgementText.objects.bulk_create(
        AcknowledgementText(acknowledgement=row, text=statement.text)
        for row, statement in zip(rows, accepted, strict=True)
    )
    # A number answered twice in one block: the later statement is the current one.
    last = {statement.sequence: statement.status for statement in accepted}
    with connection.cursor() as cursor:
        cursor.execute(
            MOVE,
            {
                "stream": stream.pk,
                "epoch": stream.epoch,
                "sequences": list(last),
                "statuses": [str(status) for status in last.values()],
            },
        )
        close_requests(cursor, request_ids=[request_id for (request_id,) in cursor.fetchall()])
    LogEntry.objects.bulk_create(
        LogEntry(
            actor=_actor(key_prefix),
            action="acknowledged",
            about={"partner": stream.pk, "sequence": statement.sequence, "status": statement.status},
        )
        for statement in accepted
    )


def _row(stream: Stream, statement: Statement, first: int, last: int, channel: str, key_prefix: str) -> Acknowledgement:
    return Acknowledgement(
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
        channel=channel,
        key_prefix=key_prefix,
        text_digest=hashlib.sha256(statement.text.encode()).digest(),
    )


# Those further along keep what they said.
MOVE_RANGE = """
update removal_notice n set handling = %(status)s, acknowledged_at = clock_timestamp()
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence between %(first)s and %(last)s
   and removal_handling_rank(n.handling) < removal_handling_rank(%(status)s)
returning n.request_id
"""


def _take_range(partner_id: int, key_prefix: str, statement: Statement) -> Iterator[Answer]:
    """Take a statement about all numbers up to one: each number counts as accepted or unchanged.

    ``received`` moves only the stream's watermark; anything else goes in steps of sequence order, each with its own
    commit, so that a repeat goes on where a broken one ended.
    """
    refusal = refuse_alone(statement)
    if refusal:
        yield Answer(refused=[refusal])
        return
    through = statement.through or 0
    length = through if statement.status == Handling.RECEIVED else STEP
    for first in range(1, through + 1, length):
        answer = _take_step(partner_id, key_prefix, statement, first, min(through, first + length - 1))
        yield answer
        if answer.refused:
            return


@whole_step
def _take_step(partner_id: int, key_prefix: str, statement: Statement, first: int, last: int) -> Answer:
    stream = Stream.objects.select_for_update(no_key=True).filter(partner_id=partner_id).first()
    through = statement.through or 0
    if stream is None or through > stream.head:
        return Answer(refused=[refuse_unknown(statement)])
    if through > stream.packed_through:
        message = f"You have been sent numbers up to {stream.packed_through}."
        return Answer(refused=[Refusal(through, "not_yet_sent", message)])
    with connection.cursor() as cursor:
        if statement.status == Handling.RECEIVED:
            moved = _move_watermark(cursor, stream, last)
        else:
            moved = _move_range(cursor, stream, statement, first, last)
        if moved:
            _append_range(stream, statement, first, last, channel=Acknowledgement.Channel.API, key_prefix=key_prefix)
        settle_deliveries(cursor, stream_id=partner_id)
    return Answer(accepted=moved, unchanged=last - first + 1 - moved)


def _move_watermark(cursor: CursorWrapper, stream: Stream, through: int) -> int:
    """Count what the partner has now received, and leave the notices' rows alone: a million of them take seconds."""
    if through <= stream.received_through:
        return 0
    cursor.execute(
        "select count(*) from removal_notice where stream_id = %s and epoch = %s and sequence > %s and sequence <= %s"
        " and handling = 'none'",
        [stream.pk, stream.epoch, stream.received_through, through],
    )
    (moved,) = cursor.fetchone()
    cursor.execute("update removal_stream set received_through = %s where partner_id = %s", [through, stream.pk])
    return int(moved)


def _move_range(cursor: CursorWrapper, stream: Stream, statement: Statement, first: int, last: int) -> int:
    span = {"stream": stream.pk, "epoch": stream.epoch, "first": first, "last": last}
    cursor.execute(MOVE_RANGE, span | {"status": str(statement.status)})
    moved = [request_id for (request_id,) in cursor.fetchall()]
    if moved and statement.is_terminal:
        close_requests(cursor, request_ids=moved)
    return len(moved)


def _append_range(
    stream: Stream, statement: Statement, first: int, last: int, *, channel: str, key_prefix: str = ""
) -> None:
    row = _row(stream, statement, first, last, channel, key_prefix)
    row.save()
    AcknowledgementText.objects.create(acknowledgement=row, text=statement.text)
    LogEntry.objects.create(
        actor=_actor(key_prefix),
        action="acknowledged",
        about={"partner": stream.pk, "from": first, "through": last, "status": statement.status},
    )


def _actor(key_prefix: str) -> str:
    return f"api:{key_prefix}" if key_prefix else "worker"


# Requests are locked first, in a statement of its own, so that of two last answers at once the later one sees both.
LOCK_REQUESTS = "select from removal_removalrequest where id = any(%(ids)s) order by id for no key update"
CLOSE_REQUESTS = """
update removal_removalrequest r
   set state = 'closed', closed_at = clock_timestamp(),
       outcome = case when a.complete then 'fulfilled' else 'partially_fulfilled' end
  from (select n.request_id, bool_and(n.handling in ('completed', 'partially_completed', 'rejected')
                                      or n.withdrawn_at is not null or n.closed_at is not null) ended,
               bool_and(n.handling = 'completed') complete
          from removal_notice n where n.request_id = any(%(ids)s) group by 1) a
 where r.id = a.request_id and r.state in ('planned', 'closed') and r.withdrawn_at is null and not r.is_matching
   and a.ended
   and (r.state = 'planned' or r.outcome <> case when a.complete then 'fulfilled' else 'partially_fulfilled' end)
"""


def close_requests(cursor: CursorWrapper, *, request_ids: Sequence[int]) -> None:
    """Close those of the requests that have no open notice left. Needs an open transaction."""
    ids = {"ids": sorted(set(request_ids))}
    cursor.execute(LOCK_REQUESTS, ids)
    cursor.execute(CLOSE_REQUESTS, ids)


SETTLE = """
update removal_delivery d
   set state = 'delivered', delivered_at = clock_timestamp(),
       delivered_by = case when exists (
           select from removal_notice n
            where n.stream_id = d.stream_id and n.epoch = d.epoch
              and n.sequence between d.first_sequence and d.last_sequence
              and n.handling = 'none' and n.sequence > s.received_through) then 'closed' else 'acknowledged' end
  from removal_stream s
 where s.partner_id = %s and d.stream_id = s.partner_id and d.epoch = s.epoch and d.state in ('waiting', 'quarantined')
   and not d.resent
   and not exists (select from removal_notice n
                    where n.stream_id = d.stream_id and n.epoch = d.epoch
                      and n.sequence between d.first_sequence and d.last_sequence
                      and n.handling = 'none' and n.sequence > s.received_through and n.closed_at is null)
"""


def settle_deliveries(cursor: CursorWrapper, *, stream_id: int) -> None:
    """End the sending of messages whose every number is answered, or closed by hand. Needs the stream's row locked."""
    cursor.execute(SETTLE, [stream_id])


def accept_response(cursor: CursorWrapper, *, stream_id: int, first: int, last: int, answer: bytes) -> None:
    """Take a 2xx response's body as an acknowledgement, if it has exactly that form.

    Only for the message's own numbers, and at most as ``received``: anything else in a response is not a statement.
    Needs an open transaction with the stream's row locked.
    """
    numbers = read_response(answer, first=first, last=last)
    if not numbers:
        return
    stream = Stream.objects.get(partner_id=stream_id)
    receipt = Statement(status=Handling.RECEIVED, text=answer.decode())
    if numbers == range(first, last + 1) and first <= stream.received_through + 1:
        moved = _move_watermark(cursor, stream, last)
        runs = [(first, last)] if moved else []
    else:
        runs = [run for run in _runs(numbers) if _move_range(cursor, stream, receipt, *run)]
    for run_first, run_last in runs:
        _append_range(stream, receipt, run_first, run_last, channel=Acknowledgement.Channel.RESPONSE)


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Join sorted numbers into runs without a gap: 1 2 3 7 8 -> (1, 3), (7, 8)."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]
