"""A pytest plugin: gives the settings what they need, before pytest-django reads them.

Loaded by ``-p tests.postgres``, which imports it first of all, and only here is early enough. Without a DATABASE_URL it
starts one throw-away server. The workers of pytest-xdist inherit the environment and with it everything decided here.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet

from removal.config import embedded


def _make_folder(where: str = "/tmp") -> Path:
    """Make a folder that is removed at the end of the run."""
    folder = Path(tempfile.mkdtemp(prefix="removal-tests-", dir=where))
    folder.chmod(0o711)  # root's server runs as nobody, who has to pass through
    # Registered before the server's own exit handler, so it runs after it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


if "REMOVAL_VAR" not in os.environ:
    os.environ["REMOVAL_VAR"] = str(_make_folder())
if "DATABASE_URL" not in os.environ:
    # In memory where there is room: each test that commits ends with hundreds of files made anew.
    memory = Path("/dev/shm")
    fits = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30
    folder = _make_folder(str(memory) if fits else "/tmp")
    os.environ["DATABASE_URL"] = embedded.ensure_running(folder / "postgres", durable=False)
os.environ.setdefault("SECRET_KEY", "only for tests")
os.environ.setdefault("ENCRYPTION_KEYS", Fernet.generate_key().decode())
os.environ.setdefault("PUBLIC_URL", "http://testserver")
os.environ.setdefault("REQUIRE_TOTP", "0")  # tests of the second factor switch it on
# Each pytest process has a queue of its own, so that no worker of one test hears the hints of another.
os.environ["BROKER_QUEUE"] = f"removal-test-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
