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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
