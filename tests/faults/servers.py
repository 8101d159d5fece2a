"""A PostgreSQL and a Redis of the rig's own, which it may kill, restart, stop and fill as it likes."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import cast

import psycopg
import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from removal.config import embedded
from removal.config.children import ending_with_parent
from removal.demo.processes import free_port

PATIENCE_SECONDS = 30

_CLONE_NEWNS = 0x00020000  # unshare(2)
_MS_REC_PRIVATE = 0x4000 | 0x40000  # mount(2)
_MNT_DETACH = 2  # umount(2)
_libc = ctypes.CDLL(None, use_errno=True)


def leave_mounts_to_ourselves() -> bool:
    """Take this process and its children to mounts of their own, which end with them; False if it may not."""
    return (
        os.geteuid() == 0
        and _libc.unshare(_CLONE_NEWNS) == 0
        and _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
    )


class Postgres:
    """A server that keeps what it has committed when it is killed, on a port that stays the same.

    ``megabytes`` puts its data on a file system of just that size; needs ``leave_mounts_to_ourselves``.
    """

    def __init__(self, folder: Path, *, megabytes: int = 0) -> None:
        self.folder = folder
        self.port = free_port()
        self.can_fill = bool(megabytes)
        self.filler = folder / "disk" / "filler"
        self._programs = embedded._programs()
        self._account = embedded._account()
        self._server: subprocess.Popen[bytes] | None = None
        disk = folder / "disk"
        disk.mkdir()
        if megabytes and _libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, f"size={megabytes}m".encode()) != 0:
            raise OSError(ctypes.get_errno(), f"cannot mount {disk}")
        embedded._give(disk)
        disk.chmod(0o711)
        self.cluster = disk / "cluster"
        self._run(
            "initdb", "-D", str(self.cluster), "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
            "--encoding=UTF8", "--auth=trust", "--username=postgres", "--no-sync",
        ).wait()  # fmt: skip
        self.start()
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {embedded.DATABASE}")

    @property
    def url(self) -> str:
        return self.address(embedded.DATABASE)

    def address(self, database: str, *, port: int = 0) -> str:
        """Name a database of it, or of a proxy in front of it. Nothing is encrypted, or a proxy could not read it."""
        options = "sslmode=disable&gssencmode=disable&connect_timeout=5"
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}?{options}"

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        # fsync is for power cuts, which the rig cannot make. A commit that was answered must outlive the server.
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "", "fsync": "off",
            "max_connections": "60", "shared_buffers": "32MB", "max_wal_size": "128MB", "min_wal_size": "32MB",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._server = self._run("postgres", "-D", str(self.cluster), *options)
        end = time.monotonic() + PATIENCE_SECONDS
        while not embedded._accepts(self.address("postgres")):
            if not self.is_running or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL does not answer:\n{self._last_words()}")
            time.sleep(0.02)

    def stop_at_once(self) -> None:
        """Stop it as ``pg_ctl stop -m immediate`` does: nothing is finished, and the next start recovers."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """Stop it for good. What was on a file system of its own is gone with it."""
        self.stop_at_once()
        if self.can_fill:
            _libc.umount2(bytes(self.folder / "disk"), _MNT_DETACH)

    def restart_at_once(self) -> None:
        self.stop_at_once()
        self.start()

    def fill_disk(self) -> None:
        """Leave no free byte on its file system."""
        with self.filler.open("wb", buffering=0) as filler:
            block = bytes(1 << 20)
            while block:
                try:
                    filler.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def free_disk(self) -> None:
        """Give the space back, and start the server if it has ended for want of it."""
        self.filler.unlink(missing_ok=True)
        time.sleep(0.2)  # it may be about to end
        if not self.is_running:
            self.start()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "postgres.log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                cwd="/",
                env={"PATH": os.defpath, "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with_parent(signal.SIGQUIT),
                user=self._account.pw_uid if self._account else None,
                group=self._account.pw_gid if self._account else None,
                extra_groups=[] if self._account else None,
            )

    def _last_words(self) -> str:
        return "\n".join((self.folder / "postgres.log").read_text(errors="replace").splitlines()[-10:])


class Redis:
    """A broker that keeps nothing on disk: a restart loses every hint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    def start(self) -> None:
        with (self.folder / "redis.log").open("ab") as log:
            self._server = subprocess.Popen(
                ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                cwd="/tmp",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )

    def client(self) -> redis.Redis:
        """Connect to it past any proxy. Tries once: it may be stopped at this moment."""
        return redis.Redis(port=self.port, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def flood(self, *, queue: str, partner_id: int, count: int) -> None:
        """Put so many copies of one hint at a stream into a worker's queue."""
        with self.client() as broker:
            broker.ping()  # raises if it is stopped; what publishes is more patient
        # One is published as all are. Its copies go straight to the list, since to publish them takes a minute.
        with Celery(broker=f"redis://127.0.0.1:{self.port}/0") as app:
            app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
            app.send_task(
                "removal.tasks.drain_stream", kwargs={"partner_id": partner_id}, queue="aside", ignore_result=True,
                retry=False,
            )  # fmt: skip
        with self.client() as broker:
            hint = json.loads(cast(bytes, broker.lpop("aside")))
            copies = [hint | {"properties": hint["properties"] | {"delivery_tag": f"copy-{n}"}} for n in range(count)]
            broker.lpush(queue, *(json.dumps(copy) for copy in copies))

    def flush(self) -> None:
        """Lose every hint."""
        with self.client() as broker:
            broker.flushall()

    def length(self, queue: str) -> int:
        with self.client() as broker:
            length: int = broker.llen(queue)
        return length

    def signal(self, number: signal.Signals) -> None:
        if self._server is not None:
            self._server.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._server is not None:
            self._server.wait(PATIENCE_SECONDS)
