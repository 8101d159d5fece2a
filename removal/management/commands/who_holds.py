"""``manage.py who_holds SUBJECT``: which partners were given what of it."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from removal import holdings


def _read_time(text: str) -> datetime:
    moment = parse_datetime(text)
    if moment is None or moment.tzinfo is None:
        raise ArgumentTypeError("write a time with its offset, such as 2026-11-24T00:20:00Z")
    return moment


class Command(BaseCommand):
    help = "List the partners that were given content of a subject, a line for each handover, oldest first."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("subject", metavar="SUBJECT", help="its key, such as site:123")
        parser.add_argument("--as-of", type=_read_time, metavar="TIME", help="as of a past moment (default now)")

    def handle(self, *, subject: str, as_of: datetime | None, **_: Any) -> None:
        holders = holdings.holders_of(subject=subject, as_of=as_of or timezone.now())
        for holder in holders:
            removed = f"removed {holder.removed_at:%Y-%m-%dT%H:%M:%SZ}" if holder.removed_at else "holds it"
            self.stdout.write(
                f"{holder.partner}\t{holder.release}\t{holder.items_total} items\t"
                f"{holder.disclosed_at:%Y-%m-%dT%H:%M:%SZ}\t{removed}"
            )
        if not holders:
            self.stdout.write(f"Nobody was given anything of {subject}.")
