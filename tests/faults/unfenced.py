"""Celery without the fence: what shows that the rig would see a worker that outlived its lease.

``python -m tests.faults.unfenced --app removal.config worker …`` runs a worker that records its result whoever has
claimed the message since. There is no switch for this in the product.
"""

import os
import re
import sys

import django

FENCE = re.compile(r"\s+and d\.fence = [rj]\.fence and d\.state = 'sending'")


def take_out_the_fence() -> None:
    from removal import delivery  # needs the apps

    delivery.RECORD, found = FENCE.subn("", delivery.RECORD)
    if found != 1:
        raise SystemExit(f"RECORD has {found} fences, and this knows of one: mend tests/faults/unfenced.py.")


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
    django.setup()
    take_out_the_fence()
    from celery.__main__ import main as celery

    sys.argv[0] = "celery"
    celery()


if __name__ == "__main__":
    main()
