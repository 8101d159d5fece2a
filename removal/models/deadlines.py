"""By when: the rules that dates are made from, what was extended, and who was told that time runs out."""

from zoneinfo import available_timezones

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import CheckConstraint, Index, Q, UniqueConstraint
from django.db.models.functions import Now

from partners.models import Partner
from removal.deadlines import PATTERN, InvalidTerm, Term
from removal.models.identifiers import new_id
from removal.models.requests import RemovalRequest
from removal.models.streams import Stream


def check_term(text: str) -> None:
    try:
        Term.parse(text)
    except InvalidTerm as error:
        raise ValidationError(str(error)) from error


def check_zone(name: str) -> None:
    if name not in available_timezones():
        raise ValidationError("Write a time zone as the IANA names it, such as Europe/Brussels.")


class TermField(models.CharField):  # type: ignore[type-arg]  # generic only in the stubs
    """A length of time in words, such as ``10 business days``; empty where the policy says nothing."""

    def __init__(self, *args: object, **options: object) -> None:
        settled = {"max_length": 20, "validators": [check_term]}
        super().__init__(*args, **{**options, **settled})  # type: ignore[arg-type]


class Holiday(models.Model):
    """A day off in a calendar that policies name. Saturdays and Sundays are off in every calendar."""

    calendar = models.CharField(max_length=40)
    day = models.DateField()
    name = models.CharField(max_length=100)

    class Meta:
        constraints = [UniqueConstraint(fields=["calendar", "day"], name="a_holiday_stands_once_in_a_calendar")]

    def __str__(self) -> str:
        return f"{self.name}, {self.day} ({self.calendar})"


class DeadlinePolicy(models.Model):
    """Which terms hold for which requests, or for which notices. The most specific one that is in force wins.

    Dates are made from it once, when a request is recorded or a notice is planned; a change moves none of them.
    """

    class Clock(models.TextChoices):
        REQUEST = "request", "ours, to the person"
        NOTICE = "notice", "the partner's, to us"

    name = models.CharField(max_length=60, unique=True)
    clock = models.CharField(max_length=10, choices=Clock)
    basis = models.CharField(max_length=200, blank=True, help_text="The law or contract, with its section.")
    in_force = models.BooleanField(default=True, help_text="Only policies in force are looked at.")
    kinds = ArrayField(
        models.CharField(max_length=20, choices=RemovalRequest.Kind),
        default=list,
        blank=True,
        help_text="Kinds of requests, comma-separated; empty: any.",
    )
    jurisdictions = ArrayField(
        models.CharField(max_length=20),
        default=list,
        blank=True,
        help_text="As requests say them, comma-separated: us-ca, or us for every state; empty: any.",
    )
    partner = models.ForeignKey(
        Partner, models.PROTECT, null=True, blank=True, help_text="Of a contract: this partner's notices only."
    )
    sent_within = TermField(blank=True, help_text="Notices: how soon the message must have arrived.")
    received_within = TermField(
        blank=True, help_text="How soon a request is confirmed to the person, or a notice received by the partner."
    )
    completed_within = TermField(
        help_text="How soon it must be answered: 1 month, 45 days, 24 hours, 15 business days."
    )
    extended_within = TermField(
        blank=True, help_text="Requests: the whole time if it is extended, from the same start; empty: never."
    )
    tells_person = models.BooleanField(
        default=True, help_text="An extension holds only if the person was told of it before the first date."
    )
    zone = models.CharField(max_length=60, default="UTC", validators=[check_zone], help_text="Where its days end.")
    calendar = models.CharField(max_length=40, blank=True, help_text="Whose holidays count; empty: weekends alone.")
    rolls_forward = models.BooleanField(
        default=False, help_text="A term in days or months that ends on a day off ends on the next working day."
    )

    class Meta:
        verbose_name_plural = "deadline policies"
        constraints = [
            CheckConstraint(condition=Q(clock__in=["request", "notice"]), name="a_policy_is_for_one_clock"),
            CheckConstraint(
                condition=Q(completed_within__regex=PATTERN)
                & (Q(sent_within="") | Q(sent_within__regex=PATTERN))
                & (Q(received_within="") | Q(received_within__regex=PATTERN))
                & (Q(extended_within="") | Q(extended_within__regex=PATTERN)),
                name="a_term_is_written_as_one",
            ),
            CheckConstraint(
                condition=Q(clock="notice", extended_within="") | Q(clock="request", partner=None, sent_within=""),
                name="a_policy_says_what_its_clock_has",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class RequestExtension(models.Model):
    """A request's date was moved, once, and why. Append only."""

    request = models.OneToOneField(RemovalRequest, models.PROTECT, primary_key=True, related_name="extension")
    first_respond_by = models.DateTimeField(help_text="The date before.")
    respond_by = models.DateTimeField()
    reason = models.CharField(max_length=1000, help_text="Why it takes longer, as the person was told.")
    person_told_at = models.DateTimeField(null=True, blank=True)
    actor = models.CharField(max_length=100)
    extended_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            CheckConstraint(condition=~Q(reason=""), name="an_extension_has_a_reason"),
            CheckConstraint(
                condition=Q(respond_by__gt=models.F("first_respond_by")), name="an_extension_gives_more_time"
            ),
        ]

    def __str__(self) -> str:
        return f"extension of request {self.request_id}"


class Escalation(models.Model):
    """So much of the time is over, and there is no answer: of one request, or of notices of one partner.

    Written once for each. ``bundled_at`` is when it was put into what staff are sent.
    """

    request = models.ForeignKey(RemovalRequest, models.PROTECT, null=True, blank=True, related_name="escalations")
    respond_by = models.DateTimeField(null=True, blank=True, help_text="The request's date, as of then.")
    stream = models.ForeignKey(Stream, models.PROTECT, null=True, blank=True, related_name="escalations")
    until = models.DateTimeField(null=True, blank=True, help_text="The notices that came so far since the last look.")
    level = models.PositiveSmallIntegerField(help_text="Percent of the time that are over.")
    notices = models.BigIntegerField(default=0)
    sequences = ArrayField(models.BigIntegerField(), default=list, help_text="The first hundred of them.")
    raised_at = models.DateTimeField(db_default=Now(), editable=False)
    bundled_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            UniqueConstraint(fields=["request", "respond_by", "level"], name="a_request_is_escalated_once_per_level"),
            UniqueConstraint(fields=["stream", "until", "level"], name="a_look_at_a_stream_escalates_once_per_level"),
            CheckConstraint(condition=Q(level__in=[50, 80, 100]), name="escalation_is_at_50_80_or_100"),
            CheckConstraint(
                condition=Q(request__isnull=False, respond_by__isnull=False, stream=None, until=None)
                | Q(request=None, respond_by=None, stream__isnull=False, until__isnull=False, notices__gte=1),
                name="an_escalation_is_of_a_request_or_of_notices",
            ),
        ]
        indexes = [
            Index(fields=["id"], name="escalation_unbundled", condition=Q(bundled_at__isnull=True)),
            Index(fields=["level", "id"], name="escalation_level"),
        ]

    def __str__(self) -> str:
        return f"escalation {self.pk}"


class StaffMessage(models.Model):
    """What staff are told by one channel: ids and counts. Kept until it is out; every try has the same id."""

    class Channel(models.TextChoices):
        EMAIL = "email", "e-mail"
        WEBHOOK = "webhook", "operator webhook"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    channel = models.CharField(max_length=10, choices=Channel)
    body = models.TextField()
    made_at = models.DateTimeField(db_default=Now(), editable=False)
    due_at = models.DateTimeField(db_default=Now())
    lease_until = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveIntegerField(db_default=0)
    sent_at = models.DateTimeField(null=True, blank=True)
    fault = models.CharField(max_length=200, blank=True, db_default="", help_text="Why the last try failed.")

    class Meta:
        indexes = [Index(fields=["due_at"], name="staff_message_unsent", condition=Q(sent_at__isnull=True))]

    def __str__(self) -> str:
        return f"msg_{self.id.hex}"
