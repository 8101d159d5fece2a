"""``manage.py export request|partner|period|metrics … --out FILE``: what the desk exports, from a shell."""

import getpass
import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from removal import exports
from removal.intake import UnknownRequest
from removal.partnerships import UnknownPartner


class Command(BaseCommand):
    help = "Export requests and notices as CSV, a line a notice, or the yearly metrics. Safe to open in a spreadsheet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        kinds = parser.add_subparsers(dest="kind", required=True, metavar="request|partner|period|metrics")
        kinds.add_parser("request", help="one request").add_argument("name", help="its id")
        kinds.add_parser("partner", help="everything one partner was told").add_argument("name", help="its slug")
        period = kinds.add_parser("period", help="the requests received in some days (UTC)")
        period.add_argument("first", type=_day, help="the first day, such as 2026-01-01")
        period.add_argument("last", type=_day, help="the last day, itself included")
        metrics = kinds.add_parser("metrics", help="counts and times by year (11 CCR 7102)")
        metrics.add_argument("--years", type=int, default=5, help="how many years back (default 5)")
        for kind in kinds.choices.values():
            kind.add_argument("--out", type=Path, help="a new file; default is standard output")

    def handle(self, *, kind: str, out: Path | None, **options: Any) -> None:
        try:
            pieces = self._metrics(**options) if kind == "metrics" else self._lines(kind, **options)
        except UnknownRequest as error:
            raise CommandError(f"No request is called {error}.") from error
        except UnknownPartner as error:
            raise CommandError(f"No partner is called {error}. `manage.py partner list` lists them.") from error
        if out is None:
            for piece in pieces:
                self.stdout.write(piece, ending="")
            return
        _write(out, pieces)

    def _lines(self, kind: str, **options: Any) -> Iterator[str]:
        if kind == "request":
            scope = exports.of_request(public_id=options["name"])
        elif kind == "partner":
            scope = exports.of_partner(slug=options["name"])
        else:
            scope = exports.of_period(start=options["first"], end=options["last"] + timedelta(days=1))
        return exports.export(scope, actor=f"command:{getpass.getuser()}", progress=self._progress(scope))

    def _progress(self, scope: exports.Scope) -> Callable[[int], None]:
        expected = exports.estimate(scope)
        return lambda rows: self.stderr.write(f"{rows} of about {max(expected, rows)} lines …")

    def _metrics(self, *, years: int, **_: Any) -> Iterator[str]:
        this_year = timezone.now().year
        rows = exports.yearly_metrics(first_year=this_year - years + 1, last_year=this_year)
        cells = ([getattr(row, name) for name in exports.METRIC_COLUMNS] for row in rows)
        return exports.as_csv(cells, exports.METRIC_COLUMNS)


def _write(out: Path, pieces: Iterator[str]) -> None:
    """Write into a file of another name first: what has the right name is whole, and what was cut off is removed."""
    part = out.with_name(f"{out.name}.part")
    try:
        # x: two exports into one file would mix; 600: it names people's content.
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            try:
                for piece in pieces:
                    file.write(piece)
            except BaseException:
                part.unlink()
                raise
            finally:
                pieces.close()  # type: ignore[attr-defined]  # a generator: it writes into the log how it ended
        part.rename(out)
    except FileExistsError as error:
        raise CommandError(f"{part} is there already: another export writes it, or was killed. Remove it.") from error
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}.") from error


def _day(text: str) -> datetime:
    return datetime.combine(datetime.strptime(text, "%Y-%m-%d").date(), datetime.min.time(), UTC)
