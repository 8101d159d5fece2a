"""``manage.py reencrypt``: encrypt all secrets at rest with the first of ENCRYPTION_KEYS, so that the others can go."""

import getpass
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from partners import reencryption
from partners.reencryption import Column, Step
from removal.models import LogEntry
from removal.transactions import whole_step


class Command(BaseCommand):
    help = (
        "Encrypt anew, with the first of ENCRYPTION_KEYS, each value in the database that needs an older one. Safe to "
        "repeat, and beside running processes that know both keys."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--check",
            action="store_true",
            help="change nothing: say how many values still need an older key, and exit with 1 if any does",
        )

    def handle(self, *, check: bool, **_: Any) -> None:
        actor = f"command:{getpass.getuser()}"
        older = 0
        for column in reencryption.columns():
            try:
                steps = list(_look(column) if check else _renew(column, actor=actor))
            except reencryption.Unreadable as error:
                raise CommandError(str(error)) from error
            found, values = sum(step.older for step in steps), sum(step.values for step in steps)
            self.stdout.write(f"{column}: {found} of {values} {'need an older key' if check else 're-encrypted'}")
            older += found
        if check and older:
            raise CommandError(f"{older} values need an older key. `manage.py reencrypt` encrypts them anew.")
        if check:
            self.stdout.write("Only the first of ENCRYPTION_KEYS is needed.")


def _look(column: Column) -> Iterator[Step]:
    after = 0
    while step := reencryption.take_step(column, after=after, write=False):
        yield step
        after = step.last_id


def _renew(column: Column, *, actor: str) -> Iterator[Step]:
    after = 0
    while step := _renew_some(column, after=after, actor=actor):
        yield step
        after = step.last_id


@whole_step
def _renew_some(column: Column, *, after: int, actor: str) -> Step | None:
    step = reencryption.take_step(column, after=after, write=True)
    if step and step.older:
        about = {"column": str(column), "values": step.older, "through_row": step.last_id}
        LogEntry.objects.create(actor=actor, action="values_reencrypted", about=about)
    return step
