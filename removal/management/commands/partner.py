"""``manage.py partner add|list|pause|resume|rotate|identifiers|change-url|resend``: what staff do to partners."""

import getpass
from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from partners.models import Partner
from removal import hints, partnerships, replay
from removal.models.subjects import USAGES


class Command(BaseCommand):
    help = "Add, list, pause or resume partners, give them a new signing secret, or change their address."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|pause|resume|…")
        add = actions.add_parser("add", help="add a partner; prints its secrets once")
        add.add_argument("slug", help="its short name in URLs and messages: a-z, 0-9 and -")
        add.add_argument("--url", required=True, help="where its messages go (https)")
        add.add_argument("--name", default="", help="its full name")
        add.add_argument(
            "--usages",
            default="all",
            help=f"what it may use content for, with commas: {', '.join(USAGES)} (default all)",
        )
        add.add_argument("--window", type=int, default=4, help="messages on their way at once (default 4)")
        add.add_argument("--max-notices", type=int, default=100, help="notices in a message at most (default 100)")
        add.add_argument("--rate", type=int, default=50, help="messages in a second at most (default 50)")
        add.add_argument(
            "--identifiers",
            default=Partner.Identifiers.RAW,
            choices=Partner.Identifiers.values,
            help="how its messages name things (default raw: as the releases do)",
        )
        actions.add_parser("list", help="list partners, their state and what they are owed")
        for action, text in (
            ("pause", "stop its messages; what it is owed stays open"),
            ("resume", "send again"),
        ):
            actions.add_parser(action, help=text).add_argument("slug")
        rotate = actions.add_parser("rotate", help="give it a new signing secret, printed once")
        rotate.add_argument("slug")
        rotate.add_argument("--overlap-hours", type=int, default=24, help="how long the old one signs too (default 24)")
        chosen = actions.add_parser("identifiers", help="choose how its messages name things; shows its key")
        chosen.add_argument("slug")
        chosen.add_argument("identifiers", choices=Partner.Identifiers.values)
        chosen.add_argument("--new-key", action="store_true", help="make another key: the one in force is known")
        change = actions.add_parser("change-url", help="send its messages to another address; ends a suspension")
        change.add_argument("slug")
        change.add_argument("url")
        resend = actions.add_parser("resend", help="send again what it had already: same numbers, same webhook-id")
        resend.add_argument("slug")
        resend.add_argument("--from", dest="first", type=int, default=1, help="first number of its stream (default 1)")
        resend.add_argument("--to", dest="last", type=int, help="last number (default: to the end)")
        resend.add_argument(
            "--since", type=datetime.fromisoformat, help="only what was delivered since, such as 2026-11-24T09:00+00:00"
        )
        resend.add_argument("--dry-run", action="store_true", help="only say what would be sent again")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, action.replace("-", "_"))(f"command:{getpass.getuser()}", **options)
        except partnerships.UnknownPartner as error:
            raise CommandError(f"No partner is called {error}. `manage.py partner list` lists them.") from error
        except (partnerships.InvalidPartner, replay.NothingSent) as error:
            raise CommandError(str(error)) from error

    def add(self, actor: str, *, slug: str, url: str, name: str, **options: Any) -> None:
        made = partnerships.add_partner(
            actor=actor,
            slug=slug,
            name=name,
            url=url,
            now=timezone.now(),
            usages=options["usages"].split(","),
            window=options["window"],
            max_notices=options["max_notices"],
            rate_per_second=options["rate"],
            identifiers=options["identifiers"],
        )
        self.stdout.write(
            f"Added {slug}. Give these to its engineers over a safe channel; they are not shown again.\n"
            f"signing secret  {made.secret}\napi key         {made.api_key}"
        )
        if made.identifier_key:
            self.stdout.write(f"identifier key  {made.identifier_key} (also at GET /v1/partner/identifiers)")

    def list(self, actor: str, **_: Any) -> None:
        partners = Partner.objects.select_related("endpoint", "stream").order_by("slug")
        for partner in partners:
            stream = partner.stream
            self.stdout.write(
                f"{partner.slug}\t{partner.state}\t{partner.endpoint.state}\t{partner.endpoint.url}\t"
                f"notices 1..{stream.head}, sent through {stream.packed_through}"
            )
        if not partners:
            self.stdout.write("No partners yet. `manage.py partner add SLUG --url https://…` adds one.")

    def pause(self, actor: str, *, slug: str, **_: Any) -> None:
        changed = partnerships.set_paused(actor=actor, slug=slug, paused=True)
        self.stdout.write(
            f"{slug} is paused. What it is owed stays open." if changed else f"{slug} was paused already."
        )

    def resume(self, actor: str, *, slug: str, **_: Any) -> None:
        changed = partnerships.set_paused(actor=actor, slug=slug, paused=False)
        self.stdout.write(f"{slug} is live again." if changed else f"{slug} was live already.")

    def rotate(self, actor: str, *, slug: str, overlap_hours: int, **_: Any) -> None:
        if overlap_hours < 0:
            raise CommandError("--overlap-hours is a whole number from 0.")
        secret = partnerships.rotate_secret(
            actor=actor, slug=slug, now=timezone.now(), overlap=timedelta(hours=overlap_hours)
        )
        self.stdout.write(
            f"The old secret signs for {overlap_hours} more hours. Not shown again:\nsigning secret  {secret}"
        )

    def identifiers(self, actor: str, *, slug: str, identifiers: str, new_key: bool, **_: Any) -> None:
        key = partnerships.choose_identifiers(actor=actor, slug=slug, identifiers=identifiers, new_key=new_key)
        self.stdout.write(f"New messages to {slug} name things as {identifiers}. Those that exist stay as they are.")
        if key:
            self.stdout.write(f"identifier key  {key} (the partner reads it at GET /v1/partner/identifiers)")

    def change_url(self, actor: str, *, slug: str, url: str, **_: Any) -> None:
        partnerships.change_endpoint(actor=actor, slug=slug, url=url, now=timezone.now())
        self.stdout.write(f"{slug} is sent its messages at {url} from the next attempt on.")

    def resend(self, actor: str, *, slug: str, dry_run: bool, **options: Any) -> None:
        chosen = {name: options[name] for name in ("first", "last", "since")}
        if chosen["since"] and chosen["since"].tzinfo is None:
            raise CommandError("--since needs a time zone, such as 2026-11-24T09:00+00:00.")
        if dry_run:
            extent = replay.extent_of(slug=slug, **chosen)
            self.stdout.write(f"Would send {extent.notices} notices in {extent.messages} messages again.")
            return
        extent = replay.send_again(
            actor=actor, slug=slug, progress=lambda messages: self.stderr.write(f"{messages} messages …"), **chosen
        )
        hints.hint_stream(partner_id=partnerships.find_partner(slug).pk)
        self.stdout.write(f"Sending {extent.notices} notices in {extent.messages} messages again.")
