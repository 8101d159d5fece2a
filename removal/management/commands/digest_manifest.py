"""``manage.py digest_manifest FILE …``: the content digest of a release, computed anew from its source files."""

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from removal import formats
from removal.compression import CannotUnpack
from removal.digests import content_digest, join_lines
from removal.formats import Format, UnknownFormat
from removal.ledger import Entry, InvalidManifest

PIECE_BYTES = 64 * 1024


class Command(BaseCommand):
    help = (
        "Print the content digest that a release has once it is sealed with these files as its manifest, all parts of "
        "it. Reads only the files: neither the database nor the network. The order of files, lines and items is free."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="such as posts.ndjson or part-1.csv.gz")
        parser.add_argument("--format", choices=[*Format], help="of all files, if their names do not say it")

    def handle(self, *, files: Sequence[Path], **options: Any) -> None:
        entries = (entry for file in files for entry in _read(file, options["format"]))
        self.stdout.write(content_digest(entries).hex())


def _read(file: Path, form: str | None) -> Iterator[Entry]:
    try:
        chosen = Format(form or formats.format_of_file(file.name))
        with file.open("rb") as stream:
            pieces = iter(lambda: stream.read(PIECE_BYTES), b"")
            entries = formats.read_manifest(pieces, form=chosen, packing=formats.packing_of_file(file.name))
            yield from entries if chosen.one_line_each else join_lines(entries)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except (CannotUnpack, InvalidManifest, UnknownFormat, ValueError) as error:
        raise CommandError(f"{file}: {error}") from error
