"""The system's Chromium in front of a real web server, on a database of its own with sample data in it."""

import os
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.core.management import call_command
from django.db import connections
from django.test import TransactionTestCase
from playwright.sync_api import Browser, expect, sync_playwright

from removal.demo.processes import Processes, free_port
from removal.roles import ROLES
from tests.browser.desk import PATIENCE_MS, Desk, Person, Watch, hire
from tests.faults.harness import environment_of_tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, metavar="DIR", help="write pictures of the desk to this folder")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Find the system's Chromium. None is ever downloaded."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    missing = "Chromium is missing: apt-get install chromium"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"{missing}. REQUIRE_BROWSER=1 asks for it.")
    pytest.skip(missing)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright keeps an event loop in this thread, in which Django would refuse to ask its database.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        expect.set_options(timeout=PATIENCE_MS)
        with playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False) as browser:
            yield browser


@pytest.fixture(scope="package")
def people(browser: Browser, django_db_setup: None, django_db_blocker: Any) -> Iterator[dict[str, Person]]:
    """A year of requests, and somebody for each role. It stays from test to test, committed for the web server."""
    with django_db_blocker.unblock():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TransactionTestCase, "_fixture_teardown", lambda self: None)
            call_command("sample_data", "--requests", "1200", stdout=StringIO(), stderr=StringIO())
            yield {
                **{role: hire(role.replace(" ", "-"), role) for role in ROLES},
                "second lead": hire("second-lead", "compliance lead"),
            }
        empty: Any = TransactionTestCase._fixture_teardown  # type: ignore[attr-defined]  # that of tests/conftest.py
        empty(None)
        connections.close_all()  # Playwright's event loop has a connection of its own, which nobody closes later


@pytest.fixture(scope="package")
def url(people: dict[str, Person], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the web server as in production, second factor included."""
    port = free_port()
    own = f"http://127.0.0.1:{port}"
    environment = {**environment_of_tests(), "PUBLIC_URL": own, "REQUIRE_TOTP": "1"}
    with Processes(logs=tmp_path_factory.mktemp("browser"), environment=environment) as processes:
        processes.start_web(port=port)
        yield own


@pytest.fixture
def desk(url: str, browser: Browser, people: dict[str, Person]) -> Iterator[Desk]:
    """The desk, watched: whatever a page does that none may fails the test that opened it."""
    desk = Desk(url, browser, people, Watch(url))
    yield desk
    desk.close()
    assert desk.watch.problems == []


@pytest.fixture(scope="session")
def axe() -> Axe:
    return Axe()


@pytest.fixture(scope="session")
def screenshots(pytestconfig: pytest.Config) -> Path | None:
    folder: Path | None = pytestconfig.getoption("--screenshots")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return folder
