"""Fills a release that is still building: with a whole manifest, or in parts.

Entries are copied into a staging table, and a few statements load them from there; memory stays flat. Locks are taken
once the last entry has come, so that nobody waits for a slow upload.

Subjects that are new get their rows before the load's own transaction, ten thousand a commit: whoever opts out in the
same moment waits for one such batch, and not for the load. If the load then fails they stay. A subject that nothing
is about is harmless, and the next attempt finds it there.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db import IntegrityError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists
from django.db.models.functions import Now

from removal.ledger import MAX_PARTS, Counts, Entry, InvalidManifest, find_building
from removal.models import LogEntry, ManifestEntry, ManifestPart
from removal.transactions import one_transaction, whole_step


class HasWholeManifest(Exception):
    """The release has a manifest that came whole; parts would add to it unseen."""


class InvalidPart(Exception):
    """A part cannot have this number. The message says which it may have."""


@dataclass(frozen=True)
class Part:
    """A part of a manifest as it stands now. It has not ``changed`` when the same bytes had come before."""

    number: int
    digest: bytes
    subjects: int
    items: int
    changed: bool


EMPTY = "delete from removal_manifestentry where release_id = %(release)s"


def replace_manifest(*, actor: str, name: str, entries: Iterable[Entry], one_line_each: bool = True) -> Counts:
    """Take a whole manifest in place of all that the release had, in one transaction of its own.

    ``entries`` may raise: then nothing is kept. A subject that stands on two lines is refused, or, without
    ``one_line_each``, has its lines joined. Raises UnknownRelease, ReleaseIsSealed, or InvalidManifest.
    """
    find_building(name)  # or it would be refused only after it was sent
    with _staged(entries, one_line_each=one_line_each) as cursor:
        return _replace(cursor, actor=actor, name=name)


@one_transaction()
def _replace(cursor: CursorWrapper, *, actor: str, name: str) -> Counts:
    release = find_building(name, lock="for no key update")
    cursor.execute(EMPTY, {"release": release.pk})
    ManifestPart.objects.filter(release=release).delete()
    counts = _load(cursor, release_id=release.pk, part=0)
    LogEntry.objects.create(
        actor=actor,
        action="manifest_replaced",
        about={"release": release.pk, "subjects": counts.subjects, "items": counts.items},
    )
    return counts


EMPTY_PART = "delete from removal_manifestentry where release_id = %(release)s and part = %(part)s"

# Nothing is updated; but an upload of the same part at the same time waits here until this one has ended.
CLAIM_PART = """
insert into removal_manifestpart (release_id, number, digest, subject_count, item_count, recorded_at)
values (%(release)s, %(part)s, '', 0, 0, clock_timestamp())
    on conflict (release_id, number) do update set number = excluded.number
returning digest, subject_count, item_count
"""


def put_part(
    *,
    actor: str,
    name: str,
    number: int,
    entries: Iterable[Entry],
    digest: Callable[[], bytes],
    one_line_each: bool = True,
) -> Part:
    """Take one part of a manifest, in place of an earlier part with this number. Parts may come in any order, at once.

    ``digest`` is asked after the last entry for the SHA-256 of the bytes they were read from; the same bytes again
    change nothing. Raises as ``replace_manifest`` does, also for a subject that is in another part; InvalidPart;
    HasWholeManifest.
    """
    if not 1 <= number <= MAX_PARTS:
        raise InvalidPart(f"Parts are numbered from 1 to {MAX_PARTS}.")
    find_building(name)
    with _staged(entries, one_line_each=one_line_each) as cursor:
        return _put(cursor, actor=actor, name=name, number=number, digest=digest())


@one_transaction()
def _put(cursor: CursorWrapper, *, actor: str, name: str, number: int, digest: bytes) -> Part:
    release = find_building(name, lock="for share")  # other parts may come in beside this one; sealing waits
    if _is_whole(release.pk):
        raise HasWholeManifest(name)
    part = {"release": release.pk, "part": number}
    cursor.execute(CLAIM_PART, part)
    earlier, subjects, items = cursor.fetchone()
    if bytes(earlier) == digest:
        return Part(number, digest, subjects, items, changed=False)
    if earlier:
        cursor.execute(EMPTY_PART, part)
    counts = _load(cursor, release_id=release.pk, part=number)
    ManifestPart.objects.filter(release=release, number=number).update(
        digest=digest, subject_count=counts.subjects, item_count=counts.items, recorded_at=Now()
    )
    LogEntry.objects.create(
        actor=actor,
        action="manifest_part_put",
        about={**part, "digest": digest.hex(), "subjects": counts.subjects, "items": counts.items},
    )
    return Part(number, digest, counts.subjects, counts.items, changed=True)


def _is_whole(release_id: int) -> bool:
    """Whether a release has entries that came in no part. Then it has no parts, so its first entry tells."""
    parts = ManifestPart.objects.filter(release=release_id)
    return ManifestEntry.objects.filter(release=release_id).exclude(Exists(parts)).exists()


# --- the staging table ---

# Of the session, since it is filled before the transaction that loads it. One left by an upload that could not even
# drop it goes first.
DROP_STAGE = "drop table if exists pg_temp.stage, pg_temp.joined, pg_temp.newcomer"
STAGE = "create temporary table stage (line bigint, subject text, items text[])"

# Where the items of a subject stand on several lines, they are joined into one row.
JOIN_LINES = """
create temporary table joined as
select min(g.line) line, g.subject, array_agg(distinct i.item) items
  from stage g cross join unnest(g.items) i(item) group by g.subject
"""
LOST_ITEMS = "select (select sum(cardinality(items)) from stage) > (select sum(cardinality(items)) from joined)"
REPEATED_ITEM = """
select min(g.line), max(g.line) from stage g cross join unnest(g.items) i(item)
 group by g.subject, i.item having count(*) > 1 order by 2 limit 1
"""

BLOCK_CHARACTERS = 256 * 1024


@contextmanager
def _staged(entries: Iterable[Entry], *, one_line_each: bool) -> Iterator[CursorWrapper]:
    """Have all entries in the table ``stage`` for a block, and a row for each of their subjects. Opens transactions."""
    with connection.cursor() as cursor:
        try:
            with one_transaction():
                cursor.execute(DROP_STAGE)
                _stage(cursor, entries, one_line_each=one_line_each)
            _add_subjects(cursor)
            yield cursor
        finally:
            if connection.is_usable():  # else the table went with the session
                cursor.execute(DROP_STAGE)


def _stage(cursor: CursorWrapper, entries: Iterable[Entry], *, one_line_each: bool) -> None:
    cursor.execute(STAGE)
    with cursor.copy("copy stage from stdin") as copy:
        rows: list[str] = []
        size = 0
        for entry in entries:
            rows.append(_as_row(entry))
            size += len(rows[-1])
            if size > BLOCK_CHARACTERS:
                copy.write("".join(rows))
                rows.clear()
                size = 0
        copy.write("".join(rows))
    if one_line_each:
        return
    cursor.execute(JOIN_LINES)
    cursor.execute(LOST_ITEMS)
    if cursor.fetchone()[0]:
        cursor.execute(REPEATED_ITEM)
        first, again = cursor.fetchone()
        raise InvalidManifest(again, f"Its item stands on line {first} already. Leave one of the two out.")
    cursor.execute("drop table stage; alter table joined rename to stage")


# What has a meaning of its own in a row of COPY, or in an array within one. Most keys have none of it, and to write
# rows ourselves takes a fifth of the time of psycopg's write_row.
_SPECIAL = re.compile(r'[\\"\t\n\r]')
_IN_ROW = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_IN_ARRAY = str.maketrans({"\\": r"\\\\", '"': r"\\" + '"', "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _as_row(entry: Entry) -> str:
    subject, items = entry.subject, entry.items
    if _SPECIAL.search(subject):
        subject = subject.translate(_IN_ROW)
    if _SPECIAL.search("".join(items)):
        items = [item.translate(_IN_ARRAY) for item in items]
    joined = '","'.join(items)
    return f'{entry.line}\t{subject}\t{{"{joined}"}}\n'


# --- from there into the release ---

# In order of key, and below in order of subject: uploads beside each other wait, and do not deadlock.
NEWCOMERS = """
create temporary table newcomer as
select row_number() over (order by g.subject) number, g.subject, lag(g.subject) over (order by g.subject) before
  from stage g where not exists (select from removal_subject s where s.key = g.subject)
"""
INDEX_NEWCOMERS = "create index on newcomer (number)"  # or each batch would read them all
IS_ONE_TWICE = "select exists (select from newcomer where subject = before)"
ADD_SUBJECTS = """
insert into removal_subject (key)
select subject from newcomer where number > %(after)s and number <= %(upto)s order by number on conflict do nothing
"""
SUBJECTS_AT_ONCE = 10_000


def _add_subjects(cursor: CursorWrapper) -> None:
    """Raises InvalidManifest for a new subject that stands twice: a manifest that is refused adds none."""
    cursor.execute(NEWCOMERS)
    count = cursor.rowcount
    cursor.execute(IS_ONE_TWICE)
    if cursor.fetchone()[0] and (refused := _repeated(cursor)):
        raise refused
    if count > SUBJECTS_AT_ONCE:
        cursor.execute(INDEX_NEWCOMERS)
    for after in range(0, count, SUBJECTS_AT_ONCE):
        _add_block(cursor, after)


@whole_step
def _add_block(cursor: CursorWrapper, after: int) -> None:
    cursor.execute(ADD_SUBJECTS, {"after": after, "upto": after + SUBJECTS_AT_ONCE})


LOAD = """
insert into removal_manifestentry (subject_id, release_id, items, item_count, part)
select s.id, %(release)s, g.items, cardinality(g.items), %(part)s
  from stage g join removal_subject s on s.key = g.subject order by s.id
"""
COUNTS = "select count(*), coalesce(sum(cardinality(items)), 0)::bigint from stage"


def _load(cursor: CursorWrapper, *, release_id: int, part: int) -> Counts:
    """Load the staging table into a release. Raises InvalidManifest for a subject that stands twice."""
    into = {"release": release_id, "part": part}
    try:
        with transaction.atomic():
            cursor.execute(LOAD, into)
    except IntegrityError as error:
        raise _explain(cursor, release_id) or error from error
    cursor.execute(COUNTS)
    return Counts(*cursor.fetchone())


# A subject that stands twice: where first, and where again. Asked only when the primary key has refused to take it.
REPEATED_SUBJECT = """
select min(line), max(line) from stage group by subject having count(*) > 1 order by 2 limit 1
"""
IN_ANOTHER_PART = """
select m.part, g.line
  from stage g
  join removal_subject s on s.key = g.subject
  join removal_manifestentry m on m.subject_id = s.id and m.release_id = %(release)s
 order by g.line limit 1
"""


def _explain(cursor: CursorWrapper, release_id: int) -> InvalidManifest | None:
    if found := _repeated(cursor):
        return found
    cursor.execute(IN_ANOTHER_PART, {"release": release_id})
    if found := cursor.fetchone():
        part, line = found
        return InvalidManifest(line, f"Its subject is in part {part} already. Keep a subject's items in one part.")
    return None


def _repeated(cursor: CursorWrapper) -> InvalidManifest | None:
    cursor.execute(REPEATED_SUBJECT)
    if found := cursor.fetchone():
        first, again = found
        return InvalidManifest(again, f"Its subject stands on line {first} already. Join the two lines.")
    return None
