"""What was said and done, as it was: rows that nothing changes."""

from django.contrib.postgres.indexes import GistIndex
from django.db import models
from django.db.models import CheckConstraint, F, Index, Q, UniqueConstraint
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Now

from partners.models import Partner, Secret
from removal.models.numbers import NumberRange
from removal.models.streams import Notice, Stream


class SignedAnswer(models.Model):
    """A request whose whole body the partner signed, as it was verified before any line of it was taken. Append only.

    Its body lies beside it. ``key`` is the partner's public one; it may be retired or revoked since.
    """

    partner = models.ForeignKey(Partner, models.PROTECT, related_name="signed_answers", db_index=False)
    key = models.ForeignKey(Secret, models.PROTECT, related_name="+")
    message_id = models.CharField("webhook-id", max_length=256)
    timestamp = models.CharField("webhook-timestamp", max_length=11)
    signature = models.TextField("webhook-signature")
    body_digest = models.BinaryField(max_length=32, help_text="SHA-256 of the body.")
    received_at = models.DateTimeField(help_text="The moment for which signature and key were found good.")

    class Meta:
        constraints = [
            UniqueConstraint(fields=["partner", "message_id"], name="an_id_signs_one_answer_of_a_partner"),
        ]
        indexes = [Index(fields=["partner", "id"], name="signed_answer_of_partner")]

    def __str__(self) -> str:
        return f"signed answer {self.pk}"


class SignedAnswerBody(models.Model):
    """The signed bytes, beside their digest, so that they can be erased when their time is over."""

    signed_answer = models.OneToOneField(SignedAnswer, models.PROTECT, primary_key=True, related_name="body")
    body = models.BinaryField()

    class Meta:
        verbose_name_plural = "signed answer bodies"

    def __str__(self) -> str:
        return f"body of signed answer {self.signed_answer_id}"


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
    signed_answer = models.ForeignKey(
        SignedAnswer,
        models.PROTECT,
        null=True,
        related_name="acknowledgements",
        db_index=False,
        db_constraint=False,  # never deleted, and written before: no check for each of a million lines
        help_text="The signed request that it came in.",
    )
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
        indexes = [
            Index(fields=["stream", "epoch", "last_sequence"], name="acknowledgement_range"),
            # Which of those about many numbers cover one number.
            GistIndex(
                NumberRange("first_sequence", F("last_sequence") + 1),
                name="acknowledgement_covers",
                condition=Q(first_sequence__lt=F("last_sequence")),
            ),
            Index(fields=["status", "id"], name="acknowledgement_status"),
            Index(
                fields=["signed_answer", "id"],
                name="acknowledgement_signed",
                condition=Q(signed_answer__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"acknowledgement {self.pk}"


class AcknowledgementText(models.Model):
    """A statement word for word, beside its digest, so that it can be erased when its time is over."""

    # Written in the statement that writes its row, which is never deleted: no foreign-key check.
    acknowledgement = models.OneToOneField(
        Acknowledgement, models.PROTECT, primary_key=True, related_name="text", db_constraint=False
    )
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
        indexes = [
            # What staff did with one request: few among many, so that writing the rest costs nothing more.
            Index(
                KeyTextTransform("request", "about"),
                name="logentry_staff_request",
                condition=Q(actor__startswith="staff:", about__has_key="request"),
            ),
            # What a partner pulled, by where it begins, and what it was sent again.
            Index(
                KeyTextTransform("partner", "about"),
                Cast(KeyTextTransform("first", "about"), models.BigIntegerField()),
                name="logentry_pulled",
                condition=Q(action="pulled", about__has_key="first"),
            ),
            Index(
                KeyTextTransform("partner", "about"),
                name="logentry_sent_again",
                condition=Q(action="messages_sent_again"),
            ),
            # What its row does not say any more of a request's end.
            Index(
                KeyTextTransform("request", "about"),
                name="logentry_request_before",
                condition=Q(action__in=["request_reopened", "request_outcome_changed"]),
            ),
            Index(fields=["action", "id"], name="log_of_action"),
            Index(fields=["actor", "id"], name="log_of_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.pk}"
