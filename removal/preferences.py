"""What subjects allow: who said so, since when, and who prevails.

For each usage that a release is made for, the first of these that says anything decides:

1. The container's state. Whatever is not ``public`` is excluded, and so is what a preference of source
   ``container_state`` disallows. One that allows says only that the content is public, and decides nothing.
2. What the person said (source ``explicit``): one disallow, of this usage or of ``all``, beats every allow.
3. What others say for the person (``gpc``, ``registry``, ``inherited``, ``import``): a disallow beats every allow.
4. The platform's default, DEFAULT_PREFERENCE.

So an explicit allow outranks a disallow that is not explicit. A release for several usages needs every one of them; one
for ``all`` needs each usage there is, and those that may come. ``decide`` is this rule for one subject, ``REFUSED`` for
a set of them (docs/decisions/0007-who-prevails.md).

An opt-out that is withdrawn ends, and what it took the place of is said anew (``intake.withdraw_request``); its log
entry names both. The same refusal said while it stands is kept behind it, as a line of history that ends where the
opt-out's begins. History is never changed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from django.conf import settings
from django.db import connection

from removal.intake import LOCK_SUBJECTS, SUBJECTS
from removal.models import LogEntry, Preference, Subject
from removal.models.subjects import USAGES
from removal.transactions import whole_step

PUBLIC = "public"
# Every other state that a container can be in; all of them exclude. A word that is not here is a mistake, not a state.
EXCLUDING_STATES = (
    "private",
    "password_protected",
    "subscribers_only",
    "discouraged",  # its owner asks search engines to stay away
    "draft",
    "pending",
    "scheduled",
    "trashed",
    "suspended",
    "deleted",
)
CONTAINER_STATES = (PUBLIC, *EXCLUDING_STATES)

Source = Preference.Source
ALLOW, DISALLOW = Preference.Value.ALLOW, Preference.Value.DISALLOW
DEFAULT = "default"  # the rule's name where nobody said anything


class UnknownState(Exception):
    """No container is in a state of this name; the content is not released."""


class UnknownSubject(Exception):
    """Nothing was ever said or recorded about a subject with this key."""


class InvalidChoice(Exception):
    """The choice contradicts itself. ``field`` names where, the message what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


# --- who prevails ---


@dataclass(frozen=True)
class InForce:
    """A preference that nothing has ended yet."""

    id: int
    usage: str
    value: str
    source: str


@dataclass(frozen=True)
class Prevailing:
    """What holds for a usage, and why: ``rule`` is a source or ``default``, ``preference`` its id or None."""

    value: str
    rule: str
    preference: int | None

    @property
    def order(self) -> tuple[int, int]:
        return _rank(self.rule), self.preference or 0


def decide(*, container_state: str, usages: Collection[str], in_force: Iterable[InForce], default: str) -> Prevailing:
    """Say whether a subject's content may go into a release for ``usages``, and which rule says so.

    Raises UnknownState.
    """
    if container_state not in CONTAINER_STATES:
        raise UnknownState(container_state)
    if container_state != PUBLIC:
        return Prevailing(DISALLOW, Source.CONTAINER_STATE, None)
    known = list(in_force)
    per_usage = [prevailing(usage=usage, in_force=known, default=default) for usage in each_usage(usages)]
    return min(per_usage, key=lambda one: (one.value != DISALLOW, *one.order))


def prevailing(*, usage: str, in_force: Iterable[InForce], default: str) -> Prevailing:
    """Say what holds for one usage of public content."""
    said = [one for one in in_force if one.usage in (usage, "all") and (one.source, one.value) != _SAYS_NOTHING]
    if not said:
        return Prevailing(default, DEFAULT, None)
    first = min(said, key=lambda one: (_rank(one.source), one.value != DISALLOW, one.id))
    return Prevailing(first.value, first.source, first.id)


def each_usage(usages: Collection[str]) -> Sequence[str]:
    """Spell ``all`` out. Its own word stays among them: it stands for the usages that may come."""
    return USAGES if "all" in usages else sorted(usages)


_SAYS_NOTHING = (Source.CONTAINER_STATE, ALLOW)


def _rank(rule: str) -> int:
    return {Source.CONTAINER_STATE: 0, Source.EXPLICIT: 1, DEFAULT: 3}.get(rule, 2)


# The same rule over a relation candidate(key, subject_id), as CTEs to put behind it. refused has one row for each
# candidate that must stay out, with what prevails. %(usages)s are spelt out by each_usage. An index scan on what was
# said is all it takes while the default is to allow; the last branch is planned away.
REFUSED = """
said as materialized (
    select c.key, c.subject_id, w.usage, p.id, p.value, p.source, p.request_id,
           case p.source when 'container_state' then 0 when 'explicit' then 1 else 2 end rank
      from candidate c
      -- "offset 0" makes this a look-up by subject, however little the database knows yet of what was just said
      cross join lateral (select * from removal_preference p
                           where p.subject_id = c.subject_id and p.valid_to is null offset 0) p
      join unnest(%(usages)s::text[]) w(usage) on p.usage in (w.usage, 'all')
     where not (p.source = 'container_state' and p.value = 'allow')),
-- descending, disallow stands before allow
prevailing as (
    select distinct on (key, usage) * from said order by key, usage, rank, value desc, id),
unsaid as (
    select c.key, c.subject_id
      from candidate c cross join unnest(%(usages)s::text[]) w(usage)
     where %(default)s = 'disallow'
       and not exists (select from said where said.key = c.key and said.usage = w.usage)),
refused as (
    select distinct on (key) key, subject_id, source rule, id preference_id, request_id
      from (select key, subject_id, source, id, request_id, rank from prevailing where value = 'disallow'
            union all select key, subject_id, 'default', null, null, 3 from unsaid) x
     order by key, rank, id)
"""

# --- what is said ---


@dataclass(frozen=True)
class Choice:
    """What one source says a subject allows for one usage. ``valid_from`` None means from now on."""

    subject: str
    usage: str
    value: str
    source: str
    valid_from: datetime | None = None


class Answer(StrEnum):
    """What became of a choice."""

    CREATED = "created"
    UNCHANGED = "unchanged"  # the same is in force already
    OPT_OUT_STANDS = "opt_out_stands"  # partners are told of that opt-out: only a reinstatement ends it
    TOO_LATE = "too_late"  # something newer is in force


def check_valid_from(choice: Choice, *, now: datetime) -> None:
    """Raise InvalidChoice when the choice is to begin in the future."""
    if choice.valid_from and choice.valid_from > now + settings.CLOCK_SKEW:
        raise InvalidChoice("valid_from", "It lies in the future; send a choice when it is made.")


OPEN = """
select p.subject_id, p.usage, p.source, p.id, p.value, p.valid_from, p.request_id is not null,
       p.request_id is not null and exists (
           select from removal_preference o
            where o.subject_id = p.subject_id and o.usage = p.usage and o.source = p.source and o.value = p.value
              and o.valid_to = p.valid_from and o.request_id is null)
  from removal_preference p where p.subject_id = any(%(subjects)s) and p.valid_to is null
"""
CLOSE = """
update removal_preference p set valid_to = x.valid_to
  from unnest(%(ids)s::bigint[], %(ends)s::timestamptz[]) x(id, valid_to) where p.id = x.id
"""
INSERT = """
insert into removal_preference (subject_id, usage, value, source, valid_from, valid_to)
select x.subject_id, x.usage, x.value, x.source, x.valid_from, x.valid_to
  from unnest(%(subjects)s::bigint[], %(usages)s::text[], %(values)s::text[], %(sources)s::text[],
              %(begins)s::timestamptz[], %(ends)s::timestamptz[]) with ordinality
       x(subject_id, usage, value, source, valid_from, valid_to, place)
 order by x.place returning id
"""


@dataclass
class _Row:
    """A preference as it is, or will be, in the table; ``id`` None is one that this block adds.

    ``is_said_too``: it is an opt-out's, and holds on without it, since the same was said beside it.
    """

    subject_id: int
    usage: str
    source: str
    id: int | None
    value: str
    valid_from: datetime
    has_request: bool = False
    is_said_too: bool = False
    valid_to: datetime | None = None


@whole_step
def record_preferences(*, actor: str, choices: Sequence[Choice], now: datetime) -> list[Answer]:
    """Record a block of choices in one transaction; answers in their order. What is in force already changes nothing.

    Each source has its own history: a choice ends the one of the same source before it. ``now`` is only what a
    ``valid_from`` is checked against; the clock of a choice without one is the database's. Raises InvalidChoice before
    anything is written.
    """
    for choice in choices:
        check_valid_from(choice, now=now)
    with connection.cursor() as cursor:
        keys = {"keys": [choice.subject for choice in choices]}
        cursor.execute(SUBJECTS, keys)
        cursor.execute(LOCK_SUBJECTS, keys)
        subject_ids = {key: subject_id for subject_id, key in cursor.fetchall()}
        cursor.execute(OPEN, {"subjects": list(subject_ids.values())})
        said = _Said(_Row(*row) for row in cursor.fetchall())
        cursor.execute("select clock_timestamp()")
        (at,) = cursor.fetchone()
        answers = [said.take(subject_ids[choice.subject], choice, at=at) for choice in choices]
        if said.ended:
            ends = [row.valid_to for row in said.ended]
            cursor.execute(CLOSE, {"ids": [row.id for row in said.ended], "ends": ends})
        if rows := said.added:
            cursor.execute(
                INSERT,
                {
                    "subjects": [row.subject_id for row in rows],
                    "usages": [row.usage for row in rows],
                    "values": [str(row.value) for row in rows],
                    "sources": [str(row.source) for row in rows],
                    "begins": [row.valid_from for row in rows],
                    "ends": [row.valid_to for row in rows],
                },
            )
            made = [preference_id for (preference_id,) in cursor.fetchall()]
            LogEntry.objects.create(actor=actor, action="preferences_recorded", about={"preferences": made})
    return answers


class _Said:
    """The open preferences of some locked subjects, and what a block of choices does to them."""

    def __init__(self, rows: Iterable[_Row]) -> None:
        self.open: dict[int, dict[tuple[str, str], _Row]] = {}
        for row in rows:
            self.open.setdefault(row.subject_id, {})[row.usage, row.source] = row
        self.ended: list[_Row] = []  # of those that are in the table
        self.added: list[_Row] = []

    def take(self, subject_id: int, choice: Choice, *, at: datetime) -> Answer:
        of_subject = self.open.setdefault(subject_id, {})
        if choice.source == Source.EXPLICIT and choice.value == ALLOW and _is_refused(choice, of_subject.values()):
            return Answer.OPT_OUT_STANDS
        before = of_subject.get((choice.usage, choice.source))
        begins = min(choice.valid_from or at, at)
        if before and before.value == choice.value:
            return self._say_too(before)
        if before and begins < before.valid_from:
            return Answer.TOO_LATE
        if before:
            before.valid_to = begins
            if before.id is not None:
                self.ended.append(before)
        row = _Row(subject_id, choice.usage, choice.source, None, choice.value, begins)
        of_subject[choice.usage, choice.source] = row
        self.added.append(row)
        return Answer.CREATED

    def _say_too(self, before: _Row) -> Answer:
        """Keep what says the same as an opt-out behind it: there it is found when the opt-out is withdrawn."""
        if not before.has_request or before.is_said_too or before.value != DISALLOW:
            return Answer.UNCHANGED
        before.is_said_too = True
        behind = replace(before, id=None, has_request=False, valid_to=before.valid_from)
        self.added.append(behind)
        return Answer.CREATED


def _is_refused(allow: Choice, rows: Iterable[_Row]) -> bool:
    """Whether an opt-out that partners are told about stands against any of what is to be allowed."""
    return any(
        row.has_request and row.value == DISALLOW and (row.usage == allow.usage or "all" in (row.usage, allow.usage))
        for row in rows
    )


# --- what is asked ---

MOST_HISTORY = 1000


@dataclass(frozen=True)
class Standing:
    """All that was said about a subject: what holds for each usage, what is in force, and what was, newest first."""

    subject: str
    prevails: dict[str, Prevailing]
    in_force: list[Preference]
    history: list[Preference]


def find_preferences(*, subject: str) -> Standing:
    """Find what a subject allows and why; of what has ended, the newest 1,000. Raises UnknownSubject."""
    row = Subject.objects.filter(key=subject).first()
    if row is None:
        raise UnknownSubject
    said = Preference.objects.select_related("request").filter(subject=row)
    in_force = list(said.filter(valid_to=None).order_by("usage", "source", "id"))
    known = [InForce(one.pk, one.usage, one.value, one.source) for one in in_force]
    return Standing(
        subject=subject,
        prevails={
            usage: prevailing(usage=usage, in_force=known, default=settings.DEFAULT_PREFERENCE) for usage in USAGES
        },
        in_force=in_force,
        history=list(said.exclude(valid_to=None).order_by("-valid_to", "-id")[:MOST_HISTORY]),
    )
