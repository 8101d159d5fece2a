"""``manage.py sample_data``: partners and a year of requests, to try the desk out."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from removal import sample


class Command(BaseCommand):
    help = "Fill an empty installation with made-up partners, releases, requests and answers, to try the desk out."

    def add_arguments(self, parser: ArgumentParser) -> None:
        sizes = ", ".join(f"{name}: {count:,} requests" for name, count in sample.SIZES.items())
        parser.add_argument("--size", choices=sample.SIZES, default="small", help=f"{sizes}; four notices each")
        parser.add_argument("--requests", type=int, metavar="N", help="so many requests instead; at least 1000")

    def handle(self, *, size: str, requests: int | None, **_: Any) -> None:
        count = sample.SIZES[size] if requests is None else requests
        if count < 1000:
            raise CommandError("--requests is a whole number from 1000.")
        try:
            sample.make(requests=count, now=timezone.now(), progress=self._say)
        except sample.NotEmpty as error:
            raise CommandError(
                "There are partners or requests here already. Sample data goes only into an empty installation: "
                "make a new database and migrate it first."
            ) from error
        self.stdout.write(f"{count} requests, told to {len(sample.CAST)} partners. Their addresses are made up.")

    def _say(self, what: str, done: int, of: int) -> None:
        if done == of or done % (10 * sample.BLOCK) == 0:
            self.stderr.write(f"{what}: {done:,} of {of:,}")
