"""``manage.py demo`` on a machine that has nothing: it tells its story, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("demo")]  # one after the other: each is a whole installation


def start(var: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--port", "0", *options],
        cwd=ROOT,
        env={**environment, "REMOVAL_VAR": str(var)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(var: Path) -> list[str]:
    """List the processes that still belong to an installation, by its folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if str(var).encode() in known:
            found.append(known.partition(b"\0\0")[0].replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


def wait_until_gone(var: Path) -> list[str]:
    end = time.monotonic() + 30
    while (left := processes_of(var)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def test_every_partner_answers_and_its_own_log_agrees(tmp_path: Path) -> None:
    demo = start(tmp_path, "--once", "--json")
    output, errors = demo.communicate(timeout=150)
    assert demo.returncode == 0, errors
    result = json.loads(output)
    assert result["witnessed"] == result["delivered"] == result["acknowledged"] == result["notices"] == 20
    assert (result["requests"], result["partners"], result["violations"]) == (7, 3, 0)
    assert result["retried"] >= 1
    assert result["attempts"] > result["retried"]
    assert result["seconds"] > 0
    assert wait_until_gone(tmp_path) == []


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_it_leaves_no_process_behind_and_starts_again_on_its_data(tmp_path: Path, with_signal: signal.Signals) -> None:
    demo = start(tmp_path)
    assert demo.stdout
    for line in demo.stdout:
        if "Every partner has answered" in line:
            break
    demo.send_signal(with_signal)
    demo.communicate(timeout=60)
    assert wait_until_gone(tmp_path) == []

    again = start(tmp_path, "--once", "--json")
    output, errors = again.communicate(timeout=150)
    assert again.returncode == 0, errors
    assert json.loads(output)["witnessed"] == 20


def test_a_second_demo_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path, "--once", "--json")
    end = time.monotonic() + 30
    while not (tmp_path / "demo.lock").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    second = start(tmp_path, "--once", "--json")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "is running on" in errors
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert wait_until_gone(tmp_path) == []
