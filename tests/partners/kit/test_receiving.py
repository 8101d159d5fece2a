"""What a receiver must not lose or do twice: copies at once, and a store that a power cut left half written."""

import json
import os
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from partners.kit import removal_kit as kit
from removal.demo.processes import free_port
from tests.partners.kit.cases import NOW, SECRET, message, notice, received, signed
from tests.partners.kit.node import EXAMPLES, node


def test_copies_at_once_are_taken_once(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "notices.sqlite3", isolation_level=None, check_same_thread=False)
    db.execute("CREATE TABLE notices (epoch, sequence, PRIMARY KEY (epoch, sequence))")

    def take(taken: kit.Notice) -> None:
        db.execute("INSERT OR IGNORE INTO notices VALUES (?, ?)", (taken.epoch, taken.sequence))

    receiver = kit.Receiver("acme", take, secrets=[SECRET.to_text()])
    body = message(*(notice(sequence) for sequence in range(1, 21)))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: receiver.receive(signed(body), body, NOW), range(16)))

    assert [(status, json.loads(answer)) for status, _, answer in answers] == [(200, received(*range(1, 21)))] * 16
    assert db.execute("SELECT * FROM notices ORDER BY 1, 2").fetchall() == [(1, number) for number in range(1, 21)]
    db.close()


def test_nothing_is_received_before_it_is_committed() -> None:
    memory = kit.Memory()
    is_full = True

    def take(taken: kit.Notice) -> None:
        if taken.sequence == 2 and is_full:
            raise OSError("the disk is full")
        memory.take(taken)

    receiver = kit.Receiver("acme", take, seen=memory.seen, secrets=[SECRET.to_text()])
    body = message(notice(1), notice(2))

    assert receiver.receive(signed(body), body, NOW) == (500, {}, b"")
    assert list(memory.notices) == [(1, 1)]
    is_full = False
    status, _, answer = receiver.receive(signed(body), body, NOW)
    assert (status, json.loads(answer)) == (200, received(1, 2))
    assert list(memory.notices) == [(1, 1), (1, 2)]


@pytest.mark.parametrize("half", ['{"epoch":1,"sequ', '{"epoch":1,"sequence":1,"raw":{}', '{"epoch":1,"raw":{"a":1}'])
def test_half_a_line_at_the_end_of_the_store_loses_nothing(tmp_path: Path, half: str) -> None:
    store, port = tmp_path / "store", free_port()
    whole = {"epoch": 1, "sequence": 1, "raw": notice(1), "done": True}
    store.write_text(f"\n{json.dumps(whole)}\n\n{half}")
    environment = {
        "PARTNER": "acme", "SECRET": SECRET.to_text(), "API_KEY": "rk", "SERVICE_URL": "http://127.0.0.1:9",
        "PORT": str(port), "STORE": str(store),
    }  # fmt: skip
    with subprocess.Popen(
        [node(), str(EXAMPLES / "node_receiver.mjs")], env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            body = message(notice(1), notice(2))
            answer = _post(port, body)
        finally:
            process.kill()

    assert answer == received(1, 2)
    lines = store.read_text().splitlines()
    assert lines[3] == half
    assert [json.loads(line) for line in lines[4:] if line] == [
        {"epoch": 1, "sequence": 2, "raw": notice(2), "done": False}
    ]


def _post(port: int, body: bytes) -> object:
    end = time.monotonic() + 30
    while True:
        try:
            answer = requests.post(
                f"http://127.0.0.1:{port}/", body, headers=dict(signed(body, at=int(time.time()))), timeout=5
            )
        except requests.ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return answer.json()
