"""Who is at work."""

from django.db import models
from django.db.models.functions import Now


class Heartbeat(models.Model):
    """One worker process, and when it last looked for work. Its row is removed some time after its end."""

    process = models.CharField(max_length=300, primary_key=True, help_text="Host name and process id.")
    swept_at = models.DateTimeField(db_default=Now())
    reconciled_at = models.DateTimeField(null=True, blank=True)
    missed_notices = models.BigIntegerField(
        db_default=0, help_text="What its reconciles had to plan, in all. A row that says more than 0 is kept."
    )

    def __str__(self) -> str:
        return self.process
