"""What this partner does of itself: fetch long lists of items, and post its answers until the service has them."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from partners.reference import work
from partners.reference.client import NO_USABLE_ANSWER, Service
from partners.reference.partner import Partner
from partners.reference.store import utc_text

ANSWERS_IN_A_BATCH = 100
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 10.0

# The one refusal that passes by itself: the service has not noted yet that it sent us this notice.
NOT_YET_SENT = "not_yet_sent"

log = logging.getLogger(__name__)


def keep_calling(partner: Partner, service: Service) -> None:
    """Fetch and post for ever: at once what a message brought, and with growing waits what did not succeed."""
    wait_seconds = FIRST_WAIT_SECONDS
    while True:
        partner.work_came.clear()
        try:
            is_done = fetch_items(partner, service) & post_answers(partner, service)
        except Exception:
            # Nobody else would notice that this thread had died.
            log.exception("the service was not called")
            is_done = False
        if is_done:
            wait_seconds = FIRST_WAIT_SECONDS
            partner.work_came.wait()
        else:
            time.sleep(wait_seconds)
            wait_seconds = min(wait_seconds * 2, LONGEST_WAIT_SECONDS)


def fetch_items(partner: Partner, service: Service) -> bool:
    """Ask once for the items of each pending notice, and do its work if they come complete.

    Returns whether all came.
    """
    pending = partner.store.rows(
        "SELECT epoch, sequence, items_total, items_url FROM notices WHERE state = 'pending' ORDER BY epoch, sequence"
    )
    all_came = True
    for epoch, sequence, items_total, items_url in pending:
        try:
            items = service.items(items_url)
            if len(items) != items_total:
                raise ValueError(f"{len(items)} items listed, {items_total} announced")
        except NO_USABLE_ANSWER as error:
            log.warning("the items of notice %d must wait: %s", sequence, error)
            all_came = False
            continue
        with partner.store.transaction() as db:
            work.complete(db, epoch, sequence, items, slug=partner.slug, now=datetime.now(UTC))
    return all_came


def _batches(waiting: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut answers into batches of one epoch each: what is refused is named by its number alone."""
    for _, of_epoch in groupby(waiting, key=itemgetter(0)):
        rows = list(of_epoch)
        for first in range(0, len(rows), ANSWERS_IN_A_BATCH):
            yield rows[first : first + ANSWERS_IN_A_BATCH]


def post_answers(partner: Partner, service: Service) -> bool:
    """Post each waiting answer once, in batches, and write down what the service said to it.

    Returns whether it has said yes or no to all.
    """
    waiting = partner.store.rows(
        "SELECT epoch, sequence, acknowledgement FROM answers WHERE state = 'waiting' ORDER BY epoch, sequence"
    )
    all_settled = True
    for batch in _batches(waiting):
        try:
            refused = service.acknowledge([json.loads(acknowledgement) for _, _, acknowledgement in batch])
        except NO_USABLE_ANSWER as error:
            log.warning("answers must wait: %s", error)
            return False
        with partner.store.transaction() as db:
            for epoch, sequence, _ in batch:
                code, message = refused.get(sequence, (None, None))
                state = "answered" if code is None else "waiting" if code == NOT_YET_SENT else "refused"
                all_settled &= state != "waiting"
                db.execute(
                    "UPDATE answers SET state = ?, code = ?, message = ?, posted_at = ?"
                    " WHERE epoch = ? AND sequence = ?",
                    (state, code, message, utc_text(datetime.now(UTC)), epoch, sequence),
                )
    return all_settled
