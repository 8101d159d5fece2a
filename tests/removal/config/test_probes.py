"""Probes ask by address and without TLS, and are answered; everybody else is held to ALLOWED_HOSTS."""

from pathlib import Path

import pytest
from django.test import Client

from removal.config import probes
from tests.removal.test_settings import GOOD, run

HOST = "10.1.2.3:8000"
# A production's process, asked past its proxy. No database is needed to say that the process answers.
ASK = """
from django.test import Client
for path in ("/healthz", "/docs"):
    print(path, Client(raise_request_exception=False).get(path, headers={"host": "10.1.2.3:8000"}).status_code)
"""


@pytest.mark.django_db
@pytest.mark.parametrize("host", [HOST, "another.example", "not a host"])
@pytest.mark.parametrize("path", probes.PATHS)
def test_a_probe_is_answered_whatever_host_it_names(client: Client, path: str, host: str) -> None:
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 200
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "Content-Security-Policy" in answer


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz/", "/v1/stream", "/.well-known/removal-notices", "/admin/"])
def test_nobody_else_is(path: str) -> None:
    assert Client(raise_request_exception=False).get(path, headers={"host": HOST}).status_code == 400


def test_a_probe_is_answered_behind_a_proxy_that_ends_tls(tmp_path: Path) -> None:
    production = {**GOOD, "PUBLIC_URL": "https://removal.example", "ALLOWED_HOSTS": "removal.example"}
    asked = run(tmp_path, "shell", "--no-imports", "-c", ASK, LOG_LEVEL="CRITICAL", **production)
    assert asked.stdout.splitlines() == ["/healthz 200", "/docs 400"]
