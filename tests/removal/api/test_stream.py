"""A partner's stream, as it reads it itself."""

import threading
import time
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from standardwebhooks import Webhook

from partners import keys, signing
from partners.models import ApiKey, Partner, Secret
from removal import intake, planning, waiting
from removal.models import Delivery, Notice, Stream
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.removal.api.conftest import Caller, fields_of, problem_of

# What a web server with several threads says of itself; Django's test client has one.
THREADS: dict[str, Any] = {"wsgi.multithread": True}
BUDGET = timedelta(seconds=5)
HOST = settings.PUBLIC_URL


def owe(partner: Partner, *, notices: int) -> None:
    release = make_release(contents={f"site:{n}": ["post:1", "post:2"] for n in range(1, notices + 1)})
    disclose(release, partner)
    for n in range(1, notices + 1):
        record(make_wish(f"site:{n}", key=f"opt-out-{n}"))
    planning.plan(budget=BUDGET)


# --- pull ---


def test_a_page_is_the_data_of_a_message(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=3)
    response = partner.get("/v1/stream?limit=2")
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    page = response.json()
    notices = page.pop("notices")
    assert [(notice["sequence"], notice["subject"]) for notice in notices] == [(1, "site:1"), (2, "site:2")]
    assert page == {
        "partner": "acme",
        "epoch": 1,
        "first": 1,
        "last": 2,
        "head": 3,
        "acknowledge_url": f"{HOST}/v1/acknowledgements",
        "next": f"{HOST}/v1/stream?after=2&limit=2&epoch=1",
    }
    rest = partner.get(page["next"].removeprefix(HOST)).json()
    assert ([notice["sequence"] for notice in rest["notices"]], rest["next"]) == ([3], None)


def test_nothing_follows_the_head(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    page = partner.get("/v1/stream?after=1").json()
    assert (page["first"], page["last"], page["head"], page["notices"], page["next"]) == (None, None, 1, [], None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=-1", "after"),
        ("after=1.5", "after"),
        (f"after={2**63}", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("wait=-1", "wait"),
        ("wait=26", "wait"),
        ("wait=soon", "wait"),
        ("epoch=0", "epoch"),
        ("epoch=2147483648", "epoch"),
        ("from=1", "from"),
        ("after=1&after=2", "after"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(query: str, field: str, partner: Caller) -> None:
    response = partner.get(f"/v1/stream?{query}")
    assert response.status_code == 400
    assert fields_of(response) == [field]


def test_an_epoch_that_is_over_and_numbers_past_the_head_are_refused(partner: Caller, holder: NewPartner) -> None:
    assert problem_of(partner.get("/v1/stream?after=1"))[:2] == (409, "past_head")
    assert problem_of(partner.get("/v1/stream?epoch=2"))[:2] == (409, "wrong_epoch")


def test_only_partners_pull(platform: Caller, stranger: Caller) -> None:
    for path in ("/v1/stream", "/v1/stream/1", "/v1/stream/statement"):
        assert problem_of(stranger.get(path))[:2] == (401, "unauthorized")
        assert problem_of(platform.get(path))[:2] == (403, "wrong_scope")


def test_one_notice_is_the_same_as_in_a_page(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2)
    [notice] = partner.get("/v1/stream?after=1").json()["notices"]
    assert partner.get("/v1/stream/2").json() == notice
    assert fields_of(partner.get("/v1/stream/2?limit=1")) == ["limit"]


def test_a_number_of_anothers_stream_is_unknown_like_any_other(partner: Caller, holder: NewPartner) -> None:
    owe(make_partner("globex").partner, notices=1)
    answers = [problem_of(partner.get(f"/v1/stream/{number}")) for number in (1, 2, 0, 2**63)]
    assert answers == [(404, "unknown_sequence", "You have been sent no notice with this number.")] * 4


# --- long polling ---


@pytest.fixture
def answers() -> list[tuple[float, Any]]:
    """What polls in the background were answered, and after how many seconds."""
    return []


CONNECTIONS = "select count(*) from pg_stat_activity where datname = current_database() and usename is not null"


def poll(partner: Caller, query: str, answers: list[tuple[float, Any]]) -> threading.Thread:
    def ask() -> None:
        begun = time.monotonic()
        try:
            page = partner.client.get(f"/v1/stream?{query}", **THREADS).json()
            answers.append((time.monotonic() - begun, page))
        finally:
            connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def wait_until_waiting(waits: int) -> None:
    end = time.monotonic() + 10
    while waiting.waits.count() < waits:
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.01)


@pytest.mark.django_db(transaction=True)
def test_a_long_poll_ends_with_the_next_notice(
    partner: Caller, holder: NewPartner, answers: list[tuple[float, Any]]
) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), holder.partner)
    thread = poll(partner, "wait=20", answers)
    wait_until_waiting(1)
    time.sleep(1.2)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    planned_at = time.monotonic()
    thread.join()
    assert time.monotonic() - planned_at < 1.5
    [(_, page)] = answers
    assert [notice["sequence"] for notice in page["notices"]] == [1]


@pytest.mark.django_db(transaction=True)
def test_a_key_that_is_revoked_while_it_waits_reads_nothing(
    partner: Caller, holder: NewPartner, answers: list[tuple[float, Any]]
) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), holder.partner)
    thread = poll(partner, "wait=20", answers)
    wait_until_waiting(1)
    ApiKey.objects.filter(partner=holder.partner).update(revoked_at=timezone.now())
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    thread.join()
    [(_, problem)] = answers
    assert (problem["status"], problem["code"]) == (401, "unauthorized")
    assert Stream.objects.get().served == ()


@pytest.mark.django_db(transaction=True)
def test_a_long_poll_has_no_connection_while_it_waits(
    partner: Caller, holder: NewPartner, answers: list[tuple[float, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_EVERY_SECONDS", 0.8)
    with connection.cursor() as cursor:
        thread = poll(partner, "wait=1", answers)
        wait_until_waiting(1)
        time.sleep(0.3)
        cursor.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and usename is not null"
        )
        assert cursor.fetchone() == (1,)
    thread.join()
    [(seconds, page)] = answers
    assert 1 <= seconds < 3
    assert page["notices"] == []


@pytest.mark.django_db(transaction=True)
def test_one_poll_too_many_is_answered_at_once(
    partner: Caller, holder: NewPartner, answers: list[tuple[float, Any]]
) -> None:
    threads = [poll(partner, "wait=2", answers) for _ in range(waiting.MOST_OF_A_PARTNER)]
    wait_until_waiting(waiting.MOST_OF_A_PARTNER)
    begun = time.monotonic()
    assert partner.client.get("/v1/stream?wait=2", **THREADS).json()["notices"] == []
    assert time.monotonic() - begun < 1
    for thread in threads:
        thread.join()
    assert waiting.waits.count() == 0


@pytest.mark.django_db(transaction=True)
def test_a_server_with_one_thread_never_waits(partner: Caller) -> None:
    begun = time.monotonic()
    assert partner.get("/v1/stream?wait=20").json()["notices"] == []
    assert time.monotonic() - begun < 5


def test_all_partners_together_leave_threads_free() -> None:
    waits = waiting.Waits()
    assert [waits.enter(partner_id) for partner_id in (1, 1, 1, 2, 2, 2, 3)] == [
        *(True, True, False),
        *(True, True, False),
        False,
    ]
    waits.leave(2)
    assert waits.enter(3)


# --- the statement ---


def statement(partner: Caller, query: str = "") -> dict[str, Any]:
    data: dict[str, Any] = partner.get(f"/v1/stream/statement{query}").json()["data"]
    return data


BLOCK = 10_000


def digest_of(notices: list[dict[str, Any]]) -> str:
    """Compute the digest as the guide tells partners to."""
    lines = [f"{notice['sequence']} {notice['kind']} {notice['items_total']}\n".encode() for notice in notices]
    blocks = [sha256(b"".join(lines[n : n + BLOCK])).digest() for n in range(0, len(lines), BLOCK)]
    return sha256(b"".join(blocks)).hexdigest()


def test_a_statement_is_signed_like_a_message(partner: Caller, holder: NewPartner) -> None:
    response = partner.get("/v1/stream/statement")
    assert response["webhook-id"].startswith("stmt_")
    document = Webhook(holder.secret).verify(response.content, dict(response.headers))
    assert (document["type"], document["version"]) == ("removal.statement", "1")
    [service_key] = keys.published_keys(now=timezone.now())
    public = signing.Ed25519PrivateKey.from_text(Secret.objects.get(pk=service_key.pk).key).public_key
    signing.verify(headers=dict(response.headers), body=response.content, keys=[public], now=timezone.now())


def test_an_empty_stream_has_a_statement(partner: Caller) -> None:
    assert statement(partner) == {
        "partner": "acme",
        "epoch": 1,
        "head": 0,
        "digest": sha256(b"").hexdigest(),
        "delivered": [],
        "pulled": [],
        "received_through": 0,
        "acknowledged": {
            "none": 0,
            "received": 0,
            "in_progress": 0,
            "completed": 0,
            "partially_completed": 0,
            "rejected": 0,
            "withdrawn": 0,
            "closed": 0,
        },
        "open": {"count": 0, "notices": [], "next": None},
        "reminder": {"due": [], "due_total": 0},
    }


def test_a_statement_says_how_every_number_stands(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=6)
    partner.get("/v1/stream?limit=4")
    partner.get("/v1/stream?after=3&limit=1")
    for line in (
        {"through": 2, "status": "received"},
        {"sequence": 1, "status": "completed"},
        {"sequence": 4, "status": "in_progress"},
    ):
        assert partner.post("/v1/acknowledgements", line).status_code == 200
    taken_back = Notice.objects.get(sequence=6).request
    intake.withdraw_request(source="blogs", actor="test", public_id=taken_back.public_id)

    said = statement(partner)

    assert said["pulled"] == [[1, 3]]
    assert (said["head"], said["received_through"]) == (6, 2)
    assert {word: count for word, count in said["acknowledged"].items() if count} == {
        "none": 2,
        "received": 1,
        "in_progress": 1,
        "completed": 1,
        "withdrawn": 1,
    }
    due = {notice.sequence: f"{notice.respond_by:%Y-%m-%dT%H:%M:%SZ}" for notice in Notice.objects.all()}
    assert said["open"] == {
        "count": 4,
        "notices": [{"sequence": number, "respond_by": due[number]} for number in (2, 3, 4, 5)],
        "next": None,
    }


def test_delivered_are_the_messages_that_were_answered_with_a_2xx(partner: Caller, holder: NewPartner) -> None:
    for first, last, said in ((1, 2, "response"), (3, 4, "response"), (5, 6, "acknowledged"), (7, 7, "response")):
        Delivery.objects.create(
            stream_id=holder.partner.pk, epoch=1, first_sequence=first, last_sequence=last, state="delivered",
            delivered_at=timezone.now(), delivered_by=said,
        )  # fmt: skip
    Stream.objects.filter(pk=holder.partner.pk).update(head=7, packed_through=7)
    assert statement(partner)["delivered"] == [[1, 4], [7, 7]]


def test_the_digest_is_that_of_what_was_received(
    partner: Caller, holder: NewPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owe(holder.partner, notices=5)
    notices = partner.get("/v1/stream").json()["notices"]
    assert statement(partner)["digest"] == digest_of(notices)
    assert statement(partner)["digest"] != digest_of(notices[:4])


def test_the_digest_goes_in_blocks_of_ten_thousand(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    [notice] = partner.get("/v1/stream").json()["notices"]
    fill(holder.partner, notices=10_001)
    received = [{**notice, "sequence": number} for number in range(1, 10_002)]
    assert statement(partner)["digest"] == digest_of(received)


def fill(partner: Partner, *, notices: int) -> None:
    """Repeat the first notice under the numbers up to this one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into removal_notice (stream_id, epoch, sequence, request_id, kind, disclosures, item_count, round,"
            " respond_by, handling) select stream_id, epoch, number, request_id, kind, disclosures, item_count,"
            " -number, respond_by, handling from removal_notice, generate_series(2, %s) number where stream_id = %s",
            [notices, partner.pk],
        )
        cursor.execute("update removal_stream set head = %s where partner_id = %s", [notices, partner.pk])


def test_open_notices_are_listed_by_the_hundred(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    fill(holder.partner, notices=201)
    seen = []
    query: str | None = ""
    while query is not None:
        part = statement(partner, query)["open"]
        assert part["count"] == 201
        seen.append([notice["sequence"] for notice in part["notices"]])
        query = part["next"] and part["next"].removeprefix(f"{HOST}/v1/stream/statement")
    assert seen == [list(range(1, 101)), list(range(101, 201)), [201]]


def test_a_statement_takes_no_other_parameter(partner: Caller) -> None:
    assert fields_of(partner.get("/v1/stream/statement?after=1")) == ["after"]
    assert fields_of(partner.get("/v1/stream/statement?open_after=-1")) == ["open_after"]


def test_to_read_a_statement_confirms_nothing(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=2)
    partner.get("/v1/stream")
    statement(partner, "?open_after=2")
    assert Stream.objects.get(pk=holder.partner.pk).pulled == ()
