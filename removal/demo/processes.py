"""The processes of a small installation: start them, watch them, stop them all."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from removal.config.children import ending_with_parent

PATIENCE_SECONDS = 30  # to come up, and to stop, on a busy machine


class ProcessEnded(Exception):
    """A process that should run has ended; the message has its last words."""


class Processes:
    """Named child processes with a log file each. None outlives this one, not even after ``kill -9``."""

    def __init__(self, *, logs: Path, environment: Mapping[str, str]) -> None:
        self.logs = logs
        self.environment = {**os.environ, **environment}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``python ARGUMENTS`` under a name. Its output goes to ``<name>.log``."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; they stop when we say so, in our order
                preexec_fn=ending_with_parent(signal.SIGTERM),
            )
        self.running[name] = process
        return process

    def start_web(self, *, port: int) -> None:
        """Start the web server and wait until it answers."""
        self.start(
            "web", "-m", "gunicorn", "removal.config.wsgi", "--bind", f"127.0.0.1:{port}",
            "--worker-class", "gthread", "--threads", "8", "--no-control-socket",
        )  # fmt: skip
        self.wait_for(lambda: _answers(f"http://127.0.0.1:{port}/healthz"), "web")

    def start_worker(self, name: str = "worker", *, concurrency: int = 2) -> subprocess.Popen[bytes]:
        return self.start(
            name, "-m", "celery", "--app", "removal.config", "worker", "--concurrency", str(concurrency),
            "--without-gossip", "--without-mingle", "--hostname", f"{name}-{os.getpid()}@%h",
        )  # fmt: skip

    def start_partner(self, slug: str, *options: str, secret: str, api_key: str, listen: str = "127.0.0.1:0") -> str:
        """Start a reference partner and return its URL once it listens."""
        self.log(slug).write_bytes(b"")
        self.start(
            slug, "-m", "partners.reference", "--slug", slug, "--listen", listen, *options,
            environment={"REFERENCE_SECRET": secret, "REFERENCE_API_KEY": api_key},
        )  # fmt: skip
        said = "listening on "
        self.wait_for(lambda: said in self.log(slug).read_text(), slug)
        return self.log(slug).read_text().partition(said)[2].split()[0]

    def wait_for(self, is_so: Callable[[], bool], name: str) -> None:
        """Wait until something of a process is so. Raises ProcessEnded when it ends first, or takes too long."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            self.check()
            if time.monotonic() > end:
                raise ProcessEnded(f"{name} did not come up in {PATIENCE_SECONDS} s:\n{self.last_words(name)}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raise ProcessEnded if one has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise ProcessEnded(f"{name} ended with code {process.returncode}:\n{self.last_words(name)}")

    def kill(self, name: str) -> None:
        """Kill a process and its children at once (SIGKILL), as a power cut would."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """Stop all, the last started first; kill what does not stop in time."""
        processes = list(reversed(self.running.values()))
        self.running.clear()
        for process in processes:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + PATIENCE_SECONDS
        for process in processes:
            try:
                process.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def last_words(self, name: str) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])


def free_port(preferred: int = 0) -> int:
    """Find a port on loopback: the preferred one if nobody has it."""
    for port in (preferred, 0):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # always our own http address
            return True
    except OSError:
        return False
