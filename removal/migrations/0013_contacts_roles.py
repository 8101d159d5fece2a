from django.db import migrations, models

from removal.roles import sync_roles


class Migration(migrations.Migration):

    dependencies = [
        ('removal', '0012_closing'),
        ('partners', '0005_contacts'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(condition=models.Q(('closed_at__isnull', True), ('withdrawn_at__isnull', True), models.Q(('handling__in', ['completed', 'partially_completed', 'rejected']), _negated=True)), fields=['stream', 'planned_at'], name='notice_open_by_age'),
        ),
        migrations.RunPython(sync_roles, migrations.RunPython.noop),
    ]
