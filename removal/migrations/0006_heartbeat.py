import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('removal', '0005_preference_history'),
    ]

    operations = [
        migrations.CreateModel(
            name='Heartbeat',
            fields=[
                ('process', models.CharField(help_text='Host name and process id.', max_length=300, primary_key=True, serialize=False)),
                ('swept_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('reconciled_at', models.DateTimeField(blank=True, null=True)),
                ('missed_notices', models.BigIntegerField(db_default=0, help_text='What its reconciles had to plan, in all. A row that says more than 0 is kept.')),
            ],
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('state', 'quarantined')), fields=['stream'], name='delivery_quarantined'),
        ),
        migrations.RemoveConstraint(model_name='subject', name='a_subject_key_is_used_once'),
        migrations.AddConstraint(
            model_name='subject',
            constraint=models.UniqueConstraint(fields=("key",), name='a_subject_key_is_used_once'),
        ),
    ]
