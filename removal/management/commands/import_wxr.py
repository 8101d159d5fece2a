"""``manage.py import_wxr FILE --release NAME``: a WordPress export becomes the manifest of a release."""

import getpass
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from removal import formats, ledger, uploads, wxr
from removal.compression import CannotUnpack, unpack
from removal.models import Release

PIECE_BYTES = 64 * 1024


class Command(BaseCommand):
    help = (
        "Take what is public in a WordPress export (WXR 1.2) as the manifest of a release, and say what was left out "
        "and why. The release is made if it is new; one that is still building has its manifest replaced."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE", help="the export, as WordPress wrote it, or .gz or .zst")
        parser.add_argument("--release", required=True, metavar="NAME", help="the release that it goes into")
        parser.add_argument(
            "--dataset", default="wordpress", metavar="NAME", help="of a new release (default wordpress)"
        )
        parser.add_argument("--seal", action="store_true", help="seal the release afterwards")

    def handle(self, *, file: Path, release: str, dataset: str, seal: bool, **_: Any) -> None:
        actor = f"command:{getpass.getuser()}"
        left_out: list[wxr.LeftOut] = []
        try:
            with file.open("rb") as stream:
                # Read once to the end before anything is made: a broken file leaves nothing behind.
                pieces = iter(lambda: stream.read(PIECE_BYTES), b"")
                export = formats.open_wxr(unpack(pieces, formats.packing_of_file(file.name)))
                items = list(_public(export, left_out))
            if not items:
                raise CommandError(f"{file} has nothing public in it; nothing was imported.")
            if not Release.objects.filter(name=release).exists():
                ledger.create_release(actor=actor, name=release, dataset=dataset, source=f"wxr:{file.name}")
            uploads.replace_manifest(actor=actor, name=release, entries=[ledger.Entry(1, export.subject, items)])
            if seal:
                ledger.seal_release(actor=actor, name=release)
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
        except (CannotUnpack, wxr.Unreadable) as error:
            raise CommandError(f"{file}: {error} Nothing was imported.") from error
        except ledger.ReleaseIsSealed as error:
            raise CommandError(f"Release {error} is sealed and never changes. Choose another name.") from error
        except ledger.ContentMustGo as error:
            raise CommandError(f"{release} was filled and not sealed. {error}") from error
        except ledger.InvalidName as error:
            raise CommandError(str(error)) from error
        self._report(export.subject, items, left_out, release)

    def _report(self, subject: str, items: list[str], left_out: list[wxr.LeftOut], release: str) -> None:
        kinds = Counter(item.partition(":")[0] for item in items)
        self.stdout.write(f"{release}: {len(items)} items of {subject} ({_listed(kinds)})")
        for skipped in left_out:
            self.stdout.write(f"left out {skipped.item}: {skipped.reason}")
        reasons = Counter(str(skipped.reason) for skipped in left_out)
        self.stdout.write(f"{len(left_out)} left out" + (f" ({_listed(reasons)})" if left_out else ""))


def _public(export: wxr.Export, left_out: list[wxr.LeftOut]) -> Iterator[str]:
    for entry in export.entries:
        if isinstance(entry, wxr.Public):
            yield entry.item
        else:
            left_out.append(entry)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
