"""Which servers are believed, and what TLS may cost, against real sockets."""

import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from partners.webhook import Delivered, Outcome, Unreachable
from tests.partners import hostile
from tests.partners.hostile import (
    HEADERS,
    NAME,
    OK,
    PATIENT,
    Authority,
    Peer,
    answering,
    detail,
    in_time,
    open_line,
    reason,
    send,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_the_server_name_and_the_certificate_belong_to_the_name_in_the_url(authority: Authority) -> None:
    server, asked = authority.server(NAME), []
    server.sni_callback = lambda sock, name, context: asked.append(name)
    with Peer(answering(OK), tls=server) as peer, open_line(ca_file=authority.ca_file) as line:
        outcomes = [send(line, peer), send(line, peer)]

        assert [type(outcome) for outcome in outcomes] == [Delivered, Delivered]
        assert asked == [NAME]
        assert peer.connections == 1


def tls_fault(outcome: Outcome) -> str:
    assert reason(outcome) == "tls"
    return detail(outcome)


@pytest.mark.parametrize(
    ("name", "begins", "days", "fault"),
    [
        ("other.example", -60, 30, "its certificate is for another name"),
        (NAME, -60, -1, "its certificate has expired"),
        (NAME, 1, 30, "its certificate is not valid yet"),
    ],
)
def test_a_wrong_certificate_is_refused_before_anything_is_sent(
    authority: Authority, name: str, begins: int, days: int, fault: str
) -> None:
    server = authority.server(name, begins=begins, days=days)
    with Peer(answering(OK), tls=server) as peer, open_line(ca_file=authority.ca_file) as line:
        assert tls_fault(send(line, peer)) == fault
        assert peer.requests == []


def test_an_unknown_authority_is_refused(authority: Authority) -> None:
    with Peer(answering(OK), tls=authority.server(NAME)) as peer, open_line() as line:
        assert tls_fault(send(line, peer)) == (
            "its certificate comes from an unknown authority, or an intermediate certificate is not sent along"
        )
        assert peer.requests == []


def test_a_certificate_that_vouches_for_itself_is_refused(authority: Authority) -> None:
    with (
        Peer(answering(OK), tls=authority.signed_by_itself(NAME)) as peer,
        open_line(ca_file=authority.ca_file) as line,
    ):
        assert tls_fault(send(line, peer)) == "its certificate is signed by itself and by no authority"
        assert peer.requests == []


def greeting(talk: hostile.Talk) -> None:
    talk.send(b"220 mail.example ESMTP\r\n")
    talk.hang()


def hanging_up(talk: hostile.Talk) -> None:
    talk.sock.recv(65536)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (hostile.choosing_tls(2), "it speaks no TLS of version 1.2 or newer"),
        (hostile.choosing_tls(1), "it speaks no TLS of version 1.2 or newer"),
        (hostile.choosing_tls(0), "it speaks no TLS of version 1.2 or newer"),
        (hostile.alerting, "it refused the handshake: no cipher in common, or it asks for a certificate"),
        (greeting, "what it speaks on this port is not TLS"),
        (hanging_up, "it hung up in the middle of TLS"),
    ],
    ids=["TLS 1.1", "TLS 1.0", "SSL 3", "alert", "no TLS", "hang-up"],
)
def test_a_handshake_that_fails_says_why(script: hostile.Script, fault: str) -> None:
    with Peer(script) as peer, open_line() as line:
        url = peer.url(NAME).replace("http:", "https:")

        assert tls_fault(line.post(url=url, headers=HEADERS, body=b"{}", deadline=PATIENT)) == fault


@pytest.mark.parametrize("ciphers", ["aNULL:@SECLEVEL=0", "eNULL:@SECLEVEL=0"])
def test_ciphers_without_a_certificate_or_without_encryption_are_not_agreed_on(
    authority: Authority, ciphers: str
) -> None:
    server = authority.server(NAME)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers(ciphers)
    with Peer(answering(OK), tls=server) as peer, open_line(ca_file=authority.ca_file) as line:
        assert tls_fault(send(line, peer)) == (
            "it refused the handshake: no cipher in common, or it asks for a certificate"
        )
        assert peer.requests == []


def test_session_keys_are_not_written_down(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    fresh = Authority(tmp_path)  # an authority that no line has used, so that nothing was prepared before
    with Peer(answering(OK), tls=fresh.server(NAME)) as peer, open_line(ca_file=fresh.ca_file) as line:
        assert isinstance(send(line, peer), Delivered)

    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("script", [hostile.silence, hostile.dripping_handshake], ids=lambda script: script.__name__)
def test_a_slow_tls_handshake_is_left_at_the_deadline(script: hostile.Script) -> None:
    deadline = timedelta(seconds=1)
    with Peer(script) as peer, open_line() as line:
        url = peer.url(NAME).replace("http:", "https:")
        outcome = in_time(lambda: line.post(url=url, headers=HEADERS, body=b"{}", deadline=deadline), deadline)

    assert outcome == Unreachable("timeout", "the deadline passed while agreeing on TLS", outcome.latency)


def test_a_peer_that_reads_slowly_over_tls_is_left_at_the_deadline(authority: Authority) -> None:
    def sipping(talk: hostile.Talk) -> None:
        while not talk.peer.stopping.wait(0.1):
            talk.sock.recv(100_000)

    deadline = timedelta(seconds=1)
    with Peer(sipping, tls=authority.server(NAME)) as peer, open_line(ca_file=authority.ca_file) as line:
        outcome = in_time(lambda: send(line, peer, body=bytes(16_000_000), deadline=deadline), deadline)

    assert outcome == Unreachable("timeout", "the deadline passed while sending the message", outcome.latency)
