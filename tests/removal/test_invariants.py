"""Each line of `manage.py invariants` is silent over a healthy world, and alone speaks when its promise is broken."""

import ipaddress
import json
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from partners.models import Partner
from removal import delivery, intake, invariants, planning
from removal.acknowledgement import Answer, Statement, acknowledge
from removal.models import Acknowledgement, Delivery, Notice, RemovalRequest, Stream
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.receivers import Received, Reply, listening

BUDGET = timedelta(seconds=5)
ALL_HOLD = {invariant.name: 0 for invariant in invariants.INVARIANTS}


@pytest.fixture(autouse=True)
def _loopback_partners(settings: Settings) -> None:
    settings.PARTNER_ALLOW_HTTP = True
    settings.PARTNER_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)


def say(partner: Partner, **said: object) -> Answer:
    statement = Statement(text=json.dumps(said), **said)  # type: ignore[arg-type]
    answer = acknowledge(partner_id=partner.pk, key_prefix="rk_test", statements=[statement])
    assert answer.refused == []
    return answer


def received_through(last: int) -> Reply:
    return Reply(200, json.dumps({"through": last, "status": "received"}).encode())


def build_world() -> dict[str, int]:
    """Let two partners live through all that can happen to a notice, and return the ids that SQL needs to name.

    ``acme`` was sent 1..3 in two messages, one of them twice, and answered all; 4..7 are not yet sent. ``globex`` was
    sent 1..3, first as one message, then as its halves, and 4, which is under way; 5..8 are not yet sent.
    """
    refused_once: set[str] = set()

    def acme_replies(message: Received) -> Reply:
        if 1 in message.sequences and message.webhook_id not in refused_once:
            refused_once.add(message.webhook_id)
            return Reply(503)
        return received_through(message.sequences[-1])

    def globex_replies(message: Received) -> Reply:
        if len(message.sequences) > 2:
            return Reply(422)
        return Reply(503) if 3 in message.sequences else Reply(200)

    with listening(acme_replies) as at_acme, listening(globex_replies) as at_globex:
        acme = make_partner("acme", url=at_acme.url, max_notices=2).partner
        globex = make_partner("globex", url=at_globex.url).partner
        old = make_release("2024-02", contents={f"site:{n}": ["post:1", "post:2"] for n in range(1, 8)})
        new = make_release("2025-01", contents={"site:1": ["post:2", "post:3"], "site:9": ["post:1"]})
        draft = make_release("draft", contents={"site:1": ["post:4"]}, sealed=False)
        new_to_acme = disclose(new, acme)
        disclose(old, acme)
        disclose(old, globex)

        whole = record(make_wish("site:1"))
        partial = record(make_wish("site:2", kind="deletion", items=("post:1",)))
        kept = record(make_wish("site:3"))
        planning.plan(budget=BUDGET)
        delivery.drain(partner_id=acme.pk, budget=BUDGET)
        delivery.drain(partner_id=globex.pk, budget=BUDGET)
        Delivery.objects.filter(stream=acme.pk, state="waiting").update(due_at=timezone.now())
        delivery.drain(partner_id=acme.pk, budget=BUDGET)

        record(make_wish("site:4"))
        planning.plan(budget=BUDGET)
        [under_way] = delivery.claim_due(partner_id=globex.pk)

    say(acme, sequence=1, status="completed", outcomes={"removed": 2, "not_found": 1})
    say(acme, sequence=2, status="completed")
    say(acme, sequence=3, status="rejected", reason="legal_obligation")
    say(globex, through=3, status="received")  # ends its message of 3, which waits for another try
    say(globex, sequence=1, status="in_progress")
    say(globex, through=3, status="partially_completed")
    say(globex, sequence=2, status="completed", amends=True, detail="The backup, too.")

    withdrawn = record(make_wish("site:5"))
    last = record(make_wish("site:6"))
    repeated = record(make_wish("site:6"))
    record(make_wish("site:99"))
    planning.plan(budget=BUDGET)
    intake.withdraw_request(source="blogs", actor="test", public_id=withdrawn.public_id)
    late = disclose(new, globex)
    planning.plan(budget=BUDGET)

    return {
        "acme": acme.pk,
        "globex": globex.pk,
        "new": new.pk,
        "draft": draft.pk,
        "whole": whole.pk,
        "partial": partial.pk,
        "kept": kept.pk,
        "last": last.pk,
        "repeated": repeated.pk,
        "new_to_acme": new_to_acme.pk,
        "late": late.pk,
    }


def test_zz_world(db: None) -> None:
    w = build_world()
    for m in (RemovalRequest, Stream, Notice, Delivery, Acknowledgement):
        for row in m.objects.order_by("pk").values():
            print(
                {
                    k: v
                    for k, v in row.items()
                    if "digest" not in k and "_at" not in k and "url" not in k and v not in ("", None)
                }
            )
    with connection.cursor() as c:
        print({k: v for k, v in invariants.count_violations(c).items() if v})
    assert 0
