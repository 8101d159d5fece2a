"""Who received what, in which release, when."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import CheckConstraint, Index, Q, UniqueConstraint
from django.db.models.functions import Now

from partners.models import Partner, all_usages
from removal.models.subjects import Subject

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # it stands in URLs
name_validator = RegexValidator(
    NAME_PATTERN, "A name is 1 to 100 of A-Z, a-z, 0-9, dot, underscore and hyphen, and starts with a letter or digit."
)


class Dataset(models.Model):
    """What releases are versions of."""

    name = models.CharField(max_length=100, unique=True, validators=[name_validator])

    def __str__(self) -> str:
        return self.name


class Release(models.Model):
    """One version of a dataset: filled while building, immutable once sealed."""

    class State(models.TextChoices):
        BUILDING = "building", "building"  # its manifest may still be replaced; nobody can be given it
        SEALED = "sealed", "sealed"  # counts and digest are fixed; partners may be given it
        RECALLED = "recalled", "recalled"  # taken back; nobody is given it any more

    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="releases")
    name = models.CharField(max_length=100, unique=True, validators=[name_validator])
    source = models.CharField(max_length=200, blank=True, help_text="Where its content was taken from.")
    usages = ArrayField(
        models.TextField(), default=all_usages, help_text="What it is made for; the gate asks for these."
    )
    state = models.CharField(max_length=10, choices=State, default=State.BUILDING)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    sealed_at = models.DateTimeField(null=True, blank=True)
    subject_count = models.BigIntegerField(null=True, blank=True)
    item_count = models.BigIntegerField(null=True, blank=True)
    digest = models.BinaryField(max_length=32, null=True, blank=True)

    class Meta:
        constraints = [
            CheckConstraint(condition=Q(state__in=["building", "sealed", "recalled"]), name="a_release_has_a_state"),
            CheckConstraint(
                condition=Q(
                    state="building",
                    sealed_at__isnull=True,
                    digest__isnull=True,
                    subject_count__isnull=True,
                    item_count__isnull=True,
                )
                | ~Q(state="building")
                & Q(
                    sealed_at__isnull=False,
                    digest__isnull=False,
                    subject_count__isnull=False,
                    item_count__isnull=False,
                ),
                name="a_release_has_counts_and_a_digest_once_sealed",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ManifestEntry(models.Model):
    """A subject's items in a release, and the part of the upload it came in.

    Hash-partitioned by subject, so that a request reads one partition. Loaded set-based from a staging
    table whose join makes the references right; so no foreign-key check per row.
    """

    pk = models.CompositePrimaryKey("subject_id", "release_id")
    subject = models.ForeignKey(Subject, models.PROTECT, db_constraint=False, db_index=False, related_name="+")
    release = models.ForeignKey(Release, models.PROTECT, db_constraint=False, db_index=False, related_name="entries")
    items = ArrayField(models.TextField())
    item_count = models.IntegerField()
    part = models.IntegerField(default=0)

    class Meta:
        indexes = [Index(fields=["release", "part"], name="entries_of_a_part")]

    def __str__(self) -> str:
        return f"subject {self.subject_id} in release {self.release_id}"


class ManifestPart(models.Model):
    """One part of a manifest that is uploaded in parts. Sent again with the same digest, it changes nothing."""

    release = models.ForeignKey(Release, models.PROTECT, related_name="parts", db_index=False)
    number = models.PositiveIntegerField()
    digest = models.BinaryField(max_length=32, help_text="SHA-256 of its bytes as they came.")
    subject_count = models.BigIntegerField()
    item_count = models.BigIntegerField()
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            UniqueConstraint(fields=["release", "number"], name="a_part_is_kept_once"),
            CheckConstraint(condition=Q(number__gte=1), name="parts_are_counted_from_1"),
        ]

    def __str__(self) -> str:
        return f"part {self.number} of release {self.release_id}"


class Alarm(models.Model):
    """Content that was removed has come back in the candidates for a release. It was kept out; find its feed."""

    release = models.ForeignKey(Release, models.PROTECT, related_name="alarms")
    request = models.ForeignKey("RemovalRequest", models.PROTECT, related_name="alarms")
    subject = models.ForeignKey(Subject, models.PROTECT, related_name="+")
    feed = models.CharField(max_length=200, help_text="Where the candidates came from.")
    items = models.BigIntegerField(help_text="How many items of it came back.")
    raised_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            UniqueConstraint(
                fields=["release", "request", "subject", "feed"], name="an_alarm_is_raised_once_per_release_and_feed"
            )
        ]
        indexes = [
            Index(fields=["raised_at"], name="alarm_raised"),
            Index(fields=["feed", "id"], name="alarm_feed"),
        ]

    def __str__(self) -> str:
        return f"alarm {self.pk}"


class Disclosure(models.Model):
    """Partner P received release R at time T. Append only: one row per handover (GDPR Art. 15(1)(c), 19, 30)."""

    release = models.ForeignKey(Release, models.PROTECT, related_name="disclosures")
    partner = models.ForeignKey(Partner, models.PROTECT, related_name="disclosures")
    disclosed_at = models.DateTimeField(db_default=Now())
    usages = ArrayField(models.TextField(), help_text="What the partner may use it for, as of the handover.")
    reference = models.CharField(max_length=200, help_text="The handover's own name, such as a shipment or job id.")
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            UniqueConstraint(fields=["release", "partner", "reference"], name="a_handover_is_recorded_once"),
            CheckConstraint(condition=~Q(reference=""), name="a_handover_has_a_reference"),
            CheckConstraint(condition=Q(usages__len__gt=0), name="a_handover_is_for_some_usage"),
        ]

    def __str__(self) -> str:
        return f"disclosure {self.pk}"


class PlannedDisclosure(models.Model):
    """The planner has matched this disclosure. A row of its own, since a disclosure never changes."""

    disclosure = models.OneToOneField(Disclosure, models.PROTECT, primary_key=True, related_name="planned")
    round = models.BigIntegerField()

    def __str__(self) -> str:
        return f"disclosure {self.disclosure_id} in round {self.round}"
