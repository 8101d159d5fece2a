import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('partners', '0004_identifiers'),
    ]

    operations = [
        migrations.CreateModel(
            name='Contact',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('role', models.CharField(choices=[('engineering', 'engineering'), ('legal', 'legal'), ('privacy', 'privacy')], max_length=12)),
                ('name', models.CharField(max_length=200)),
                ('email', models.EmailField(blank=True, max_length=254, verbose_name='e-mail')),
                ('phone', models.CharField(blank=True, max_length=40)),
                ('partner', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='contacts', to='partners.partner')),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('role__in', ['engineering', 'legal', 'privacy'])), name='a_contact_has_one_of_three_roles'), models.CheckConstraint(condition=models.Q(('email', ''), ('phone', ''), _negated=True), name='a_contact_can_be_reached', violation_error_message='Give an e-mail address or a telephone number.')],
            },
        ),
    ]
