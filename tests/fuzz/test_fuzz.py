"""A short run against the description; ``python -m tests.fuzz --seconds 300`` is a long one."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("fuzz")]  # one after the other: each keeps a core busy


def fuzz(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run it as a person would, with servers of its own."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_no_request_is_answered_by_a_5xx_or_by_what_is_not_described() -> None:
    done = fuzz("--seconds", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


def test_an_answer_that_is_not_described_is_found_with_its_request() -> None:
    done = fuzz("--seconds", "10", "--seed", "1", "--misdescribed")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Response violates schema" in done.stdout
    assert "of the answer is not as described" in done.stdout
    assert "curl -X" in done.stdout
