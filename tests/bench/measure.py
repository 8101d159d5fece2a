"""What every benchmark does: a database of its own, durable, and a note of the machine."""

import atexit
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptography.fernet import Fernet


@contextmanager
def database() -> Iterator[None]:
    """Set Django up on an empty, durable PostgreSQL: an embedded one, or a new database on DATABASE_URL's server."""
    folder = Path(tempfile.mkdtemp(prefix="removal-bench-", dir="/tmp"))
    folder.chmod(0o711)  # root's server runs as nobody, who has to pass through
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # before the server's own, so that it runs after it
    os.environ["REMOVAL_VAR"] = str(folder)
    os.environ.setdefault("SECRET_KEY", "only for benchmarks")
    os.environ.setdefault("ENCRYPTION_KEYS", Fernet.generate_key().decode())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "removal.config.settings")
    os.environ.setdefault("LOG_LEVEL", "ERROR")
    is_ours = "DATABASE_URL" not in os.environ
    if is_ours:
        from removal.config import embedded

        os.environ["DATABASE_URL"] = embedded.ensure_running(folder / "postgres")
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    name = connection.settings_dict["NAME"]
    with connection._nodb_cursor() as cursor:
        cursor.execute("drop database if exists removal_bench")
        cursor.execute("create database removal_bench")
    connection.close()
    connection.settings_dict["NAME"] = "removal_bench"
    call_command("migrate", verbosity=0)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name
        with connection._nodb_cursor() as cursor:
            cursor.execute("drop database removal_bench with (force)")
        if is_ours:
            del os.environ["DATABASE_URL"]  # a process started after this has a server of its own


def database_url() -> str:
    """Name the benchmark's database for other processes."""
    from django.db import connection

    database = connection.settings_dict
    parts = {"dbname": database["NAME"], "user": database["USER"], "password": database["PASSWORD"],
             "host": database["HOST"], "port": str(database["PORT"])}  # fmt: skip
    return "postgresql:///?" + "&".join(f"{name}={quote(value)}" for name, value in parts.items() if value)


def require_durable() -> str:
    """Return the server's version. Raises SystemExit if it may lose a commit, since its figures would mean nothing."""
    from django.db import connection

    with connection.cursor() as cursor:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            cursor.execute(f"show {setting}")
            if cursor.fetchone()[0] != "on":
                raise SystemExit(f"{setting} is not on: take another PostgreSQL, or unset DATABASE_URL.")
        cursor.execute("show server_version")
        return f"PostgreSQL {cursor.fetchone()[0]}"


def scheme(broker_url: str) -> str:
    """Say what kind of broker it is, without its password."""
    return broker_url.partition(":")[0]


def broker_that_answers(*candidates: str) -> str:
    """Return the first broker URL that answers, or an empty string."""
    import kombu

    for candidate in candidates:
        with suppress(Exception), kombu.Connection(candidate, connect_timeout=1) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            return candidate
    return ""


def delete_queue(broker_url: str, name: str) -> None:
    """Leave nothing of ours in a broker that others use."""
    if broker_url.startswith("amqp"):
        import kombu

        with kombu.Connection(broker_url, connect_timeout=5) as broker:
            kombu.Queue(name, channel=broker.channel()).delete()
    elif broker_url.startswith("redis"):
        import redis

        with redis.Redis.from_url(broker_url) as client:
            for key in client.scan_iter(f"*{name}"):  # the queue itself, and what kombu notes of it
                client.delete(key)


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that a block takes under a name, and say so on stderr."""
    started = time.perf_counter()
    yield
    into[name] = into.get(name, 0.0) + time.perf_counter() - started
    print(f"{name}: {into[name]:.2f} s", file=sys.stderr)


def peak_rss_bytes() -> int:
    """The largest this process has ever been."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()}
