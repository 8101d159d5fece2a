import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models

GUARDS = """
create function removal_guard_extension() returns trigger language plpgsql as $$
begin
    if (new.id, new.stream_id, new.epoch, new.sequence, new.extend_until, new.reason, new.key_prefix,
            new.signed_answer_id, new.asked_at)
        is distinct from (old.id, old.stream_id, old.epoch, old.sequence, old.extend_until, old.reason, old.key_prefix,
            old.signed_answer_id, old.asked_at)
    then raise exception 'an extension says for ever what was asked' using errcode = 'restrict_violation';
    end if;
    if old.state <> 'asked'
    then raise exception 'an extension is decided once' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
"""


def trigger(table: str, name: str, when: str, function: str) -> str:
    return (
        f"create trigger {name} {when} on {table} for each {'statement' if 'truncate' in when else 'row'}"
        f" execute function {function}();\n"
        f"alter table {table} enable always trigger {name};\n"
    )


TRIGGERS = "".join(
    [
        trigger("removal_signedanswer", "history_is_not_changed", "before update or delete", "removal_refuse_change"),
        trigger("removal_signedanswer", "history_is_not_emptied", "before truncate", "removal_refuse_change"),
        trigger("removal_extension", "history_is_not_deleted", "before delete", "removal_refuse_change"),
        trigger("removal_extension", "history_is_not_emptied", "before truncate", "removal_refuse_change"),
        trigger("removal_extension", "an_extension_is_decided_once", "before update", "removal_guard_extension"),
    ]
)


class Migration(migrations.Migration):

    dependencies = [
        ('partners', '0004_identifiers'),
        ('removal', '0007_pulling'),
    ]

    operations = [
        migrations.CreateModel(
            name='SignedAnswer',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('message_id', models.CharField(max_length=256, verbose_name='webhook-id')),
                ('timestamp', models.CharField(max_length=11, verbose_name='webhook-timestamp')),
                ('signature', models.TextField(verbose_name='webhook-signature')),
                ('body_digest', models.BinaryField(help_text='SHA-256 of the body.', max_length=32)),
                ('received_at', models.DateTimeField(help_text='The moment for which signature and key were found good.')),
                ('key', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='partners.secret')),
                ('partner', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='signed_answers', to='partners.partner')),
            ],
        ),
        migrations.AlterField(
            model_name='acknowledgementtext',
            name='acknowledgement',
            field=models.OneToOneField(db_constraint=False, on_delete=django.db.models.deletion.PROTECT, primary_key=True, related_name='text', serialize=False, to='removal.acknowledgement'),
        ),
        migrations.CreateModel(
            name='SignedAnswerBody',
            fields=[
                ('signed_answer', models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, primary_key=True, related_name='body', serialize=False, to='removal.signedanswer')),
                ('body', models.BinaryField()),
            ],
            options={
                'verbose_name_plural': 'signed answer bodies',
            },
        ),
        migrations.CreateModel(
            name='Extension',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('epoch', models.PositiveIntegerField()),
                ('sequence', models.BigIntegerField()),
                ('extend_until', models.DateTimeField()),
                ('reason', models.TextField(help_text="The partner's own words.")),
                ('key_prefix', models.CharField(blank=True, help_text='The API key it came with.', max_length=12)),
                ('asked_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('state', models.CharField(choices=[('asked', 'asked'), ('granted', 'granted'), ('refused', 'refused')], default='asked', max_length=10)),
                ('decided_at', models.DateTimeField(blank=True, null=True)),
                ('decided_by', models.CharField(blank=True, help_text='staff:<user id>', max_length=100)),
                ('decision', models.TextField(blank=True, help_text="Why, in that person's words.")),
                ('stream', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='extensions', to='removal.stream')),
                ('signed_answer', models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='extensions', to='removal.signedanswer')),
            ],
        ),
        migrations.AddField(
            model_name='acknowledgement',
            name='signed_answer',
            field=models.ForeignKey(db_constraint=False, db_index=False, help_text='The signed request that it came in.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='acknowledgements', to='removal.signedanswer'),
        ),
        migrations.AddIndex(
            model_name='acknowledgement',
            index=models.Index(condition=models.Q(('signed_answer__isnull', False)), fields=['signed_answer', 'id'], name='acknowledgement_signed'),
        ),
        migrations.AddConstraint(
            model_name='signedanswer',
            constraint=models.UniqueConstraint(fields=('partner', 'message_id'), name='an_id_signs_one_answer_of_a_partner'),
        ),
        migrations.AddIndex(
            model_name='extension',
            index=models.Index(fields=['stream', 'epoch', 'sequence'], name='extension_of_a_notice'),
        ),
        migrations.AddConstraint(
            model_name='extension',
            constraint=models.UniqueConstraint(condition=models.Q(('state', 'asked')), fields=('stream', 'epoch', 'sequence'), name='a_notice_has_one_open_wish_for_time'),
        ),
        migrations.AddConstraint(
            model_name='extension',
            constraint=models.UniqueConstraint(condition=models.Q(('state', 'granted')), fields=('stream', 'epoch', 'sequence'), name='a_notice_is_extended_once'),
        ),
        migrations.AddConstraint(
            model_name='extension',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('decided_at__isnull', True), ('decided_by', ''), ('decision', ''), ('state', 'asked')), models.Q(('decided_at__isnull', False), ('state__in', ['granted', 'refused']), models.Q(('decided_by', ''), _negated=True), models.Q(('decision', ''), _negated=True)), _connector='OR'), name='a_person_decides_an_extension_and_says_why'),
        ),
        migrations.RunSQL(GUARDS),
        migrations.RunSQL(TRIGGERS),
    ]
