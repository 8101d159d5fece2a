#!/usr/bin/env python3
"""Django's command line for Removal."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
    if sys.argv[1:2] == ["demo"]:
        # The demo brings its own PostgreSQL; nothing else may start an empty ledger by mistake.
        os.environ.setdefault("REMOVAL_EMBEDDED", "1")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")


if __name__ == "__main__":
    main()
