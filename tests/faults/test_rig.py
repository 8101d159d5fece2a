"""The rig itself: a proxy that does what it is told, and comparisons that see what they are there to see."""

import hashlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings

from removal import planning, sending
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.faults import oracle
from tests.faults.proxy import Mode, Proxy
from tests.receivers import listening

pytestmark = pytest.mark.faults

BUDGET = timedelta(seconds=10)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy in front of a server that answers with what it gets."""

    def echo(connection: socket.socket) -> None:
        with connection, suppress(ConnectionResetError):
            while data := connection.recv(1024):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        with Proxy(("127.0.0.1", listener.getsockname()[1])) as made:
            yield made
        listener.shutdown(socket.SHUT_RDWR)


def call(proxy: Proxy, said: bytes = b"hello") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    connection.sendall(said)
    return connection


def test_a_proxy_passes_waits_and_holds_back(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert connection.recv(10) == b"hello"
        proxy.switch(Mode.DELAY, delay_seconds=0.2)
        started_at = time.monotonic()
        connection.sendall(b"again")
        assert connection.recv(10) == b"again"
        assert time.monotonic() - started_at >= 0.2
        proxy.switch(Mode.SILENT)
        connection.sendall(b"later")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        proxy.switch(Mode.PASS)
        connection.settimeout(5)
        assert connection.recv(10) == b"later"


def test_a_proxy_refuses_and_listens_again(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert connection.recv(10) == b"hello"
        proxy.switch(Mode.REFUSE)
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
    with pytest.raises(ConnectionRefusedError):
        call(proxy)
    proxy.switch(Mode.PASS)
    with call(proxy) as connection:
        assert connection.recv(10) == b"hello"


def say_and_hear(connection: socket.socket, said: bytes) -> bytes:
    connection.sendall(said)
    return connection.recv(10)


def cut_commits(proxy: Proxy) -> None:
    proxy.cut_after_commits()


def cut_bytes(proxy: Proxy) -> None:
    proxy.cut_after_bytes(4)


@pytest.mark.parametrize("cut", [cut_commits, cut_bytes, Proxy.reset_all])
def test_a_proxy_cuts_a_connection(proxy: Proxy, cut: Callable[[Proxy], None]) -> None:
    with call(proxy) as connection:
        assert connection.recv(10) == b"hello"
        cut(proxy)
        with pytest.raises(ConnectionError):
            say_and_hear(connection, b"COMMIT")
    assert proxy.commits_cut == (1 if cut is cut_commits else 0)


def test_a_proxy_loses_bytes_and_then_the_connection(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert connection.recv(10) == b"hello"
        proxy.switch(Mode.DROP)
        connection.sendall(b"lost")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        proxy.switch(Mode.PASS)
        with pytest.raises(ConnectionResetError):
            connection.recv(10)


Record = dict[str, Any]


def told_twice(records: list[Record]) -> None:
    records.append(dict(records[0]))


def told_something_else(records: list[Record]) -> None:
    records[0]["digest"] = "00"


def told_of_another_request(records: list[Record]) -> None:
    records[0]["notices"][1][1] = "01AAAAAAAAAAAAAAAAAAAAAAAA"


def told_before_the_try(records: list[Record]) -> None:
    records[0]["at"] -= 60


def told_elsewhere(records: list[Record]) -> None:
    records[0]["path"] = "/elsewhere"


def told_by_nobody(records: list[Record]) -> None:
    records.append(records[0] | {"id": "msg_00000000000000000000000000000000"})


def told_with_a_bad_signature(records: list[Record]) -> None:
    records[0]["verified"] = False


def said_no(records: list[Record]) -> None:
    records[0]["status"] = 500


def never_told(records: list[Record]) -> None:
    records.clear()


@pytest.mark.django_db(transaction=True)
def test_a_witness_that_differs_is_heard(tmp_path: Path, settings: Settings) -> None:
    settings.PARTNER_ALLOW_HTTP = True
    settings.PARTNER_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    log = tmp_path / "acme.witness"
    with listening() as receiver:
        partner = make_partner("acme", url=receiver.url).partner
        disclose(make_release(contents={"site:1": ["post:1"], "site:2": ["post:1"]}), partner)
        for n in (1, 2):
            record(make_wish(f"site:{n}"))
        planning.plan(budget=BUDGET)
        before = time.time()
        sending.drain(partner_id=partner.pk, budget=BUDGET)
        [message] = receiver.received
    truth: list[Record] = [
        {
            "at": (before + time.time()) / 2,
            "id": message.webhook_id,
            "path": "/",
            "digest": hashlib.sha256(message.body).hexdigest(),
            "verified": True,
            "partner": "acme",
            "epoch": 1,
            "notices": [[n["sequence"], n["request"], n["kind"], n["subject"]] for n in message.data["notices"]],
            "status": 200,
        }
    ]

    def differences(change: Callable[[list[Record]], None] = lambda _: None) -> list[str]:
        records = json.loads(json.dumps(truth))
        change(records)
        log.write_text("".join(json.dumps(one) + "\n" for one in records))
        return oracle.differences_from_witness(slug="acme", log=log, origin=receiver.url.removesuffix("/"))

    assert differences() == []
    for change in (
        told_twice, told_something_else, told_of_another_request, told_before_the_try, told_elsewhere, told_by_nobody,
        told_with_a_bad_signature, said_no, never_told,
    ):  # fmt: skip
        assert differences(change) != [], change.__name__
