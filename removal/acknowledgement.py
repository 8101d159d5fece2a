"""The partner's word: taken line by line, only ever forward (design §5, §10).

A statement is looked up by (authenticated partner, sequence): no partner can name another's notice. Every line of a
request gets its answer. Which statements stand is in ``removal.statements``; here they are looked up and written down.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from django.db import connection
from django.db.backends.utils import CursorWrapper

from removal import extensions, named_items, testimony
from removal.models import Acknowledgement, Notice, Stream
from removal.settling import pack_pulled, settle_deliveries
from removal.statements import (
    RANK,
    Answer,
    Refusal,
    Said,
    Statement,
    Wish,
    outcomes_of,
    read_response,
    refuse,
    refuse_alone,
    refuse_epoch,
    refuse_items,
    refuse_unknown,
    repeats,
)
from removal.testimony import Origin
from removal.transactions import whole_step

Handling = Notice.Handling

# Lines about one number each are taken in blocks, statements about a range in steps, each with its own commit.
# A block is in memory as a whole, and a single line may have 64 MiB: so many lines fill it, or so much text.
BLOCK = 2500
BLOCK_BYTES = 8 * 1024 * 1024
STEP = 10_000


class BrokenOff(Exception):
    """What was said could not be taken to its end; the cause says why. What ``answer`` counts stands.

    ``resume_at_line`` is where to go on, unless all is said again: a repeat changes nothing.
    """

    def __init__(self, answer: Answer, resume_at_line: int) -> None:
        super().__init__(resume_at_line)
        self.answer = answer
        self.resume_at_line = resume_at_line


def acknowledge(
    *, partner_id: int, key_prefix: str, statements: Iterable[Said], signed_answer_id: int | None = None
) -> Answer:
    """Take what a partner said in order, in blocks that each commit: what was counted stands, whatever comes after.

    Repeating a request is safe. Opens its own transactions. Raises BrokenOff when the lines, or the database, fail.
    """
    origin = Origin(key_prefix=key_prefix, signed_answer_id=signed_answer_id)
    answer = Answer()
    reached: dict[str, int] = {}
    done = 0
    try:
        for block in _blocks(statements):
            for part in _take_lines(partner_id, origin, block, reached):
                answer.add(part)
            done = block[-1].line
    except Exception as error:
        raise BrokenOff(answer, done + 1) from error
    return answer


def _blocks(statements: Iterable[Said]) -> Iterator[list[Said]]:
    """Gather lines that are taken together: of one kind, and a ``through`` by itself. Refused ones go with any.

    When the lines break off, those that came whole are still taken.
    """
    block: list[Said] = []
    kind: type[Said] = Refusal
    size = 0
    try:
        for said in statements:
            is_range = isinstance(said, Statement) and said.through is not None
            if block and (is_range or (kind is not Refusal and not isinstance(said, kind | Refusal))):
                yield block
                block, size, kind = [], 0, Refusal
            block.append(said)
            if not isinstance(said, Refusal):
                kind = type(said)
                size += len(said.text.encode())
            if is_range or len(block) == BLOCK or size >= BLOCK_BYTES:
                yield block
                block, size, kind = [], 0, Refusal
    except Exception:
        if block:
            yield block
        raise
    if block:
        yield block


def _take_lines(partner_id: int, origin: Origin, block: Sequence[Said], reached: dict[str, int]) -> Iterator[Answer]:
    if refusals := [said for said in block if isinstance(said, Refusal)]:
        yield Answer(refused=refusals)
    if wishes := [said for said in block if isinstance(said, Wish)]:
        yield extensions.ask(partner_id=partner_id, origin=origin, wishes=wishes)
    statements = [said for said in block if isinstance(said, Statement)]
    if statements and statements[0].through is not None:
        yield from _take_range(partner_id, origin, statements[0], reached)
    elif statements:
        yield _take_block(partner_id, origin, statements)


@whole_step
def _take_block(partner_id: int, origin: Origin, block: Sequence[Statement]) -> Answer:
    stream = Stream.objects.select_for_update(no_key=True).filter(partner_id=partner_id).first()
    if stream is None:
        return Answer(refused=[refuse_unknown(statement) for statement in block])
    with connection.cursor() as cursor:
        answer, accepted = _judge(cursor, stream, block)
        if accepted:
            close_requests(cursor, request_ids=testimony.write(cursor, stream, accepted, origin))
            _settle(cursor, stream)
    return answer


@dataclass
class _Standing:
    """What a statement is held against: a notice, and how far it is."""

    sequence: int
    handling: str
    items: int


STANDINGS = """
select sequence, case when handling = 'none' and sequence <= %s then 'received' else handling end,
       case when withdrawn_at is null then item_count else 0 end
  from removal_notice where stream_id = %s and epoch = %s and sequence = any(%s)
"""


def _judge(cursor: CursorWrapper, stream: Stream, block: Sequence[Statement]) -> tuple[Answer, list[Statement]]:
    """Judge statements about single numbers of a locked stream; returns those to be written down, too."""
    answer = Answer()
    # "Received" may be said by the watermark alone; the rows under it are spared the update.
    numbers = [statement.sequence for statement in block]
    cursor.execute(STANDINGS, [stream.received_through, stream.pk, stream.epoch, numbers])
    notices = {row[0]: _Standing(*row) for row in cursor.fetchall()}
    faults = named_items.find_faults(cursor, stream=stream, statements=block)
    last_said = _last_said(cursor, stream, [one.sequence for one in block if one.corrects])
    accepted: list[Statement] = []
    heartbeats: list[int] = []
    for place, statement in enumerate(block):
        if refusal := refuse_epoch(statement, epoch=stream.epoch):
            answer.refused.append(refusal)
            continue
        notice = notices.get(statement.sequence or 0)
        if notice is None:
            answer.refused.append(refuse_unknown(statement))
            continue
        if not stream.has_told(notice.sequence):
            message = "This number has not been sent to you yet. Answer when it comes."
            answer.refused.append(Refusal(notice.sequence, "not_yet_sent", message))
            continue
        refusal = refuse(statement, handling=notice.handling, items=notice.items)
        if not refusal and place in faults:
            refusal = refuse_items(statement, fault=faults[place])
        if refusal:
            answer.refused.append(refusal)
        elif repeats(statement, handling=notice.handling, is_said=_is_said(statement, last_said)):
            answer.unchanged += 1
            if statement.status == notice.handling == Handling.IN_PROGRESS:
                heartbeats.append(notice.sequence)
        else:
            answer.accepted += 1
            if statement.items and not statement.outcomes:
                statement = replace(statement, outcomes=outcomes_of(statement, items=notice.items))
            accepted.append(statement)
            notice.handling = statement.status
            if statement.corrects:
                last_said[notice.sequence] = _digest(statement)
    if heartbeats:
        _hear(cursor, stream, min(heartbeats), max(heartbeats), heartbeats)
    return answer, accepted


LAST_SAID = """
select distinct on (last_sequence) last_sequence, text_digest
  from removal_acknowledgement
 where stream_id = %s and epoch = %s and last_sequence = any(%s) and first_sequence = last_sequence
 order by last_sequence, id desc
"""


def _last_said(cursor: CursorWrapper, stream: Stream, sequences: Sequence[int | None]) -> dict[int, bytes]:
    """Find the digest of the newest statement about each of some numbers alone."""
    if not sequences:
        return {}
    cursor.execute(LAST_SAID, [stream.pk, stream.epoch, list(sequences)])
    return {sequence: bytes(digest) for sequence, digest in cursor.fetchall()}


def _is_said(statement: Statement, last_said: Mapping[int, bytes]) -> bool:
    return statement.corrects and last_said.get(statement.sequence or 0) == _digest(statement)


def _digest(statement: Statement) -> bytes:
    return hashlib.sha256(statement.text.encode()).digest()


def _settle(cursor: CursorWrapper, stream: Stream) -> None:
    settle_deliveries(cursor, stream_id=stream.pk)
    if stream.is_served_ahead:
        pack_pulled(cursor, stream_id=stream.pk)


# Saying once more that the work goes on changes nothing but when the partner was last heard of: no row, and at most one
# update of a notice in an hour, so that trying again costs nothing.
HEARTBEAT = """
update removal_notice n set acknowledged_at = clock_timestamp()
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.handling = 'in_progress'
   and n.sequence between %(first)s and %(last)s and (%(numbers)s::bigint[] is null or n.sequence = any(%(numbers)s))
   and n.acknowledged_at < clock_timestamp() - interval '1 hour'
"""


def _hear(cursor: CursorWrapper, stream: Stream, first: int, last: int, numbers: Sequence[int] | None = None) -> None:
    """Note that the partner still works on notices of a range, or on some of it. Needs the stream's row locked."""
    span = {"stream": stream.pk, "epoch": stream.epoch, "first": first, "last": last}
    cursor.execute(HEARTBEAT, span | {"numbers": None if numbers is None else list(numbers)})


# Those further along keep what they said.
MOVE_RANGE = """
update removal_notice n set handling = %(status)s, acknowledged_at = clock_timestamp()
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence between %(first)s and %(last)s
   and removal_handling_rank(n.handling) < removal_handling_rank(%(status)s)
returning n.request_id
"""


# The first number that a word takes further, or is a heartbeat of; the one behind the stream's head if there is none.
LOWEST_BEHIND = """
select coalesce(
           (select n.sequence from removal_notice n
             where n.stream_id = s.partner_id and n.epoch = s.epoch and n.sequence between %(first)s and %(last)s
               and (n.handling = any(%(behind)s)
                    or n.handling = 'in_progress' and %(status)s = 'in_progress'
                       and n.acknowledged_at < clock_timestamp() - interval '1 hour')
             order by n.sequence limit 1),
           s.head + 1)
  from removal_stream s where s.partner_id = %(stream)s
"""


def _take_range(partner_id: int, origin: Origin, statement: Statement, reached: dict[str, int]) -> Iterator[Answer]:
    """Take a statement about all numbers up to one: each number counts as accepted or unchanged.

    ``received`` moves only the stream's watermark; anything else goes in steps of sequence order, each with its own
    commit, so that a repeat goes on where a broken one ended. Steps before the first that changes something are left
    out: how far this request has taken the stream already, by word, is in ``reached``, and no word ever goes back.
    """
    refusal = refuse_alone(statement)
    if refusal:
        yield Answer(refused=[refusal])
        return
    through = statement.through or 0
    if statement.status == Handling.RECEIVED:
        yield _take_step(partner_id, origin, statement, 1, through)
        return
    rank = RANK[statement.status]
    lowest = 1 + max((last for status, last in reached.items() if RANK[status] >= rank), default=0)
    if through - lowest >= STEP:
        lowest = _find_lowest_behind(partner_id, statement, lowest)
    # One step at least, which looks whether it may be said at all: about the last number, where nothing is to change.
    first = lowest - (lowest - 1) % STEP if lowest <= through else through
    skipped = first - 1
    for start in range(first, through + 1, STEP):
        answer = _take_step(partner_id, origin, statement, start, min(through, start + STEP - 1))
        if answer.refused:
            yield answer
            return
        answer.unchanged += skipped
        skipped = 0
        yield answer
    reached[statement.status] = max(through, reached.get(statement.status, 0))


def _find_lowest_behind(partner_id: int, statement: Statement, first: int) -> int:
    """Find where a statement about a range has something to change. Locks nothing: words only go forward."""
    behind = [word for word in RANK if RANK[word] < RANK[statement.status]]
    span = {"stream": partner_id, "first": first, "last": statement.through, "behind": behind}
    with connection.cursor() as cursor:
        cursor.execute(LOWEST_BEHIND, span | {"status": str(statement.status)})
        found = cursor.fetchone()
    return int(found[0]) if found else first


@whole_step
def _take_step(partner_id: int, origin: Origin, statement: Statement, first: int, last: int) -> Answer:
    stream = Stream.objects.select_for_update(no_key=True).filter(partner_id=partner_id).first()
    through = statement.through or 0
    refusal = refuse_epoch(statement, epoch=stream.epoch) if stream else None
    if refusal:
        return Answer(refused=[refusal])
    if stream is None or through > stream.head:
        return Answer(refused=[refuse_unknown(statement)])
    if through > stream.told_through:
        message = f"You have been told numbers up to {stream.told_through}."
        return Answer(refused=[Refusal(through, "not_yet_sent", message)])
    with connection.cursor() as cursor:
        if statement.status == Handling.RECEIVED:
            moved = _move_watermark(cursor, stream, last)
        else:
            moved = _move_range(cursor, stream, statement, first, last)
            if statement.status == Handling.IN_PROGRESS:
                _hear(cursor, stream, first, last)
        if moved:
            testimony.write_range(stream, statement, first, last, origin)
        _settle(cursor, stream)
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


# Requests are locked first, in a statement of its own, so that of two last answers at once the later one sees both.
# It counts those that are closed already.
LOCK_REQUESTS = """
select count(closed_at)
  from (select closed_at from removal_removalrequest where id = any(%(ids)s) order by id for no key update) locked
"""
CLOSE_REQUESTS = """
update removal_removalrequest r
   set state = 'closed', closed_at = clock_timestamp(),
       outcome = case when a.complete then 'fulfilled' else 'partially_fulfilled' end
  from (select n.request_id, bool_and(n.handling in ('completed', 'partially_completed', 'rejected')
                                      or n.withdrawn_at is not null or n.closed_at is not null) ended,
               -- what was withdrawn here is said anew, under a later number
               bool_and(n.handling = 'completed' or n.withdrawn_at is not null) complete
          from removal_notice n where n.request_id = any(%(ids)s) group by 1) a
 where r.id = a.request_id and r.state in ('planned', 'closed') and r.outcome <> 'withdrawn' and not r.is_matching
   and a.ended
   and (r.state = 'planned' or r.outcome <> case when a.complete then 'fulfilled' else 'partially_fulfilled' end)
"""
# When some are closed already: what their rows do not say any more is in the log. "o" is a row as it was before.
CLOSE_AGAIN = f"""
with changed as ({CLOSE_REQUESTS} returning r.id)
insert into removal_logentry (actor, action, about)
select 'worker', 'request_outcome_changed',
       jsonb_build_object('request', o.public_id, 'outcome', o.outcome, 'closed_at', o.closed_at)
  from changed join removal_removalrequest o using (id)
 where o.closed_at is not null order by o.id
"""


def close_requests(cursor: CursorWrapper, *, request_ids: Sequence[int]) -> None:
    """Close those of the requests that have no open notice left. Needs an open transaction."""
    if not request_ids:
        return
    ids = {"ids": sorted(set(request_ids))}
    cursor.execute(LOCK_REQUESTS, ids)
    (closed,) = cursor.fetchone()
    cursor.execute(CLOSE_AGAIN if closed else CLOSE_REQUESTS, ids)


def accept_response(cursor: CursorWrapper, *, stream_id: int, epoch: int, first: int, last: int, answer: bytes) -> None:
    """Take a 2xx response's body as an acknowledgement, if it has exactly that form.

    Only for the message's own numbers, and at most as ``received``: anything else in a response is not a statement.
    Needs an open transaction with the stream's row locked.
    """
    numbers = read_response(answer, epoch=epoch, first=first, last=last)
    if not numbers:
        return
    stream = Stream.objects.get(partner_id=stream_id)
    if stream.epoch != epoch:
        return  # a message of before a restore: its numbers mean other notices now
    receipt = Statement(status=Handling.RECEIVED, text=answer.decode())
    if numbers == range(first, last + 1) and first <= stream.received_through + 1:
        moved = _move_watermark(cursor, stream, last)
        runs = [(first, last)] if moved else []
    else:
        runs = [run for run in _runs(numbers) if _move_range(cursor, stream, receipt, *run)]
    for run_first, run_last in runs:
        testimony.write_range(stream, receipt, run_first, run_last, Origin(Acknowledgement.Channel.RESPONSE))


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Join sorted numbers into runs without a gap: 1 2 3 7 8 -> (1, 3), (7, 8)."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]
