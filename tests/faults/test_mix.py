"""Everything at once, on servers of its own: PostgreSQL is restarted and its disk runs full, workers die, and so on."""

import json
import os

import pytest

from tests.faults.mix import run_as_process
from tests.faults.servers import Redis

pytestmark = [pytest.mark.faults, pytest.mark.long]

SEED = 20261124


def test_a_mix_of_all_faults_breaks_no_promise() -> None:
    done = run_as_process("--minutes", "0.2", "--seed", str(SEED))
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    summary = json.loads(done.stdout)
    assert (summary["seed"], summary["violations"], summary["differences"]) == (SEED, [], [])
    assert summary["rows"]["attempt"] > 0
    assert summary["faults"]["restart_postgres"] >= 1
    # A disk of its own needs root, and the broker's faults need a redis-server.
    assert ("fill_disk" in summary["faults"]) == (os.geteuid() == 0)
    assert ("restart_broker" in summary["faults"]) == Redis.is_installed()
