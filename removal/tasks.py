"""Celery's way in: ids by keyword, one call inward, no rules. Each may run twice, late or never."""

from datetime import timedelta

from celery import shared_task
from django.conf import settings

from removal import hints, large, planning, sending

# A planner sends a lone notice by itself, and takes no longer.
A_MOMENT = timedelta(seconds=1)


@shared_task(name="removal.tasks.plan", ignore_result=True)
def plan(**_newer: object) -> None:
    """Match what is new, and hint at each stream that grew; but one that grew by a lone notice is sent to from here.

    That is done at once if the first round found it: what came in meanwhile is planned later, and has its own hint.
    """
    is_first = True

    def tell(done: planning.Round) -> None:
        nonlocal is_first
        sending.take_hint()  # each round is one more
        told = set(done.partner_ids)
        are_alone = is_first and done.notices == len(told)
        own = told.pop() if told and are_alone else None
        is_first = False
        hints.hint_streams(told)
        if own is not None:
            _drain(partner_id=own, budget=A_MOMENT)

    planning.plan(budget=settings.DRAIN_BUDGET, tell=tell)
    # Only now, since it may take long: what was planned above is on its way by then.
    hints.hint_streams(large.advance(budget=settings.DRAIN_BUDGET))


@shared_task(name="removal.tasks.drain_stream", ignore_result=True)
def drain_stream(*, partner_id: int, **_newer: object) -> None:
    """Send what one partner is due."""
    sending.take_hint()
    _drain(partner_id=partner_id, budget=settings.DRAIN_BUDGET)


def _drain(*, partner_id: int, budget: timedelta) -> None:
    """Send to a partner, unless it has not answered its last try: then it is for the sweep to find out.

    A hint comes with each new notice, and a partner that hangs would hold one task after another for its deadline.
    """
    if sending.drain(partner_id=partner_id, budget=budget, probing=False):
        hints.hint_stream(partner_id=partner_id)


@shared_task(name="removal.tasks.pulse", ignore_result=True)
def pulse(**_newer: object) -> None:
    """Show that this worker takes what the broker has; see removal.watchdog."""
