"""What a receiver must not lose, do twice, or say without having done it."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from partners.kit import removal_kit as kit
from removal.demo.processes import free_port
from tests.partners.kit.cases import NOW, SECRET, message, notice, received, signed
from tests.partners.kit.node import EXAMPLES, KIT, node
from tests.partners.kit.scripted import Asked, Reply, scripted


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
    whole = {"epoch": 1, "sequence": 1, "raw": notice(1), "state": "done"}
    store.write_text(f"\n{json.dumps(whole)}\n\n{half}")
    with _running("node", port=port, store=store, service_url="http://127.0.0.1:9"):
        answer = _post(port, message(notice(1), notice(2)))

    assert answer == received(1, 2)
    lines = store.read_text().splitlines()
    assert lines[3] == half
    assert [json.loads(line) for line in lines[4:] if line] == [
        {"epoch": 1, "sequence": 2, "raw": notice(2), "state": "new"}
    ]


@pytest.mark.parametrize("language", ["python", "node"])
def test_an_example_says_of_each_notice_what_it_did_and_none_holds_up_the_others(language: str, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []

    def answer(asked: Asked) -> Reply:
        if asked.path != "/v1/acknowledgements":
            return Reply(404)
        [line] = json.loads(asked.body)["acknowledgements"]
        said.append(line)
        refused = [{"sequence": 1, "code": "already_answered", "message": "no"}] if line["sequence"] == 1 else []
        return Reply(200, json.dumps({"accepted": 1 - len(refused), "unchanged": 0, "refused": refused}).encode())

    port = free_port()
    with scripted() as service:
        service.answer = answer
        url = f"{service.url}/v1/stream/2/items"
        body = message(
            notice(1),
            notice(2, kind="recall", subject=None, held=None, items_url=url),
            notice(3, kind="offboarding", subject=None, held=None, releases=["2024-02", "2025-01"]),
            notice(4, kind="reinstatement", items_total=0, held=None, undoes=[1]),
            notice(5, items_total=0, subject=None, held=None, withdrawn_at="2026-11-24T00:19:59Z"),
            notice(6),
        )
        with _running(language, port=port, store=tmp_path / "store", service_url=service.url) as output:
            assert _post(port, body) == received(*range(1, 7))
            end = time.monotonic() + 30
            while service.paths.count("/v1/stream/2/items") < 3:  # it has been through all of them twice
                assert time.monotonic() < end, output.read_text()
                time.sleep(0.05)

    assert said == [
        {"epoch": 1, "sequence": 1, "status": "completed", "outcomes": {"removed": 2}},  # refused, and not said again
        {"epoch": 1, "sequence": 3, "status": "completed", "outcomes": {"removed": 2}},
        {"epoch": 1, "sequence": 4, "status": "completed", "outcomes": {}},
        {"epoch": 1, "sequence": 6, "status": "completed", "outcomes": {"removed": 2}},
    ]
    assert [line for line in output.read_text().splitlines() if line.startswith("removed")] == [
        "removed 1 site:1 post:9", "removed 1 site:1 post:12", "removed 3 2024-02 all", "removed 3 2025-01 all",
        "removed 6 site:1 post:9", "removed 6 site:1 post:12",
    ]  # fmt: skip


@contextmanager
def _running(language: str, *, port: int, store: Path, service_url: str) -> Iterator[Path]:
    """Run an example until a power cut; yields the file that it prints to."""
    in_python, in_node = EXAMPLES / "wsgi_receiver.py", EXAMPLES / "node_receiver.mjs"
    command = [sys.executable, str(in_python)] if language == "python" else [node(), str(in_node)]
    environment = {
        "PARTNER": "acme", "SECRET": SECRET.to_text(), "API_KEY": "rk", "SERVICE_URL": service_url, "PORT": str(port),
        "STORE": str(store), "PYTHONPATH": str(KIT),
    }  # fmt: skip
    output = store.with_suffix(".output")
    with (
        output.open("wb") as out,
        subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out) as process,
    ):
        try:
            yield output
        finally:
            process.kill()


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
