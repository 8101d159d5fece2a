"""Run the real ``node`` and ``npm``."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

KIT = ROOT / "partners" / "kit"
EXAMPLES = KIT / "examples"


def node() -> str:
    """Find Node. Its absence fails a test, unless WITHOUT_NODE=1 says that it is known."""
    found = shutil.which("node")
    if not found:
        if os.environ.get("WITHOUT_NODE") == "1":
            pytest.skip("WITHOUT_NODE=1")
        pytest.fail("node (18 or newer) is missing. Install it, or say WITHOUT_NODE=1.")
    return found


def run_node(*arguments: str, given: Any = None, environment: dict[str, str] | None = None) -> Any:
    """Run a program, with JSON on its stdin, and read JSON from its stdout."""
    done = subprocess.run(
        [node(), *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def install_packages(folder: Path, *packages: str) -> None:
    """Install npm packages into a folder. An unreachable registry fails a test, unless OFFLINE=1 says so."""
    node()
    if os.environ.get("OFFLINE") == "1":
        pytest.skip("OFFLINE=1")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *packages],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"npm could not install {packages}; without a network say OFFLINE=1.\n{done.stderr}"
