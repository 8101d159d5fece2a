"""What two partners with hashed identifiers can find out by comparing everything they were told."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from partners.identifiers import IdentifierKey
from partners.models import Partner
from removal import delivery, intake, ledger, partnerships, payload, planning, recall, uploads
from removal.identifiers import IdentifierKeyMissing, Identifiers
from removal.models import Delivery, Notice, Stream
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.removal.api.conftest import Caller, lines_of, problem_of

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=30)
HASHED = re.compile(r"h1:[A-Za-z0-9_-]{43}")
KINDS = {"opt_out", "deletion", "recall", "offboarding", "reinstatement"}
DAY = re.compile(r"\d{4}-\d\d-\d\dT00:00:00Z")


def texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value but the names of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def messages_of(partner: Partner) -> list[dict[str, Any]]:
    """Make the messages of the whole stream, as delivery does, and let them count as sent."""
    stream = Stream.objects.get(partner=partner)
    envelope = payload.Envelope(partner=partner.slug, epoch=1, head=stream.head, now=timezone.now())
    made = payload.read_messages(stream_id=partner.pk, first=1, last=stream.head, max_notices=3, envelope=envelope)
    Stream.objects.filter(partner=partner).update(packed_through=stream.head)
    return [json.loads(message.body) for message in made]


def pages_of(caller: Caller, sequence: int) -> list[dict[str, Any]]:
    """Fetch all pages of a notice's items, two subjects at a time."""
    path: str | None = f"/v1/stream/{sequence}/items?limit=2"
    lines: list[dict[str, Any]] = []
    while path:
        response = caller.get(path)
        assert response.status_code == 200
        lines += lines_of(response)
        link = response.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix("<http://testserver") or None
    return lines


def tell_of_everything(*partners: Partner) -> None:
    """Give partners the same releases, and have a notice of every kind about them."""
    contents = {f"site:{n}": [f"post:{n}", "post:same"] for n in range(6)}
    contents["site:long"] = [f"post:{n}" for n in range(1001)]
    contents["site:middle"] = [f"post:{n}" for n in range(600)]  # fits, as hashed items have less than 64 KiB
    for release in (make_release("2024-02", contents=contents), make_release("2025-01", contents=contents)):
        for partner in partners:
            disclose(release, partner)
    for subject in ("site:0", "site:long", "site:middle"):
        record(make_wish(subject, usages=("train-ai",)))
    record(make_wish("site:1", kind="deletion", items=("post:same",), reason="legal_takedown"))
    planning.plan(budget=BUDGET)
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="recall", releases=("2025-01",)),
        lines=(recall.Line(n, f"site:{n}", None) for n in range(1, 6)),
        now=timezone.now(),
    )
    record(make_wish("site:0", kind="reinstatement"))
    withdrawn = record(make_wish("site:2", kind="deletion"))
    planning.plan(budget=BUDGET)
    for partner in partners:
        record(make_wish("", kind="offboarding", reason="licence_ended", partner=partner.slug))
    planning.plan(budget=BUDGET)
    intake.withdraw_request(source="blogs", actor="test", public_id=withdrawn.public_id)


def told(made: NewPartner) -> dict[str, Any]:
    messages = messages_of(made.partner)
    notices = [notice for message in messages for notice in message["data"]["notices"]]
    caller = Caller(made.api_key)
    pages = [pages_of(caller, notice["sequence"]) for notice in notices]
    return {"messages": messages, "notices": notices, "pages": pages}


def test_two_hashed_partners_share_release_names_days_and_fixed_words_and_no_more() -> None:
    one = make_partner("one", identifiers="hmac_sha256")
    other = make_partner("other", identifiers="hmac_sha256")
    # One more notice, so that equal numbers, and with them equal addresses, are not about the same request.
    disclose(make_release("only-one", contents={"site:before": ["post:1"]}), one.partner)
    record(make_wish("site:before"))
    planning.plan(budget=BUDGET)
    tell_of_everything(one.partner, other.partner)

    first, second = told(one), told(other)

    assert {notice["kind"] for notice in first["notices"]} == KINDS
    shared = set(texts(first)) & set(texts(second))
    days = {text for text in shared if DAY.fullmatch(text)}
    urls = {text for text in shared if text.startswith("http://testserver/")}
    assert shared - days - urls == {
        "removal.notices", "1",  # of the message
        "2024-02", "2025-01",  # releases
        "opt_out", "deletion", "recall", "offboarding", "reinstatement",
        "user_request", "legal_takedown", "shared_in_error", "licence_ended",
        "train-ai", "all",
    }  # fmt: skip
    assert urls <= {"http://testserver/v1/acknowledgements"} | {
        f"http://testserver/v1/stream/{notice['sequence']}/items" for notice in second["notices"]
    }
    for partner in (first, second):
        times = [text for text in texts(partner) if re.match(r"\d{4}-\d\d-\d\dT", text)]
        assert times
        assert all(DAY.fullmatch(time) for time in times)
        named = {notice[field] for notice in partner["notices"] for field in ("request", "subject") if field in notice}
        parts = [part for notice in partner["notices"] for part in notice.get("held", ())]
        held = {item for part in parts for item in part.get("items", ())}
        paged = {line["subject"] for page in partner["pages"] for line in page}
        assert held
        assert paged
        assert all(HASHED.fullmatch(name) for name in named | held | paged)


def test_a_partner_finds_what_it_holds_with_its_key() -> None:
    made = make_partner("acme", identifiers="hmac_sha256")
    tell_of_everything(made.partner)
    everything = told(made)
    key = IdentifierKey.from_text(Caller(made.api_key).get("/v1/partner/identifiers").json()["keys"][0]["key"])
    notices = {notice["sequence"]: notice for notice in everything["notices"]}
    by_request = {
        key.request(notice.request.public_id): notice.sequence for notice in Notice.objects.select_related("request")
    }
    assert by_request == {notice["request"]: number for number, notice in notices.items()}
    assert notices[1]["subject"] == key.subject("site:0")
    assert notices[1]["held"] == [
        {
            "release": name,
            "items_total": 2,
            "items": sorted(key.item("site:0", item) for item in ("post:0", "post:same")),
        }
        for name in ("2024-02", "2025-01")
    ]
    long, middle = notices[2], notices[3]
    assert ("items_url" in long, "items_url" in middle) == (True, False)
    assert everything["pages"][1] == [
        {"subject": key.subject("site:long"), "items": sorted(key.item("site:long", f"post:{n}") for n in range(1001))}
    ]
    assert key.item("site:0", "post:same") != key.item("site:1", "post:same")


def test_a_page_of_hashed_subjects_is_in_their_own_order() -> None:
    made = make_partner("acme", identifiers="hmac_sha256")
    contents = {f"site:{n}": ["post:1"] for n in range(20)}
    disclose(make_release("r", contents=contents), made.partner)
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="recall", releases=("r",)),
        lines=(recall.Line(n, subject, None) for n, subject in enumerate(contents)),
        now=timezone.now(),
    )
    planning.plan(budget=BUDGET)
    messages_of(made.partner)
    page = [line["subject"] for line in lines_of(Caller(made.api_key).get("/v1/stream/1/items"))]
    key = IdentifierKey.from_text(made.identifier_key)
    assert page == sorted(key.subject(subject) for subject in contents)


GOLDEN = (
    '{"type":"removal.notices","version":"1","timestamp":"2026-11-24T00:20:07Z","data":{"partner":"acme","epoch":1,'
    '"first":1,"last":2,"head":2,"acknowledge_url":"http://testserver/v1/acknowledgements","notices":['
    '{"sequence":1,"kind":"opt_out","request":"%s","items_total":2,"reason":"user_request","usages":["all"],'
    '"subject":"site:1","held":[{"release":"r","items_total":2,"items":["post:2","post:1"]}],'
    '"received_at":"2026-11-24T00:19:58Z","respond_by":"%s"},'
    '{"sequence":2,"kind":"reinstatement","request":"%s","items_total":0,"reason":"user_request","usages":["all"],'
    '"subject":"site:1","undoes":[1],"received_at":"2026-11-24T00:19:59Z","respond_by":"%s"}]}}'
)


def test_raw_messages_have_the_same_bytes_as_ever() -> None:
    partner = make_partner("acme").partner
    disclose(make_release("r", contents={"site:1": ["post:2", "post:1"]}), partner)
    received_at = datetime(2026, 11, 24, 0, 19, 58, tzinfo=UTC)
    record(make_wish("site:1", received_at=received_at))
    planning.plan(budget=BUDGET)
    record(make_wish("site:1", kind="reinstatement", received_at=received_at + timedelta(seconds=1)))
    planning.plan(budget=BUDGET)
    envelope = payload.Envelope("acme", 1, 2, datetime(2026, 11, 24, 0, 20, 7, tzinfo=UTC))
    [message] = payload.read_messages(stream_id=partner.pk, first=1, last=2, max_notices=9, envelope=envelope)
    said = [
        part
        for notice in Notice.objects.order_by("sequence").select_related("request")
        for part in (notice.request.public_id, payload.as_time(notice.respond_by))
    ]
    assert message.body.decode() == GOLDEN % tuple(said)


def test_a_recall_counts_only_subjects_that_this_partner_received() -> None:
    holder, both = make_partner().partner, make_partner().partner
    mine = make_release("mine", contents={"site:1": ["post:1"], "site:2": ["post:1", "post:2"]})
    theirs = make_release("theirs", contents={f"site:{n}": ["post:1"] for n in range(2, 9)})
    for release, partner in ((mine, holder), (mine, both), (theirs, both)):
        disclose(release, partner)
    recall.record_recall(
        source="blogs",
        actor="test",
        recall=recall.Recall(idempotency_key="recall", releases=("mine", "theirs")),
        lines=(recall.Line(n, f"site:{n}", None) for n in range(1, 9)),
        now=timezone.now(),
    )
    planning.plan(budget=BUDGET)

    def totals(partner: Partner) -> tuple[int | None, int]:
        [notice] = payload.read_notices(stream_id=partner.pk, epoch=1, first=1, last=1)
        return notice.get("subjects_total"), notice["items_total"]

    assert totals(both) == (8, 9)
    assert totals(holder) == (2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload, "MAX_COUNTED", 7)
        assert totals(both) == (8, 9)
        assert totals(holder) == (None, 3)  # not counted, and not told


def test_messages_that_exist_keep_their_names_and_old_keys_stay_readable() -> None:
    made = make_partner("acme")
    caller = Caller(made.api_key)
    assert caller.get("/v1/partner/identifiers").json() == {"identifiers": "raw", "keys": []}
    first = partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256")
    assert partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256") == first
    second = partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256", new_key=True)
    response = caller.get("/v1/partner/identifiers")
    assert response["Cache-Control"] == "no-store"
    assert response.json()["identifiers"] == "hmac_sha256"
    assert [key["key"] for key in response.json()["keys"]] == [second, first]
    assert first != second
    assert partnerships.choose_identifiers(actor="test", slug="acme", identifiers="raw") == ""
    assert caller.get("/v1/partner/identifiers").json()["identifiers"] == "raw"
    assert problem_of(Caller(None).get("/v1/partner/identifiers"))[0] == 401


def test_a_message_that_was_written_keeps_its_bytes_when_the_format_changes() -> None:
    made = make_partner("acme")
    disclose(make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}), made.partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    [first] = delivery.claim(partner_id=made.partner.pk).claims
    key = partnerships.choose_identifiers(actor="test", slug="acme", identifiers="hmac_sha256")
    Delivery.objects.update(state="waiting", lease_until=None)  # as if it had failed, and its time had come
    record(make_wish("site:2"))
    planning.plan(budget=BUDGET)

    again, fresh = delivery.claim(partner_id=made.partner.pk).claims

    assert again.body == first.body
    assert b'"subject":"site:1"' in again.body
    [notice] = json.loads(fresh.body)["data"]["notices"]
    assert notice["subject"] == IdentifierKey.from_text(key).subject("site:2")
    forms = [names.item("site:1", "post:1") for names in Identifiers.ever_given(made.partner.pk)]
    assert forms == ["post:1", IdentifierKey.from_text(key).item("site:1", "post:1")]


def test_nothing_is_told_raw_when_the_key_is_missing() -> None:
    partner = make_partner("acme").partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    Partner.objects.update(identifiers="hmac_sha256")  # past the step that makes a key
    with pytest.raises(IdentifierKeyMissing):
        messages_of(partner)


def test_an_unsealed_manifest_that_was_replaced_is_told_to_nobody() -> None:
    partner = make_partner("acme").partner
    make_release("r", contents={"site:dropped": ["post:1"]}, sealed=False)
    uploads.replace_manifest(actor="test", name="r", entries=[ledger.Entry(1, "site:kept", ["post:1"])])
    release = ledger.seal_release(actor="test", name="r").release
    disclose(release, partner)
    for subject in ("site:dropped", "site:kept"):
        record(make_wish(subject))
    planning.plan(budget=BUDGET)
    assert [n["subject"] for n in payload.read_notices(stream_id=partner.pk, epoch=1, first=1, last=9)] == ["site:kept"]
