"""``manage.py label FILE``: give subjects the names that people know them by, or erase these."""

import getpass
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from removal import labels
from removal.api.bulk import Refused, read_line
from removal.api.schemas import LabelLine
from removal.manifests import split_lines

PIECE_BYTES = 64 * 1024
BATCH = 10_000  # lines in one transaction


class Command(BaseCommand):
    help = (
        'Label subjects from NDJSON: {"subject": "site:1", "label": "https://blog.example"} on each line; null erases. '
        "Lines before a broken one stand, and the same file again changes nothing more."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE")

    def handle(self, *, file: Path, **_: Any) -> None:
        actor = f"command:{getpass.getuser()}"
        lines = changed = 0
        batch: dict[str, str | None] = {}
        try:
            for line in _read(file):
                lines += 1
                batch[line.subject] = line.label
                if len(batch) == BATCH:
                    changed += labels.set_labels(actor=actor, labels=batch)
                    batch = {}
                    if self.stderr.isatty():
                        self.stderr.write(f"\r{lines:,} lines", ending="")
            changed += labels.set_labels(actor=actor, labels=batch)
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
        self.stdout.write(f"{lines} lines, {changed} labels changed; the others were so, or name no subject known.")


def _read(file: Path) -> Iterator[LabelLine]:
    with file.open("rb") as stream:
        for number, line in split_lines(iter(lambda: stream.read(PIECE_BYTES), b"")):
            try:
                yield read_line(line, LabelLine)
            except Refused as refusal:
                raise CommandError(f"{file}, line {number}: {refusal.error['message']}") from refusal
