"""What was asked, by whom, about what."""

from datetime import datetime
from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import (
    CheckConstraint,
    DateTimeField,
    DurationField,
    ExpressionWrapper,
    F,
    Index,
    Q,
    UniqueConstraint,
    Value,
)
from django.db.models.functions import Now
from django.db.models.lookups import GreaterThanOrEqual

from partners.models import Partner
from removal.deadlines import SOON_AT_MOST, SOON_LEVEL
from removal.models.subjects import Subject


def is_due_soon(*, start: str, now: datetime) -> Q:
    """Say of rows with a ``respond_by`` what removal.deadlines.state_of calls due_soon; the range is for the index."""
    over = (Value(now, DateTimeField()) - F(start)) * Value(100 / SOON_LEVEL)
    used = GreaterThanOrEqual(F(start) + ExpressionWrapper(over, DurationField()), F("respond_by"))
    return Q(used, respond_by__gte=now, respond_by__lte=now + SOON_AT_MOST)


class RequestQuerySet(models.QuerySet["RemovalRequest"]):
    def unplanned(self) -> Self:
        """Requests that the planner has still to match."""
        return self.filter(round__isnull=True, repeats__isnull=True, withdrawn_at__isnull=True)

    def unanswered(self) -> Self:
        """Requests that the person still waits for. A repeat is answered with the earlier one."""
        return self.filter(state__in=["received", "planned"], repeats__isnull=True)

    def overdue(self, *, now: datetime) -> Self:
        return self.unanswered().filter(respond_by__lt=now)

    def due_soon(self, *, now: datetime) -> Self:
        """Unanswered requests in the last fifth of their time, at most a week before its end."""
        return self.unanswered().filter(is_due_soon(start="received_at", now=now))

    def on_track(self, *, now: datetime) -> Self:
        return self.unanswered().filter(respond_by__gte=now).exclude(is_due_soon(start="received_at", now=now))

    def active(self) -> Self:
        """Requests that stand: a disclosure recorded later is matched with them too."""
        return self.filter(repeats__isnull=True, withdrawn_at__isnull=True, ended_at__isnull=True)


class RemovalRequest(models.Model):
    """A person's, or the publisher's, wish that content be removed (GDPR Art. 17, 19; CCPA 1798.105(c))."""

    class Kind(models.TextChoices):
        OPT_OUT = "opt_out", "opt-out"  # past copies removed, future releases excluded
        DELETION = "deletion", "deletion"  # the subject, or the named items, are gone
        RECALL = "recall", "recall"  # the publisher shared it in error
        OFFBOARDING = "offboarding", "offboarding"  # everything that one partner holds
        REINSTATEMENT = "reinstatement", "reinstatement"  # opted back in: future releases only

    class Reason(models.TextChoices):
        USER_REQUEST = "user_request", "user request"
        ACCOUNT_DELETED = "account_deleted", "account deleted"
        MADE_PRIVATE = "made_private", "made private"
        MODERATED = "moderated", "moderated"
        SHARED_IN_ERROR = "shared_in_error", "shared in error"
        LEGAL_TAKEDOWN = "legal_takedown", "legal takedown"
        LICENCE_ENDED = "licence_ended", "licence ended"

    class State(models.TextChoices):
        RECEIVED = "received", "received"  # durable; the planner has not matched it yet
        PLANNED = "planned", "planned"  # each holder has a notice, and one of them is still open
        CLOSED = "closed", "closed"  # nothing is open; a late disclosure opens it again

    class Outcome(models.TextChoices):
        FULFILLED = "fulfilled", "fulfilled"
        PARTIALLY_FULFILLED = "partially_fulfilled", "partially fulfilled"
        NOTHING_DISCLOSED = "nothing_disclosed", "nothing disclosed"
        WITHDRAWN = "withdrawn", "withdrawn"

    public_id = models.CharField("id", max_length=26, editable=False)
    kind = models.CharField(max_length=20, choices=Kind)
    reason = models.CharField(max_length=20, choices=Reason)
    usages = ArrayField(models.TextField())
    jurisdiction = models.CharField(max_length=20, blank=True)
    received_at = models.DateTimeField(help_text="When the person asked; the platform's clock starts here.")
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)
    respond_by = models.DateTimeField(help_text="The platform's duty to the person (GDPR Art. 12(3)).")
    confirm_by = models.DateTimeField(null=True, blank=True, help_text="When the person must have a confirmation.")
    extendable_to = models.DateTimeField(
        null=True, blank=True, help_text="The date if it is extended, which it may be once; none: it may not."
    )
    tells_person = models.BooleanField(
        db_default=True, help_text="It is extended only if the person was told before the first date."
    )
    deadline_policy = models.CharField(
        max_length=60, blank=True, db_default="", help_text="What its dates were made from; empty: the default."
    )
    source = models.CharField(max_length=63)
    idempotency_key = models.CharField(max_length=255)
    body_digest = models.BinaryField(max_length=32, help_text="SHA-256 of the wish, to tell a repeat from another.")
    release_ids = ArrayField(models.BigIntegerField(), null=True, blank=True, help_text="Only these; null: all.")
    target_count = models.BigIntegerField(
        default=1, db_default=1, help_text="How many subjects it is about; 0 for an offboarding."
    )
    partner = models.ForeignKey(
        Partner, models.PROTECT, null=True, blank=True, db_index=False, help_text="Offboarding only."
    )

    state = models.CharField(max_length=10, choices=State, default=State.RECEIVED)
    outcome = models.CharField(max_length=20, choices=Outcome, blank=True)
    closed_at = models.DateTimeField(null=True, blank=True)
    round = models.BigIntegerField(null=True, blank=True, help_text="The planner round that matched it.")
    is_matching = models.BooleanField(
        default=False,
        db_default=False,
        help_text="It is large: its round is given, and its targets are being matched in pieces.",
    )
    repeats = models.ForeignKey(
        "self", models.PROTECT, null=True, blank=True, db_index=False, related_name="repeated_by",
        help_text="An earlier opt-out already says all of this; that one is told to partners.",
    )  # fmt: skip
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True, help_text="Disclosures after this are not covered.")
    ended_by = models.ForeignKey("self", models.PROTECT, null=True, blank=True, db_index=False, related_name="ends")

    objects: ClassVar = RequestQuerySet.as_manager()

    class Meta:
        verbose_name = "request"
        permissions = [
            ("withdraw", "Can withdraw a request"),
            ("export", "Can export requests and notices"),
        ]
        constraints = [
            UniqueConstraint(fields=["public_id"], name="a_public_id_names_one_request"),
            UniqueConstraint(fields=["source", "idempotency_key"], name="a_key_makes_one_request_per_source"),
            CheckConstraint(condition=Q(usages__len__gt=0), name="a_request_is_about_some_usage"),
            CheckConstraint(
                condition=Q(state="closed", closed_at__isnull=False) & ~Q(outcome="")
                | Q(state__in=["received", "planned"], closed_at__isnull=True, outcome=""),
                name="a_request_has_an_outcome_once_closed",
            ),
            CheckConstraint(
                condition=Q(round__isnull=True) | ~Q(state="received"), name="a_planned_request_is_no_longer_received"
            ),
            CheckConstraint(
                condition=Q(kind="offboarding", partner__isnull=False)
                | ~Q(kind="offboarding") & Q(partner__isnull=True),
                name="an_offboarding_names_its_partner",
            ),
        ]
        indexes = [
            Index(
                fields=["id"],
                name="request_unplanned",
                condition=Q(round__isnull=True, repeats__isnull=True, withdrawn_at__isnull=True),
            ),
            # Large ones that are being matched: looked for with every sweep, and rarely there.
            Index(fields=["id"], name="request_matching", condition=Q(is_matching=True)),
            Index(
                fields=["respond_by"],
                name="request_unanswered",
                condition=Q(state__in=["received", "planned"], repeats__isnull=True),
            ),
            # For the desk: what came in and was closed by day, and each filter of its list. Opt-outs are the rule; who
            # looks for them finds some among the newest.
            Index(fields=["received_at"], name="request_received"),
            Index(fields=["closed_at"], name="request_closed", condition=Q(closed_at__isnull=False)),
            Index(fields=["state", "id"], name="request_state"),
            Index(fields=["outcome", "id"], name="request_outcome", condition=~Q(outcome="")),
            Index(fields=["kind", "id"], name="request_kind", condition=~Q(kind="opt_out")),
            # Few requests have these; every change of a request would write an entry that says "none" into each.
            Index(fields=["partner"], name="request_of_partner", condition=Q(partner__isnull=False)),
            Index(fields=["repeats"], name="request_repeats", condition=Q(repeats__isnull=False)),
            Index(fields=["ended_by"], name="request_ended_by", condition=Q(ended_by__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.public_id


class RequestTarget(models.Model):
    """What a request is about: a subject as a whole (``items`` null) or some of its items. Frozen when recorded."""

    pk = models.CompositePrimaryKey("subject_id", "request_id")
    subject = models.ForeignKey(Subject, models.PROTECT, db_index=False, related_name="+")
    request = models.ForeignKey(RemovalRequest, models.PROTECT, related_name="targets", db_index=False)
    items = ArrayField(models.TextField(), null=True)

    class Meta:
        indexes = [Index(fields=["request", "subject"], name="target_of_request")]

    def __str__(self) -> str:
        return f"request {self.request_id} about subject {self.subject_id}"


class MatchedPiece(models.Model):
    """What the planner found for one partner in one piece of a large request's targets, until it is numbered."""

    request = models.ForeignKey(RemovalRequest, models.PROTECT, related_name="pieces", db_index=False)
    last_subject_id = models.BigIntegerField(help_text="The piece ends with this target.")
    partner = models.ForeignKey(Partner, models.PROTECT, null=True, related_name="+")
    disclosures = ArrayField(models.BigIntegerField())
    item_count = models.BigIntegerField()

    class Meta:
        constraints = [
            UniqueConstraint(
                fields=["request", "last_subject_id", "partner"],
                nulls_distinct=False,
                name="a_piece_is_matched_once_per_partner",
            )
        ]

    def __str__(self) -> str:
        return f"piece of request {self.request_id} up to {self.last_subject_id}"
