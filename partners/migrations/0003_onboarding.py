"""Partners prove that they verify. Those that exist stay as they are: live ones are sent to as before."""

import django.contrib.postgres.fields
import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models

# The database keeps what was proved, whoever asks. ENABLE ALWAYS, so that session_replication_role does not matter.
GUARDS = """
create function partners_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is history: % is refused', tg_table_name, tg_op using errcode = 'restrict_violation';
end $$;
create trigger history_is_not_changed before update or delete on partners_verification for each row
    execute function partners_refuse_change();
create trigger history_is_not_emptied before truncate on partners_verification
    execute function partners_refuse_change();
alter table partners_verification enable always trigger history_is_not_changed;
alter table partners_verification enable always trigger history_is_not_emptied;
"""


class Migration(migrations.Migration):

    dependencies = [
        ('partners', '0002_flow_control'),
    ]

    operations = [
        migrations.CreateModel(
            name='Verification',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('url', models.CharField(max_length=2000, verbose_name='URL')),
                ('key_ids', django.contrib.postgres.fields.ArrayField(base_field=models.TextField(), help_text='The keys that signed.', size=None)),
                ('started_at', models.DateTimeField()),
                ('finished_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('passed', models.BooleanField()),
                ('effect', models.CharField(choices=[('none', 'nothing'), ('live', 'went live'), ('url', 'new URL in use'), ('opened', 'opened again'), ('stale', 'stale')], max_length=10)),
                ('checks', models.JSONField(help_text='A list of partners.onboarding.Check.')),
                ('asked_by', models.CharField(help_text='As actors are named in the log.', max_length=100)),
                ('waived_because', models.TextField(blank=True, help_text='Why a named person let it through without the checks.')),
            ],
            options={
            },
        ),
        migrations.RemoveConstraint(
            model_name='partner',
            name='a_partner_is_live_or_paused',
        ),
        migrations.AddField(
            model_name='endpoint',
            name='pending_url',
            field=models.CharField(blank=True, db_default='', help_text='Used once it has passed the checks.', max_length=2000, verbose_name='pending URL'),
        ),
        migrations.AddField(
            model_name='endpoint',
            name='verify_due_at',
            field=models.DateTimeField(blank=True, help_text='When a worker runs the checks, after a change of keys.', null=True),
        ),
        migrations.AddField(
            model_name='endpoint',
            name='verifying_until',
            field=models.DateTimeField(blank=True, help_text='The lease of the verification under way: one at a time.', null=True),
        ),
        migrations.AlterField(
            model_name='partner',
            name='state',
            field=models.CharField(choices=[('onboarding', 'onboarding'), ('live', 'live'), ('paused', 'paused')], default='onboarding', max_length=10),
        ),
        migrations.AddIndex(
            model_name='endpoint',
            index=models.Index(condition=models.Q(('verify_due_at__isnull', False)), fields=['verify_due_at'], name='endpoint_to_verify'),
        ),
        migrations.AddConstraint(
            model_name='partner',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['onboarding', 'live', 'paused'])), name='a_partner_is_onboarding_live_or_paused'),
        ),
        migrations.AddField(
            model_name='verification',
            name='partner',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='verifications', to='partners.partner'),
        ),
        migrations.AddIndex(
            model_name='verification',
            index=models.Index(fields=['partner', '-id'], name='verification_of_partner'),
        ),
        migrations.AddConstraint(
            model_name='verification',
            constraint=models.CheckConstraint(condition=models.Q(('waived_because', ''), models.Q(('checks', []), ('passed', False)), _connector='OR'), name='a_waiver_proves_nothing'),
        ),
        migrations.RunSQL(GUARDS, "drop function partners_refuse_change cascade"),
    ]
