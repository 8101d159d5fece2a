"""``manage.py reference_partner``: run the reference receiver. The same as ``python -m partners.reference``."""

from typing import Any

from django.core.management.base import BaseCommand

from partners.reference.__main__ import main


class Command(BaseCommand):
    help = "Run the reference partner: a small receiver that verifies, removes, and acknowledges."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Pass the options on as they are: Django's own mean nothing to a partner."""
        main(argv[2:])

    def handle(self, *args: Any, **_: Any) -> None:
        main(list(args))
