"""``manage.py staff add|roles|disable|reset-totp|list``: who may work at the desk."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from removal import staff
from removal.roles import ROLES


class Command(BaseCommand):
    help = "Add accounts for the desk, give them roles, switch them off, or forget a lost second factor."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|roles|disable|reset-totp|list")
        roles = f"one of: {', '.join(ROLES)}; may be repeated"
        add = actions.add_parser("add", help="add an account; prints its first password once")
        add.add_argument("name")
        add.add_argument("--role", action="append", dest="roles", default=[], help=roles)
        change = actions.add_parser("roles", help="give an account these roles, and no others")
        change.add_argument("name")
        change.add_argument("--role", action="append", dest="roles", default=[], help=roles)
        actions.add_parser("disable", help="keep it from logging in, and end its sessions").add_argument("name")
        actions.add_parser("reset-totp", help="forget its second factor: it sets up another").add_argument("name")
        actions.add_parser("list", help="list accounts, roles and second factors")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, action.replace("-", "_"))(f"command:{getpass.getuser()}", **options)
        except staff.UnknownStaff as error:
            raise CommandError(f"No account is called {error}. `manage.py staff list` lists them.") from error
        except (staff.InvalidAccount, staff.UnknownRole) as error:
            raise CommandError(str(error)) from error

    def add(self, actor: str, *, name: str, roles: list[str], **_: Any) -> None:
        password = staff.add_staff(actor=actor, name=name, roles=roles)[1]
        self.stdout.write(
            f"Added {name} as {', '.join(roles) or 'nobody yet: give it a role'}. Give it this over a safe channel; it "
            f"is not shown again, and is to be changed at the first login.\npassword  {password}"
        )

    def roles(self, actor: str, *, name: str, roles: list[str], **_: Any) -> None:
        staff.set_roles(actor=actor, name=name, roles=roles)
        self.stdout.write(f"{name} is now {', '.join(roles) or 'without a role'}.")

    def disable(self, actor: str, *, name: str, **_: Any) -> None:
        staff.disable_staff(actor=actor, name=name)
        self.stdout.write(f"{name} is logged out and cannot log in. Its number stays, since the log names it.")

    def reset_totp(self, actor: str, *, name: str, **_: Any) -> None:
        found = staff.reset_second_factor(actor=actor, name=name)
        self.stdout.write(
            f"{name} sets up a second factor anew at its next login." if found else f"{name} had no second factor."
        )

    def list(self, actor: str, **_: Any) -> None:
        accounts: Any = User.objects.filter(is_staff=True).prefetch_related("groups").order_by("username")
        for user in accounts:
            roles = ", ".join(sorted(group.name for group in user.groups.all())) or "no role"
            self.stdout.write(
                f"{user.username}\t{'superuser' if user.is_superuser else roles}\t"
                f"{'active' if user.is_active else 'disabled'}\t"
                f"{'second factor' if staff.has_second_factor(user) else 'no second factor'}"
            )
