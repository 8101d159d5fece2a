"""Notices -> bytes: what a partner reads, and how much of it fits."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from removal import payload, planning
from removal.models import Notice
from tests.factories import disclose, make_partner, make_release, make_wish, record

NOW = datetime(2026, 11, 24, 0, 20, tzinfo=UTC)
BUDGET = timedelta(seconds=5)
ENVELOPE = payload.Envelope(partner="acme", epoch=1, head=5000, now=NOW)


def read(partner_id: int) -> list[dict[str, Any]]:
    notices = [dict(notice) for notice in payload.read_notices(stream_id=partner_id, epoch=1, first=1, last=100)]
    encoded = payload.read_encoded(stream_id=partner_id, epoch=1, first=1, last=len(notices))
    assert [json.loads(notice) for notice in encoded] == notices  # the short way says the same
    for most in (1, 2, 100):
        messages = payload.read_messages(
            stream_id=partner_id, first=1, last=len(notices), max_notices=most, envelope=ENVELOPE
        )
        sent = [notice for message in messages for notice in json.loads(message.body)["data"]["notices"]]
        assert sent == notices
        assert all(message.last - message.first < most for message in messages)
    return notices


@pytest.mark.django_db(transaction=True)
def test_a_notice_names_what_this_partner_holds_in_each_release_and_nothing_else() -> None:
    partner, other = make_partner().partner, make_partner().partner
    disclose(make_release("2024-02", contents={"site:1": ["post:9"], "site:2": ["post:1"]}), partner)
    disclose(make_release("2025-01", contents={"site:1": ["post:9", "post:12"]}), partner)
    disclose(make_release("2025-02", contents={"site:1": ["post:13"]}), other)
    request = record(make_wish("site:1", usages=("train-ai",), received_at=NOW))
    planning.plan(budget=BUDGET)

    [notice] = read(partner.pk)

    respond_by = Notice.objects.get(stream=partner.pk).respond_by
    assert notice == {
        "sequence": 1,
        "kind": "opt_out",
        "reason": "user_request",
        "request": request.public_id,
        "subject": "site:1",
        "usages": ["train-ai"],
        "items_total": 2,
        "held": [
            {"release": "2024-02", "items_total": 1, "items": ["post:9"]},
            {"release": "2025-01", "items_total": 2, "items": ["post:9", "post:12"]},
        ],
        "received_at": "2026-11-24T00:20:00Z",
        "respond_by": payload.as_time(respond_by),
    }


@pytest.mark.django_db(transaction=True)
def test_a_deletion_of_items_names_only_those_held() -> None:
    partner = make_partner().partner
    disclose(make_release("r", contents={"site:1": ["post:1", "post:2", "post:3"]}), partner)
    record(make_wish("site:1", kind="deletion", items=("post:2", "post:9")))
    planning.plan(budget=BUDGET)
    [notice] = read(partner.pk)
    assert notice["items_total"] == 1
    assert notice["held"] == [{"release": "r", "items_total": 1, "items": ["post:2"]}]


@pytest.mark.django_db(transaction=True)
def test_a_release_handed_over_twice_is_named_once() -> None:
    partner = make_partner().partner
    release = make_release("r", contents={"site:1": ["post:1"]})
    disclose(release, partner)
    disclose(release, partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    [notice] = read(partner.pk)
    assert notice["items_total"] == 1
    assert notice["held"] == [{"release": "r", "items_total": 1, "items": ["post:1"]}]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("items", [[f"post:{n}" for n in range(1001)], ["x" * 500 + str(n) for n in range(200)]])
def test_a_long_list_is_fetched_instead(items: list[str]) -> None:
    partner = make_partner().partner
    disclose(make_release("r", contents={"site:1": items}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    [notice] = read(partner.pk)
    assert notice["items_total"] == len(items)
    assert notice["held"] == [{"release": "r", "items_total": len(items)}]
    assert notice["items_url"] == "http://testserver/v1/stream/1/items"


def notices(count: int, *, size: int = 0) -> list[payload.Notice]:
    return [
        payload.Notice(sequence=n, kind="opt_out", request="R", items_total=1, subject="ß" * size)
        for n in range(5, 5 + count)
    ]


def pack(content: list[payload.Notice], *, max_notices: int = 100) -> list[payload.Message]:
    encoded = [json.dumps(notice, ensure_ascii=False).encode() for notice in content]
    return payload.pack(encoded, first=5, max_notices=max_notices, envelope=ENVELOPE)


def test_messages_hold_at_most_the_partners_number_of_notices() -> None:
    messages = pack(notices(25), max_notices=10)
    assert [(message.first, message.last) for message in messages] == [(5, 14), (15, 24), (25, 29)]


def test_messages_stay_within_256_kib() -> None:
    messages = pack(notices(30, size=10_000))
    assert max(len(message.body) for message in messages) <= 256 * 1024
    assert len(messages) > 1
    numbers = [n["sequence"] for message in messages for n in json.loads(message.body)["data"]["notices"]]
    assert numbers == list(range(5, 35))


def test_a_message_says_where_it_stands_in_the_stream() -> None:
    [message] = pack(notices(2))
    body = json.loads(message.body)
    assert body["data"].pop("notices") == [dict(notice) for notice in notices(2)]
    assert body == {
        "type": "removal.notices",
        "version": "1",
        "timestamp": "2026-11-24T00:20:00Z",
        "data": {
            "partner": "acme",
            "epoch": 1,
            "first": 5,
            "last": 6,
            "head": 5000,
            "acknowledge_url": "http://testserver/v1/acknowledgements",
        },
    }


def test_nothing_to_say_makes_no_message() -> None:
    assert pack([]) == []


@pytest.mark.django_db(transaction=True)
def test_notices_of_every_form_are_sent_in_order() -> None:
    partner = make_partner().partner
    contents = {f"site:{n}": [f'post:"{n}"', "post:ß\n"] for n in range(6)}
    disclose(make_release("r", contents={**contents, "site:long": [f"post:{n}" for n in range(1001)]}), partner)
    for subject in ("site:0", "site:long", "site:1"):
        record(make_wish(subject))
    record(make_wish("site:0", kind="reinstatement"))
    record(make_wish("site:2", kind="deletion", items=('post:"2"',)))
    planning.plan(budget=BUDGET)
    Notice.objects.filter(sequence=3).update(withdrawn_at=NOW)
    notices = read(partner.pk)
    assert [notice["sequence"] for notice in notices] == [1, 2, 3, 4, 5]
    assert [set(notice) & {"held", "items_url", "withdrawn_at", "undoes"} for notice in notices] == [
        {"held"},
        {"held", "items_url"},
        {"withdrawn_at"},
        {"undoes"},
        {"held"},
    ]


@pytest.mark.django_db(transaction=True)
def test_long_notices_leave_in_shorter_messages() -> None:
    partner = make_partner().partner
    disclose(make_release("r", contents={f"site:{n}": ["x" * 15_000 + str(n)] for n in range(30)}), partner)
    for n in range(30):
        record(make_wish(f"site:{n}"))
    planning.plan(budget=BUDGET)
    assert len(read(partner.pk)) == 30
    messages = payload.read_messages(stream_id=partner.pk, first=1, last=30, max_notices=100, envelope=ENVELOPE)
    assert max(len(message.body) for message in messages) <= 256 * 1024
    assert len(messages) == 2
