"""More time: what a partner asked for, and what a person decided."""

from django.db import models
from django.db.models import CheckConstraint, Index, Q, UniqueConstraint
from django.db.models.functions import Now

from removal.models.evidence import SignedAnswer
from removal.models.streams import Stream


class Extension(models.Model):
    """A partner's wish for a later date of one notice. Append only, but for being decided once.

    The notice's ``respond_by`` stands until a person grants the wish.
    """

    class State(models.TextChoices):
        ASKED = "asked", "asked"  # waits for a person
        GRANTED = "granted", "granted"  # the notice has the new date
        REFUSED = "refused", "refused"  # the notice keeps its date

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="extensions", db_index=False)
    epoch = models.PositiveIntegerField()
    sequence = models.BigIntegerField()
    extend_until = models.DateTimeField()
    reason = models.TextField(help_text="The partner's own words.")
    key_prefix = models.CharField(max_length=12, blank=True, help_text="The API key it came with.")
    signed_answer = models.ForeignKey(
        SignedAnswer, models.PROTECT, null=True, related_name="extensions", db_index=False, db_constraint=False
    )
    asked_at = models.DateTimeField(db_default=Now())
    state = models.CharField(max_length=10, choices=State, default=State.ASKED)
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.CharField(max_length=100, blank=True, help_text="staff:<user id>")
    decision = models.TextField(blank=True, help_text="Why, in that person's words.")

    class Meta:
        constraints = [
            UniqueConstraint(
                fields=["stream", "epoch", "sequence"],
                condition=Q(state="asked"),
                name="a_notice_has_one_open_wish_for_time",
            ),
            UniqueConstraint(
                fields=["stream", "epoch", "sequence"],
                condition=Q(state="granted"),
                name="a_notice_is_extended_once",
            ),
            CheckConstraint(
                condition=Q(state="asked", decided_at__isnull=True, decided_by="", decision="")
                | Q(state__in=["granted", "refused"], decided_at__isnull=False) & ~Q(decided_by="") & ~Q(decision=""),
                name="a_person_decides_an_extension_and_says_why",
            ),
        ]
        indexes = [
            Index(fields=["stream", "epoch", "sequence"], name="extension_of_a_notice"),
            Index(fields=["state", "id"], name="extension_state"),
        ]

    def __str__(self) -> str:
        return f"extension {self.pk}"
