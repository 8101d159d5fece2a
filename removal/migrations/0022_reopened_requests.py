import django.db.models.fields.json
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('removal', '0021_targets_of_request'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='logentry',
            index=models.Index(django.db.models.fields.json.KeyTextTransform('request', 'about'), condition=models.Q(('action__in', ['request_reopened', 'request_outcome_changed'])), name='logentry_request_before'),
        ),
        migrations.AlterField(
            model_name='notice',
            name='withdrawn_at',
            field=models.DateTimeField(blank=True, help_text='Nothing is asked any more: the wish was withdrawn before this was sent, or a restore says it anew.', null=True),
        ),
    ]
