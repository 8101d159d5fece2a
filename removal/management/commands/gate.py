"""``manage.py gate --release R --in FILE --out FILE --decisions FILE``: which candidates may go into a release."""

import getpass
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError

from removal import gate, ledger, reports

PIECE_BYTES = 1024 * 1024
MOST_OF_A_FEED = 200
REPORT_EVERY_SECONDS = 1.0
NOTHING = "Nothing was released; files that were there before are as they were."


class Command(BaseCommand):
    help = (
        "Let the candidates through that may go into a release, and say of the others why not. Each file ends with a "
        'line {"end": true, ...}; without it, discard it. On any fault nothing is written and the exit code is 1.'
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--release", required=True, metavar="NAME", help="the release that they are for")
        parser.add_argument(
            "--in", required=True, type=Path, metavar="FILE", dest="candidates",
            help='NDJSON, a line a subject: {"subject", "items", "container_state"}',
        )  # fmt: skip
        parser.add_argument(
            "--out", required=True, type=Path, metavar="FILE", dest="allowed", help="gets the lines that may pass"
        )
        parser.add_argument(
            "--decisions", required=True, type=Path, metavar="FILE", help="gets what was kept out, and why"
        )
        parser.add_argument(
            "--feed", default="", metavar="NAME", help="where the candidates come from (default: the release's source)"
        )

    def handle(self, *, release: str, candidates: Path, allowed: Path, decisions: Path, feed: str, **_: Any) -> None:
        if len({candidates.resolve(), allowed.resolve(), decisions.resolve()}) < 3:
            raise CommandError("--in, --out and --decisions must be three different files.")
        if len(feed) > MOST_OF_A_FEED:
            raise CommandError(f"--feed has at most {MOST_OF_A_FEED} characters.")
        try:
            done = self._sift(release, candidates, allowed, decisions, feed)
        except ledger.UnknownRelease as error:
            raise CommandError(f"No release is called {release}. {NOTHING}") from error
        except gate.InvalidCandidate as error:
            raise CommandError(f"{candidates}: {error} {NOTHING}") from error
        except OSError as error:
            raise CommandError(f"{error.filename or allowed}: {error.strerror}. {NOTHING}") from error
        except DatabaseError as error:
            # Not its message: the database quotes values in its own.
            raise CommandError(f"The database cannot answer ({type(error).__name__}). {NOTHING}") from error
        self.stdout.write(f"{done.allowed} items may pass, {done.excluded} were kept out.")

    def _sift(self, release: str, candidates: Path, allowed: Path, decisions: Path, feed: str) -> gate.Sifted:
        with candidates.open("rb") as lines, both_or_neither(allowed, decisions) as (passing, kept_out):
            done = gate.sift(
                actor=f"command:{getpass.getuser()}",
                release=reports.find_release(name=release),
                candidates=iter(lambda: lines.read(PIECE_BYTES), b""),
                allowed=passing,
                decisions=kept_out,
                feed=feed,
                progress=self._progress(),
            )
            for file in (passing, kept_out):
                file.write(done.as_line())
        return done

    def _progress(self) -> Any:
        """Make what tells a person at a terminal how far it is, and nobody else."""
        said_at = time.monotonic()

        def tell(lines: int) -> None:
            nonlocal said_at
            if self.stderr.isatty() and time.monotonic() - said_at > REPORT_EVERY_SECONDS:
                said_at = time.monotonic()
                self.stderr.write(f"\r{lines:,} lines", ending="")

        return tell


@contextmanager
def both_or_neither(*targets: Path) -> Iterator[list[BinaryIO]]:
    """Open a file beside each target; only if all goes well, and all is on disk, do they take the targets' names.

    The first target takes its name last, so that whoever waits for it finds the others there.
    """
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(21, "it is a directory", str(target))
    partial = {target: target.with_name(f".{target.name}.{os.getpid()}.partial") for target in targets}
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(partial[target].open("xb")) for target in targets]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for target in reversed(targets):
            partial[target].replace(target)
        for folder in {target.parent for target in targets}:
            _sync_folder(folder)
    finally:
        for leftover in partial.values():
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new names last: they are on disk only when their folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
