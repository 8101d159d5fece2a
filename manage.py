#!/usr/bin/env python3
"""Django's command line for Removal."""

import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

# The demo brings its own PostgreSQL and its partners listen on loopback; no other command does so by itself, since an
# empty ledger that starts by mistake would read as "nobody opted out".
DEMO = {"REMOVAL_EMBEDDED": "1", "PARTNER_ALLOW_HTTP": "1", "PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8"}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
    if sys.argv[1:2] == ["demo"]:
        os.environ |= DEMO | os.environ
    try:
        if sys.argv[1:2] not in ([], ["help"], ["--help"], ["version"], ["--version"]):
            settings.DATABASES  # noqa: B018  # read now: some of Django's commands would go on without settings
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")


if __name__ == "__main__":
    main()
