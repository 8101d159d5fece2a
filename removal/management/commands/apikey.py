"""``manage.py apikey create|revoke|list``: the bearer keys of platforms and partners."""

import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from partners.models import ApiKey
from removal import partnerships


class Command(BaseCommand):
    help = "Create, list or revoke API keys. A key's text is shown once, when it is made."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="create|revoke|list")
        create = actions.add_parser("create", help="make a key; prints its text once")
        owner = create.add_mutually_exclusive_group(required=True)
        owner.add_argument("--platform", metavar="SOURCE", help="for a platform, under the name of this source")
        owner.add_argument("--partner", metavar="SLUG", help="for a partner: its stream and its answers")
        actions.add_parser("revoke", help="end a key at once").add_argument(
            "prefix", help="the key's first 11 characters"
        )
        actions.add_parser("list", help="list keys by their prefix")

    def handle(self, *, action: str, **options: Any) -> None:
        actor = f"command:{getpass.getuser()}"
        if action == "create":
            self.create(actor, platform=options["platform"], partner=options["partner"])
        elif action == "revoke":
            try:
                changed = partnerships.revoke_api_key(actor=actor, prefix=options["prefix"])
            except partnerships.UnknownKey as error:
                raise CommandError(f"No key starts with {error}. `manage.py apikey list` lists them.") from error
            self.stdout.write("Revoked. It is refused from now on." if changed else "It was revoked already.")
        else:
            for key in ApiKey.objects.select_related("partner").order_by("id"):
                whose = f"partner:{key.partner.slug}" if key.partner else f"platform, source {key.source}"
                state = "revoked" if key.revoked_at else "active"
                self.stdout.write(f"{key.prefix}\t{whose}\t{state}\tmade {key.created_at:%Y-%m-%d}")

    def create(self, actor: str, *, platform: str | None, partner: str | None) -> None:
        try:
            key, text = partnerships.create_api_key(actor=actor, source=platform or "", slug=partner)
        except partnerships.UnknownPartner as error:
            raise CommandError(f"No partner is called {error}. `manage.py partner list` lists them.") from error
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        self.stdout.write(f"Made {key.prefix}…; not shown again:\napi key  {text}")
