import django.db.models.deletion
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models

from removal.roles import sync_roles

# A closing is history, a notice is closed once, and a waiver is decided once. Functions and triggers of their own, so
# that they stand beside those of 0002_guards.
GUARDS = """
create function removal_guard_closed_notice() returns trigger language plpgsql as $$
begin
    if old.closed_at is not null and new.closed_at is distinct from old.closed_at
    then raise exception 'a notice is closed once' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create function removal_guard_waiver() returns trigger language plpgsql as $$
begin
    if old.state <> 'asked' or (new.notice_id, new.text, new.asked_by_id, new.asked_at)
        is distinct from (old.notice_id, old.text, old.asked_by_id, old.asked_at)
    then raise exception 'a waiver says for ever what was asked, and is decided once' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
"""


def trigger(table: str, name: str, when: str, function: str) -> str:
    return (
        f"create trigger {name} {when.format(table=table)} execute function {function}();\n"
        f"alter table {table} enable always trigger {name};\n"
    )


TRIGGERS = "".join(
    [
        trigger("removal_closing", "history_is_not_changed", "before update or delete on {table} for each row", "removal_refuse_change"),
        trigger("removal_closing", "history_is_not_emptied", "before truncate on {table}", "removal_refuse_change"),
        trigger("removal_waiver", "history_is_not_deleted", "before delete on {table} for each row", "removal_refuse_change"),
        trigger("removal_waiver", "history_is_not_emptied", "before truncate on {table}", "removal_refuse_change"),
        trigger("removal_waiver", "a_waiver_is_decided_once", "before update on {table} for each row", "removal_guard_waiver"),
        trigger("removal_notice", "a_notice_is_closed_once", "before update of closed_at on {table} for each row", "removal_guard_closed_notice"),
    ]
)


class Migration(migrations.Migration):

    dependencies = [
        ('removal', '0011_roles'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Closing',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('reason', models.CharField(choices=[('agreed_in_writing', 'the partner confirmed it in writing, outside this service'), ('partner_ceased', 'the partner no longer exists'), ('duplicate', 'another notice says the same'), ('no_longer_held', 'the partner no longer holds the content'), ('waived', 'waived, with a second person')], max_length=20)),
                ('text', models.TextField(help_text="In the person's own words.")),
                ('closed_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
            ],
        ),
        migrations.CreateModel(
            name='Confirmation',
            fields=[
                ('token', models.UUIDField(primary_key=True, serialize=False)),
                ('action', models.CharField(max_length=60)),
                ('begun_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('said', models.TextField(blank=True, db_default='', help_text='What the page said when it was done.')),
            ],
        ),
        migrations.CreateModel(
            name='Waiver',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('text', models.TextField(help_text='Why nothing more is asked of the partner.')),
                ('asked_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('state', models.CharField(choices=[('asked', 'asked for'), ('approved', 'approved'), ('refused', 'refused')], default='asked', max_length=10)),
                ('decided_at', models.DateTimeField(blank=True, null=True)),
            ],
        ),
        migrations.RemoveIndex(
            model_name='notice',
            name='notice_open',
        ),
        migrations.AddField(
            model_name='notice',
            name='closed_at',
            field=models.DateTimeField(blank=True, help_text='A person ended it, for a reason: see its closing. The partner may still answer.', null=True),
        ),
        migrations.AlterField(
            model_name='delivery',
            name='delivered_by',
            field=models.CharField(blank=True, choices=[('response', 'a 2xx response'), ('acknowledged', "the partner's acknowledgement"), ('pulled', "the partner's own pull"), ('closed', 'a person, who closed its notices')], max_length=12),
        ),
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(condition=models.Q(('closed_at__isnull', True), ('withdrawn_at__isnull', True), models.Q(('handling__in', ['completed', 'partially_completed', 'rejected']), _negated=True)), fields=['stream', 'respond_by'], include=('planned_at',), name='notice_open'),
        ),
        migrations.AddField(
            model_name='closing',
            name='closed_by',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='closing',
            name='notice',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='closing', to='removal.notice'),
        ),
        migrations.AddField(
            model_name='confirmation',
            name='user',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='waiver',
            name='asked_by',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='waiver',
            name='decided_by',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='waiver',
            name='notice',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='waivers', to='removal.notice'),
        ),
        migrations.AddField(
            model_name='closing',
            name='waiver',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='closing', to='removal.waiver'),
        ),
        migrations.AddConstraint(
            model_name='waiver',
            constraint=models.UniqueConstraint(condition=models.Q(('state', 'refused'), _negated=True), fields=('notice',), name='a_notice_is_waived_once'),
        ),
        migrations.AddConstraint(
            model_name='waiver',
            constraint=models.CheckConstraint(condition=models.Q(('text', ''), _negated=True), name='a_waiver_says_why'),
        ),
        migrations.AddConstraint(
            model_name='waiver',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('decided_at__isnull', True), ('decided_by__isnull', True), ('state', 'asked')), models.Q(('decided_at__isnull', False), ('decided_by__isnull', False), ('state__in', ['approved', 'refused'])), _connector='OR'), name='a_decided_waiver_says_by_whom'),
        ),
        migrations.AddConstraint(
            model_name='waiver',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state', 'approved'), _negated=True), models.Q(('decided_by', models.F('asked_by')), _negated=True), _connector='OR'), name='nobody_approves_their_own_waiver'),
        ),
        migrations.AddConstraint(
            model_name='closing',
            constraint=models.CheckConstraint(condition=models.Q(('text', ''), _negated=True), name='a_closing_says_why'),
        ),
        migrations.AddConstraint(
            model_name='closing',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('reason', 'waived'), ('waiver__isnull', False)), models.Q(models.Q(('reason', 'waived'), _negated=True), ('waiver__isnull', True)), _connector='OR'), name='a_closing_that_waives_has_its_waiver'),
        ),
        migrations.RunSQL(GUARDS),
        migrations.RunSQL(TRIGGERS),
        migrations.RunPython(sync_roles, migrations.RunPython.noop),
    ]
