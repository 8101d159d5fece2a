"""``manage.py partner add|verify|pause|rotate|…``: what staff do to partners, from a shell."""

import getpass
from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from partners import keyring, keys
from partners.models import Partner, Secret, Verification
from removal import hints, partnerships, replay, verification
from removal.models.subjects import USAGES

REFUSALS = (
    partnerships.InvalidPartner,
    partnerships.StillOnboarding,
    keyring.UnknownKey,
    keyring.LastSecret,
    keys.TooManySecrets,
    verification.CannotVerify,
    verification.NothingToWaive,
    replay.NothingSent,
)


class Command(BaseCommand):
    help = "Add, list, verify, pause or resume partners, give them new secrets, or change their address."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|verify|pause|…")
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
            ("verify", "run the checks against its endpoint; makes it live if it passes"),
            ("keys", "list its keys and their ages"),
            ("pause", "stop its messages; what it is owed stays open"),
            ("resume", "send again"),
        ):
            actions.add_parser(action, help=text).add_argument("slug")
        rotate = actions.add_parser("rotate", help="give it a new signing secret, printed once")
        rotate.add_argument("slug")
        rotate.add_argument(
            "--overlap-hours",
            type=int,
            default=int(settings.SECRET_OVERLAP.total_seconds() // 3600),
            help="how long the old one signs too (default SECRET_OVERLAP_HOURS)",
        )
        chosen = actions.add_parser("identifiers", help="choose how its messages name things; shows its key")
        chosen.add_argument("slug")
        chosen.add_argument("identifiers", choices=Partner.Identifiers.values)
        chosen.add_argument("--new-key", action="store_true", help="make another key: the one in force is known")
        revoke = actions.add_parser("revoke-secret", help="end one of its signing secrets at once")
        revoke.add_argument("slug")
        revoke.add_argument("key", help="such as key_12; `partner keys` lists them")
        revoke.add_argument("--new", action="store_true", help="give it a new one in the same step, printed once")
        change = actions.add_parser("change-url", help="verify another address, and use it if it passes")
        change.add_argument("slug")
        change.add_argument("url")
        change.add_argument("--waive", metavar="REASON", help="use it without the checks, on your word")
        waive = actions.add_parser("waive", help="let it through without the checks, on your word")
        waive.add_argument("slug")
        waive.add_argument("--reason", required=True, help="why; it is kept and shown")
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
        except REFUSALS as error:
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
            f"signing secret  {made.secret}\napi key         {made.api_key}\n"
            f"Nothing is sent to it before its endpoint has passed the checks: `manage.py partner verify {slug}`."
        )
        if made.identifier_key:
            self.stdout.write(f"identifier key  {made.identifier_key} (also at GET /v1/partner/identifiers)")

    def list(self, actor: str, **_: Any) -> None:
        partners = Partner.objects.select_related("endpoint", "stream").order_by("slug")
        for partner in partners:
            stream = partner.stream
            pending = partner.endpoint.pending_url and f"pending {partner.endpoint.pending_url}\t"
            self.stdout.write(
                f"{partner.slug}\t{partner.state}\t{partner.endpoint.state}\t{partner.endpoint.url}\t"
                f"{pending}"
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

    def verify(self, actor: str, *, slug: str, url: str | None = None, **_: Any) -> None:
        self._report(verification.verify(actor=actor, slug=slug, url=url))

    def change_url(self, actor: str, *, waive: str | None, **options: Any) -> None:
        self.verify(actor, **options) if waive is None else self.waive(actor, reason=waive, **options)

    def waive(self, actor: str, *, slug: str, reason: str, url: str | None = None, **_: Any) -> None:
        self._report(verification.waive(actor=actor, slug=slug, url=url, reason=reason))

    def _report(self, result: Verification) -> None:
        """Print each check, and what followed; the command fails where the endpoint did."""
        for check in result.checks:
            word = {True: "passed", False: "FAILED", None: "not run"}[check["passed"]]
            detail = f" ({check['detail']})" if check["detail"] else ""
            self.stdout.write(f"{word:8}{check['name']:24}{check['came_back']}{detail}")
            if check["fix"]:
                self.stdout.write(f"{'':8}{check['fix']}")
        slug, url = result.partner.slug, result.url
        followed = {
            Verification.Effect.LIVE: f"{slug} is live: what it is owed is sent to {url} from now on.",
            Verification.Effect.URL: f"{slug} is sent its messages at {url} from the next attempt on.",
            Verification.Effect.OPENED: f"{slug} is sent to again, at {url}.",
            Verification.Effect.INCIDENT: f"Nothing stops for {slug}, but an incident is open until it passes.",
            Verification.Effect.STALE: "Its URL or its keys changed meanwhile, so that nothing follows. Run it again.",
            Verification.Effect.NONE: f"Nothing changes for {slug}.",
        }[Verification.Effect(result.effect)]
        if result.checks and not result.passed:
            raise CommandError(f"{url} did not pass. {followed}")
        self.stdout.write(followed)

    def keys(self, actor: str, *, slug: str, **_: Any) -> None:
        partner = partnerships.find_partner(slug)
        for secret in Secret.objects.filter(partner=partner).defer("key").order_by("id"):
            self.stdout.write(
                f"{secret.key_id}\t{secret.get_direction_display()}\t{secret.algorithm}\tactive from "
                f"{secret.active_from:%Y-%m-%d %H:%M}Z\tretires {_when(secret.retire_at)}\t"
                f"revoked {_when(secret.revoked_at)}"
            )

    def revoke_secret(self, actor: str, *, slug: str, key: str, new: bool, **_: Any) -> None:
        text = partnerships.revoke_secret(actor=actor, slug=slug, key_id=key, now=timezone.now(), replace=new)
        self.stdout.write(f"{key} signs nothing any more, from the next attempt on.")
        if text:
            self.stdout.write(f"Not shown again:\nsigning secret  {text}")

    def resend(self, actor: str, *, slug: str, dry_run: bool, **options: Any) -> None:
        chosen = {name: options[name] for name in ("first", "last", "since")}
        if chosen["since"] and chosen["since"].tzinfo is None:
            raise CommandError("--since needs a time zone, such as 2026-11-24T09:00+00:00.")
        if dry_run:
            extent = replay.extent_of(slug=slug, **chosen)
            self.stdout.write(f"Would send {extent} again.")
            return
        extent = replay.send_again(
            actor=actor, slug=slug, progress=lambda messages: self.stderr.write(f"{messages} messages …"), **chosen
        )
        hints.hint_stream(partner_id=partnerships.find_partner(slug).pk)
        self.stdout.write(f"Sending {extent} again.")


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z" if at else "-"
