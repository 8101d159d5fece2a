"""What a partner receives, and what becomes of its answer, against real sockets."""

import gzip
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from partners import webhook
from partners.webhook import Delivered, HeaderRefused, Line, Outcome, Refused, Unreachable
from tests.partners.hostile import (
    HEADERS,
    LOOPBACK,
    NAME,
    OK,
    PATIENT,
    Peer,
    answering,
    answering_once,
    open_line,
    reason,
    send_once,
)

# What a well-behaved partner sees, and what we make of its answers.


def test_the_body_arrives_byte_for_byte_with_our_headers() -> None:
    with Peer(answering(OK)) as peer:
        outcome = send_once(peer, body=b'{"a": "\xc3\xa9"}')

    assert isinstance(outcome, Delivered)
    assert (outcome.status, outcome.answer) == (200, b"ok")
    head, _, body = peer.requests[0].partition(b"\r\n\r\n")
    request_line, *headers = head.split(b"\r\n")
    assert request_line == b"POST /hook HTTP/1.1"
    assert sorted(headers) == [
        b"Accept-Encoding: identity",
        b"Content-Length: 11",
        b"Content-Type: application/json",
        b"Host: partner.example:%d" % peer.port,
        b"User-Agent: removal-notices/1",
        b"webhook-id: msg_1",
    ]
    assert body == b'{"a": "\xc3\xa9"}'


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(status: int) -> None:
    with Peer(answering(b"HTTP/1.1 %d Fine\r\nContent-Length: 0\r\n\r\n" % status)) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(status, b"", outcome.latency)


@pytest.mark.parametrize("status", [300, 304, 400, 404, 410, 413, 429, 500, 503, 999])
def test_any_other_status_is_refused(status: int) -> None:
    with Peer(answering(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)) as peer:
        outcome = send_once(peer)

    assert outcome == Refused(status, b"", outcome.latency)


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_says_when_to_come_back(status: int) -> None:
    answer = b"HTTP/1.1 %d Later\r\nRetry-After: 120\r\nContent-Length: 4\r\n\r\nbusy" % status
    with Peer(answering(answer)) as peer:
        outcome = send_once(peer)

    assert outcome == Refused(status, b"busy", outcome.latency, timedelta(seconds=120))


@pytest.mark.parametrize(
    ("header", "wait", "ignored"),
    [
        (b"retry-after: 9999999999", timedelta(hours=24), False),
        (b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", timedelta(hours=24), False),
        (b"Retry-After: Sunday, 06-Nov-94 08:49:37 GMT", None, True),
        (b"Retry-After: 120\r\nRetry-After: 60", None, True),
        (b"Retry-After: 120\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT", None, True),
        (b"Retry-After: 1e12", None, True),
        (b"Retry-After: -5", None, True),
        (b"Retry-After: nan", None, True),
        (b"Retry-After: inf", None, True),
        (b"Retry-After:", None, True),
        (b"Retry-After: " + b"9" * 60_000, None, True),
        (b"Retry-After: \xff\x00\xff", None, True),
        (b"X-Other: 120", None, False),
    ],
)
def test_an_absurd_retry_after_is_capped_or_ignored(header: bytes, wait: timedelta | None, ignored: bool) -> None:
    with Peer(answering(b"HTTP/1.1 503 Later\r\n%s\r\nContent-Length: 0\r\n\r\n" % header)) as peer:
        outcome = send_once(peer)

    assert outcome == Refused(503, b"", outcome.latency, wait, ignored)


def test_a_retry_after_of_a_megabyte_is_no_answer() -> None:
    with Peer(answering(b"HTTP/1.1 503 Later\r\nRetry-After: %s\r\n\r\n" % (b"9" * 1_000_000))) as peer:
        assert reason(send_once(peer)) == "protocol"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int) -> None:
    with Peer(answering(OK)) as target:
        answer = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, target.url().encode())
        with Peer(answering(answer)) as peer:
            outcome = send_once(peer)

        assert outcome == Refused(status, b"", outcome.latency)
        assert target.connections == 0


# Headers (S24).

OURS = ["Host", "content-length", "Transfer-Encoding", "CONNECTION", "Accept-Encoding", "Expect", "TE", "Upgrade"]
NOT_FOR_A_PARTNER = ["Authorization", "authorization", "Proxy-Authorization", "Cookie", "Content-Type"]
NOT_FOR_A_PARTNER += ["webhook-id", "Webhook-Signature", "webhook-anything"]
NOT_SENDABLE = {
    "X-A": "1\r\nX-B: 2",
    "X-C": "1\n",
    "X-D": "\x00",
    "X-E": "é",
    "X F": "1",
    "X-G:": "1",
    "": "1",
    "X-H": "",
}


@pytest.mark.parametrize(("name", "value"), [*((name, "1") for name in OURS), *NOT_SENDABLE.items()])
def test_a_header_that_is_the_clients_own_or_cannot_be_sent_is_refused(name: str, value: str) -> None:
    with Peer(answering(OK)) as peer, open_line() as line:
        with pytest.raises(HeaderRefused):
            line.post(url=peer.url(NAME), headers={**HEADERS, name: value}, body=b"{}", deadline=PATIENT)

        assert peer.connections == 0


@pytest.mark.parametrize(
    ("name", "value"), [*((name, "1") for name in OURS + NOT_FOR_A_PARTNER), *NOT_SENDABLE.items()]
)
def test_a_custom_header_may_not_replace_what_is_signed_or_who_calls(name: str, value: str) -> None:
    with pytest.raises(HeaderRefused):
        Line(custom_headers={name: value})


def test_a_custom_header_goes_with_every_message() -> None:
    with (
        Peer(answering(OK)) as peer,
        Line(allow_http=True, allowed_networks=LOOPBACK, custom_headers={"X-Tenant": "7 a"}) as line,
    ):
        for _ in range(2):
            line.post(url=peer.url(), headers=HEADERS, body=b"{}", deadline=PATIENT)

        assert [b"\r\nX-Tenant: 7 a\r\n" in request for request in peer.requests] == [True, True]


def test_one_message_may_be_posted_without_keeping_a_line() -> None:
    with Peer(answering(OK)) as peer:
        outcome = webhook.post(
            url=peer.url(), headers=HEADERS, body=b"{}", deadline=PATIENT, allow_http=True, allowed_networks=LOOPBACK
        )

    assert outcome == Delivered(200, b"ok", outcome.latency)


@pytest.mark.parametrize("encodings", [b"gzip", b"gzip, gzip", b"gzip, deflate, gzip, deflate, gzip, deflate", b"br"])
def test_a_compressed_answer_is_kept_as_it_came(encodings: bytes) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encodings, len(bomb))
    with Peer(answering(head + bomb)) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(200, bomb, outcome.latency)


@pytest.mark.parametrize(
    ("answer", "status", "read"),
    [
        (b"200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<h1>Hi.</h1>", 200, b"<h1>Hi.</h1>"),
        (b"200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"202 Accepted\r\nContent-Length: 0\r\n\r\n", 202, b""),
        (b"204 No Content\r\n\r\n", 204, b""),
    ],
)
def test_a_2xx_without_a_word_of_ours_is_delivered(answer: bytes, status: int, read: bytes) -> None:
    with Peer(answering(b"HTTP/1.1 " + answer)) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(status, read, outcome.latency)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwhole", b"whole"),
        (b"HTTP/1.0 200 OK\r\n\r\nwhole", b"whole"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", b"cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\n", b"cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\nnonsense\r\n", b"cut"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", b"whole"),
        (b"HTTP/1.1 200\r\nContent-Length: nonsense\r\n\r\nwhole", b"whole"),
    ],
)
def test_trouble_in_the_body_does_not_change_the_outcome(answer: bytes, read: bytes) -> None:
    with Peer(answering_once(answer)) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(200, read, outcome.latency)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "connection"),
        (b"HTTP/1.1 ", "protocol"),
        (b"\r\n\r\n", "protocol"),
        (b"220 mail.example ESMTP\r\n", "protocol"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "protocol"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "protocol"),
        (b"HTTP/2 200 OK\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 " + b"x" * 70_000, "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 101 + b"\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, "protocol"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "protocol"),
    ],
)
def test_what_is_no_answer_is_unreachable(answer: bytes, expected: str) -> None:
    with Peer(answering_once(answer)) as peer:
        outcome = send_once(peer)

    assert reason(outcome) == expected


def test_no_nonsense_from_a_peer_raises() -> None:
    chance = random.Random(7)
    pieces = [
        OK,
        b"HTTP/1.1 ",
        b"200",
        b" 100 Continue",
        b"\r\n",
        b"\n",
        b":",
        b" ",
        b"\x00",
        b"\xff",
        b"-1",
        b"9" * 5000,
    ]
    pieces += [
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: ",
        b"Set-Cookie: a=b; expires=",
        b"Retry-After: 1e9",
    ]
    for _ in range(100):
        answer = b"".join(chance.choices(pieces, k=chance.randint(1, 12)))
        with Peer(answering_once(answer)) as peer:
            assert isinstance(send_once(peer), Delivered | Refused | Unreachable)


# What the staff read.

QUICK = timedelta(seconds=1)


def refused(status: int, **said: Any) -> Refused:
    return Refused(status, b"", QUICK, **said)


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Delivered(204, b"", QUICK), "answered 204; delivered"),
        (refused(301), "answered 301; redirects are never followed"),
        (refused(302), "answered 302; redirects are never followed"),
        (refused(303), "answered 303; redirects are never followed"),
        (refused(307), "answered 307; redirects are never followed"),
        (refused(308), "answered 308; redirects are never followed"),
        (refused(304), "answered 304; that is no answer to a message"),
        (refused(400), "answered 400; it does not accept what the message says"),
        (refused(401), "answered 401; it rejects our signature or credentials"),
        (refused(403), "answered 403; it rejects our signature or credentials"),
        (refused(404), "answered 404; nothing is at this address"),
        (refused(405), "answered 405; this address takes no POST"),
        (refused(408), "answered 408; it waited too long for the message"),
        (refused(410), "answered 410; the endpoint is gone for good"),
        (refused(413), "answered 413; the message is too large for it"),
        (refused(418), "answered 418; it refuses the message"),
        (refused(422), "answered 422; it does not accept what the message says"),
        (
            refused(429, retry_after=timedelta(minutes=2)),
            "answered 429; it gets too many messages at once; it asks for 120 s of patience",
        ),
        (
            refused(429, retry_after_ignored=True),
            "answered 429; it gets too many messages at once; its Retry-After says nothing usable",
        ),
        (refused(500), "answered 500; its server failed"),
        (refused(502), "answered 502; the gateway in front of its server got no proper answer"),
        (
            refused(503, retry_after=timedelta(hours=24)),
            "answered 503; its server is not available now; it asks for 86400 s of patience",
        ),
        (refused(504), "answered 504; the gateway in front of its server got no answer in time"),
        (refused(599), "answered 599; its server failed"),
        (refused(999), "answered 999; that is no answer to a message"),
        (Unreachable("dns", "a.example was not found: x", QUICK), "dns: a.example was not found: x"),
        (Unreachable("tls", "its certificate has expired", QUICK), "tls: its certificate has expired"),
        (
            Unreachable("timeout", "the deadline passed while connecting", QUICK),
            "timeout: the deadline passed while connecting",
        ),
        (Unreachable("protocol", "x" * 500, QUICK), "protocol: " + "x" * 189 + "…"),
        (Unreachable("protocol", "a\x00b\r\nc\u202e", QUICK), "protocol: a\ufffdb  c\ufffd"),
    ],
)
def test_every_outcome_is_explained_in_a_line(outcome: Outcome, line: str) -> None:
    assert webhook.explain(outcome) == line


def test_every_status_is_explained_in_at_most_200_characters() -> None:
    for status in range(300, 1000):
        line = webhook.explain(refused(status, retry_after=timedelta(hours=24)))
        assert line.startswith(f"answered {status}; ")
        assert len(line) <= 200


# What is kept of an answer.


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", ""),
        (b"plain", "plain"),
        ("é 漢 🙂".encode(), "é 漢 🙂"),
        (b"<p>\r\n\tNo</p>", "<p>   No</p>"),
        (b"nul \x00 bell \x07 escape \x1b[31m delete \x7f", "nul \ufffd bell \ufffd escape \ufffd[31m delete \ufffd"),
        ("next line \x85 bidi \u202e zero \u200b end".encode(), "next line   bidi \ufffd zero \ufffd end"),
        (b"latin \xe9", "latin \ufffd"),
        (b"x" * 5000, "x" * 2048),
        (b"\xff" * 5000, "\ufffd" * 682),
        ("é".encode() * 2000, "é" * 1024),
        (b"x" + "é".encode() * 2000, "x" + "é" * 1023),
    ],
)
def test_an_excerpt_is_short_clean_text(answer: bytes, expected: str) -> None:
    assert webhook.excerpt(answer) == expected


NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(hours=24)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", timedelta(seconds=120)),
        (" 120 ", timedelta(seconds=120)),
        ("0", timedelta(0)),
        ("007", timedelta(seconds=7)),
        ("86401", DAY),
        ("9999999999", DAY),
        ("9" * 64, DAY),
        ("9" * 1_000_000, None),
        (" " * 1_000_000, None),
        ("", None),
        ("-5", None),
        ("+5", None),
        ("1.5", None),
        ("1e12", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("1_000", None),
        ("٣٠", None),
        ("²", None),
        ("120, 60", None),
        ("Tue, 24 Nov 2026 12:02:00 GMT", timedelta(minutes=2)),
        ("Tue, 24 Nov 2026 12:02:00 -0000", timedelta(minutes=2)),
        ("Tue, 24 Nov 2026 14:02:00 +0200", timedelta(minutes=2)),
        ("Tuesday, 24-Nov-26 12:02:00 GMT", timedelta(minutes=2)),
        ("Tue Nov 24 12:02:00 2026", timedelta(minutes=2)),
        ("Tue, 24 Nov 2026 12:00:00 GMT", None),
        ("Mon, 23 Nov 2026 12:02:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        ("Fri, 31 Dec 9999 23:59:59 -2359", DAY),
        ("Tue, 24 Nov 2026 12:02:00 +9999", None),
        ("Tue, 31 Feb 2026 12:02:00 GMT", None),
        ("Tue, 24 Nov 2026 25:02:00 GMT", None),
        (",", None),
        ("Tue,", None),
    ],
)
def test_retry_after_is_read_or_ignored(value: str, expected: timedelta | None) -> None:
    assert webhook.parse_retry_after(value, now=NOW) == expected


def test_no_nonsense_in_retry_after_raises() -> None:
    chance = random.Random(7)
    pieces = ["Tue", ",", " ", "24", "Nov", "2026", "12:02:00", "GMT", "+", "-", "0" * 9, ":", "é", "\x00", "1e9", "."]
    for _ in range(2000):
        wait = webhook.parse_retry_after("".join(chance.choices(pieces, k=chance.randint(0, 9))), now=NOW)
        assert wait is None or timedelta(0) <= wait <= DAY
