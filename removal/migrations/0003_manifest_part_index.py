"""Entries are found by release and part: one part is dropped without reading the others (docs/decisions/0011)."""

import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
create index entries_of_a_part on removal_manifestentry (release_id, part);
drop index removal_manifestentry_release;
"""
BACKWARD = """
create index removal_manifestentry_release on removal_manifestentry (release_id);
drop index entries_of_a_part;
"""


class Migration(migrations.Migration):
    dependencies = [("removal", "0002_guards")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(FORWARD, BACKWARD)],
            state_operations=[
                migrations.AlterField(
                    model_name="manifestentry",
                    name="release",
                    field=models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="entries",
                        to="removal.release",
                    ),
                ),
                migrations.AddIndex(
                    model_name="manifestentry",
                    index=models.Index(fields=["release", "part"], name="entries_of_a_part"),
                ),
            ],
        ),
    ]
