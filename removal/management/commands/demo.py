"""``manage.py demo``: database, web, worker and three partners on this machine, and a story to watch."""

import fcntl
import json
import secrets
import signal
import sys
import time
from argparse import ArgumentParser
from typing import IO, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from partners.models import Partner
from removal import sample
from removal.demo.processes import ProcessEnded, Processes, free_port
from removal.demo.story import NAMES, DemoFailed, Result, Story, count_violations

SAMPLED = [character.slug for character in sample.CAST]


class Command(BaseCommand):
    help = (
        "Start everything on this machine (database, web, worker, three partners of which two make trouble), hand over "
        "releases, record opt-outs, and show how every partner is told and answers. Runs until Ctrl-C."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="end after the story")
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
        parser.add_argument("--port", type=int, default=8000, help="of the web server; another one if it is taken")

    def handle(self, *, once: bool, json: bool, port: int, **_: Any) -> None:
        self.quiet = json
        signal.signal(signal.SIGTERM, _interrupt)
        lock = _lock()
        self._refuse_real_ledger()
        started = time.monotonic()
        self._say("Preparing the database …")
        call_command("migrate", verbosity=0)
        password = _set_login()
        if not once and not Partner.objects.exists():
            self._say("Filling the desk with sample data (made-up partners under .example) …")
            sample.make(requests=sample.SIZES["small"], now=timezone.now())
        port = free_port(port)
        url = f"http://127.0.0.1:{port}"
        try:
            with Processes(logs=settings.VAR / "log", environment={"PUBLIC_URL": url}) as processes:
                self._say(f"Starting web, worker and partners; their logs are in {processes.logs}")
                processes.start_web(port=port)
                processes.start_worker()
                result = self._run(Story(processes, url=url, folder=settings.VAR / "demo"), started)
                self._report(result, as_json=json)
                if not once:
                    self._say(
                        f"\nAdmin  {url}/admin/  login demo  password {password}\nAPI    {url}/docs\nCtrl-C ends it."
                    )
                    _watch(processes)
                self._say("Stopping …")
        except (DemoFailed, ProcessEnded) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            self._say("\nStopped.")
            return
        finally:
            lock.close()
        if result.violations or not result.progress.is_complete:
            sys.exit(1)

    def _run(self, story: Story, started: float) -> Result:
        for progress in story.tell():
            if not self.quiet:
                # On a terminal the line is written over; elsewhere each stands by itself.
                start, end = ("\r", "") if sys.stdout.isatty() else ("", "\n")
                self.stdout.write(f"{start}{progress}", ending=end)
                self.stdout.flush()
        return Result(progress, time.monotonic() - started, count_violations())

    def _report(self, result: Result, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(result.as_json()))
        else:
            self._say(
                f"\nEvery partner has answered after {result.seconds:.1f} s. Its own logs name "
                f"{result.progress.witnessed} notices; promises broken: {result.violations}."
            )

    def _refuse_real_ledger(self) -> None:
        """Keep the demo out of a database that real partners are in."""
        try:
            strangers = Partner.objects.exclude(slug__in=[*NAMES, *SAMPLED]).exists()
        except Exception:  # noqa: BLE001  # no tables yet: whatever the database calls it
            return
        if strangers:
            raise CommandError(
                "This database has partners that are not the demo's. Give the demo a database of its own."
            )

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.stdout.write(text)
            self.stdout.flush()  # someone may be reading a pipe while we run on


def _lock() -> IO[str]:
    """Hold ``var/demo.lock`` while the demo runs: two on one folder would share a database and a broker."""
    settings.VAR.mkdir(parents=True, exist_ok=True)
    lock = (settings.VAR / "demo.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CommandError(
            f"A demo is running on {settings.VAR} already. Stop it with Ctrl-C in its window."
        ) from error
    return lock


def _set_login() -> str:
    """Give the account ``demo`` a new password."""
    password = secrets.token_urlsafe(9)
    user, _ = get_user_model().objects.get_or_create(username="demo", defaults={"is_staff": True, "is_superuser": True})
    user.set_password(password)
    user.save()
    return password


def _watch(processes: Processes) -> None:
    while True:
        time.sleep(1)
        processes.check()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
