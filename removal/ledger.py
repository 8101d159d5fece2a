"""Who received what: releases, their manifests (COPY), and the handovers to partners."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from partners.models import Partner
from removal import hints
from removal.models import Dataset, Disclosure, LogEntry, Release
from removal.models.ledger import name_validator
from removal.transactions import whole_step


class UnknownRelease(Exception):
    """No release has this name."""


class UnknownPartner(Exception):
    """No partner has this slug."""


class ReleaseExists(Exception):
    """The name is taken."""


class InvalidName(Exception):
    """A release or dataset cannot be called this. The message says what a name may be."""


class ReleaseIsSealed(Exception):
    """Sealed releases never change; make a new one."""


class ReleaseIsNotSealed(Exception):
    """Only what can no longer change may be handed over."""


class EmptyManifest(Exception):
    """A release without content is not sealed: most likely its upload failed."""


class InvalidManifest(Exception):
    """The manifest cannot be taken. ``line`` counts from 1; nothing of it was kept."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line}: {message}")
        self.line = line


class InvalidDisclosure(Exception):
    """The handover contradicts itself. ``field`` names where, the message what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Entry:
    """One line of a manifest: a subject and its items in the release. ``line`` is where it stood, from 1."""

    line: int
    subject: str
    items: list[str]


@dataclass(frozen=True)
class Counts:
    subjects: int
    items: int


@transaction.atomic(durable=True)
def create_release(*, actor: str, name: str, dataset: str, source: str) -> Release:
    """Start a release, and its dataset if that is new. Raises ReleaseExists or InvalidName."""
    try:
        name_validator(name)
        name_validator(dataset)
    except ValidationError as error:
        raise InvalidName(error.message) from error
    in_dataset, _ = Dataset.objects.get_or_create(name=dataset)
    try:
        with transaction.atomic():
            release = Release.objects.create(name=name, dataset=in_dataset, source=source)
    except IntegrityError as error:
        raise ReleaseExists(name) from error
    LogEntry.objects.create(actor=actor, action="release_created", about={"release": release.pk})
    return release


STAGE = "create temporary table stage (line bigint, subject text, items text[]) on commit drop"

# A subject that stands twice: where first, and where again.
REPEATED_SUBJECT = """
select min(line), max(line) from stage group by subject having count(*) > 1 order by 2 limit 1
"""
NO_ITEMS = "select line from stage where cardinality(items) = 0 order by line limit 1"
REPEATED_ITEM = """
select line from stage where cardinality(items) <> (select count(distinct i) from unnest(items) i) order by line limit 1
"""
NEW_SUBJECTS = "insert into removal_subject (key) select subject from stage order by subject on conflict do nothing"
REPLACE = "delete from removal_manifestentry where release_id = %(release)s"
LOAD = """
insert into removal_manifestentry (subject_id, release_id, items, item_count)
select s.id, %(release)s, g.items, cardinality(g.items) from stage g join removal_subject s on s.key = g.subject
"""


@transaction.atomic(durable=True)
def replace_manifest(*, actor: str, name: str, entries: Iterable[Entry]) -> Counts:
    """Take a whole manifest in place of what the release had, in one transaction; memory stays flat.

    ``entries`` may raise: then nothing is kept. Raises UnknownRelease, ReleaseIsSealed, or InvalidManifest for a
    subject or an item that stands twice.
    """
    release = _lock_building(name)
    with connection.cursor() as cursor:
        cursor.execute(STAGE)
        with cursor.copy("copy stage from stdin") as copy:
            for entry in entries:
                copy.write_row((entry.line, entry.subject, entry.items))
        cursor.execute("analyze stage")
        cursor.execute(REPEATED_SUBJECT)
        repeated = cursor.fetchone()
        if repeated:
            raise InvalidManifest(repeated[1], f"Its subject stands on line {repeated[0]} already. Join the two lines.")
        cursor.execute(NO_ITEMS)
        empty = cursor.fetchone()
        if empty:
            raise InvalidManifest(empty[0], "It names no item. Leave the line out.")
        cursor.execute(REPEATED_ITEM)
        repeated = cursor.fetchone()
        if repeated:
            raise InvalidManifest(repeated[0], "An item stands twice in it. Name each item once.")
        cursor.execute(NEW_SUBJECTS)
        cursor.execute(REPLACE, {"release": release.pk})
        cursor.execute(LOAD, {"release": release.pk})
        cursor.execute("select count(*), coalesce(sum(cardinality(items)), 0) from stage")
        counts = Counts(*cursor.fetchone())
        cursor.execute("drop table stage")
    LogEntry.objects.create(
        actor=actor,
        action="manifest_replaced",
        about={"release": release.pk, "subjects": counts.subjects, "items": int(counts.items)},
    )
    return counts


# The digest does not depend on the order of lines or items. An entry's hash is over its subject and its sorted items,
# each with its length in bytes before it; hashes are sorted and joined in 65,536 buckets, so that any size fits.
SEAL = """
with entry as (
    select m.item_count, sha256(convert_to(
               octet_length(s.key) || ':' || s.key
               || (select string_agg(octet_length(i) || ':' || i, '' order by i collate "C") from unnest(m.items) i),
               'UTF8')) hash
      from removal_manifestentry m join removal_subject s on s.id = m.subject_id where m.release_id = %(release)s),
bucket as (
    select substring(hash for 2) bucket, count(*) subjects, sum(item_count) items,
           sha256(string_agg(hash, ''::bytea order by hash)) digest
      from entry group by 1)
select coalesce(sum(subjects), 0), coalesce(sum(items), 0), sha256(string_agg(digest, ''::bytea order by bucket))
  from bucket
"""


@whole_step
def seal_release(*, actor: str, name: str) -> Release:
    """Fix a release for ever: counts and content digest. Raises UnknownRelease, ReleaseIsSealed or EmptyManifest."""
    release = _lock_building(name)
    with connection.cursor() as cursor:
        cursor.execute(SEAL, {"release": release.pk})
        subjects, items, digest = cursor.fetchone()
        if not subjects:
            raise EmptyManifest(name)
        cursor.execute(
            "update removal_release set state = 'sealed', sealed_at = clock_timestamp(), subject_count = %s,"
            " item_count = %s, digest = %s where id = %s",
            [subjects, items, digest, release.pk],
        )
    LogEntry.objects.create(
        actor=actor, action="release_sealed", about={"release": release.pk, "digest": bytes(digest).hex()}
    )
    release.refresh_from_db()
    return release


def _lock_building(name: str) -> Release:
    release = Release.objects.select_for_update(no_key=True).filter(name=name).first()
    if release is None:
        raise UnknownRelease(name)
    if release.state != Release.State.BUILDING:
        raise ReleaseIsSealed(name)
    return release


@whole_step
def record_disclosure(
    *,
    actor: str,
    release: str,
    partner: str,
    reference: str,
    disclosed_at: datetime | None,
    usages: tuple[str, ...] = ("all",),
    now: datetime,
) -> tuple[Disclosure, bool]:
    """Record that a partner received a release; returns the row and whether it is new. A repeat changes nothing.

    ``disclosed_at`` None means the database's now. Raises UnknownRelease, UnknownPartner, ReleaseIsNotSealed, or
    InvalidDisclosure for a time in the future or a reference that was used with other details.
    """
    if disclosed_at and disclosed_at > now + settings.CLOCK_SKEW:
        raise InvalidDisclosure("disclosed_at", "It lies in the future; record a handover when it has happened.")
    of_release = Release.objects.select_for_update(no_key=True).filter(name=release).first()
    if of_release is None:
        raise UnknownRelease(release)
    to_partner = Partner.objects.filter(slug=partner).first()
    if to_partner is None:
        raise UnknownPartner(partner)
    if of_release.state != Release.State.SEALED:
        raise ReleaseIsNotSealed(release)
    earlier = Disclosure.objects.filter(release=of_release, partner=to_partner, reference=reference).first()
    if earlier:
        if set(earlier.usages) != set(usages) or (disclosed_at and disclosed_at != earlier.disclosed_at):
            raise InvalidDisclosure(
                "reference", "This handover is recorded with other details. Use a reference of its own for each."
            )
        return earlier, False
    given = {"disclosed_at": disclosed_at} if disclosed_at else {}
    disclosure = Disclosure.objects.create(
        release=of_release, partner=to_partner, usages=list(usages), reference=reference, **given
    )
    LogEntry.objects.create(
        actor=actor,
        action="disclosure_recorded",
        about={"disclosure": disclosure.pk, "release": of_release.pk, "partner": to_partner.pk},
    )
    # Robust: the sweep finds the row if the broker does not hear of it.
    transaction.on_commit(lambda: hints.hint_planner(), robust=True)
    return disclosure, True
