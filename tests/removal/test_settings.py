"""Nonsense stops the start, in words; and nothing starts a ledger by mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GOOD = {
    "DATABASE_URL": "postgresql:///never-opened",
    "SECRET_KEY": "k" * 50,
    "ENCRYPTION_KEYS": "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=",
}


def run(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**clean, "REMOVAL_VAR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["invariants", "migrate", "check", "runserver", "shell", "partner"])
def test_without_a_database_url_nothing_starts(tmp_path: Path, command: str) -> None:
    ended = run(tmp_path, command)
    assert ended.returncode == 1
    assert "DATABASE_URL is not set" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set"),
        ({"ENCRYPTION_KEYS": ""}, "ENCRYPTION_KEYS is not set"),
        ({"DATABASE_URL": "not a url"}, "DATABASE_URL cannot be read"),
        ({"SWEEP_INTERVAL_SECONDS": "soon"}, "SWEEP_INTERVAL_SECONDS is 'soon'"),
        ({"DELIVERY_LEASE_SECONDS": "0"}, "DELIVERY_LEASE_SECONDS is '0'"),
        ({"DELIVERY_LEASE_SECONDS": "20"}, "DELIVERY_LEASE_SECONDS"),
        ({"PARTNER_ALLOW_HTTP": "maybe"}, "PARTNER_ALLOW_HTTP is 'maybe'"),
        ({"DEFAULT_PREFERENCE": "unknown"}, "DEFAULT_PREFERENCE is 'unknown'"),
        ({"PARTNER_ALLOWED_NETWORKS": "10.0.0.1/8"}, "PARTNER_ALLOWED_NETWORKS"),
        ({"REQUIRE_TOTP": "maybe"}, "REQUIRE_TOTP is 'maybe'"),
        ({"SESSION_MINUTES": "0"}, "SESSION_MINUTES is '0'"),
        ({"SECRET_KEY_FILE": "/nowhere/at/all"}, "SECRET_KEY_FILE names /nowhere/at/all"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path, wrong: dict[str, str], said: str) -> None:
    ended = run(tmp_path, "check", **{**GOOD, **wrong})
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(GOOD["SECRET_KEY"] + "\n")
    settings = {name: value for name, value in GOOD.items() if name != "SECRET_KEY"}
    assert run(tmp_path, "check", SECRET_KEY_FILE=str(file), **settings).returncode == 0


@pytest.mark.parametrize(
    ("setting", "check"),
    [
        ({"PARTNER_ALLOW_HTTP": "1"}, "removal.E001"),
        ({"PARTNER_ALLOWED_NETWORKS": "127.0.0.0/8"}, "removal.E002"),
        ({"CRASH_AT": "after_claim:/tmp/x"}, "removal.E003"),
    ],
)
def test_development_settings_are_refused_for_deployment(tmp_path: Path, setting: dict[str, str], check: str) -> None:
    production = {**GOOD, "PUBLIC_URL": "https://removal.example", "ALLOWED_HOSTS": "removal.example"}
    assert check not in run(tmp_path, "check", "--deploy", **production).stderr
    ended = run(tmp_path, "check", "--deploy", **production, **setting)
    assert (ended.returncode, check in ended.stderr) == (1, True)


def test_a_password_alone_is_warned_of_for_deployment(tmp_path: Path) -> None:
    production = {**GOOD, "PUBLIC_URL": "https://removal.example", "ALLOWED_HOSTS": "removal.example"}
    clean = run(tmp_path, "check", "--deploy", "--fail-level", "WARNING", **production)
    assert "removal.W001" not in clean.stderr
    warned = run(tmp_path, "check", "--deploy", "--fail-level", "WARNING", REQUIRE_TOTP="0", **production)
    assert (warned.returncode, "removal.W001" in warned.stderr) == (1, True)
