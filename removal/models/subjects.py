"""Whose content it is, and what they allow."""

from django.db import models
from django.db.models import CheckConstraint, Index, Q, UniqueConstraint
from django.db.models.functions import Collate, Lower, Now

# Usage categories, version 1 (the AIPREF vocabulary and ours); "all" covers every one, named here or later.
USAGES = ("all", "train-ai", "search", "bulk-dataset")


class Subject(models.Model):
    """The container a setting is made on: a site, a blog, an account. Its key is the platform's own string."""

    key = models.TextField()
    # A person's data: shown to staff, erasable, and never sent, exported or logged.
    label = models.CharField(
        max_length=500, blank=True, db_default="", help_text="What people call it, such as its address or title."
    )

    class Meta:
        constraints = [
            # Not unique=True, which would add a second index for LIKE.
            UniqueConstraint(fields=["key"], name="a_subject_key_is_used_once"),
            CheckConstraint(condition=~Q(key=""), name="a_subject_has_a_key"),
        ]
        indexes = [
            # In the order of bytes, so that it finds beginnings too.
            Index(Collate(Lower("label"), "C"), name="subject_label", condition=~Q(label="")),
        ]

    def __str__(self) -> str:
        return self.key


class Preference(models.Model):
    """What one source says a subject allows for one usage, from when until when.

    The open row (no ``valid_to``) is in force. Each source has its own, so that none hides what another said;
    ``removal.preferences`` says which prevails.
    """

    class Value(models.TextChoices):
        ALLOW = "allow", "allow"
        DISALLOW = "disallow", "disallow"

    class Source(models.TextChoices):
        EXPLICIT = "explicit", "explicit"  # the person said so
        INHERITED = "inherited", "inherited"  # from the account to its sites
        CONTAINER_STATE = "container_state", "container state"  # private, suspended, deleted
        GPC = "gpc", "Global Privacy Control"
        REGISTRY = "registry", "registry"
        IMPORT = "import", "import"

    subject = models.ForeignKey(Subject, models.PROTECT, related_name="preferences", db_index=False)
    usage = models.CharField(max_length=40)
    value = models.CharField(max_length=8, choices=Value)
    source = models.CharField(max_length=15, choices=Source)
    valid_from = models.DateTimeField(db_default=Now())
    valid_to = models.DateTimeField(null=True, blank=True)
    request = models.ForeignKey("RemovalRequest", models.PROTECT, null=True, blank=True, related_name="preferences")

    class Meta:
        constraints = [
            UniqueConstraint(
                fields=["subject", "usage", "source"],
                condition=Q(valid_to__isnull=True),
                name="one_preference_is_in_force_per_subject_usage_and_source",
            ),
            CheckConstraint(condition=Q(value__in=["allow", "disallow"]), name="a_preference_allows_or_disallows"),
        ]
        indexes = [
            Index(fields=["subject"], name="preference_history", condition=Q(valid_to__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.value} {self.usage}"
