"""What may go into a future release: candidates come by, and whatever must not be in it is kept out, with the reason.

A candidate is a line ``{"subject": "site:123", "items": ["post:9"], "container_state": "public"}``. Lines without any
restriction leave as the bytes that they came as. Whoever calls must release nothing unless ``sift`` has returned: a
line that is not understood, a state that is not known, a database or a disk that fails, all raise.

Memory stays flat: a block of lines is held at a time, and each is asked about in one query.
"""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Barrier
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgspec
import structlog
from django.db import connection

from removal import exclusions
from removal.exclusions import Exclusion, Restriction
from removal.manifests import MAX_KEY_BYTES, MAX_LINE_BYTES, Unreadable, check_key, read_json
from removal.models import LogEntry, Release
from removal.preferences import CONTAINER_STATES, PUBLIC, Source
from removal.transactions import whole_step

log = structlog.get_logger()

BLOCK_BYTES = 2 * 1024 * 1024  # some 10,000 lines
ASKED_AT_ONCE = 2  # blocks, each over a connection of its own
FIELDS = ("subject", "items", "container_state")

T = TypeVar("T")
U = TypeVar("U")


class InvalidCandidate(Exception):
    """A line cannot be understood, so nothing may be released. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line}: {message}")
        self.line = line


@dataclass(frozen=True)
class Sifted:
    """How many items were let through and how many were not; ``digest`` is the SHA-256 of the lines let through."""

    allowed: int
    excluded: int
    digest: str

    def as_line(self) -> bytes:
        """The line that ends an answer; one without it must be discarded."""
        return as_line({"end": True, **asdict(self)})


@dataclass(frozen=True)
class _Block:
    """Some candidates: their lines, and what is asked about each. Items are read again where they matter.

    Keeping those of a whole block costs more than reading them: Python's collector walks through all of them.
    """

    last_line: int
    lines: Sequence[bytes]
    keys: str  # of the subjects, for the database
    subjects: Sequence[str]
    states: Sequence[str]
    item_count: int


def sift(
    *,
    actor: str,
    release: Release,
    candidates: Iterable[bytes],
    allowed: BinaryIO,
    decisions: BinaryIO,
    feed: str = "",
    progress: Callable[[int], None] = lambda lines: None,
) -> Sifted:
    """Write the candidates that a release may have to ``allowed``, and a line for each thing kept out to ``decisions``.

    ``candidates`` come in pieces of any size. ``feed`` says where from, for the alarm that removed content raises;
    without it, the release's source does. ``progress`` is told the number of lines after each block. Raises
    InvalidCandidate, and whatever the database or the files raise.
    """
    feed = feed or release.source or "unnamed"
    digest = hashlib.sha256()
    allowed_items = excluded_items = 0
    for last_line, judged in _judge(_read(candidates), usages=release.usages):
        if judged.came_back:
            _raise_alarms(actor=actor, release=release, feed=feed, came_back=judged.came_back)
        digest.update(judged.through)
        allowed.write(judged.through)
        decisions.writelines(as_line(vars(exclusion)) for exclusion in judged.kept_out)
        allowed_items += judged.allowed_items
        excluded_items += judged.excluded_items
        progress(last_line)
    done = Sifted(allowed_items, excluded_items, digest.hexdigest())
    LogEntry.objects.create(actor=actor, action="candidates_sifted", about={"release": release.pk, **asdict(done)})
    return done


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def as_line(fields: Mapping[str, Any]) -> bytes:
    return _encode(fields).encode() + b"\n"


# --- reading ---


def _blocks(pieces: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Cut pieces of any size into blocks of whole lines, each with the number of its first line."""
    number = 1
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= BLOCK_BYTES and b"\n" in piece:
            *lines, rest = b"".join(held).split(b"\n")
            yield number, lines
            number += len(lines)
            held, size = [rest], len(rest)
        elif size > MAX_LINE_BYTES + BLOCK_BYTES:
            number += b"".join(held).count(b"\n")
            raise InvalidCandidate(number, f"It is longer than {MAX_LINE_BYTES >> 20} MiB. Put fewer items on it.")
    if last := b"".join(held).removesuffix(b"\n"):
        yield number, last.split(b"\n")


def _beside(work: Callable[[T], U], arguments: Iterator[T], *, threads: int = 1) -> Iterator[U]:
    """Do the work on each argument on threads beside the caller's, as many at a time, and yield in order."""

    def hang_up(together: Barrier) -> None:
        together.wait()
        connection.close()  # each thread has one of its own, if it asked the database anything

    with ThreadPoolExecutor(threads) as workers:
        at_work: deque[Future[U]] = deque()
        try:
            for argument in arguments:
                at_work.append(workers.submit(work, argument))
                if len(at_work) > threads:
                    yield at_work.popleft().result()
            while at_work:
                yield at_work.popleft().result()
        finally:
            together = Barrier(threads)
            for _ in range(threads):
                workers.submit(hang_up, together)


def _read(candidates: Iterable[bytes]) -> Iterator[_Block]:
    return _beside(lambda block: _read_plain(*block) or _read_any(*block), _blocks(candidates))


Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES // 4)]  # a character has up to 4 bytes


class _Candidate(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    subject: Key
    items: Annotated[list[Key], msgspec.Meta(min_length=1)]
    container_state: Literal[CONTAINER_STATES]  # type: ignore[valid-type]  # the words that there are


_decode = msgspec.json.Decoder(_Candidate).decode
# What a decoder takes and we do not: NUL, and a field's name spelt with escapes, which could stand twice unseen.
SUSPECT = re.compile(rb"\\u00(?:00|[567])")
NAMES = tuple(f'"{name}"'.encode() for name in FIELDS)


def _read_plain(number: int, lines: list[bytes]) -> _Block | None:
    """Read a block in which every line is as plain as can be, with as little for each as can be; or return None."""
    block = b"\n".join(lines)
    # Of a field that stands twice the decoder would take the last.
    if SUSPECT.search(block) or any(block.count(name) != len(lines) for name in NAMES):
        return None
    try:
        return _block(number + len(lines) - 1, lines, *_columns(map(_decode, lines)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _block(last_line: int, lines: list[bytes], subjects: list[str], states: list[str], item_count: int) -> _Block:
    keys = msgspec.json.encode(sorted(set(subjects))).decode()
    return _Block(last_line, lines, keys, subjects, states, item_count)


def _columns(candidates: Iterable[_Candidate]) -> tuple[list[str], list[str], int]:
    """Take what is asked about each candidate, and drop its items before the next one is read."""
    subjects = []
    states = []
    item_count = 0
    for candidate in candidates:
        subjects.append(candidate.subject)
        states.append(candidate.container_state)
        item_count += len(candidate.items)
    return subjects, states, item_count


def _read_any(number: int, lines: list[bytes]) -> _Block:
    """Read a block in which some line has a fault, a long key, blanks, or its fields in another order.

    Raises InvalidCandidate.
    """
    filled = [(place, line) for place, line in enumerate(lines, start=number) if line.strip()]
    subjects = []
    states = []
    item_count = 0
    for number_of_line, line in filled:
        try:
            subject, items, state = _read_line(line)
        except (Unreadable, ValueError) as error:
            raise InvalidCandidate(number_of_line, str(error)) from error
        subjects.append(subject)
        states.append(state)
        item_count += len(items)
    return _block(number + len(lines) - 1, [line for _, line in filled], subjects, states, item_count)


def _read_line(line: bytes) -> tuple[str, list[str], str]:
    said = read_json(line)
    if not isinstance(said, dict) or said.keys() != set(FIELDS):
        raise ValueError('Write an object with the fields "subject", "items" and "container_state", and no others.')
    subject, items, state = (said[name] for name in FIELDS)
    if state not in CONTAINER_STATES:
        raise ValueError(f"container_state must be one of: {', '.join(CONTAINER_STATES)}.")
    if not isinstance(items, list) or not items:
        raise ValueError("items must be a list of at least one item. Leave out a subject that has none.")
    for place, key in (("subject", subject), *((f"items[{n}]", item) for n, item in enumerate(items))):
        try:
            check_key(key)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return subject, items, state


# --- deciding ---


@dataclass(frozen=True)
class _Judged:
    """What becomes of a block: the lines that may pass, what was kept out, and what was removed and came back.

    ``came_back`` counts items by (id of the removal, id of the subject).
    """

    through: bytes
    kept_out: Sequence[Exclusion]
    allowed_items: int
    excluded_items: int
    came_back: Mapping[tuple[int, int], int]


def _judge(blocks: Iterator[_Block], *, usages: Sequence[str]) -> Iterator[tuple[int, _Judged]]:
    """Ask the database about two blocks at a time, and judge each while the next ones are asked about."""

    def ask(block: _Block) -> tuple[_Block, list[tuple[Any, ...]]]:
        return block, exclusions.ask_about(keys=block.keys, usages=usages)

    answered = _beside(ask, blocks, threads=ASKED_AT_ONCE)
    return _beside(lambda one: (one[0].last_line, _judge_block(*one)), answered)


def _judge_block(block: _Block, found: list[tuple[Any, ...]]) -> _Judged:
    restricted = exclusions.restrictions(found)
    through = list(block.lines)
    kept_out: list[Exclusion] = []
    excluded_items = 0
    came_back: Counter[tuple[int, int]] = Counter()
    for place, (subject, state) in enumerate(zip(block.subjects, block.states, strict=True)):
        if state == PUBLIC and subject not in restricted:
            continue
        items = json.loads(block.lines[place])["items"]
        reasons = restricted.get(subject, ())
        excluded, left = _judge_candidate(subject, items, state, reasons)
        kept_out += excluded
        excluded_items += len(items) - len(left)
        came_back += _count_removed(items, reasons)
        if excluded:
            fields = dict(zip(FIELDS, (subject, left, state), strict=True))
            through[place] = as_line(fields).rstrip() if left else b""
    passing = [line for line in through if line] if kept_out else through
    allowed_items = block.item_count - excluded_items
    return _Judged(b"\n".join([*passing, b""]), kept_out, allowed_items, excluded_items, came_back)


def _judge_candidate(
    subject: str, items: list[str], state: str, reasons: Iterable[Restriction]
) -> tuple[list[Exclusion], list[str]]:
    """Say what of a candidate stays out, and which of its items are left. The first reason that counts is named."""
    if state != PUBLIC:
        return [Exclusion(subject, None, Source.CONTAINER_STATE.value, None, None)], []
    excluded = []
    left = items
    for reason in reasons:
        if reason.items is None:
            return [Exclusion(subject, None, reason.rule, reason.preference, reason.request)], []
        if gone := [item for item in left if item in reason.items]:
            excluded.append(Exclusion(subject, gone, reason.rule, reason.preference, reason.request))
            left = [item for item in left if item not in reason.items]
    return excluded, left


def _count_removed(items: list[str], reasons: Iterable[Restriction]) -> Counter[tuple[int, int]]:
    return Counter(
        {
            (reason.removal, reason.subject_id): sum(reason.items is None or item in reason.items for item in items)
            for reason in reasons
            if reason.removal is not None and reason.subject_id is not None
        }
    )


# --- what comes back ---

# An alarm that was raised before stands; only a new one is logged.
RAISE = """
with raised as (
    insert into removal_alarm (release_id, request_id, subject_id, feed, items, raised_at)
    select %(release)s, x.request_id, x.subject_id, %(feed)s, x.items, clock_timestamp()
      from unnest(%(requests)s::bigint[], %(subjects)s::bigint[], %(items)s::bigint[]) x(request_id, subject_id, items)
     order by 2, 3
        on conflict (release_id, request_id, subject_id, feed)
        do update set items = greatest(removal_alarm.items, excluded.items)
    returning request_id, (xmax = 0) is_new),
new as (
    select a.request_id, r.public_id, count(*) subjects
      from raised a join removal_removalrequest r on r.id = a.request_id where a.is_new group by 1, 2),
logged as (
    insert into removal_logentry (actor, action, about)
    select %(actor)s, 'reentry_alarm',
           jsonb_build_object('release', %(release)s, 'request', public_id, 'subjects', subjects)
      from new returning 1)
select public_id, subjects, (select count(*) from logged) from new order by public_id
"""


@whole_step
def _raise_alarms(*, actor: str, release: Release, feed: str, came_back: Mapping[tuple[int, int], int]) -> None:
    """Raise an alarm for each removed subject that came back, once for a release and feed."""
    said: dict[str, Any] = {
        "actor": actor,
        "release": release.pk,
        "feed": feed,
        "requests": [request_id for request_id, _ in came_back],
        "subjects": [subject_id for _, subject_id in came_back],
        "items": list(came_back.values()),
    }
    with connection.cursor() as cursor:
        cursor.execute(RAISE, said)
        for request, subjects, _ in cursor.fetchall():
            log.warning("reentry_alarm", release_id=release.pk, request=request, subjects=subjects)
