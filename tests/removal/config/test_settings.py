"""Values that would start and then fail stop the start, in words that do not quote a secret."""

from pathlib import Path

import pytest

from tests.removal.test_settings import GOOD, run

SECRET = "whsec_" + "c2VjcmV0" * 4
OPERATOR = {"OPERATOR_WEBHOOK_URL": "https://operator.example/hook", "OPERATOR_WEBHOOK_SECRET": SECRET}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ENCRYPTION_KEYS": "broken"}, "ENCRYPTION_KEYS: key 1 is no Fernet key"),
        ({"ENCRYPTION_KEYS": f"{GOOD['ENCRYPTION_KEYS']},c2hvcnQ="}, "ENCRYPTION_KEYS: key 2 is no Fernet key"),
        ({"ENCRYPTION_KEYS": ","}, "ENCRYPTION_KEYS: key 1 is no Fernet key"),
        ({"PUBLIC_URL": "removal.example"}, "PUBLIC_URL is 'removal.example'"),
        ({"PUBLIC_URL": "//removal.example"}, "PUBLIC_URL is '//removal.example'"),
        ({"PUBLIC_URL": "https://"}, "PUBLIC_URL is 'https:'"),
        ({"PUBLIC_URL": "HTTPS://removal.example"}, "PUBLIC_URL is 'HTTPS://removal.example'"),
        ({"PUBLIC_URL": "https://removal.example?a=b"}, "PUBLIC_URL is 'https://removal.example?a=b'"),
        ({"PUBLIC_URL": "https://removal.example:port"}, "PUBLIC_URL is 'https://removal.example:port'"),
        ({"WATCHDOG_SECONDS": "90"}, "WATCHDOG_SECONDS must be more than a task may take (90)"),
        (OPERATOR | {"OPERATOR_WEBHOOK_URL": "operator.example/hook"}, "OPERATOR_WEBHOOK_URL: The URL must start with"),
        (OPERATOR | {"OPERATOR_WEBHOOK_URL": "http://operator.example/"}, "OPERATOR_WEBHOOK_URL: The URL must start"),
        (OPERATOR | {"OPERATOR_WEBHOOK_URL": "https://10.0.0.1/"}, "OPERATOR_WEBHOOK_URL: 10.0.0.1 may not be called"),
        (
            OPERATOR | {"PUBLIC_URL": "https://operator.example"},
            "OPERATOR_WEBHOOK_URL: operator.example is this service itself",
        ),
        (OPERATOR | {"OPERATOR_WEBHOOK_SECRET": "whsec_"}, "OPERATOR_WEBHOOK_SECRET: "),
    ],
)
def test_what_would_fail_later_stops_the_start(tmp_path: Path, wrong: dict[str, str], said: str) -> None:
    ended = run(tmp_path, "check", **{**GOOD, **wrong})
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert GOOD["ENCRYPTION_KEYS"] not in ended.stderr


@pytest.mark.parametrize(
    "right",
    [
        {"ENCRYPTION_KEYS": f" {GOOD['ENCRYPTION_KEYS']} , {GOOD['ENCRYPTION_KEYS']}"},
        {"PUBLIC_URL": "https://removal.example:8443/behind/"},
        {"PUBLIC_URL": "http://[::1]:8000"},
        {"WATCHDOG_SECONDS": "0"},
        {"WATCHDOG_SECONDS": "91"},
        OPERATOR,
    ],
)
def test_what_is_right_starts(tmp_path: Path, right: dict[str, str]) -> None:
    ended = run(tmp_path, "check", **{**GOOD, **right})
    assert (ended.returncode, ended.stderr) == (0, "")
