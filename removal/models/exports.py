"""Exports under way and taken."""

from django.db import models
from django.db.models import CheckConstraint, Q
from django.db.models.functions import Now


class Export(models.Model):
    """How far an export has come. That it was taken, and how it ended, stands in the log as well, for good."""

    class State(models.TextChoices):
        RUNNING = "running", "running"
        FINISHED = "finished", "finished"
        CUT_OFF = "cut_off", "cut off"

    kind = models.CharField(max_length=20, help_text="What was exported: a request, a partner, or a period.")
    name = models.CharField(max_length=100, help_text="Which one: an id, a slug, or the days.")
    actor = models.CharField(max_length=100)
    expected = models.BigIntegerField(verbose_name="lines expected", help_text="The database's guess beforehand.")
    lines = models.BigIntegerField(default=0)
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    begun_at = models.DateTimeField(db_default=Now(), editable=False)
    seen_at = models.DateTimeField(
        db_default=Now(), editable=False, help_text="When it last moved, or ended. One that was killed stands still."
    )

    class Meta:
        constraints = [
            CheckConstraint(
                condition=Q(state__in=["running", "finished", "cut_off"]), name="an_export_is_running_or_has_ended"
            ),
            CheckConstraint(condition=Q(lines__gte=0, expected__gte=0), name="an_export_counts_lines"),
        ]

    def __str__(self) -> str:
        return f"export {self.pk}"
