"""The JSON of the notices that nearly all are: of one subject, none taken back, with lists that fit into a message.

Made where the rows are, and written by hand: most of what a full message costs is spent here. An opt-out is told to
everybody who holds something, and most of what its notices say is the same for all who hold the same. So a process
keeps what it said last. What is missing here is read in the long way (``payload.read_notices``).
"""

import threading
from collections.abc import Mapping
from itertools import islice

from django.db import connection

# What a process keeps: so many, and none that is longer; some 500 bytes each, mostly.
MOST_KEPT = 20_000
LONGEST_KEPT = 1000

# What a notice says alone, and what names the rest. A request's id alone could mean another one after a restore of the
# database; one that was planned at the same microsecond is the same.
OWN = """
select sequence, concat(request_id, ' ', planned_at, ' ', item_count), disclosures::text,
       to_char(respond_by at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  from removal_notice
 where stream_id = %(stream)s and epoch = %(epoch)s and sequence between %(first)s and %(last)s
   and withdrawn_at is null and kind <> 'reinstatement' and item_count <= %(items)s
"""
RELEASES = """
select s.disclosures, array(select distinct release_id from removal_disclosure
                             where id = any(s.disclosures::bigint[]) order by 1)
  from unnest(%(sets)s::text[]) s(disclosures)
"""

# The rest. Looked up one by one ("offset 0"), or a claim would read all there is. `held` is a scalar, since a lateral
# one is memoized, and no two are alike.
SHARED = """
with notice as materialized (
    select sequence, kind, request_id, item_count, disclosures from removal_notice
     where stream_id = %(stream)s and epoch = %(epoch)s and sequence = any(%(missing)s::bigint[])
       and withdrawn_at is null),
handed as materialized (
    select n.disclosures, array_agg(l.id) releases, jsonb_object_agg(l.id, l.name) names
      from (select distinct disclosures from notice) n
      join removal_release l on l.id in (
          select d.release_id from removal_disclosure d where d.id = any(n.disclosures))
     group by 1)
select sequence,
       concat(',"kind":"', kind, '","request":"', public_id, '","items_total":', item_count,
              ',"reason":', to_json(reason), ',"usages":', array_to_json(usages), ',"subject":', to_json(key),
              ',"held":[', held, '],"received_at":"',
              to_char(received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '"')
  from (
    select n.sequence, n.kind, n.item_count, a.public_id, a.reason, a.usages, a.received_at, a.key, (
        select string_agg(concat('{"release":', h.names -> m.release_id::text,
                                 ',"items_total":', cardinality(b.items),
                                 ',"items":', array_to_json(b.items), '}'), ',' order by m.release_id)
          from removal_manifestentry m
          cross join lateral (
              select coalesce(removal_items_in_both(m.items, a.items), m.items) items offset 0) b
         where m.subject_id = a.subject_id and m.release_id = any(h.releases) and cardinality(b.items) > 0) held
      from notice n
      join handed h on h.disclosures = n.disclosures
      cross join lateral (
          select r.public_id, r.reason, r.usages, r.received_at, t.subject_id, t.items, s.key
            from removal_removalrequest r
            join removal_requesttarget t on t.request_id = r.id
            join removal_subject s on s.id = t.subject_id
           where r.id = n.request_id and r.target_count = 1 offset 0) a
    offset 0) told
 where octet_length(held) + 2 <= %(bytes)s
"""


Name = tuple[str, tuple[int, ...]]  # of what is kept: a request as it was planned, and its releases

_kept: dict[Name, str] = {}
_keeping = threading.Lock()


def read(*, stream_id: int, epoch: int, first: int, last: int, most_items: int, most_bytes: int) -> dict[int, bytes]:
    """Read notices by their numbers: those with at most so many items, in lists of at most so many bytes."""
    span = {"stream": stream_id, "epoch": epoch, "first": first, "last": last}
    said: dict[int, bytes] = {}
    missing: dict[int, tuple[Name, str]] = {}
    with connection.cursor() as cursor:
        cursor.execute(OWN, {**span, "items": most_items})
        notices = cursor.fetchall()
        cursor.execute(RELEASES, {"sets": list({disclosures for _, _, disclosures, _ in notices})})
        releases = {disclosures: tuple(ids) for disclosures, ids in cursor.fetchall()}
        for sequence, request, disclosures, respond_by in notices:
            name = request, releases[disclosures]
            if shared := _kept.get(name):
                said[sequence] = _join(sequence, shared, respond_by)
            else:
                missing[sequence] = name, respond_by
        if missing:
            cursor.execute(SHARED, {**span, "missing": f"{{{','.join(map(str, missing))}}}", "bytes": most_bytes})
            new: dict[Name, str] = {}
            for sequence, shared in cursor.fetchall():
                name, respond_by = missing[sequence]
                said[sequence] = _join(sequence, shared, respond_by)
                if len(shared) <= LONGEST_KEPT:
                    new[name] = shared
            _keep(new)
    return said


def _join(sequence: int, shared: str, respond_by: str) -> bytes:
    return f'{{"sequence":{sequence}{shared},"respond_by":"{respond_by}"}}'.encode()


def _keep(new: Mapping[Name, str]) -> None:
    """Keep what is new, and forget the oldest."""
    with _keeping:
        _kept.update(new)
        for name in list(islice(_kept, max(0, len(_kept) - MOST_KEPT))):
            del _kept[name]
