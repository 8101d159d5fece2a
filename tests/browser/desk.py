"""The desk as people see it: who they are, their browsers, and a watch over all that these load and say."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.models import User
from django.test import Client
from django_otp import DEVICE_ID_SESSION_KEY
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

from removal import staff
from removal.config.site import PROVEN_AT

PATIENCE_MS = 20_000  # for a page, on a busy machine
SIZES = {1280: 900, 390: 844}
# Chromium says this of every answer from 400 on; the watch judges those by their number.
ONLY_A_STATUS = "Failed to load resource: the server responded with a status of"
TELL_OF_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', (event) =>
    console.error(`CSP: ${event.effectiveDirective} forbids ${event.blockedURI} at ${event.sourceFile}`))
"""


@dataclass
class Watch:
    """All that must not happen on any page. Answers such as 403 are wrong, too, unless a test expects them."""

    origin: str
    problems: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    is_on: bool = True

    def over(self, context: BrowserContext) -> None:
        context.add_init_script(TELL_OF_VIOLATIONS)
        context.on("console", self._console)
        context.on("weberror", lambda error: self._note(f"script: {error.error}"))
        context.on("request", self._request)
        context.on("response", self._response)

    def _note(self, problem: str) -> None:
        if self.is_on:
            self.problems.append(problem)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(ONLY_A_STATUS):
            self._note(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme != "data" and f"{address.scheme}://{address.netloc}" != self.origin:
            self._note(f"asked elsewhere: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self._note(f"{response.status}: {response.url}")


@dataclass(frozen=True)
class Person:
    user: User
    password: str
    device: TOTPDevice | None

    def code(self, *, steps: int = 0) -> str:
        """Read the app's code, some steps of half a minute from now."""
        assert self.device
        return code_of(self.device.bin_key, steps=steps)


def code_of(key: bytes, *, steps: int = 0) -> str:
    totp = TOTP(key)
    totp.time = time.time() + 30 * steps
    return f"{totp.token():06d}"


def hire(name: str, *roles: str, enrolled: bool = True) -> Person:
    """Make an account with these roles and a second factor."""
    user, password = staff.add_staff(actor="test", name=name, roles=roles)
    device = None
    if enrolled:
        begun = staff.begin_enrolment(user=user)
        device, _ = staff.confirm_enrolment(user=user, code=code_of(begun.bin_key, steps=-1))
    return Person(user, password, device)


def session_of(person: Person, *, proven: bool) -> str:
    """Log somebody in without the login page, with their second factor; ``proven``: a moment ago."""
    client = Client()
    client.force_login(person.user, backend="django.contrib.auth.backends.ModelBackend")
    session = client.session
    if person.device:
        session[DEVICE_ID_SESSION_KEY] = person.device.persistent_id
    if proven:
        session[PROVEN_AT] = time.time()
    session.save()
    return str(session.session_key)


@dataclass
class Desk:
    """A running installation with sample data, and whoever works there."""

    url: str
    browser: Browser
    people: dict[str, Person]
    watch: Watch
    contexts: list[BrowserContext] = field(default_factory=list)

    def open(
        self, name: str = "", *, at: str = "/admin/", width: int = 1280, scheme: Any = "light", proven: bool = True
    ) -> Page:
        """Open a window at a page: as somebody who is logged in, or as a stranger."""
        context = self.browser.new_context(
            base_url=self.url, viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme
        )
        context.set_default_timeout(PATIENCE_MS)
        self.watch.over(context)
        self.contexts.append(context)
        if name:
            value = session_of(self.people[name], proven=proven)
            context.add_cookies([{"name": "sessionid", "value": value, "url": self.url}])
        page = context.new_page()
        page.goto(at)
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        self.contexts.clear()


def press_tab_until(page: Page, name: str, *, roles: Sequence[str] = ("A", "INPUT", "BUTTON", "SUMMARY")) -> None:
    """Go by the keyboard to what has this name."""
    for _ in range(150):
        page.keyboard.press("Tab")
        at = page.evaluate("[document.activeElement.tagName, document.activeElement.textContent.trim(),"
                           " document.activeElement.value ?? '']")  # fmt: skip
        if at[0] in roles and name in at[1:]:
            return
    raise AssertionError(f"Tab does not lead to {name!r}")
