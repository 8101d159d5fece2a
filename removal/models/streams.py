"""Who has been told what: a numbered stream per partner, the messages that carry it, each try at sending one."""

from datetime import datetime, timedelta
from typing import ClassVar, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import CheckConstraint, Exists, F, Index, OuterRef, Q, UniqueConstraint
from django.db.models.functions import Greatest, Now

from partners.models import Partner
from removal.models.identifiers import new_id
from removal.models.numbers import NumberRange, NumbersField, Within
from removal.models.requests import RemovalRequest, is_due_soon

# A partner that has just got an old message is given this long before it counts as silent.
SILENT_AFTER_ARRIVAL = timedelta(days=1)


class Stream(models.Model):
    """The numbered list of everything a partner must be told: 1, 2, 3 … ``head``, without holes."""

    partner = models.OneToOneField(Partner, models.PROTECT, primary_key=True, related_name="stream")
    epoch = models.PositiveIntegerField(default=1, help_text="A restore from a backup opens the next epoch at 1.")
    head = models.BigIntegerField(default=0, help_text="The last number given.")
    packed_through = models.BigIntegerField(default=0, help_text="The last number put in a message.")
    received_through = models.BigIntegerField(default=0, help_text="The partner said it received all up to here.")
    # Kept for removal.pulling; in this epoch.
    served = NumbersField(db_default=(), editable=False, help_text="Numbers that a pull has handed out.")
    pulled = NumbersField(
        db_default=(), editable=False, help_text="Those that the partner has, as it came back for what follows them."
    )
    # Kept for removal.flow.
    failures = models.PositiveIntegerField(db_default=0, help_text="Tries in a row that the endpoint did not answer.")
    probe_at = models.DateTimeField(
        null=True, blank=True, help_text="The endpoint seems to be down: one message is tried then, the others wait."
    )
    allowance = models.PositiveIntegerField(
        null=True, blank=True, help_text="Just back from being down: how many messages may be on their way at once."
    )
    tokens = models.FloatField(
        db_default=10000, help_text="Messages that could start at once at tokens_at, by the rate."
    )
    tokens_at = models.DateTimeField(db_default=Now())
    # Kept for removal.reminders and removal.escalation.
    looked_at = models.DateTimeField(null=True, blank=True, help_text="Late notices up to then were escalated.")
    reminded_at = models.DateTimeField(null=True, blank=True, help_text="When a reminder was last made.")

    class Meta:
        constraints = [
            CheckConstraint(condition=Q(packed_through__lte=F("head")), name="only_given_numbers_are_packed"),
            CheckConstraint(
                condition=Within(
                    NumberRange(F("packed_through") + 1, Greatest("received_through", "packed_through") + 1),
                    F("served"),
                ),
                name="only_told_numbers_are_received",
            ),
            CheckConstraint(
                condition=Within(F("served"), NumberRange(1, F("head") + 1)), name="only_given_numbers_are_served"
            ),
            CheckConstraint(condition=Within(F("pulled"), F("served")), name="only_served_numbers_are_pulled"),
            CheckConstraint(condition=Q(packed_through__gte=0, received_through__gte=0), name="numbers_start_at_1"),
        ]
        # A partner's affairs, here because ``partners`` knows nothing of streams.
        permissions = [
            ("pause", "Can pause and resume the messages to a partner"),
            ("resend", "Can send messages again"),
            ("verify", "Can have a partner's endpoint verified"),
            ("waive_verification", "Can let a partner go live without verification"),
        ]

    def __str__(self) -> str:
        return f"stream {self.partner_id}"

    @property
    def told_through(self) -> int:
        """The last number up to which each one was put in a message or handed out by a pull."""
        ahead = (last for first, last in self.served if first <= self.packed_through + 1)
        return int(max(self.packed_through, *ahead, 0))

    @property
    def is_served_ahead(self) -> bool:
        """Whether a pull has handed out numbers that are in no message yet."""
        return bool(self.served) and self.served[-1][1] > self.packed_through

    def has_told(self, sequence: int) -> bool:
        """Whether a number was put in a message or handed out by a pull."""
        return sequence <= self.packed_through or any(first <= sequence <= last for first, last in self.served)

    def has_pulled(self, sequence: int) -> bool:
        return any(first <= sequence <= last for first, last in self.pulled)


class NoticeQuerySet(models.QuerySet["Notice"]):
    def open(self) -> Self:
        """Notices that the partner has still to answer for good, and that nobody here has closed."""
        return self.filter(withdrawn_at__isnull=True, closed_at__isnull=True).exclude(handling__in=Notice.TERMINAL)

    def overdue(self, *, now: datetime) -> Self:
        return self.open().filter(respond_by__lt=now)

    def due_soon(self, *, now: datetime) -> Self:
        """Open notices in the last fifth of their time, at most a week before its end."""
        return self.open().filter(is_due_soon(start="planned_at", now=now))

    def on_track(self, *, now: datetime) -> Self:
        return self.open().filter(respond_by__gte=now).exclude(is_due_soon(start="planned_at", now=now))

    def unheard(self) -> Self:
        """Open notices without a word of the partner, the stream's watermark included."""
        heard = Q(epoch=F("stream__epoch"), sequence__lte=F("stream__received_through"))
        return self.open().filter(handling=Notice.Handling.NONE).exclude(heard)

    def silent(self, *, now: datetime) -> Self:
        """Notices whose message arrived, and of which the partner has not even said in time that it has them.

        One planned without a date for that is silent when it is overdue.
        """
        arrived = Delivery.objects.filter(
            stream=OuterRef("stream"),
            epoch=OuterRef("epoch"),
            first_sequence__lte=OuterRef("sequence"),
            last_sequence__gte=OuterRef("sequence"),
            state=Delivery.State.DELIVERED,
            delivered_at__lt=now - SILENT_AFTER_ARRIVAL,
        )
        late = Q(receive_by__lt=now) | Q(receive_by=None, respond_by__lt=now)
        return self.unheard().filter(late).filter(Exists(arrived))


class Notice(models.Model):
    """What one partner must be told about one request, under one number of its stream (GDPR Art. 19).

    Planned set-based from rows that are never deleted, so no foreign-key check for each.
    """

    class Handling(models.TextChoices):
        """The partner's word, only ever forward."""

        NONE = "none", "no word yet"
        RECEIVED = "received", "received"
        IN_PROGRESS = "in_progress", "in progress"  # repeats are heartbeats
        COMPLETED = "completed", "completed"
        PARTIALLY_COMPLETED = "partially_completed", "partially completed"
        REJECTED = "rejected", "rejected"

    TERMINAL = (Handling.COMPLETED, Handling.PARTIALLY_COMPLETED, Handling.REJECTED)

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="notices", db_index=False, db_constraint=False)
    epoch = models.PositiveIntegerField()
    sequence = models.BigIntegerField()
    request = models.ForeignKey(
        RemovalRequest, models.PROTECT, related_name="notices", db_index=False, db_constraint=False
    )
    kind = models.CharField(max_length=20, choices=RemovalRequest.Kind)
    disclosures = ArrayField(models.BigIntegerField(), help_text="The handovers whose content it is about.")
    item_count = models.BigIntegerField(help_text="Distinct items that the partner holds.")
    round = models.BigIntegerField()
    planned_at = models.DateTimeField(db_default=Now())
    respond_by = models.DateTimeField(help_text="The partner's clock; it starts when the notice is planned.")
    receive_by = models.DateTimeField(null=True, blank=True, help_text="When the partner should have said it has it.")
    send_by = models.DateTimeField(null=True, blank=True, help_text="When we should have brought it there.")
    handling = models.CharField(max_length=20, choices=Handling, default=Handling.NONE)
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    withdrawn_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="Nothing is asked any more: the wish was withdrawn before this was sent, or a restore says it anew.",
    )
    closed_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="A person ended it, for a reason: see its closing. The partner may still answer.",
    )

    objects: ClassVar = NoticeQuerySet.as_manager()

    class Meta:
        constraints = [
            UniqueConstraint(fields=["stream", "epoch", "sequence"], name="a_sequence_is_used_once_in_a_stream"),
            UniqueConstraint(fields=["request", "stream", "round"], name="a_round_tells_a_partner_once_of_a_request"),
            CheckConstraint(condition=Q(sequence__gte=1), name="a_sequence_starts_at_1"),
            CheckConstraint(
                condition=Q(handling="none", acknowledged_at__isnull=True)
                | ~Q(handling="none") & Q(acknowledged_at__isnull=False),
                name="an_answered_notice_has_a_time",
            ),
        ]
        indexes = [
            Index(
                fields=["stream", "respond_by"],
                include=["planned_at"],
                name="notice_open",
                condition=Q(withdrawn_at__isnull=True, closed_at__isnull=True)
                & ~Q(handling__in=["completed", "partially_completed", "rejected"]),
            ),
            # For the desk: what is open, in the order of its lists. Completed ones are in none of these, so that
            # a million answers cost no more. With a date alone, lists of one partner would be planned along them.
            Index(
                fields=["respond_by", "id"],
                name="notice_due",
                condition=Q(withdrawn_at__isnull=True, closed_at__isnull=True)
                & ~Q(handling__in=["completed", "partially_completed", "rejected"]),
            ),
            Index(
                fields=["planned_at", "id"],
                name="notice_age",
                condition=Q(withdrawn_at__isnull=True, closed_at__isnull=True)
                & ~Q(handling__in=["completed", "partially_completed", "rejected"]),
            ),
            Index(
                fields=["handling", "id"],
                name="notice_handling",
                condition=~Q(handling__in=["none", "completed"]),
            ),
            Index(fields=["kind", "id"], name="notice_kind", condition=~Q(kind="opt_out")),
        ]
        permissions = [
            ("close", "Can close a notice by hand"),
            ("waive", "Can ask for, and decide on, the waiver of a notice"),
            ("extend", "Can grant or refuse an extension"),
        ]

    def __str__(self) -> str:
        return f"notice {self.sequence}"


class Delivery(models.Model):
    """One message: a range of a stream under one ``webhook-id``, for as many tries as it takes.

    The range carries the delivery state of its notices; they have no column of their own for it. A reminder is a
    message without a range: it refers to numbers and carries none.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "waiting"  # due at due_at, the first time or again
        SENDING = "sending", "sending"  # leased to one worker until lease_until
        DELIVERED = "delivered", "delivered"  # ended: see delivered_by
        SPLIT = "split", "split"  # two children cover exactly its range
        QUARANTINED = "quarantined", "quarantined"  # the partner refuses this one notice: a person must look
        DROPPED = "dropped", "dropped"  # a reminder that did not arrive, and that a newer one says better

    class DeliveredBy(models.TextChoices):
        RESPONSE = "response", "a 2xx response"
        ACKNOWLEDGED = "acknowledged", "the partner's acknowledgement"
        PULLED = "pulled", "the partner's own pull"
        CLOSED = "closed", "a person, who closed its notices"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    stream = models.ForeignKey(Stream, models.PROTECT, related_name="deliveries", db_index=False)
    epoch = models.PositiveIntegerField()
    first_sequence = models.BigIntegerField(null=True, blank=True)
    last_sequence = models.BigIntegerField(null=True, blank=True)
    state = models.CharField(max_length=12, choices=State, default=State.WAITING)
    fence = models.PositiveIntegerField(default=0, help_text="Grows with every claim; only its holder may record.")
    attempts = models.PositiveIntegerField(default=0)
    failures = models.PositiveIntegerField(db_default=0, help_text="Tries that failed; they choose the next delay.")
    abandoned = models.PositiveIntegerField(db_default=0, help_text="Workers in a row that died while sending it.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    due_at = models.DateTimeField(db_default=Now())
    lease_until = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    delivered_by = models.CharField(max_length=12, choices=DeliveredBy, blank=True)
    suspect = models.BooleanField(
        default=False, help_text="The partner refused its content; quarantined if others arrive meanwhile."
    )
    resent = models.BooleanField(
        db_default=False,
        help_text="Comes after all that is new: asked for again by a person, although it had ended; or a reminder.",
    )
    parent = models.ForeignKey("self", models.PROTECT, null=True, blank=True, db_index=False, related_name="children")
    body_digest = models.BinaryField(max_length=32, null=True, blank=True, help_text="SHA-256 of the bytes sent.")

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            CheckConstraint(
                condition=Q(state="sending", lease_until__isnull=False)
                | ~Q(state="sending") & Q(lease_until__isnull=True),
                name="a_sending_delivery_has_a_lease",
            ),
            CheckConstraint(
                condition=Q(delivered_at__isnull=False) & ~Q(delivered_by="") & (Q(state="delivered") | Q(resent=True))
                | ~Q(state="delivered") & Q(delivered_at__isnull=True, delivered_by=""),
                name="a_delivered_delivery_says_when_and_how",
            ),
            CheckConstraint(
                # Both, since a comparison with null is no refusal.
                condition=Q(first_sequence__isnull=True, last_sequence__isnull=True)
                | Q(
                    first_sequence__isnull=False,
                    last_sequence__isnull=False,
                    first_sequence__gte=1,
                    last_sequence__gte=F("first_sequence"),
                ),
                name="a_range_runs_forward_from_1",
            ),
            CheckConstraint(
                condition=Q(first_sequence__isnull=True, parent=None)
                | Q(first_sequence__isnull=False) & ~Q(state="dropped"),
                name="only_a_reminder_has_no_range_and_is_dropped",
            ),
            CheckConstraint(condition=Q(attempts=0) | Q(body_digest__isnull=False), name="a_tried_delivery_has_a_body"),
        ]
        indexes = [
            Index(fields=["stream", "due_at", "id"], name="delivery_due", condition=Q(state="waiting", resent=False)),
            Index(fields=["stream", "due_at", "id"], name="delivery_again", condition=Q(state="waiting", resent=True)),
            Index(fields=["lease_until"], name="delivery_leased", condition=Q(state="sending")),
            Index(fields=["stream", "epoch", "first_sequence"], name="delivery_range", condition=~Q(state="split")),
            Index(fields=["stream"], name="delivery_quarantined", condition=Q(state="quarantined")),
            Index(fields=["stream", "delivered_at"], name="delivery_done", condition=Q(state="delivered")),
            Index(fields=["parent"], name="delivery_half", condition=Q(parent__isnull=False)),
            # For the desk. What is delivered is found among the newest: windows keep the others few.
            Index(fields=["stream", "id"], name="delivery_of_stream"),
            Index(fields=["state", "id"], name="delivery_state", condition=~Q(state="delivered")),
        ]

    def __str__(self) -> str:
        return self.webhook_id

    @property
    def webhook_id(self) -> str:
        """The ``webhook-id`` header (Standard Webhooks): the same on every try."""
        return f"msg_{self.id.hex}"


class DeliveryBody(models.Model):
    """The exact bytes of a message, written at its first claim and never changed: retries and the desk read them.

    Written, like an attempt, in the step that writes its delivery, which is never deleted: no foreign-key check.
    """

    delivery = models.OneToOneField(
        Delivery, models.PROTECT, primary_key=True, related_name="body", db_constraint=False
    )
    body = models.BinaryField()

    class Meta:
        verbose_name_plural = "delivery bodies"

    def __str__(self) -> str:
        return f"body of {self.delivery_id}"


class Attempt(models.Model):
    """One try at sending a message, written before the first byte leaves. Append only, but for closing it once."""

    class Outcome(models.TextChoices):
        DELIVERED = "delivered", "delivered"
        REFUSED = "refused", "refused"
        UNREACHABLE = "unreachable", "unreachable"
        ABANDONED = "abandoned", "abandoned"  # its lease ran out: whether it arrived is unknown
        UNSENT = "unsent", "unsent"  # given back before a byte of it left

    delivery = models.ForeignKey(Delivery, models.PROTECT, related_name="tries", db_index=False, db_constraint=False)
    number = models.PositiveIntegerField(help_text="The fence of its claim.")
    url = models.CharField("URL", max_length=2000)
    key_ids = ArrayField(models.TextField())
    started_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=12, choices=Outcome, blank=True)
    status = models.PositiveSmallIntegerField("HTTP status", null=True, blank=True)
    reason = models.CharField(max_length=200, blank=True, help_text="Why it was not delivered.")
    latency_ms = models.PositiveIntegerField("milliseconds", null=True, blank=True)
    response_excerpt = models.TextField(blank=True, help_text="The partner's own words, at most 2 KiB.")
    late_outcome = models.CharField(
        max_length=12, blank=True, help_text="What its worker reported after losing the lease; it changed nothing."
    )

    class Meta:
        constraints = [
            UniqueConstraint(fields=["delivery", "number"], name="a_fence_is_tried_once"),
            CheckConstraint(
                condition=Q(finished_at__isnull=True, outcome="") | Q(finished_at__isnull=False) & ~Q(outcome=""),
                name="a_finished_attempt_has_an_outcome",
            ),
        ]
        indexes = [
            Index(
                fields=["outcome", "id"],
                name="attempt_failed",
                condition=Q(outcome__in=["refused", "unreachable", "abandoned", "unsent"]),
            )
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.delivery_id}"


class Incident(models.Model):
    """Something is wrong with a partner's endpoint, not with one message. Closed by the next success."""

    stream = models.ForeignKey(Stream, models.PROTECT, related_name="incidents", db_index=False)
    kind = models.CharField(max_length=40, help_text="http_401, http_302, tls, gone …")
    opened_at = models.DateTimeField(db_default=Now())
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            UniqueConstraint(
                fields=["stream", "kind"], condition=Q(closed_at__isnull=True), name="an_incident_is_open_once"
            )
        ]
        indexes = [
            Index(fields=["stream", "id"], name="incident_of_stream"),
            Index(fields=["kind", "id"], name="incident_kind"),
        ]

    def __str__(self) -> str:
        return self.kind
