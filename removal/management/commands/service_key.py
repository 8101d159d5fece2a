"""``manage.py service_key list|rotate|revoke``: the Ed25519 key that signs for all partners."""

import getpass
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from partners import keyring, keys
from removal import partnerships


class Command(BaseCommand):
    help = "List, rotate or revoke the Ed25519 key whose public half is at /.well-known/removal-notices."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|rotate|revoke")
        actions.add_parser("list", help="list the keys that are published")
        rotate = actions.add_parser("rotate", help="publish the next key; it signs later, and the old one retires")
        rotate.add_argument("--lead-hours", type=int, default=24, help="published so long before it signs (default 24)")
        revoke = actions.add_parser("revoke", help="end a key at once, and have another one sign")
        revoke.add_argument("key", help="such as key_1; `service_key list` lists them")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, action)(f"command:{getpass.getuser()}", **options)
        except (keyring.UnknownKey, keys.RotationUnderway) as error:
            raise CommandError(str(error)) from error

    def list(self, actor: str, **_: Any) -> None:
        for secret in keys.published_keys(now=timezone.now()):
            retires = f"{secret.retire_at:%Y-%m-%d %H:%M}Z" if secret.retire_at else "-"
            self.stdout.write(f"{secret.key_id}\tsigns from {secret.active_from:%Y-%m-%d %H:%M}Z\tretires {retires}")

    def rotate(self, actor: str, *, lead_hours: int, **_: Any) -> None:
        if lead_hours < 0:
            raise CommandError("--lead-hours is a whole number from 0.")
        key = partnerships.rotate_service_key(
            actor=actor, now=timezone.now(), lead=timedelta(hours=lead_hours), overlap=settings.SECRET_OVERLAP
        )
        self.stdout.write(f"{key.key_id} is published, and signs from {key.active_from:%Y-%m-%d %H:%M}Z on.")

    def revoke(self, actor: str, *, key: str, **_: Any) -> None:
        partnerships.revoke_service_key(actor=actor, key_id=key, now=timezone.now())
        self.stdout.write(f"{key} signs nothing any more, from the next attempt on.")
        self.list(actor)
