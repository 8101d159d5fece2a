import gzip
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from partners import webhook
from partners.addresses import LookUp
from partners.webhook import Delivered, Line, Outcome, Refused, Unreachable
from tests.partners import hostile
from tests.partners.hostile import OK, Authority, Peer, answering, answering_once

LOOPBACK = [ip_network("127.0.0.0/8")]
HEADERS = {"webhook-id": "msg_1", "Content-Type": "application/json"}
NAME = "partner.example"
PATIENT = timedelta(seconds=20)  # for peers that answer: how slow the machine is must not matter


def open_line(
    *,
    ca_file: Path | None = None,
    look_up: LookUp = lambda host, port: ["127.0.0.1"],
    connect_timeout: timedelta = timedelta(seconds=10),
    max_answer_bytes: int = webhook.MAX_ANSWER_BYTES,
    longest_idle: timedelta = timedelta(minutes=1),
) -> Line:
    return Line(
        allow_http=True,
        allowed_networks=LOOPBACK,
        ca_file=ca_file,
        look_up=look_up,
        connect_timeout=connect_timeout,
        max_answer_bytes=max_answer_bytes,
        longest_idle=longest_idle,
    )


def send(line: Line, peer: Peer, *, body: bytes = b"{}", deadline: timedelta = PATIENT) -> Outcome:
    return line.post(url=peer.url(NAME), headers=HEADERS, body=body, deadline=deadline)


def send_once(peer: Peer, *, body: bytes = b"{}", deadline: timedelta = PATIENT) -> Outcome:
    with open_line() as line:
        return send(line, peer, body=body, deadline=deadline)


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome, Unreachable), outcome
    return outcome.reason


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


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


def test_a_refusal_says_when_to_come_back() -> None:
    with Peer(answering(b"HTTP/1.1 503 Later\r\nRetry-After: 120\r\nContent-Length: 4\r\n\r\nbusy")) as peer:
        outcome = send_once(peer)

    assert outcome == Refused(503, b"busy", outcome.latency, timedelta(seconds=120))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int) -> None:
    with Peer(answering(OK)) as target:
        answer = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, target.url().encode())
        with Peer(answering(answer)) as peer:
            outcome = send_once(peer)

        assert outcome == Refused(status, b"", outcome.latency)
        assert target.connections == 0


def test_one_message_may_be_posted_without_keeping_a_line() -> None:
    with Peer(answering(OK)) as peer:
        outcome = webhook.post(
            url=peer.url(), headers=HEADERS, body=b"{}", deadline=PATIENT, allow_http=True, allowed_networks=LOOPBACK
        )

    assert outcome == Delivered(200, b"ok", outcome.latency)


def test_a_compressed_answer_is_kept_as_it_came() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with Peer(answering(head + bomb)) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(200, bomb, outcome.latency)


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


# Hostile peers against the deadline and the budget of bytes.


def in_time(call: Callable[[], Outcome], deadline: timedelta) -> Outcome:
    started_at = time.monotonic()
    outcome = call()
    assert time.monotonic() - started_at < deadline.total_seconds() + 3
    return outcome


@pytest.mark.parametrize(
    "script", [hostile.silence, hostile.slow_headers, hostile.slow_continue], ids=lambda script: script.__name__
)
def test_a_slow_peer_is_left_at_the_deadline(script: hostile.Script) -> None:
    deadline = timedelta(seconds=1)
    with Peer(script) as peer:
        outcome = in_time(lambda: send_once(peer, deadline=deadline), deadline)

    assert reason(outcome) == "timeout"
    assert outcome.latency >= deadline


@pytest.mark.parametrize("script", [hostile.flooding_continue, hostile.endless_header_lines])
def test_a_flood_before_the_answer_is_cut_off(script: hostile.Script) -> None:
    with Peer(script) as peer:
        assert reason(send_once(peer)) == "protocol"


def test_a_body_that_drips_is_delivered_at_the_deadline() -> None:
    deadline = timedelta(seconds=2)
    with Peer(hostile.slow_body) as peer:
        outcome = in_time(lambda: send_once(peer, deadline=deadline), deadline)

    assert isinstance(outcome, Delivered)
    assert outcome.status == 200
    assert outcome.answer == b"x" * len(outcome.answer)
    assert outcome.answer != b""


@pytest.mark.parametrize("script", [hostile.endless_trailer_lines, hostile.endless_chunk_size])
def test_a_flood_after_the_body_is_cut_off_and_delivered(script: hostile.Script) -> None:
    with Peer(script) as peer:
        outcome = send_once(peer)

    assert outcome == Delivered(200, b"ok", outcome.latency)


def test_an_endless_body_is_read_up_to_64_kib_with_its_headers_in_flat_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Peer(hostile.endless_body) as peer, open_line() as line:
        for _ in range(20):
            outcome = send(line, peer)
            assert outcome == Delivered(200, b"x" * (65536 - len(hostile.ENDLESS_BODY_HEAD)), outcome.latency)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert after - before < 32 * (1024 if sys.platform == "linux" else 1024**2)  # KiB, elsewhere bytes


@pytest.mark.parametrize("script", [hostile.silence, hostile.dripping_handshake], ids=lambda script: script.__name__)
def test_a_slow_tls_handshake_is_left_at_the_deadline(script: hostile.Script) -> None:
    deadline = timedelta(seconds=1)
    with Peer(script) as peer, open_line() as line:
        url = peer.url(NAME).replace("http:", "https:")
        outcome = in_time(lambda: line.post(url=url, headers=HEADERS, body=b"{}", deadline=deadline), deadline)

    assert reason(outcome) == "timeout"


def test_a_peer_that_does_not_read_is_left_at_the_deadline() -> None:
    deadline = timedelta(seconds=1)
    with Peer(hostile.silence) as peer:
        outcome = in_time(lambda: send_once(peer, body=bytes(16_000_000), deadline=deadline), deadline)

    assert reason(outcome) == "timeout"


def test_a_peer_that_reads_slowly_over_tls_is_left_at_the_deadline(authority: Authority) -> None:
    def sipping(talk: hostile.Talk) -> None:
        while not talk.peer.stopping.wait(0.1):
            talk.sock.recv(100_000)

    deadline = timedelta(seconds=1)
    with Peer(sipping, tls=authority.server(NAME)) as peer, open_line(ca_file=authority.ca_file) as line:
        outcome = in_time(lambda: send(line, peer, body=bytes(16_000_000), deadline=deadline), deadline)

    assert reason(outcome) == "timeout"


# Addresses.


def test_the_name_is_looked_up_once_for_a_connection_and_that_answer_is_dialled() -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with Peer(answering(OK)) as peer, open_line(look_up=rebinding) as line:
        outcomes = [send(line, peer), send(line, peer)]

        assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
        assert asked == [NAME]
        assert peer.connections == 1


def test_a_new_connection_looks_the_name_up_again() -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    with (
        Peer(answering(OK)) as peer,
        open_line(look_up=lambda host, port: answers.pop(0), longest_idle=timedelta(0)) as line,
    ):
        first, second = send(line, peer), send(line, peer)

        assert isinstance(first, Delivered)
        assert second == Unreachable(
            "address_refused",
            "partner.example answers with 10.0.0.1, which may not be called: private",
            second.latency,
        )
        assert peer.connections == 1


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "fe80::1"]])
def test_one_refused_address_refuses_the_host_before_any_byte_is_sent(answers: list[str]) -> None:
    with Peer(answering(OK)) as peer, open_line(look_up=lambda host, port: answers) as line:
        assert reason(send(line, peer)) == "address_refused"
        assert peer.connections == 0


def test_loopback_is_refused_unless_it_is_allowed() -> None:
    with Peer(answering(OK)) as peer, Line(allow_http=True, look_up=lambda host, port: ["127.0.0.1"]) as line:
        by_name = send(line, peer)
        by_address = line.post(url=peer.url(), headers=HEADERS, body=b"{}", deadline=PATIENT)

        assert reason(by_name) == "address_refused"
        assert reason(by_address) == "address_refused"
        assert peer.connections == 0


def test_plain_http_is_refused_unless_it_is_allowed() -> None:
    with Peer(answering(OK)) as peer, Line(allowed_networks=LOOPBACK) as line:
        outcome = line.post(url=peer.url(), headers=HEADERS, body=b"{}", deadline=PATIENT)

        assert outcome == Unreachable("address_refused", "The URL must start with https://.", outcome.latency)
        assert peer.connections == 0


def test_the_address_is_checked_again_once_connected() -> None:
    networks = [ip_network("0.0.0.0/8")]  # the kernel dials 127.0.0.1 instead
    with (
        Peer(answering(OK)) as peer,
        Line(allow_http=True, allowed_networks=networks, look_up=lambda host, port: ["0.0.0.0"]) as line,
    ):
        outcome = send(line, peer)

        assert outcome == Unreachable("address_refused", "0.0.0.0 was dialled and 127.0.0.1 answered", outcome.latency)
        assert peer.requests == []


def test_when_the_first_address_is_down_the_next_is_dialled() -> None:
    with Peer(answering(OK)) as peer, open_line(look_up=lambda host, port: ["127.0.0.2", "127.0.0.1"]) as line:
        outcome = send(line, peer)

    assert isinstance(outcome, Delivered)


def test_when_the_first_address_stays_silent_the_next_is_dialled_within_the_connect_timeout() -> None:
    with Peer(answering(OK)) as peer, socket.create_server(("127.0.0.2", peer.port), backlog=0), ExitStack() as waiting:
        with suppress(TimeoutError):
            while True:  # until its queue is full and it no longer answers
                waiting.enter_context(socket.create_connection(("127.0.0.2", peer.port), timeout=0.3))
        with open_line(
            look_up=lambda host, port: ["127.0.0.2", "127.0.0.1"], connect_timeout=timedelta(seconds=2)
        ) as line:
            outcome = send(line, peer)

    assert outcome == Delivered(200, b"ok", outcome.latency)


def test_when_no_address_answers_all_failures_are_named() -> None:
    with Peer(answering(OK)) as peer:
        url = peer.url(NAME)
    with open_line(look_up=lambda host, port: ["127.0.0.2", "127.0.0.1"]) as line:
        outcome = line.post(url=url, headers=HEADERS, body=b"{}", deadline=PATIENT)

    assert outcome == Unreachable(
        "connection",
        "127.0.0.2: Connection refused; 127.0.0.1: Connection refused",
        outcome.latency,
    )


def test_a_name_server_that_hangs_is_left_after_the_connect_timeout() -> None:
    released = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        released.wait()
        return ["127.0.0.1"]

    with Peer(answering(OK)) as peer, open_line(look_up=hanging, connect_timeout=timedelta(seconds=0.3)) as line:
        outcome = in_time(lambda: send(line, peer), timedelta(seconds=0.3))
        released.set()

    assert outcome == Unreachable("dns", "partner.example was not found within 0.3 s", outcome.latency)


def test_proxies_in_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:1")
    with Peer(answering(OK)) as peer:
        outcome = send_once(peer)

    assert isinstance(outcome, Delivered)


# TLS.


def test_the_server_name_and_the_certificate_belong_to_the_name_in_the_url(authority: Authority) -> None:
    server, asked = authority.server(NAME), []
    server.sni_callback = lambda sock, name, context: asked.append(name)
    with Peer(answering(OK), tls=server) as peer, open_line(ca_file=authority.ca_file) as line:
        outcomes = [send(line, peer), send(line, peer)]

        assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
        assert asked == [NAME]
        assert peer.connections == 1


def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    with (
        Peer(answering(OK), tls=authority.server("other.example")) as peer,
        open_line(ca_file=authority.ca_file) as line,
    ):
        assert reason(send(line, peer)) == "tls"
        assert peer.requests == []


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    with Peer(answering(OK), tls=authority.server(NAME, days=-1)) as peer, open_line(ca_file=authority.ca_file) as line:
        assert reason(send(line, peer)) == "tls"
        assert peer.requests == []


def test_a_certificate_that_vouches_for_itself_is_refused(authority: Authority) -> None:
    with Peer(answering(OK), tls=authority.server(NAME)) as peer, open_line() as line:
        assert reason(send(line, peer)) == "tls"
        assert peer.requests == []


def test_old_tls_is_refused() -> None:
    with Peer(hostile.old_tls) as peer, open_line() as line:
        url = peer.url(NAME).replace("http:", "https:")

        assert reason(line.post(url=url, headers=HEADERS, body=b"{}", deadline=PATIENT)) == "tls"


def test_a_server_that_speaks_no_tls_is_refused() -> None:
    def greeting(talk: hostile.Talk) -> None:
        talk.send(b"220 mail.example ESMTP\r\n")
        talk.hang()

    with Peer(greeting) as peer, open_line() as line:
        url = peer.url(NAME).replace("http:", "https:")

        assert reason(line.post(url=url, headers=HEADERS, body=b"{}", deadline=PATIENT)) == "tls"


def test_session_keys_are_not_written_down(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    fresh = Authority(tmp_path)  # an authority that no line has used, so that nothing was prepared before
    with Peer(answering(OK), tls=fresh.server(NAME)) as peer, open_line(ca_file=fresh.ca_file) as line:
        assert isinstance(send(line, peer), Delivered)

    assert not (tmp_path / "keys").exists()


# A kept line.


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_a_connection_is_used_again(answer: bytes) -> None:
    with Peer(answering(answer)) as peer, open_line() as line:
        for _ in range(3):
            send(line, peer)

        assert (peer.connections, len(peer.requests)) == (1, 3)


def test_every_post_has_the_whole_deadline_and_the_whole_budget() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n" + b"x" * 600

    def thoughtful(talk: hostile.Talk) -> None:
        while True:
            talk.read_request()
            talk.peer.stopping.wait(1.2)
            talk.send(answer)

    with Peer(thoughtful) as peer, open_line(max_answer_bytes=1000) as line:
        outcomes = [send(line, peer, deadline=timedelta(seconds=2)) for _ in range(2)]

        assert outcomes == [Delivered(200, b"x" * 600, outcome.latency) for outcome in outcomes]
        assert peer.connections == 1


def test_a_connection_that_was_idle_for_too_long_is_not_used_again() -> None:
    with Peer(answering(OK)) as peer, open_line(longest_idle=timedelta(0)) as line:
        outcomes = [send(line, peer), send(line, peer)]

        assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
        assert peer.connections == 2


def test_a_connection_that_the_partner_closed_while_idle_is_replaced_before_sending() -> None:
    with Peer(answering_once(OK)) as peer, open_line() as line:
        first = send(line, peer)
        assert peer.ended.acquire(timeout=20)
        second = send(line, peer)

        assert (type(first), type(second)) == (Delivered, Delivered)
        assert (peer.connections, len(peer.requests)) == (2, 2)


def test_a_post_whose_connection_breaks_is_not_repeated() -> None:
    def hanging_up(talk: hostile.Talk) -> None:
        talk.read_request()

    with Peer(hanging_up) as peer:
        outcome = send_once(peer)

        assert reason(outcome) == "connection"
        assert (peer.connections, len(peer.requests)) == (1, 1)


def test_a_connection_that_was_cut_off_is_not_used_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
    with Peer(answering(answer)) as peer, open_line(max_answer_bytes=1000) as line:
        for _ in range(2):
            outcome = send(line, peer)
            assert outcome == Delivered(200, b"x" * 959, outcome.latency)

        assert peer.connections == 2


def test_an_answer_that_came_without_a_question_is_not_taken_for_the_next_one() -> None:
    read, said = threading.Semaphore(0), threading.Semaphore(0)

    def talkative(talk: hostile.Talk) -> None:
        talk.read_request()
        talk.send(OK)
        read.acquire(timeout=20)
        talk.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        said.release()
        talk.hang()

    with Peer(talkative) as peer, open_line() as line:
        for _ in range(2):
            outcome = send(line, peer)
            assert outcome == Delivered(200, b"ok", outcome.latency)
            read.release()
            assert said.acquire(timeout=20)

        assert peer.connections == 2


def test_cookies_are_not_sent_back() -> None:
    with (
        Peer(answering(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n"))) as peer,
        open_line() as line,
    ):
        send(line, peer)
        send(line, peer)

        assert [b"cookie" in request.lower() for request in peer.requests] == [False, False]


def test_several_posts_may_be_in_flight_and_each_gets_its_own_answer() -> None:
    together = threading.Barrier(4, timeout=20)

    def echo(talk: hostile.Talk) -> None:
        while True:
            body = talk.read_request()
            together.wait()
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    answers: dict[bytes, set[bytes]] = {body: set() for body in (b"a", b"bb", b"ccc", b"dddd")}

    def post_repeatedly(line: Line, peer: Peer, body: bytes) -> None:
        for _ in range(5):
            outcome = send(line, peer, body=body)
            assert isinstance(outcome, Delivered)
            answers[body].add(outcome.answer)

    with Peer(echo) as peer, open_line() as line:
        threads = [threading.Thread(target=post_repeatedly, args=[line, peer, body]) for body in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert answers == {body: {body} for body in answers}
        assert peer.connections == 4


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
