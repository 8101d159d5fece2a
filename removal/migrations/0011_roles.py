from django.db import migrations

from removal.roles import sync_roles


class Migration(migrations.Migration):
    dependencies = [
        ("removal", "0010_deadlines"),
        ("partners", "0004_identifiers"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [
        migrations.AlterModelOptions(
            name="stream",
            options={
                "permissions": [
                    ("pause", "Can pause and resume the messages to a partner"),
                    ("resend", "Can send messages again"),
                    ("verify", "Can have a partner's endpoint verified"),
                    ("waive_verification", "Can let a partner go live without verification"),
                ]
            },
        ),
        migrations.AlterModelOptions(
            name="notice",
            options={
                "permissions": [
                    ("close", "Can close a notice by hand"),
                    ("waive", "Can ask for, and decide on, the waiver of a notice"),
                    ("extend", "Can grant or refuse an extension"),
                ]
            },
        ),
        migrations.AlterModelOptions(
            name="removalrequest",
            options={
                "permissions": [
                    ("withdraw", "Can withdraw a request"),
                    ("export", "Can export requests and notices"),
                ],
                "verbose_name": "request",
            },
        ),
        migrations.RunPython(sync_roles, migrations.RunPython.noop),
    ]
