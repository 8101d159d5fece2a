import django.contrib.postgres.indexes
from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Collate, Lower

from removal.models.numbers import NumberRange


class Migration(migrations.Migration):
    dependencies = [("removal", "0014_desk")]

    operations = [
        # A constant default: the table is not rewritten.
        migrations.AddField(
            model_name="subject",
            name="label",
            field=models.CharField(
                blank=True, db_default="", help_text="What people call it, such as its address or title.", max_length=500
            ),
        ),
        migrations.AddIndex(
            model_name="subject",
            index=models.Index(Collate(Lower("label"), "C"), condition=~Q(label=""), name="subject_label"),
        ),
        migrations.AddIndex(
            model_name="acknowledgement",
            index=django.contrib.postgres.indexes.GistIndex(
                NumberRange("first_sequence", F("last_sequence") + 1),
                condition=Q(first_sequence__lt=F("last_sequence")),
                name="acknowledgement_covers",
            ),
        ),
        migrations.AddIndex(
            model_name="logentry",
            index=models.Index(
                KeyTextTransform("request", "about"),
                condition=Q(about__has_key="request", actor__startswith="staff:"),
                name="logentry_staff_request",
            ),
        ),
    ]
