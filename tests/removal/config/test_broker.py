"""Whatever lies in a queue, the worker that reads it lives on, and says nothing of what was in it."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from celery import Celery
from django.conf import settings
from kombu import Connection

from removal.config.broker import FolderTransport
from removal.config.celery import app
from removal.demo.processes import Processes
from tests.conftest import ROOT
from tests.faults.harness import environment_of_tests, forget_hints_of_other_tests
from tests.faults.servers import Redis

# --- a folder as a queue ---

MESSAGES = 1500
# What each process does to the queue, and how many messages it did it to.
HAMMER = """
import sys, time
from queue import Empty
from kombu import Connection
from removal.config.broker import FolderTransport
folder, does, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder + "/control"}
with Connection("filesystem://", transport=FolderTransport, transport_options=options) as connection:
    queue = connection.SimpleQueue("busy", no_ack=True)
    if does == "put":
        for n in range(count):
            queue.put({"number": n, "filler": "x" * 2000})
        done = count
    else:
        done, quiet = 0, 0
        while quiet < 100:
            try:
                queue.get_nowait()
                done, quiet = done + 1, 0
            except Empty:
                quiet += 1
                time.sleep(0.02)
print(done)
"""


def open_folder(folder: Any) -> Connection:
    places = {name: str(folder) for name in ("data_folder_in", "data_folder_out")}
    return Connection(
        "filesystem://",
        transport=FolderTransport,
        transport_options={**places, "control_folder": f"{folder}/control", "polling_interval": 0.01},
    )


def test_of_many_writers_and_readers_none_fails_and_nothing_is_lost(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path), does, str(MESSAGES)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for does in ("get", "get", "put", "put")
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, said, strict=True)] == [(0, "")] * 4
    counts = [int(output) for output, _ in said]
    assert counts[2:] == [MESSAGES, MESSAGES]
    assert sum(counts[:2]) == 2 * MESSAGES
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == []


@pytest.mark.parametrize("content", [b"", b'{"body": "c2', b"\xff\xfe", b"[]", b"{}", b'{"properties": "none"}', b"7"])
def test_a_file_that_is_no_message_is_thrown_away(tmp_path: Path, content: bytes) -> None:
    with open_folder(tmp_path) as connection:
        name = tmp_path.name  # kombu remembers the names that it knows
        queue = connection.SimpleQueue(name, no_ack=True)
        (tmp_path / f"0_first.{name}.msg").write_bytes(content)
        queue.put("after it")
        assert queue.get(timeout=10).payload == "after it"
        assert list(tmp_path.glob("*.msg")) == []
        with pytest.raises(Empty):
            queue.get_nowait()


@pytest.mark.parametrize("content", [b"", b"[[", b"7"])
def test_a_table_of_queues_that_cannot_be_read_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / f"{tmp_path.name}.exchange").write_bytes(content)
    with open_folder(tmp_path) as connection:
        queue = connection.SimpleQueue(tmp_path.name, no_ack=True)
        queue.put("found")
        assert queue.get(timeout=10).payload == "found"


# --- a real worker, and messages that are none ---

CANARY = "canary-7f3a@person.example"


def send_nonsense(to: Celery, *, queue: str) -> None:
    """Put everything into a queue that Celery may be sent and cannot use, with something in it that must stay quiet."""
    said = {"kwargs": {"who": CANARY}, "argsrepr": CANARY}
    known = {"id": "1", "task": "removal.tasks.plan", "lang": "py", **said}
    to.send_task(f"unknown.{CANARY}", args=[CANARY], kwargs={"who": CANARY}, queue=queue)
    to.send_task("removal.tasks.drain_stream", args=[CANARY], queue=queue)
    to.send_task("removal.tasks.drain_stream", kwargs={"partner_id": CANARY}, queue=queue)
    with to.connection_for_write() as connection:
        producer = connection.Producer()
        for headers in (known, {"task": None, **said}, {"expires": CANARY, **known}, said, {}):
            for body, kind in (
                (pickle.dumps([(CANARY,), {}, {}]), "application/x-python-serialize"),
                (f'[["{CANARY}"'.encode(), "application/json"),
                (json.dumps({"task": [CANARY]}).encode(), "application/json"),
                (json.dumps(CANARY).encode(), "application/json"),
                (b"\xff\xfe" + CANARY.encode(), "application/json"),
                (CANARY.encode(), "application/data"),
            ):
                producer.publish(
                    body, routing_key=queue, content_type=kind, content_encoding="utf-8", headers=headers, retry=False
                )


def put_nonsense_past_kombu(redis: Redis | None, *, queue: str) -> None:
    for n, raw in enumerate((CANARY, "", "[]", json.dumps({"who": CANARY}), f'{{"properties": "{CANARY}"}}')):
        if redis is not None:
            redis.client().lpush(queue, raw)
        elif settings.BROKER_URL.startswith("filesystem"):
            (settings.VAR / "broker" / "queue" / f"{n}_nonsense.{queue}.msg").write_text(raw)


@pytest.fixture(params=["of the suite", "redis"])
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redis | None]:
    """The broker that the worker uses: a Redis of its own, or where that is None the one of the test run."""
    if request.param != "redis":
        yield None
        return
    if not Redis.is_installed():
        pytest.skip("needs redis-server")
    (tmp_path / "redis").mkdir()
    server = Redis(tmp_path / "redis")
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.faults
@pytest.mark.django_db(transaction=True)
def test_a_worker_refuses_every_kind_of_nonsense_and_is_quiet_about_it(tmp_path: Path, redis: Redis | None) -> None:
    forget_hints_of_other_tests()
    queue = settings.CELERY_TASK_DEFAULT_QUEUE
    url = f"redis://127.0.0.1:{redis.port}/0" if redis else settings.BROKER_URL
    to = Celery(broker=url, set_as_current=False) if redis else app
    with Processes(logs=tmp_path / "logs", environment={**environment_of_tests(), "BROKER_URL": url}) as processes:
        worker = processes.start_worker(concurrency=1)
        log = processes.log("worker")
        processes.wait_for(lambda: "ready." in log.read_text(), "worker")
        for _ in range(2):
            send_nonsense(to, queue=queue)
            put_nonsense_past_kombu(redis, queue=queue)
        last = str(to.send_task("removal.tasks.pulse", queue=queue))
        processes.wait_for(lambda: f"Task removal.tasks.pulse[{last}] succeeded" in log.read_text(), "worker")
        time.sleep(0.5)
        assert worker.poll() is None
        assert CANARY not in log.read_text()
        assert CANARY.partition("@")[0] not in log.read_text()
        for said in ("Received unregistered task of type", "A task failed: TypeError", "A task failed: "):
            assert said in log.read_text()
    if to is not app:
        to.close()
