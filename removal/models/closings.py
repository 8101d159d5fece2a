"""Notices that a person ended, and why."""

from django.conf import settings
from django.db import models
from django.db.models import CheckConstraint, F, Q, UniqueConstraint
from django.db.models.functions import Now

from removal.models.streams import Notice

MOST_TEXT = 2000  # characters


class Waiver(models.Model):
    """One person's wish that a notice be given up, for another person to decide on."""

    class State(models.TextChoices):
        ASKED = "asked", "asked for"  # nothing has changed yet: the notice is owed as before
        APPROVED = "approved", "approved"  # another person agreed; the notice is closed
        REFUSED = "refused", "refused"  # or taken back by who asked; the notice is owed as before

    notice = models.ForeignKey(Notice, models.PROTECT, related_name="waivers", db_index=False)
    text = models.TextField(help_text="Why nothing more is asked of the partner.")
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    asked_at = models.DateTimeField(db_default=Now(), editable=False)
    state = models.CharField(max_length=10, choices=State, default=State.ASKED)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            UniqueConstraint(fields=["notice"], condition=~Q(state="refused"), name="a_notice_is_waived_once"),
            CheckConstraint(condition=~Q(text=""), name="a_waiver_says_why"),
            CheckConstraint(
                condition=Q(state="asked", decided_by__isnull=True, decided_at__isnull=True)
                | Q(state__in=["approved", "refused"], decided_by__isnull=False, decided_at__isnull=False),
                name="a_decided_waiver_says_by_whom",
            ),
            CheckConstraint(
                condition=~Q(state="approved") | ~Q(decided_by=F("asked_by")), name="nobody_approves_their_own_waiver"
            ),
        ]

    def __str__(self) -> str:
        return f"waiver {self.pk}"


class Closing(models.Model):
    """A person's word that ended a notice, beside the partner's and never in its place. Append only."""

    class Reason(models.TextChoices):
        AGREED_IN_WRITING = "agreed_in_writing", "the partner confirmed it in writing, outside this service"
        PARTNER_CEASED = "partner_ceased", "the partner no longer exists"
        DUPLICATE = "duplicate", "another notice says the same"
        NO_LONGER_HELD = "no_longer_held", "the partner no longer holds the content"
        WAIVED = "waived", "waived, with a second person"

    notice = models.OneToOneField(Notice, models.PROTECT, related_name="closing")
    reason = models.CharField(max_length=20, choices=Reason)
    text = models.TextField(help_text="In the person's own words.")
    closed_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    waiver = models.OneToOneField(Waiver, models.PROTECT, null=True, blank=True, related_name="closing")
    closed_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            CheckConstraint(condition=~Q(text=""), name="a_closing_says_why"),
            CheckConstraint(
                condition=Q(reason="waived", waiver__isnull=False) | ~Q(reason="waived") & Q(waiver__isnull=True),
                name="a_closing_that_waives_has_its_waiver",
            ),
        ]

    def __str__(self) -> str:
        return f"closing {self.pk}"
