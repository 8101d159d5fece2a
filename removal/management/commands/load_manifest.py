"""``manage.py load_manifest FILE --release NAME``: fill a release from a file, whole or one part."""

import getpass
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, OutputWrapper
from django.db import transaction
from django.db.models import ProtectedError

from removal import formats, ledger, uploads
from removal.compression import CannotUnpack
from removal.formats import Digested, Format, UnknownFormat
from removal.ledger import Entry, InvalidManifest
from removal.models import Dataset, LogEntry, Release
from removal.transactions import one_transaction

PIECE_BYTES = 64 * 1024
PROGRESS_SECONDS = 0.2


class Command(BaseCommand):
    help = (
        "Take a file as the manifest of a release, or as a part of it: NDJSON, CSV, a WordPress export or Parquet, as "
        "it is or packed with gzip (.gz) or Zstandard (.zst). Broken lines are listed, and then nothing is loaded."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", type=Path, metavar="FILE", help="such as posts.ndjson, posts.csv.gz or site.xml.zst"
        )
        parser.add_argument("--release", required=True, metavar="NAME", help="the release that it goes into")
        parser.add_argument("--dataset", metavar="NAME", help="makes the release, as a version of this, if it is new")
        parser.add_argument("--format", choices=[*Format], help="if the name of the file does not say it")
        parser.add_argument("--part", type=int, metavar="N", help="it is part N of several; the first is 1")
        parser.add_argument("--max-errors", type=int, default=20, metavar="N", help="broken lines to list (default 20)")
        parser.add_argument("--seal", action="store_true", help="seal the release; with --part, that is the last one")

    def handle(self, *, file: Path, release: str, seal: bool, **options: Any) -> None:
        actor = f"command:{getpass.getuser()}"
        faults = _Faults(most=options["max_errors"])
        part: int | None = options["part"]
        try:
            form = Format(options["format"] or formats.format_of_file(file.name))
            with self._made(actor, release, options["dataset"], source=f"file:{file.name}"):
                counts = self._load(actor, file, release, form=form, part=part, faults=faults)
            self.stdout.write(f"{release}: {counts.subjects} subjects, {counts.items} items")
            if seal:
                sealed = ledger.seal_release(actor=actor, name=release, parts=part).release
                self.stdout.write(f"sealed with digest {bytes(sealed.digest or b'').hex()}")
        except _Broken as error:
            for fault in faults.found:
                self.stderr.write(str(fault))
            raise CommandError(f"{file} has broken lines. Nothing was loaded.") from error
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
        except (CannotUnpack, InvalidManifest, UnknownFormat) as error:
            raise CommandError(f"{file}: {error} Nothing was loaded.") from error
        except ledger.ReleaseIsSealed as error:
            raise CommandError(f"Release {error} is sealed and never changes. Choose another name.") from error
        except uploads.HasWholeManifest as error:
            raise CommandError(f"{release} has a manifest that came whole; parts do not go beside it.") from error
        except (ledger.InvalidName, uploads.InvalidPart) as error:
            raise CommandError(str(error)) from error
        except (ledger.PartsDiffer, ledger.ContentMustGo) as error:
            raise CommandError(f"{release} was filled and not sealed. {error}") from error
        except ledger.EmptyManifest as error:
            raise CommandError(f"{release} is empty and was not sealed.") from error

    @contextmanager
    def _made(self, actor: str, name: str, dataset: str | None, *, source: str) -> Iterator[None]:
        """Have a release for a block. One that was made for it, and its dataset, goes again if the block fails."""
        if Release.objects.filter(name=name).exists():
            yield
            return
        if dataset is None:
            raise CommandError(f"There is no release {name}. Name its dataset with --dataset to make it.")
        is_new_dataset = not Dataset.objects.filter(name=dataset).exists()
        release = ledger.create_release(actor=actor, name=name, dataset=dataset, source=source)
        try:
            yield
        except BaseException:  # an impatient Ctrl-C too
            _discard(actor, release, with_dataset=is_new_dataset)
            raise

    def _load(
        self, actor: str, file: Path, release: str, *, form: Format, part: int | None, faults: "_Faults"
    ) -> ledger.Counts | uploads.Part:
        with file.open("rb") as stream:
            progress = _Progress(self.stderr, file.stat().st_size)
            body = Digested(progress.of_bytes(iter(lambda: stream.read(PIECE_BYTES), b"")))
            entries = formats.read_manifest(
                body, form=form, packing=formats.packing_of_file(file.name), on_fault=faults.take
            )
            into: dict[str, Any] = {
                "actor": actor,
                "name": release,
                "entries": faults.or_nothing(progress.of_entries(entries)),
                "one_line_each": form.one_line_each,
            }
            if part is None:
                return uploads.replace_manifest(**into)
            return uploads.put_part(**into, number=part, digest=body.digest)


@one_transaction()
def _discard(actor: str, release: Release, *, with_dataset: bool) -> None:
    """Take back a release that nothing came into; one that somebody else has begun to fill meanwhile stays."""
    building = Release.objects.select_for_update().filter(pk=release.pk, state=Release.State.BUILDING)
    if not building.exists() or release.entries.exists() or release.parts.exists():
        return
    release.delete()
    LogEntry.objects.create(actor=actor, action="release_discarded", about={"release": release.pk})
    if with_dataset:
        # It stays if somebody else has made a release of it since.
        with suppress(ProtectedError), transaction.atomic():
            release.dataset.delete()


class _Broken(Exception):
    """There are broken lines."""


class _Faults:
    """Gathers broken lines, up to ``most``."""

    def __init__(self, *, most: int) -> None:
        self.found: list[InvalidManifest] = []
        self._most = most

    def take(self, fault: InvalidManifest) -> None:
        self.found.append(fault)
        if len(self.found) >= self._most:
            raise _Broken

    def or_nothing(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Give all entries, and raise at the end if a line among them was broken."""
        yield from entries
        if self.found:
            raise _Broken


class _Progress:
    """Says on a terminal how far a file has been read."""

    def __init__(self, out: OutputWrapper, size: int) -> None:
        self._out = out
        self._shows = out.isatty()
        self._size = size
        self._read = self._line = 0
        self._started = self._said = time.monotonic()

    def of_bytes(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._read += len(chunk)
            if self._shows and time.monotonic() - self._said > PROGRESS_SECONDS:
                self._say()
            yield chunk
        if self._shows:
            self._say("; loading\n")

    def of_entries(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self._line = entry.line
            yield entry

    def _say(self, ending: str = "") -> None:
        self._said = time.monotonic()
        speed = self._read / 1e6 / max(self._said - self._started, 0.001)
        done = f"{self._read / max(self._size, 1):.0%}"
        self._out.write(f"\r{done}, {self._line:,} lines, {speed:.1f} MB/s{ending}", ending="")
        self._out.flush()
