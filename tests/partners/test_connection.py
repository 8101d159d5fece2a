"""Peers that take their time or flood, and connections that are kept: against real sockets."""

import resource
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta

import pytest

from partners.connection import require_safe_urllib3
from partners.webhook import BODY_TIME, Delivered, Line, Refused, Unreachable
from tests.partners import hostile
from tests.partners.hostile import (
    OK,
    Peer,
    answering,
    answering_once,
    in_time,
    open_line,
    reason,
    send,
    send_once,
)

# Hostile peers against the deadline and the budget of bytes.


@pytest.mark.parametrize(
    "script", [hostile.silence, hostile.slow_headers, hostile.slow_continue], ids=lambda script: script.__name__
)
def test_a_slow_peer_is_left_at_the_deadline(script: hostile.Script) -> None:
    deadline = timedelta(seconds=1)
    with Peer(script) as peer:
        outcome = in_time(lambda: send_once(peer, deadline=deadline), deadline)

    assert outcome == Unreachable("timeout", "the deadline passed while waiting for the answer", outcome.latency)
    assert outcome.latency >= deadline


@pytest.mark.parametrize(
    "script",
    [hostile.flooding_continue, hostile.endless_header_lines, hostile.endless_header_line],
    ids=lambda script: script.__name__,
)
def test_a_flood_before_the_answer_is_cut_off(script: hostile.Script) -> None:
    with Peer(script) as peer:
        assert reason(send_once(peer)) == "protocol"


def test_a_body_that_drips_is_left_before_the_deadline_and_delivered() -> None:
    with Peer(hostile.slow_body) as peer:
        outcome = in_time(lambda: send_once(peer, deadline=timedelta(seconds=15)), BODY_TIME)

    assert isinstance(outcome, Delivered)
    assert outcome.status == 200
    assert outcome.answer == b"x" * len(outcome.answer)
    assert outcome.answer != b""
    assert outcome.latency >= BODY_TIME


def test_trailers_that_drip_are_left_before_the_deadline_and_delivered() -> None:
    with Peer(hostile.slow_trailer_lines) as peer:
        outcome = in_time(lambda: send_once(peer, deadline=timedelta(seconds=15)), BODY_TIME)

    assert outcome == Delivered(200, b"ok", outcome.latency)


@pytest.mark.parametrize(
    "script",
    [hostile.endless_trailer_lines, hostile.endless_trailer_line, hostile.endless_chunk_size],
    ids=lambda script: script.__name__,
)
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


def test_a_body_of_5_gb_is_read_up_to_64_kib_and_then_hung_up_on() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n"

    def generous(talk: hostile.Talk) -> None:
        talk.read_request()
        talk.send(head)
        talk.repeat(b"x" * 65536)

    with Peer(generous) as peer, open_line() as line:
        outcome = send(line, peer)

        assert peer.ended.acquire(timeout=20)
        assert outcome == Delivered(200, b"x" * (65536 - len(head)), outcome.latency)


def test_a_peer_that_does_not_read_is_left_at_the_deadline() -> None:
    deadline = timedelta(seconds=1)
    with Peer(hostile.silence) as peer:
        outcome = in_time(lambda: send_once(peer, body=bytes(16_000_000), deadline=deadline), deadline)

    assert outcome == Unreachable("timeout", "the deadline passed while sending the message", outcome.latency)


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


def hanging_up(talk: hostile.Talk) -> None:
    talk.read_request()


def resetting(talk: hostile.Talk) -> None:
    talk.read_request()
    talk.reset()


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (hanging_up, "it closed the connection without an answer"),
        (resetting, "Connection reset by peer while waiting for the answer"),
    ],
)
def test_a_post_that_was_read_and_then_cut_off_is_not_repeated(script: hostile.Script, detail: str) -> None:
    with Peer(script) as peer:
        outcome = send_once(peer)

        assert outcome == Unreachable("connection", detail, outcome.latency)
        assert (peer.connections, len(peer.requests)) == (1, 1)


@pytest.mark.parametrize(
    "beginning", [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nxx", OK[: OK.index(b"\r\n\r\n") + 2]]
)
def test_an_answer_that_is_cut_off_before_its_body_is_none(beginning: bytes) -> None:
    with Peer(answering_once(beginning)) as peer:
        outcome = send_once(peer)

        detail = "it closed the connection in the middle of its answer"
        assert outcome == Unreachable("connection", detail, outcome.latency)


def test_an_answer_that_comes_before_the_message_was_read_counts() -> None:
    answer = b"HTTP/1.1 413 Too large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"

    def impatient(talk: hostile.Talk) -> None:
        talk.sock.recv(1000)
        talk.send(answer)
        talk.peer.stopping.wait(0.5)
        talk.sock.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while talk.sock.recv(1_000_000):
                pass

    with Peer(impatient) as peer:
        outcome = send_once(peer, body=bytes(16_000_000))

    assert outcome == Refused(413, b"no", outcome.latency)


def test_a_message_leaves_in_one_piece() -> None:
    sizes: list[int] = []

    def measuring(talk: hostile.Talk) -> None:
        sizes.append(len(talk.sock.recv(65536)))
        talk.send(OK)

    with Peer(measuring) as peer:
        outcome = send_once(peer, body=b"x" * 8000)

    assert isinstance(outcome, Delivered)
    assert sizes[0] > 8000


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


def test_a_cookie_of_one_partner_is_not_sent_to_another() -> None:
    with (
        Peer(answering(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n"))) as first,
        Peer(answering(OK)) as second,
        open_line() as line,
    ):
        send(line, first)
        send(line, second)

        assert b"session" not in second.requests[0]


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


# What must be installed.


@pytest.mark.parametrize("version", ["1.26.20", "2.0.7", "2.6.3"])
def test_an_old_urllib3_is_refused(version: str) -> None:
    with pytest.raises(ImportError):
        require_safe_urllib3(version)


@pytest.mark.parametrize("version", ["2.7.0", "2.8.0", "2.10.1", "3.0"])
def test_a_safe_urllib3_is_accepted(version: str) -> None:
    require_safe_urllib3(version)
