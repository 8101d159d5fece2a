"""Both kits' clients, as real clients of a scripted service on a real socket."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from partners import signing
from partners.kit import removal_kit as kit
from tests.conftest import ROOT
from tests.partners.kit.cases import OTHER_SECRET, PRIVATE_KEY, SECRET, notice
from tests.partners.kit.node import run_node
from tests.partners.kit.scripted import Reply, Service, scripted

OK = Reply(200, b'{"accepted": 1, "unchanged": 0, "refused": []}')
LINE = {"sequence": 1, "status": "completed", "outcomes": {"removed": 2}}
ACKNOWLEDGEMENTS = "/v1/acknowledgements"
KEYS = "/.well-known/removal-notices"
IN_JAVASCRIPT = {
    "signing_key": "signingKey", "allow_http": "allowHttp", "first_wait": "firstWait", "longest_wait": "longestWait",
}  # fmt: skip


class Call(Protocol):
    """Make one call with a new client: its value, its error's (code, status), and how long it slept between tries."""

    def __call__(self, url: str, name: str, *arguments: Any, first: int = ..., **options: Any) -> dict[str, Any]: ...


def call_python(url: str, name: str, *arguments: Any, first: int = 0, **options: Any) -> dict[str, Any]:
    slept: list[float] = []
    value = error = None
    try:
        client = kit.Client(url, "rk_acme", **{"allow_http": True, **options}, sleep=slept.append)
        method = getattr(client, name)
        named = arguments[0] if arguments and isinstance(arguments[0], dict) and name != "acknowledge" else None
        value = method(**named) if named is not None else method(*arguments)
        if name == "items":
            value = [[subject, items] for subject, items in value]
        elif name == "pull":
            pages = islice(value, first or None)
            value = [[page.epoch, [each.sequence for each in page.notices]] for page in pages]
        elif is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
    except kit.KitError as caught:
        error = [caught.code, caught.status]
        value = None
    return {"value": value, "error": error, "slept": slept}


def call_node(url: str, name: str, *arguments: Any, first: int = 0, **options: Any) -> dict[str, Any]:
    options = {IN_JAVASCRIPT.get(key, key): value for key, value in {"allow_http": True, **options}.items()}
    given = {
        "base_url": url, "options": options, "first": first, "arguments": arguments,
        "call": {"public_keys": "publicKeys"}.get(name, name),
    }  # fmt: skip
    result: dict[str, Any] = run_node(str(ROOT / "tests/partners/kit/calls.mjs"), given=given)
    if result["error"]:
        result["value"] = None
    return result


@pytest.fixture(params=["python", "node"])
def call(request: pytest.FixtureRequest) -> Call:
    return call_python if request.param == "python" else call_node


@pytest.fixture
def service() -> Iterator[Service]:
    with scripted() as running:
        yield running


# --- acknowledge ---


def test_answers_go_in_calls_of_a_thousand_lines_and_are_added_up(call: Call, service: Service) -> None:
    refused = {"sequence": 7, "code": "unknown_sequence", "message": "no"}

    def answer(asked: Any) -> Reply:
        lines = json.loads(asked.body)["acknowledgements"]
        is_last = len(lines) < 1000
        said = {"accepted": len(lines) - is_last, "unchanged": 0, "refused": [refused] * is_last}
        return Reply(207 if is_last else 200, json.dumps(said).encode())

    service.answer = answer
    lines = [{"sequence": number, "status": "received"} for number in range(1, 2502)]

    result = call(service.url, "acknowledge", lines)

    assert result == {"value": {"accepted": 2500, "unchanged": 0, "refused": [refused]}, "error": None, "slept": []}
    sent = [json.loads(asked.body)["acknowledgements"] for asked in service.asked]
    assert [len(batch) for batch in sent] == [1000, 1000, 501]
    assert [line for batch in sent for line in batch] == lines
    for asked in service.asked:
        assert (asked.method, asked.path) == ("POST", ACKNOWLEDGEMENTS)
        assert asked.headers["content-type"] == "application/json"
        assert asked.headers["authorization"] == "Bearer rk_acme"
        assert "webhook-signature" not in asked.headers


def test_no_body_of_json_is_over_a_mebibyte(call: Call, service: Service) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [OK]
    lines = [{"sequence": 1, "detail": "d" * length} for length in (500_000, 500_000, 900_000, 5)]

    assert call(service.url, "acknowledge", lines)["error"] is None

    kinds = [asked.headers["content-type"] for asked in service.asked]
    assert kinds == ["application/json", "application/json", "application/x-ndjson", "application/json"]
    assert json.loads(service.asked[2].body) == lines[2]
    assert all(len(asked.body) < 2**20 for asked in service.asked)


def test_nothing_to_say_is_not_said(call: Call, service: Service) -> None:
    assert call(service.url, "acknowledge", [])["value"] == {"accepted": 0, "unchanged": 0, "refused": []}
    assert service.asked == []


def test_a_signed_answer_keeps_its_id_on_every_retry(call: Call, service: Service) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(503), OK]

    assert call(service.url, "acknowledge", [LINE], signing_key=PRIVATE_KEY.to_text())["error"] is None

    public_key = ed25519.Ed25519PublicKey.from_public_bytes(PRIVATE_KEY.public_key.raw)
    assert len({asked.headers["webhook-id"] for asked in service.asked}) == 1
    for asked in service.asked:
        message_id, timestamp = asked.headers["webhook-id"], asked.headers["webhook-timestamp"]
        assert abs(int(timestamp) - time.time()) < 60
        signature = base64.b64decode(asked.headers["webhook-signature"].removeprefix("v1a,"))
        public_key.verify(signature, f"acknowledgement.{message_id}.{timestamp}.".encode() + asked.body)


# --- retries ---


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_what_may_pass_is_tried_again_with_growing_waits(call: Call, service: Service, status: int) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(status), Reply(status), Reply(status), OK]

    result = call(service.url, "acknowledge", [LINE], first_wait=2)

    assert result["value"]["accepted"] == 1
    assert len({asked.body for asked in service.asked}) == 1
    assert len(service.asked) == 4
    for step, slept in zip((2, 4, 8), result["slept"], strict=True):
        assert step <= slept <= step * 1.5


def test_after_the_last_try_the_failure_is_told(call: Call, service: Service) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(503, b'{"code": "unavailable", "detail": "Later."}')]

    result = call(service.url, "acknowledge", [LINE], attempts=3)

    assert (result["error"], len(result["slept"]), len(service.asked)) == (["unavailable", 503], 2, 3)


@pytest.mark.parametrize(
    ("asked_for", "least", "most"),
    [
        ("7", 7, 7),
        ("86400", 30, 30),
        ("Fri, 24 Nov 2124 00:20:00 GMT", 30, 30),
        ("Fri, 24 Nov 2000 00:20:00 GMT", 0.5, 0.75),
        ("soon", 0.5, 0.75),
        ("-5", 0.5, 0.75),
    ],
)
def test_retry_after_is_honoured_up_to_a_limit(
    call: Call, service: Service, asked_for: str, least: float, most: float
) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(429, headers={"Retry-After": asked_for}), OK]

    [slept] = call(service.url, "acknowledge", [LINE], longest_wait=30)["slept"]

    assert least <= slept <= most


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_told_at_once(call: Call, service: Service, status: int) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(status, b'{"code": "unauthorized", "detail": "No such key."}')]

    result = call(service.url, "acknowledge", [LINE])

    assert (result["error"], result["slept"], len(service.asked)) == (["unauthorized", status], [], 1)


def test_an_error_that_is_no_problem_json_has_a_code_too(call: Call, service: Service) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [Reply(404, b"<h1>Not found</h1>")]

    assert call(service.url, "acknowledge", [LINE])["error"] == ["http_404", 404]


def test_a_service_that_is_not_there_is_tried_again(call: Call, service: Service) -> None:
    with scripted() as gone:
        url = gone.url

    result = call(url, "acknowledge", [LINE], attempts=3)

    assert (result["error"], len(result["slept"])) == (["unreachable", 0], 2)


# --- where the key goes ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(call: Call, service: Service, status: int) -> None:
    with scripted() as thief:
        service.replies[ACKNOWLEDGEMENTS] = [Reply(status, headers={"Location": f"{thief.url}/"})]
        service.replies["/v1/stream/1/items?limit=1000"] = service.replies[ACKNOWLEDGEMENTS]

        assert call(service.url, "acknowledge", [LINE])["error"] == [f"http_{status}", status]
        assert call(service.url, "items", 1)["error"] == [f"http_{status}", status]

        assert thief.asked == []


def test_the_key_goes_to_no_other_host(call: Call, service: Service) -> None:
    with scripted() as thief:
        link = {"Link": f'<{thief.url}/more>; rel="next"'}
        service.replies["/v1/stream/1/items?limit=1000"] = [Reply(200, b"", link)]

        assert call(service.url, "items", f"{thief.url}/v1/stream/1/items")["error"] == ["another_host", 0]
        assert call(service.url, "items", 1)["error"] == ["another_host", 0]
        assert call(service.url, "items", service.url.replace("http:", "https:") + "/x")["error"] == ["another_host", 0]

        assert thief.asked == []


def test_http_must_be_asked_for(call: Call) -> None:
    for url in ("http://removal.example", "ftp://removal.example", "file:///etc/passwd"):
        assert call(url, "acknowledge", [LINE], allow_http=False)["error"] == ["https_needed", 0]


def test_no_proxy_of_the_environment_sees_the_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.replies[ACKNOWLEDGEMENTS] = [OK]
    with scripted() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)

        for call in (call_python, call_node):
            assert call(service.url, "acknowledge", [LINE])["error"] is None

        assert proxy.asked == []


# --- items ---


def page(*lines: tuple[str, list[str]]) -> bytes:
    return b"".join(json.dumps({"subject": s, "items": i}, ensure_ascii=False).encode() + b"\n" for s, i in lines)


def test_items_are_followed_to_the_last_page(call: Call, service: Service) -> None:
    first, second = "/v1/stream/7/items?limit=2", "/v1/stream/7/items?after=x&limit=2"
    link = {"Link": f'<{service.url}{second}>; rel="next"'}
    service.replies = {
        first: [Reply(200, page(("site:1", ["a", "b"]), ("seite:ü", ["c\u2028d"])), link)],
        second: [Reply(200, page(("site:3", ["d"])))],
    }
    whole = [["site:1", ["a", "b"]], ["seite:ü", ["c\u2028d"]], ["site:3", ["d"]]]

    assert call(service.url, "items", 7, 2)["value"] == whole
    assert call(service.url, "items", f"{service.url}{first}")["value"] == whole
    assert service.paths == [first, second, first, second]
    assert {asked.headers["authorization"] for asked in service.asked} == {"Bearer rk_acme"}


def test_a_page_that_was_cut_off_is_asked_for_again(call: Call, service: Service) -> None:
    whole = page(("site:1", ["a"]), ("site:2", ["b"]))
    half = whole[: len(whole) // 2]
    path = "/v1/stream/7/items?limit=1000"
    service.replies[path] = [
        Reply(200, whole[:-10], cut=10),
        Reply(200, half, cut=99),
        Reply(200, whole),
    ]

    result = call(service.url, "items", 7)

    assert result["value"] == [["site:1", ["a"]], ["site:2", ["b"]]]
    assert len(result["slept"]) == 2


# --- pull ---


def stream_page(epoch: int, *sequences: int, following: str | None = None) -> Reply:
    data = {
        "partner": "acme", "epoch": epoch, "first": min(sequences, default=None), "last": max(sequences, default=None),
        "head": 9, "notices": [notice(sequence) for sequence in sequences], "acknowledge_url": "x", "next": following,
    }  # fmt: skip
    return Reply(200, json.dumps(data).encode())


def test_pulling_without_waiting_confirms_the_last_page_and_ends(call: Call, service: Service) -> None:
    service.replies = {
        "/v1/stream?after=3&limit=2&wait=0&epoch=1": [stream_page(1, 4, 5, following="x")],
        "/v1/stream?after=5&limit=2&wait=0&epoch=1": [stream_page(1, 6)],
        "/v1/stream?after=6&limit=2&wait=0&epoch=1": [stream_page(1)],
    }

    result = call(service.url, "pull", {"after": 3, "epoch": 1, "limit": 2, "wait": 0})

    assert result == {"value": [[1, [4, 5]], [1, [6]]], "error": None, "slept": []}
    assert service.paths == list(service.replies)  # to come back is what says that the last one is there


def test_pulling_with_a_wait_goes_on(call: Call, service: Service) -> None:
    service.replies = {
        "/v1/stream?after=0&limit=100&wait=5": [stream_page(1), stream_page(1), stream_page(1, 1, 2)],
        "/v1/stream?after=2&limit=100&wait=5&epoch=1": [Reply(503), stream_page(1), stream_page(1, 3)],
    }

    assert call(service.url, "pull", {"wait": 5}, first=2)["value"] == [[1, [1, 2]], [1, [3]]]


def test_an_empty_page_that_came_at_once_is_followed_by_a_pause(call: Call, service: Service) -> None:
    service.replies = {"/v1/stream?after=0&limit=100&wait=5": [stream_page(1), stream_page(1), stream_page(1, 1, 2)]}

    result = call(service.url, "pull", {"wait": 5}, first=1)

    assert result == {"value": [[1, [1, 2]]], "error": None, "slept": [1, 1]}


def test_a_wait_that_was_kept_is_not_followed_by_a_pause(call: Call, service: Service) -> None:
    pages = [stream_page(1), stream_page(1, 1, 2)]

    def answer(_: Any) -> Reply:
        time.sleep(1 if len(pages) == 2 else 0)
        return pages.pop(0)

    service.answer = answer

    assert call(service.url, "pull", {"wait": 1}, first=1) == {"value": [[1, [1, 2]]], "error": None, "slept": []}


@pytest.mark.parametrize("says_so", [Reply(409, b'{"code": "wrong_epoch"}'), stream_page(2, 8)], ids=["409", "a page"])
def test_after_a_new_epoch_the_stream_is_read_from_its_beginning(call: Call, service: Service, says_so: Reply) -> None:
    service.replies = {
        "/v1/stream?after=7&limit=100&wait=0&epoch=1": [says_so],
        "/v1/stream?after=0&limit=100&wait=0": [stream_page(2, *range(1, 9))],
        "/v1/stream?after=8&limit=100&wait=0&epoch=2": [stream_page(2)],
    }

    assert call(service.url, "pull", {"after": 7, "epoch": 1, "wait": 0})["value"] == [[2, list(range(1, 9))]]


def test_a_message_is_not_had_before_the_next_is_asked_for(call: Call, service: Service) -> None:
    service.replies = {"/v1/stream?after=0&limit=100&wait=5": [stream_page(1, 1, 2)]}

    assert call(service.url, "pull", {"wait": 5}, first=1)["value"] == [[1, [1, 2]]]
    assert len(service.asked) == 1


# --- keys and statement ---


def published(*keys: tuple[signing.Ed25519PrivateKey, str | None], algorithm: str = "ed25519") -> Reply:
    listed = [
        {"id": "x", "algorithm": algorithm, "public_key": key.public_key.to_text(), "retire_at": retire_at}
        for key, retire_at in keys
    ]
    return Reply(200, json.dumps({"keys": listed}).encode())


def test_keys_that_are_retired_are_left_out(call: Call, service: Service) -> None:
    old, going, new = (signing.Ed25519PrivateKey(bytes([n]) * 32) for n in (1, 2, 3))
    service.replies[KEYS] = [
        published((old, "2026-11-24T00:20:00Z"), (going, "2026-11-24T02:20:01+02:00"), (new, None))
    ]

    result = call(service.url, "public_keys", 1795479600)

    assert result["value"] == [going.public_key.to_text(), new.public_key.to_text()]


def test_keys_of_an_algorithm_that_is_not_ours_are_left_out(call: Call, service: Service) -> None:
    service.replies[KEYS] = [published((PRIVATE_KEY, None), algorithm="ml-dsa")]

    assert call(service.url, "public_keys")["value"] == []


def test_forgers_cannot_make_us_ask_for_keys(service: Service) -> None:
    service.replies[KEYS] = [published((PRIVATE_KEY, None)), Reply(503)]
    client = kit.Client(service.url, "rk_acme", allow_http=True)
    receiver = kit.Receiver("acme", lambda notice: None, public_keys=client.public_keys)

    for _ in range(50):
        assert receiver.receive({}, b"{}")[0] == 401
    assert len(service.asked) == 1
    # A minute later the service is down: what was known is still good, and nobody sleeps.
    assert client.public_keys(time.time() + 61) == [PRIVATE_KEY.public_key.to_text()]


def test_without_any_published_key_a_message_must_come_again(service: Service) -> None:
    service.replies[KEYS] = [Reply(503)]
    client = kit.Client(service.url, "rk_acme", allow_http=True)
    receiver = kit.Receiver("acme", lambda notice: None, public_keys=client.public_keys)

    assert [receiver.receive({}, b"{}")[0] for _ in range(3)] == [500, 500, 500]
    assert len(service.asked) == 1


def statement(*keys: signing.SigningKey, type_: str = "removal.statement") -> Reply:
    data = {"partner": "acme", "epoch": 1, "head": 9}
    body = json.dumps({"type": type_, "version": "1", "timestamp": "x", "data": data}).encode()
    return Reply(200, body, signing.headers(message_id="msg_1", timestamp=datetime.now(UTC), body=body, keys=keys))


def test_a_statement_is_verified(call: Call, service: Service) -> None:
    secrets = {"secrets": [SECRET.to_text()]}
    service.replies["/v1/stream/statement"] = [
        statement(SECRET), statement(OTHER_SECRET), statement(SECRET, type_="removal.notices"), statement(PRIVATE_KEY),
    ]  # fmt: skip
    service.replies[KEYS] = [published((PRIVATE_KEY, None))]

    assert call(service.url, "statement", secrets)["value"] == {"partner": "acme", "epoch": 1, "head": 9}
    assert call(service.url, "statement", secrets)["error"] == ["no_matching_signature", 0]
    assert call(service.url, "statement", secrets)["error"] == ["unknown_type", 0]
    assert call(service.url, "statement")["value"] == {"partner": "acme", "epoch": 1, "head": 9}


@pytest.mark.parametrize("key", [PRIVATE_KEY.to_text() + "x", SECRET.to_text(), "whsk_aHVudGVyMg=="])
def test_a_signing_key_that_cannot_be_used_stops_the_start(call: Call, service: Service, key: str) -> None:
    assert call(service.url, "acknowledge", [LINE], signing_key=key)["error"] == ["key_unusable", 0]
