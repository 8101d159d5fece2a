"""Items that a partner names in an answer: are they what its notice is about?

A list may be as long as a line, so all lists of a block are held against the ledger in one statement. An item that the
notice is not about gets the same answer whether it exists or not: a partner learns nothing here (design §9.9).
"""

from collections.abc import Sequence

import msgspec
from django.db.backends.utils import CursorWrapper

from removal.models import Stream
from removal.statements import Statement

# said    an item of a statement's list, a row each
# notice  the notices that they are about, with the subject where there is only one; a withdrawn one is about nothing
# about   each item with the subject that it must be under
# place   the subjects in question, with what the request wants of each; an offboarding wants everything
# held    what the releases hold of these subjects
# wanted  the items that the request names
# A list of a hundred thousand is compared by hashing: an array that is searched for each of them would take minutes.
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
held as materialized (
    select distinct p.sequence, p.subject_id, i.item
      from place p
      join removal_manifestentry m on m.subject_id = p.subject_id and m.release_id = any(p.releases)
     cross join unnest(m.items) i(item)),
wanted as materialized (
    select distinct p.sequence, p.subject_id, i.item from place p cross join unnest(p.items) i(item)
     where not p.is_whole)
select a.place, bool_or(a.needs_subject)
  from about a
  left join place p on p.sequence = a.sequence and p.subject_id = a.subject_id
  left join held h on h.sequence = a.sequence and h.subject_id = a.subject_id and h.item = a.item
  left join wanted w on w.sequence = a.sequence and w.subject_id = a.subject_id and w.item = a.item
 where h.item is null or (not p.is_whole and w.item is null)
 group by 1
"""


def find_faults(cursor: CursorWrapper, *, stream: Stream, statements: Sequence[Statement]) -> dict[int, str]:
    """Find the statements whose items are not their notice's: place in ``statements`` -> ``unknown_item`` or
    ``subject_needed``. Statements about no notice of this stream are left out. Needs a transaction.
    """
    items = [
        {"place": place, "sequence": statement.sequence, "subject": subject, "item": item}
        for place, statement in enumerate(statements)
        for subject, item, _ in statement.items
    ]
    if not items:
        return {}
    cursor.execute(
        FIND_FAULTS,
        {
            "items": msgspec.json.encode(items).decode(),
            "sequences": sorted({item["sequence"] for item in items if isinstance(item["sequence"], int)}),
            "stream": stream.pk,
            "epoch": stream.epoch,
        },
    )
    return {place: "subject_needed" if needed else "unknown_item" for place, needed in cursor.fetchall()}
