"""What must stay out of a release at this moment, and why: of candidates that come by, or of a whole manifest.

Two things keep content out: what prevails among the preferences of its subject (removal.preferences), and an active
deletion or recall of the subject or of some of its items. Gone is gone: neither the usages of the one nor the releases
that the other names matter for what comes after them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection

from removal.preferences import REFUSED, each_usage

# Of what must go, so many subjects are listed, with so many items each.
LISTED = 100


@dataclass(frozen=True)
class Exclusion:
    """Something that was kept out. ``items`` None is the whole subject.

    ``rule`` is the source of the preference that prevailed, ``default``, ``deletion`` or ``recall``; ``preference`` its
    id and ``request`` the public id of the request behind it, or None where there is none.
    """

    subject: str
    items: Sequence[str] | None
    rule: str
    preference: int | None
    request: str | None


@dataclass(frozen=True)
class Restriction:
    """A reason to keep a candidate's subject out, or some of its items (``items``).

    ``removal`` is the id of the deletion or recall, where it is one.
    """

    subject_id: int | None
    items: frozenset[str] | None
    rule: str
    preference: int | None
    request: str | None
    removal: int | None


# Who is restricted among candidate(key, subject_id); both CTEs are behind it.
REMOVED = """
removed as (
    select c.key, c.subject_id, t.items, r.kind rule, r.id request_id, r.public_id
      from candidate c
      cross join lateral (select * from removal_requesttarget t where t.subject_id = c.subject_id offset 0) t
      cross join lateral (
          select * from removal_removalrequest r
           where r.id = t.request_id and r.kind in ('deletion', 'recall')
             and r.withdrawn_at is null and r.ended_at is null offset 0) r)
"""

# Keys come as JSON: that is read quickly on both sides, and the database does not know how many they are. It would
# read all subjects there are rather than look up ten thousand.
OF_CANDIDATES = f"""
with candidate as materialized (
    select k.key, s.id subject_id
      from json_array_elements_text(%(keys)s) k(key) left join removal_subject s on s.key = k.key),
{REFUSED},
{REMOVED}
select key, subject_id, items, rule, null::bigint, public_id, request_id from removed where items is null
union all
select f.key, f.subject_id, null, f.rule, f.preference_id, r.public_id, null
  from refused f left join removal_removalrequest r on r.id = f.request_id
union all
select key, subject_id, items, rule, null, public_id, request_id from removed where items is not null
"""


def ask_about(*, keys: str, usages: Collection[str]) -> list[tuple[Any, ...]]:
    """Ask for what restricts subjects for ``usages``; ``keys`` is a JSON list, quickest when sorted."""
    with connection.cursor() as cursor:
        cursor.execute(OF_CANDIDATES, {"keys": keys, **_asked(usages)})
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def restrictions(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Restriction]]:
    """Put what ``ask_about`` found together: each subject with its reasons, the first that counts first."""
    restricted: dict[str, list[Restriction]] = {}
    for key, subject_id, items, *reason in rows:
        named = None if items is None else frozenset(items)
        restricted.setdefault(key, []).append(Restriction(subject_id, named, *reason))
    for reasons in restricted.values():
        # A whole subject's removal is the first reason, then what was said, then the removal of items.
        reasons.sort(key=lambda one: (one.items is not None, one.removal is None, one.removal or 0))
    return restricted


# The manifest's own items that must go, or null for the whole entry; one row a reason, and one for a whole entry.
OF_RELEASE = f"""
create temporary table must_go on commit drop as
with candidate as not materialized (
    select s.key, m.subject_id
      from removal_manifestentry m join removal_subject s on s.id = m.subject_id where m.release_id = %(release)s),
{REFUSED},
{REMOVED},
whole as (
    select distinct on (subject_id) subject_id, key, rule, preference_id, request_id
      from (select subject_id, key, rule, null::bigint preference_id, request_id, 0 place
              from removed where items is null
            union all
            select subject_id, key, rule, preference_id, request_id, 1 from refused) x
     order by subject_id, place, request_id)
select w.subject_id, w.key, null::text[] items, w.rule, w.preference_id, w.request_id from whole w
union all
select * from (
    select d.subject_id, d.key,
           array(select i from unnest(m.items) i intersect select i from unnest(d.items) i order by 1) items,
           d.rule, null::bigint, d.request_id
      from removed d
      join removal_manifestentry m on m.subject_id = d.subject_id and m.release_id = %(release)s
     where removal_items_meet(m.items, d.items)
       and not exists (select from whole w where w.subject_id = d.subject_id)) named
"""
FIRST = """
select g.key, g.items[:%(listed)s], g.rule, g.preference_id, r.public_id
  from must_go g left join removal_removalrequest r on r.id = g.request_id
 order by g.subject_id, g.request_id limit %(listed)s
"""


@dataclass(frozen=True)
class Found:
    """What must go from a release: how many subjects it is about, the first hundred reasons, and when it was so."""

    subjects: int
    first: Sequence[Exclusion]
    as_of: datetime


def find_in_release(*, release_id: int, usages: Collection[str]) -> Found:
    """Look through a whole manifest. Needs an open transaction, in which it leaves the table must_go for ``drop``."""
    with connection.cursor() as cursor:
        cursor.execute("drop table if exists must_go")
        cursor.execute(OF_RELEASE, {"release": release_id, **_asked(usages)})
        cursor.execute("select count(distinct subject_id), clock_timestamp() from must_go")
        subjects, as_of = cursor.fetchone()
        cursor.execute(FIRST, {"listed": LISTED})
        return Found(subjects, [Exclusion(*row) for row in cursor.fetchall()], as_of)


# An entry is never changed: what is left of it takes its place.
LEFT = """
create temporary table left_over on commit drop as
select m.subject_id, m.part,
       array(select x.item from unnest(m.items) with ordinality x(item, place)
              where not exists (select from unnest(g.items) y where y = x.item) order by x.place) items
  from (select subject_id, array_agg(i) items from must_go cross join unnest(items) i group by 1) g
  join removal_manifestentry m on m.subject_id = g.subject_id and m.release_id = %(release)s
"""
TAKE_OUT = """
delete from removal_manifestentry m using must_go g where m.subject_id = g.subject_id and m.release_id = %(release)s
"""
PUT_BACK = """
insert into removal_manifestentry (subject_id, release_id, items, item_count, part)
select subject_id, %(release)s, items, cardinality(items), part from left_over where cardinality(items) > 0
"""


def drop_from_release(*, release_id: int) -> None:
    """Take what ``find_in_release`` found in the same transaction out of a manifest that is still building."""
    with connection.cursor() as cursor:
        for statement in (LEFT, TAKE_OUT, PUT_BACK):
            cursor.execute(statement, {"release": release_id})
        cursor.execute("drop table must_go, left_over")


def _asked(usages: Collection[str]) -> dict[str, Any]:
    return {"usages": list(each_usage(usages)), "default": settings.DEFAULT_PREFERENCE}
