"""One process that sends to one partner and ends: ``python -m tests.faults.lone SLUG``. Tests kill it or stop it.

``--poison N`` makes the notice with that number kill whoever sends it. ``--rounds`` sends again in a new process for as
long as one was killed, with leases that end at once: what a supervisor and a few hours do to a crash loop.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import django

BUDGET = timedelta(seconds=20)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("slug")
    parser.add_argument("--unfenced", action="store_true")
    parser.add_argument("--poison", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
    django.setup()

    from partners.models import Partner
    from removal import sending

    if options.unfenced:
        from tests.faults.unfenced import take_out_the_fence

        take_out_the_fence()
    if options.poison:
        poison(options.poison)
    partner_id = Partner.objects.get(slug=options.slug).pk

    def drain() -> None:
        sending.drain(partner_id=partner_id, budget=BUDGET)

    if options.rounds:
        sys.exit(not comes_to_an_end(drain, rounds=options.rounds))
    else:
        drain()


def poison(sequence: int) -> None:
    """Let a message that holds this number kill its process in place of being sent."""
    from removal import sending
    from removal.delivery import Claim, Result

    send = sending.send

    def fatal(claim: Claim, **more: Any) -> Result:
        if claim.first and claim.last and claim.first <= sequence <= claim.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(claim, **more)

    sending.send = fatal


def comes_to_an_end(drain: Callable[[], None], *, rounds: int) -> bool:
    """Run a step in one new process after the other until one lives; False when so many have died."""
    from django.db import connection

    from removal import recovery
    from removal.models import Delivery

    for _ in range(rounds):
        connection.close()  # it must not be shared
        child = os.fork()
        if child == 0:
            drain()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return True
        with connection.cursor() as cursor:
            cursor.execute("update removal_delivery set lease_until = clock_timestamp() where state = 'sending'")
        recovery.reap()
        Delivery.objects.filter(state="waiting").update(due_at="2026-01-01T00:00:00Z")
    return False


if __name__ == "__main__":
    main()
