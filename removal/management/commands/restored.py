"""``manage.py restored``: the database was restored from a backup."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from removal import restoring


class Command(BaseCommand):
    help = (
        "Begin every stream anew after the database was restored from a backup, before any other process starts. What "
        "partners were told since the backup is unknown here, and its numbers must not be given again: each stream's "
        "next epoch begins at 1 with all that is still owed. Not needed where a restore lost nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--yes", action="store_true", help="do it; without, say only what would be done")

    def handle(self, *, yes: bool, **_: Any) -> None:
        partners = restoring.partners_with_streams()
        if not yes:
            self.stdout.write(
                f"{len(partners)} streams would begin anew, and their partners be told again what they owe. Stop every "
                "process of the service, then run this again with --yes, once."
            )
            return
        for number, partner_id in enumerate(partners, start=1):
            try:
                opened = restoring.open_epoch(actor=f"command:{getpass.getuser()}", partner_id=partner_id)
            except OperationalError as error:
                message = f"Stopped after {number - 1} of {len(partners)} streams: other processes are at work. {error}"
                raise CommandError(message) from error
            self.stdout.write(f"{opened.partner}: epoch {opened.epoch}, {opened.notices} notices are said again")
