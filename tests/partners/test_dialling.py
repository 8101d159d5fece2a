"""Which address a post goes to: looked up once, checked whole, and dialled in turn, against real sockets."""

import socket
import threading
from datetime import timedelta
from ipaddress import ip_network

import pytest

from partners.addresses import OwnPlaces
from partners.webhook import Delivered, Line, Unreachable
from tests.partners import hostile
from tests.partners.hostile import (
    HEADERS,
    LOOPBACK,
    NAME,
    NEVER_CALLED,
    OK,
    PATIENT,
    Peer,
    answering,
    in_time,
    open_line,
    reason,
    send,
    send_once,
)


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


@pytest.mark.parametrize("answers", [["127.0.0.2", "127.0.0.1"], ["127.0.0.2", "127.0.0.3", "127.0.0.1"]])
def test_while_the_first_address_stays_silent_the_next_is_dialled_beside_it(answers: list[str]) -> None:
    deadline = timedelta(seconds=3)
    with (
        Peer(answering(OK)) as peer,
        hostile.black_hole("127.0.0.2", peer.port),
        open_line(look_up=lambda host, port: answers) as line,
    ):
        outcome = send(line, peer, deadline=deadline)

    assert outcome == Delivered(200, b"ok", outcome.latency)


def test_the_next_address_is_left_alone_when_the_first_answers() -> None:
    with (
        Peer(answering(OK)) as peer,
        socket.create_server(("127.0.0.2", peer.port)) as other,
        open_line(look_up=lambda host, port: ["127.0.0.1", "127.0.0.2"]) as line,
    ):
        outcome = send(line, peer)
        other.setblocking(False)

        assert isinstance(outcome, Delivered)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_when_every_address_stays_silent_the_connect_timeout_ends_it() -> None:
    with Peer(answering(OK)) as peer:
        port = peer.port
    timeout = timedelta(seconds=1)
    with (
        hostile.black_hole("127.0.0.2", port),
        hostile.black_hole("127.0.0.3", port),
        open_line(look_up=lambda host, port: ["127.0.0.2", "127.0.0.3"], connect_timeout=timeout) as line,
    ):
        outcome = in_time(
            lambda: line.post(url=f"http://{NAME}:{port}/", headers=HEADERS, body=b"{}", deadline=PATIENT), timeout
        )

    assert outcome == Unreachable("connection", "127.0.0.2: no answer; 127.0.0.3: no answer", outcome.latency)


def test_families_take_turns_so_that_a_broken_one_does_not_use_up_the_tries() -> None:
    answers = [*(f"fd12::{number}" for number in range(1, 6)), "127.0.0.1"]  # nobody is there, if there is IPv6 at all
    networks = [*LOOPBACK, ip_network("fd12::/16")]
    with (
        Peer(answering(OK)) as peer,
        Line(allow_http=True, allowed_networks=networks, look_up=lambda host, port: answers) as line,
    ):
        outcome = send(line, peer)

    assert isinstance(outcome, Delivered)


def test_of_200_addresses_all_are_checked_and_four_are_dialled() -> None:
    many = [f"127.0.1.{number}" for number in range(1, 201)]
    with Peer(answering(OK)) as peer:
        with open_line(look_up=lambda host, port: many) as line:
            dead = send(line, peer)
        with open_line(look_up=lambda host, port: ["127.0.0.1", *many]) as line:
            alive = send(line, peer)
        with open_line(look_up=lambda host, port: ["127.0.0.1", *many, "10.0.0.1"]) as line:
            mixed = send(line, peer)

        assert dead == Unreachable(
            "connection",
            "127.0.1.1: Connection refused; 127.0.1.2: Connection refused;"
            " 127.0.1.3: Connection refused; 127.0.1.4: Connection refused",
            dead.latency,
        )
        assert isinstance(alive, Delivered)
        assert reason(mixed) == "address_refused"
        assert peer.connections == 1


def test_a_try_after_a_failed_one_looks_the_name_up_again() -> None:
    answers = [["127.0.0.2"], ["127.0.0.1"]]
    with Peer(answering(OK)) as peer, open_line(look_up=lambda host, port: answers.pop(0)) as line:
        first, second = send(line, peer), send(line, peer)

    assert (reason(first), type(second)) == ("connection", Delivered)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "partner.example was not found: Name or service not known",
        ),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            "partner.example was not found: Temporary failure in name resolution",
        ),
        (None, "partner.example has no address"),
    ],
    ids=["NXDOMAIN", "SERVFAIL", "nothing"],
)
def test_a_name_that_is_not_found_is_unreachable(error: OSError | None, said: str) -> None:
    def failing(host: str, port: int) -> list[str]:
        if error:
            raise error
        return []

    with Peer(answering(OK)) as peer, open_line(look_up=failing) as line:
        outcome = send(line, peer)

        assert outcome == Unreachable("dns", said, outcome.latency)
        assert peer.connections == 0


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


# Rows S1 to S14: nothing is sent, and nobody is connected to.

REFUSED = [pytest.param(text, id=f"{row}-{text}") for row, texts in NEVER_CALLED.items() for text in texts]


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_that_is_not_public_is_never_dialled(text: str) -> None:
    literal = f"[{text}]" if ":" in text else text
    with Peer(answering(OK)) as peer, Line(allow_http=True, look_up=lambda host, port: [text]) as line:
        by_name = send(line, peer)
        by_address = line.post(url=peer.url(literal), headers=HEADERS, body=b"{}", deadline=PATIENT)

        assert (reason(by_name), reason(by_address)) == ("address_refused", "address_refused")
        assert peer.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://2130706433:{port}/",
            "http://0x7f000001:{port}/",
            "http://0177.0.0.1:{port}/",
            "http://127.1:{port}/",
        ],
        *["http://0:{port}/", "http://localhost:{port}/", "http://receiver:{port}/"],
        *["http://metadata.google.internal:{port}/", "http://user:pw@partner.example:{port}/"],
        *["ftp://partner.example:{port}/", "gopher://partner.example:{port}/", "file:///etc/passwd", "/hook", ""],
    ],
)
def test_a_url_that_may_not_be_saved_is_not_called_either(url: str) -> None:
    with Peer(answering(OK)) as peer, Line(allow_http=True, look_up=lambda host, port: ["127.0.0.1"]) as line:
        outcome = line.post(url=url.format(port=peer.port), headers=HEADERS, body=b"{}", deadline=PATIENT)

        assert reason(outcome) == "address_refused"
        assert peer.connections == 0


# Row S19: our own places.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "[::1]", NAME])
@pytest.mark.parametrize("service", ["postgresql://user:pw@127.0.0.1:{port}/db", "redis://localhost:{port}/0"])
def test_a_port_of_our_own_on_this_machine_is_not_called_though_loopback_is_allowed(service: str, host: str) -> None:
    with Peer(answering(OK)) as ours, Peer(answering(OK)) as partner:
        places = OwnPlaces(services=[service.format(port=ours.port)])
        with open_line(own_places=places) as line:
            refused = line.post(url=ours.url(host), headers=HEADERS, body=b"{}", deadline=PATIENT)
            taken = send(line, partner)

        assert reason(refused) == "address_refused"
        assert isinstance(taken, Delivered)
        assert ours.connections == 0


@pytest.mark.parametrize(
    "places",
    [
        OwnPlaces(sites=["https://partner.example"]),
        OwnPlaces(sites=[".example"]),
        OwnPlaces(sites=["10.1.0.1"]),
        OwnPlaces(services=["amqp://10.1.0.1"]),
        OwnPlaces(services=["amqp://broker.inside"]),
    ],
)
def test_a_host_of_our_own_is_not_called_though_its_network_is_allowed(places: OwnPlaces) -> None:
    networks = [ip_network("10.0.0.0/8")]
    with Line(allowed_networks=networks, own_places=places, look_up=lambda host, port: ["10.1.0.1"]) as line:
        outcome = line.post(url=f"https://{NAME}/", headers=HEADERS, body=b"{}", deadline=PATIENT)

    assert reason(outcome) == "address_refused"
