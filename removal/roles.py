"""The roles that staff have: groups of Django's permissions, made by migrations (reliability S52).

A right that lets somebody act stands here by its name. Whoever has any role sees every page, the words of messages and
answers included. Nobody has the right to add, change or delete history, since no page can do it.

A migration that adds a model or a permission ends with ``migrations.RunPython(sync_roles, migrations.RunPython.noop)``.
"""

from typing import Any

APPS = ("partners", "removal")

OPERATOR = ("removal.pause", "removal.resend", "removal.verify")
COMPLIANCE_LEAD = ("removal.close", "removal.waive", "removal.extend", "removal.withdraw", "removal.export")
PARTNER_MANAGER = (
    "partners.add_partner",
    "partners.change_partner",
    "partners.change_endpoint",
    "partners.add_secret",
    "partners.change_secret",
    "partners.add_apikey",
    "partners.change_apikey",
    "partners.add_contact",
    "partners.change_contact",
    "partners.delete_contact",
    "removal.pause",
    "removal.verify",
    "removal.waive_verification",
)
ROLES: dict[str, tuple[str, ...]] = {
    "viewer": (),
    "operator": OPERATOR,
    "compliance lead": COMPLIANCE_LEAD,
    "partner manager": PARTNER_MANAGER,
}


def sync_roles(apps: Any, schema_editor: Any = None) -> None:
    """Make the roles, and give them their permissions, as far as the models in ``apps`` have them. Repeat at will.

    Django writes permissions only after the last migration, so those that are missing are written here as it would.
    """
    content_types = apps.get_model("contenttypes", "ContentType").objects
    permissions = apps.get_model("auth", "Permission").objects
    known: dict[str, Any] = {}
    for model in (model for label in APPS for model in apps.get_app_config(label).get_models()):
        options = model._meta
        content_type, _ = content_types.get_or_create(app_label=options.app_label, model=options.model_name)
        standard = [
            (f"{verb}_{options.model_name}", f"Can {verb} {options.verbose_name_raw}")
            for verb in options.default_permissions
        ]
        for codename, name in (*standard, *options.permissions):
            permission, _ = permissions.get_or_create(
                content_type=content_type, codename=codename, defaults={"name": name}
            )
            known[f"{options.app_label}.{codename}"] = permission
    seeing = [permission for name, permission in known.items() if name.split(".")[1].startswith("view_")]
    for role, rights in ROLES.items():
        group, _ = apps.get_model("auth", "Group").objects.get_or_create(name=role)
        group.permissions.add(*seeing, *(known[right] for right in rights if right in known))
