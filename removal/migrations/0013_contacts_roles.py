from django.db import migrations, models

from removal.roles import sync_roles


class Migration(migrations.Migration):

    dependencies = [
        ('removal', '0012_closing'),
        ('partners', '0005_contacts'),
    ]

    operations = [
        migrations.RunPython(sync_roles, migrations.RunPython.noop),
    ]
