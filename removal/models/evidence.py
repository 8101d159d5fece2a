"""What was said and done, as it was: rows that nothing changes."""

from django.db import models
from django.db.models import CheckConstraint, F, Index, Q
from django.db.models.functions import Now

from removal.models.streams import Notice, Stream


class Acknowledgement(models.Model):
    """A partner's statement about one notice, or about all numbers from ``first_sequence`` through the last.

    Append only. The current state of a notice is its ``handling``; these rows are why.
    """

    class Channel(models.TextChoices):
        API = "api", "acknowledgement API"
        RESPONSE = "response", "webhook response"

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="acknowledgements", db_index=False)
    epoch = models.PositiveIntegerField()
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    status = models.CharField(max_length=20, choices=Notice.Handling)
    reason = models.CharField(max_length=40, blank=True)
    amends = models.BooleanField(default=False)
    outcomes = models.JSONField(default=dict)
    attestations = models.JSONField(default=list, help_text="What the partner says it did: attested, never verified.")
    completed_at = models.DateTimeField(null=True, blank=True)
    channel = models.CharField(max_length=10, choices=Channel)
    key_prefix = models.CharField(max_length=12, blank=True, help_text="The API key it came with.")
    text_digest = models.BinaryField(max_length=32, help_text="SHA-256 of its verbatim text.")
    received_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            CheckConstraint(
                condition=Q(first_sequence__gte=1, last_sequence__gte=F("first_sequence")),
                name="an_acknowledgement_names_numbers",
            ),
            CheckConstraint(condition=~Q(status="none"), name="an_acknowledgement_says_something"),
            CheckConstraint(condition=~Q(status="rejected") | ~Q(reason=""), name="a_rejection_has_a_reason"),
        ]
        indexes = [Index(fields=["stream", "epoch", "last_sequence"], name="acknowledgement_range")]

    def __str__(self) -> str:
        return f"acknowledgement {self.pk}"


class AcknowledgementText(models.Model):
    """A statement word for word, beside its digest, so that it can be erased when its time is over."""

    acknowledgement = models.OneToOneField(Acknowledgement, models.PROTECT, primary_key=True, related_name="text")
    text = models.TextField()

    def __str__(self) -> str:
        return f"text of acknowledgement {self.acknowledgement_id}"


class LogEntry(models.Model):
    """What happened and who did it: ids and states, never a person's name. Append only.

    ``at`` and ``digest`` (SHA-256 over all the rest) are set by the database.
    """

    at = models.DateTimeField(db_default=Now(), editable=False)
    actor = models.CharField(max_length=100, help_text="api:<key prefix>, staff:<user id>, worker, or a command.")
    action = models.CharField(max_length=60)
    about = models.JSONField(help_text="Ids of what it was done to.")
    digest = models.BinaryField(max_length=32, editable=False)

    class Meta:
        verbose_name_plural = "log entries"

    def __str__(self) -> str:
        return f"{self.action} {self.pk}"
