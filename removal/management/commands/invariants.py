"""``manage.py invariants``: does everything that was promised hold?"""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from removal import invariants


class Command(BaseCommand):
    help = (
        "Check every promise that a query can check, over all rows, in one read-only snapshot. Prints a line for each: "
        "its name, and how many rows break it. Exits with 1 when any line is not 0."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead: name to number")

    def handle(self, **options: Any) -> None:
        counts = invariants.check()
        if options["json"]:
            self.stdout.write(json.dumps(counts, indent=1))
        else:
            for name, count in counts.items():
                self.stdout.write(f"{name}: {count}")
        broken = sum(count > 0 for count in counts.values())
        if broken:
            raise CommandError(f"{broken} of {len(counts)} do not hold.", returncode=1)
