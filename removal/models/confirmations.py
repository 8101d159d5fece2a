"""What staff confirmed on a page, so that sending the page twice does it once."""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class Confirmation(models.Model):
    """One page that asked "are you sure?", once it was answered. Forgotten after some days; the log is what stays."""

    token = models.UUIDField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    action = models.CharField(max_length=60)
    begun_at = models.DateTimeField(db_default=Now(), editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)
    said = models.TextField(blank=True, db_default="", help_text="What the page said when it was done.")

    def __str__(self) -> str:
        return f"{self.action} {self.token}"
