"""Who received what: releases and the handovers to partners. Their manifests come in through removal.uploads."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from partners.models import Partner
from removal import exclusions, hints
from removal.models import Dataset, Disclosure, LogEntry, Release
from removal.models.ledger import name_validator
from removal.transactions import one_transaction, whole_step


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


class ContentMustGo(Exception):
    """The release holds what must not leave: of ``subjects`` subjects, of which the first hundred are in ``first``."""

    def __init__(self, found: exclusions.Found) -> None:
        subjects = f"{found.subjects} subject" + "s" * (found.subjects != 1)
        super().__init__(f"Content of {subjects} must go: opted out, deleted or recalled.")
        self.subjects = found.subjects
        self.first = found.first


class PartsDiffer(Exception):
    """The parts that have come are not those that were announced. The message names them."""


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
    """A subject and its items in a release. ``line`` is where it stood, from 1. Raises ValueError for other items."""

    line: int
    subject: str
    items: list[str]

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("It names no item. Leave it out.")
        if len(set(self.items)) < len(self.items):
            raise ValueError("An item stands twice in it. Name each item once.")


@dataclass(frozen=True)
class Counts:
    subjects: int
    items: int


@one_transaction()
def create_release(*, actor: str, name: str, dataset: str, source: str, usages: Sequence[str] = ("all",)) -> Release:
    """Start a release made for ``usages``, and its dataset if that is new. Raises ReleaseExists or InvalidName."""
    try:
        name_validator(name)
        name_validator(dataset)
    except ValidationError as error:
        raise InvalidName(error.message) from error
    in_dataset, _ = Dataset.objects.get_or_create(name=dataset)
    try:
        with transaction.atomic():
            release = Release.objects.create(name=name, dataset=in_dataset, source=source, usages=list(usages))
    except IntegrityError as error:
        raise ReleaseExists(name) from error
    LogEntry.objects.create(actor=actor, action="release_created", about={"release": release.pk})
    return release


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


@dataclass(frozen=True)
class Sealed:
    """A sealed release, and what was taken out of it on the way."""

    release: Release
    dropped: exclusions.Found


@whole_step
def seal_release(*, actor: str, name: str, exclude: bool = False, parts: int | None = None) -> Sealed:
    """Fix a release for ever: counts and content digest. What must not be in it as of now is dropped with ``exclude``.

    ``parts`` says how many its manifest has, and must be told for one that came in parts. Raises UnknownRelease,
    ReleaseIsSealed, PartsDiffer, EmptyManifest (also when nothing is left), or ContentMustGo.
    """
    release = find_building(name, lock="for no key update")
    _check_parts(release, parts)
    dropped = exclusions.find_in_release(release_id=release.pk, usages=release.usages)
    if dropped.subjects and not exclude:
        raise ContentMustGo(dropped)
    if dropped.subjects:
        exclusions.drop_from_release(release_id=release.pk)
    with connection.cursor() as cursor:
        cursor.execute(SEAL, {"release": release.pk})
        subjects, items, digest = cursor.fetchone()
        if not subjects:
            raise EmptyManifest(name)
        cursor.execute(
            "update removal_release set state = 'sealed', sealed_at = %s, subject_count = %s,"
            " item_count = %s, digest = %s where id = %s",
            [dropped.as_of, subjects, items, digest, release.pk],
        )
    LogEntry.objects.create(
        actor=actor,
        action="release_sealed",
        about={"release": release.pk, "digest": bytes(digest).hex(), "subjects_dropped": dropped.subjects},
    )
    release.refresh_from_db()
    return Sealed(release, dropped)


MAX_PARTS = 100_000

# Announced parts that have not come, and others that have; numbers next to each other as ranges.
PARTS_THAT_DIFFER = """
with
announced as (select generate_series(1, %(parts)s) number),
come as (select number from removal_manifestpart where release_id = %(release)s),
differ as (
    select coalesce(a.number, c.number) number, c.number is null is_missing
      from announced a full join come c using (number) where a.number is null or c.number is null)
select is_missing, min(number), max(number)
  from (select *, number - row_number() over (partition by is_missing order by number) run from differ) x
 group by is_missing, run order by 2
"""


def _check_parts(release: Release, parts: int | None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(PARTS_THAT_DIFFER, {"release": release.pk, "parts": parts or 0})
        ranges = cursor.fetchall()
    if parts is None and ranges:
        raise PartsDiffer(f"It came in parts: {_listed(ranges)}. Say how many there are in all.")
    if missing := [found for found in ranges if found[0]]:
        raise PartsDiffer(f"These parts are missing: {_listed(missing)}.")
    if ranges:
        raise PartsDiffer(f"It has more parts than {parts}: {_listed(ranges)}. Say how many there are in all.")


def _listed(ranges: Sequence[tuple[bool, int, int]]) -> str:
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for _, first, last in ranges)


def find_building(name: str, *, lock: str = "") -> Release:
    """Find a release that may still be filled, and lock its row if a ``lock`` such as ``for share`` is named.

    Raises UnknownRelease or ReleaseIsSealed.
    """
    for release in Release.objects.raw(f"select * from removal_release where name = %s {lock}", [name]):
        if release.state != Release.State.BUILDING:
            raise ReleaseIsSealed(name)
        return release
    raise UnknownRelease(name)


@whole_step
def record_disclosure(
    *,
    actor: str,
    release: str,
    partner: str,
    reference: str,
    disclosed_at: datetime | None,
    usages: Sequence[str] | None = None,
    now: datetime,
) -> tuple[Disclosure, bool]:
    """Record that a partner receives a release; returns the row and whether it is new. A repeat changes nothing.

    ``disclosed_at`` None says that it is handed over now, if it may be: raises ContentMustGo when somebody has opted
    out since it was sealed. A time says that it was handed over then: that is a fact, and recorded whatever stands in
    it, so that the planner can tell the partner (docs/decisions/0008-gate.md). ``usages`` None are those that the
    partner is licensed for.

    Raises UnknownRelease, UnknownPartner, ReleaseIsNotSealed, or InvalidDisclosure for a time in the future or a
    reference that was used with other details.
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
        is_other = usages is not None and set(earlier.usages) != set(usages)
        if is_other or (disclosed_at and disclosed_at != earlier.disclosed_at):
            raise InvalidDisclosure(
                "reference", "This handover is recorded with other details. Use a reference of its own for each."
            )
        return earlier, False
    for_usages = list(to_partner.usages if usages is None else usages)
    if disclosed_at is None:
        found = exclusions.find_in_release(release_id=of_release.pk, usages=for_usages)
        if found.subjects:
            raise ContentMustGo(found)
    given = {"disclosed_at": disclosed_at} if disclosed_at else {}
    disclosure = Disclosure.objects.create(
        release=of_release, partner=to_partner, usages=for_usages, reference=reference, **given
    )
    LogEntry.objects.create(
        actor=actor,
        action="disclosure_recorded",
        about={"disclosure": disclosure.pk, "release": of_release.pk, "partner": to_partner.pk},
    )
    # Robust: the sweep finds the row if the broker does not hear of it.
    transaction.on_commit(lambda: hints.hint_planner(), robust=True)
    return disclosure, True
