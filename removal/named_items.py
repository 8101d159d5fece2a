"""Items that a partner names in an answer: are they what its notice is about?

A list may be as long as a line, so all lists of a block are held against the ledger in one statement. An item that the
notice is not about gets the same answer whether it exists or not: a partner learns nothing here (design §9.9).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from django.db.backends.utils import CursorWrapper

from partners.identifiers import SCHEME
from removal.identifiers import Identifiers
from removal.models import Stream
from removal.statements import Statement


class Said(NamedTuple):
    """An item of the statement at a ``place``, as it is named there."""

    place: int
    sequence: int
    subject: str | None
    item: str


# said    an item of a statement's list, a row each
# notice  the notices that they are about, with the subject where there is only one; a withdrawn one is about nothing
# about   each item with the subject that it must be under
# place   the subjects in question, with what the request wants of each; an offboarding wants everything
# known   what the releases hold of these subjects, and what the request names
# The two are laid beside each other by sorting, never joined: a join of a hundred thousand rows that is planned for a
# hundred takes minutes.
FIND_FAULTS = """
with
said as materialized (
    select * from json_to_recordset(%(items)s) x(place int, sequence bigint, subject text, item text)),
notice as materialized (
    select n.sequence, n.request_id, n.kind = 'offboarding' is_all,
           array(select distinct d.release_id from removal_disclosure d
                  where d.id = any(n.disclosures) and n.withdrawn_at is null) releases,
           (select case when count(*) = 1 then min(subject_id) end
              from (select t.subject_id from removal_requesttarget t where t.request_id = n.request_id limit 2) t) only
      from removal_notice n
     where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence = any(%(sequences)s)),
about as materialized (
    select x.place, x.sequence, x.item, x.subject is null and n.only is null needs_subject,
           case when x.subject is null then n.only else s.id end subject_id
      from said x join notice n using (sequence) left join removal_subject s on s.key = x.subject),
place as materialized (
    select a.sequence, a.subject_id, n.releases, t.items, t.items is null is_whole
      from (select distinct sequence, subject_id from about where subject_id is not null) a
      join notice n using (sequence)
      left join removal_requesttarget t on t.request_id = n.request_id and t.subject_id = a.subject_id
     where n.is_all or t.request_id is not null),
known as materialized (
    select p.sequence, p.subject_id, i.item, true is_held, p.is_whole is_wanted
      from place p
      join removal_manifestentry m on m.subject_id = p.subject_id and m.release_id = any(p.releases)
     cross join unnest(m.items) i(item)
    union all
    select p.sequence, p.subject_id, i.item, false, true from place p cross join unnest(p.items) i(item))
select place, bool_or(needs_subject)
  from (select place, needs_subject, bool_or(is_held) over item and bool_or(is_wanted) over item is_the_notices
          from (select place, needs_subject, sequence, subject_id, item, false is_held, false is_wanted from about
                 union all select null, false, sequence, subject_id, item, is_held, is_wanted from known) x
        window item as (partition by sequence, subject_id, item)) x
 where place is not null and not is_the_notices
 group by 1
"""


# Of the notices about one subject: its key, and its items in the releases that the notice is about.
OF_ONE_SUBJECT = """
select n.sequence, s.key,
       array(select distinct i.item
               from removal_disclosure d
               join removal_manifestentry m on m.subject_id = t.subject_id and m.release_id = d.release_id
              cross join unnest(m.items) i(item)
              where d.id = any(n.disclosures))
  from removal_notice n
  join removal_removalrequest r on r.id = n.request_id and r.target_count = 1
  join removal_requesttarget t on t.request_id = r.id
  join removal_subject s on s.id = t.subject_id
 where n.stream_id = %(stream)s and n.epoch = %(epoch)s and n.sequence = any(%(sequences)s)
"""


def find_faults(cursor: CursorWrapper, *, stream: Stream, statements: Sequence[Statement]) -> dict[int, str]:
    """Find the statements whose items are not their notice's: place in ``statements`` -> ``unknown_item``,
    ``subject_needed`` or ``counts_only``. Statements about no notice of this stream are left out. Needs a transaction.
    """
    said = [
        Said(place, statement.sequence, subject, item)
        for place, statement in enumerate(statements)
        if statement.sequence
        for subject, item, _ in statement.items
    ]
    if not said:
        return {}
    about: dict[str, int | list[int]] = {
        "sequences": sorted({one.sequence for one in said}),
        "stream": stream.pk,
        "epoch": stream.epoch,
    }
    cannot_match: set[int] = set()
    names = [names for names in Identifiers.ever_given(stream.pk) if not names.is_raw]
    if names:
        said, cannot_match = _as_raw(cursor, said, about, names)
    cursor.execute(FIND_FAULTS, {**about, "items": msgspec.json.encode([one._asdict() for one in said]).decode()})
    faults = {place: "subject_needed" if needed else "unknown_item" for place, needed in cursor.fetchall()}
    return faults | dict.fromkeys(cannot_match, "counts_only")


def _as_raw(
    cursor: CursorWrapper, said: Sequence[Said], about: dict[str, int | list[int]], names: Sequence[Identifiers]
) -> tuple[list[Said], set[int]]:
    """Give the items that a partner names in hashed form their own names, and the places where that cannot be done.

    It is done for notices about one subject. To find an item of a recall of a million, all of it would be hashed.
    """
    cursor.execute(OF_ONE_SUBJECT, about)
    held = {sequence: (subject, items) for sequence, subject, items in cursor.fetchall()}
    subjects = {(sequence, form.subject(subject)): subject for sequence, (subject, _) in held.items() for form in names}
    known = {
        (sequence, form.item(subject, item)): item
        for sequence, (subject, items) in held.items()
        for form in names
        for item in items
    }
    raw, cannot_match = [], set()
    for one in said:
        if one.sequence not in held and one.item.startswith(SCHEME):
            cannot_match.add(one.place)
        subject = subjects.get((one.sequence, one.subject or ""), one.subject)
        raw.append(one._replace(subject=subject, item=known.get((one.sequence, one.item), one.item)))
    return raw, cannot_match
