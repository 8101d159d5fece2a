"""Sample data: a desk with something of everything on it, that keeps every promise."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from removal import invariants, sample
from removal.models import Delivery, Incident, Notice, RemovalRequest

pytestmark = pytest.mark.django_db(transaction=True)


# Answered before it arrived; answered at another time than any statement about it; closed before its last answer.
CONTRADICTIONS = """
select count(*) filter (where n.acknowledged_at < d.delivered_at),
       count(*) filter (where n.acknowledged_at is not null and n.handling <> 'received' and not exists (
           select from removal_acknowledgement a
            where a.stream_id = n.stream_id and a.status = n.handling and a.received_at = n.acknowledged_at
              and n.sequence between a.first_sequence and a.last_sequence)),
       count(*) filter (where n.acknowledged_at > r.closed_at)
  from removal_notice n
  join removal_removalrequest r on r.id = n.request_id
  join removal_delivery d on d.stream_id = n.stream_id and n.sequence between d.first_sequence and d.last_sequence
"""


def contradictions() -> tuple[int, ...]:
    with connection.cursor() as cursor:
        cursor.execute(CONTRADICTIONS)
        found: tuple[int, ...] = cursor.fetchone()
    return found


def test_a_sample_is_lively_and_keeps_every_invariant() -> None:
    call_command("sample_data", "--requests", "1200")

    assert {name: count for name, count in invariants.check().items() if count} == {}
    assert RemovalRequest.objects.count() == 1206
    assert contradictions() == (0, 0, 0)
    open_notices = Notice.objects.open()
    assert open_notices.filter(respond_by__lt=timezone.now()).exists()
    assert set(Notice.objects.values_list("handling", flat=True)) == {
        "none",
        "in_progress",
        "completed",
        "partially_completed",
        "rejected",
    }
    assert set(Incident.objects.values_list("kind", flat=True)) == {"http_410", "tls"}
    assert Delivery.objects.filter(body__isnull=False, attempts__gt=1).exists()
    assert set(RemovalRequest.objects.values_list("kind", flat=True)) == {"opt_out", "deletion", "reinstatement"}


def test_a_sample_goes_only_into_an_empty_installation() -> None:
    sample.make(requests=1000, now=timezone.now())

    with pytest.raises(CommandError, match="only into an empty installation"):
        call_command("sample_data", "--requests", "1000")

    assert RemovalRequest.objects.count() == 1006


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(CommandError, match="from 1000"):
        call_command("sample_data", "--requests", "999")
