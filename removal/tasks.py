"""Celery's way in: ids by keyword, one call inward, no rules. Each may run twice, late or never."""

from celery import shared_task
from django.conf import settings

from removal import hints, large, planning, sending


@shared_task(name="removal.tasks.plan", ignore_result=True)
def plan(**_newer: object) -> None:
    """Match what is new, and hint at each stream that grew."""
    planning.plan(budget=settings.DRAIN_BUDGET, tell=lambda partner_id: hints.hint_stream(partner_id=partner_id))
    # Only now, since it may take long: what was planned above is on its way by then.
    for partner_id in large.advance(budget=settings.DRAIN_BUDGET):
        hints.hint_stream(partner_id=partner_id)


@shared_task(name="removal.tasks.drain_stream", ignore_result=True)
def drain_stream(*, partner_id: int, **_newer: object) -> None:
    """Send what one partner is due, unless it has not answered its last try: then it is for the sweep to find out.

    A hint comes with each new notice, and a partner that hangs would hold one task after another for its deadline.
    """
    if sending.drain(partner_id=partner_id, budget=settings.DRAIN_BUDGET, probing=False):
        hints.hint_stream(partner_id=partner_id)


@shared_task(name="removal.tasks.pulse", ignore_result=True)
def pulse(**_newer: object) -> None:
    """Show that this worker takes what the broker has; see removal.watchdog."""
