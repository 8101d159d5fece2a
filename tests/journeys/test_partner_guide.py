"""docs/partner-guide.md, executed: each request and each program on the page, in its order, against a real service.

What stands before a block of code says what it is: ``a message`` is what partners are sent, ``the answer`` is of the
request before it, ``a line`` is posted to /v1/acknowledgements. Shown JSON has the fields of the real one, no less and
no more; "…" stands for anything. A block under ``<!-- not run: why -->`` is left out, and counted.
"""

import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import requests
from django.db import connection
from django.utils import timezone

from partners.kit import removal_kit as kit
from removal import intake, planning
from removal.partnerships import NewPartner
from removal.payload import as_time
from tests.conftest import ROOT
from tests.factories import disclose, make_partner, make_release, make_wish, record
from tests.faults.harness import Installation, installation
from tests.partners.kit.node import KIT, run_node
from tests.receivers import Received, Receiver, Reply, listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey]

GUIDE = (ROOT / "docs" / "partner-guide.md").read_text()
BLOCK = re.compile(
    r"^## (?P<section>.+)$|(?:^<!-- (?P<note>.+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LEFT_OUT = 0  # blocks that are not run

# Each request prints its answer, and the status behind it.
CURL = "curl() { command curl --silent --show-error --write-out '\\n%{http_code}' \"$@\"; }\n"


@dataclass(frozen=True)
class Block:
    section: str
    note: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    section = ""
    for found in BLOCK.finditer(GUIDE):
        if found["section"]:
            section = found["section"]
        else:
            yield Block(section, found["note"] or "", found["language"], found["text"])


def differences(shown: Any, real: Any, *, where: str = "") -> list[str]:
    """Say how what is shown is not of the same form as what is real. Null and "…" stand for any value."""
    if shown == "…" or shown is None or real is None:
        return []
    if isinstance(shown, dict) and isinstance(real, dict):
        odd = [f"{where}.{name} is shown, and is not there" for name in shown.keys() - real.keys()]
        odd += [f"{where}.{name} is there, and not shown" for name in real.keys() - shown.keys()]
        for name in shown.keys() & real.keys():
            odd += differences(shown[name], real[name], where=f"{where}.{name}")
        return odd
    if isinstance(shown, list) and isinstance(real, list):
        lost = [each for each in shown if all(differences(each, one) for one in real)]
        return [f"{where} has nothing like {each}" for each in lost]
    return [] if type(shown) is type(real) else [f"{where} is {type(real).__name__}, shown as {type(shown).__name__}"]


@dataclass
class Reader:
    """A partner's engineer, who does what the page says, from top to bottom."""

    platform: Installation
    made: NewPartner
    receiver: Receiver
    secrets: list[str]
    instead: dict[str, str]
    folder: Path
    opening: str = ""
    answer: requests.Response | None = None
    said: Any = None
    left_out: int = 0
    done: int = 0

    def read(self, block: Block) -> None:
        if block.note.startswith("not run: "):
            self.left_out += 1
            return
        text = block.text
        for shown, real in self.instead.items():
            text = text.replace(shown, real)
        getattr(self, f"run_{block.language}")(block, text)
        self.done += 1

    def run_bash(self, block: Block, text: str) -> None:
        if text.startswith("export "):
            self.opening = text
            return
        if block.section == "Move your endpoint":
            let_a_minute_pass()
        done = subprocess.run(
            ["bash", "-euc", self.opening + CURL + text], capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        answer, _, status = done.stdout.rpartition("\n")
        if " -i " in text:
            headers, _, answer = answer.partition("\n\n")
            self.check_headers(block.section, headers.lower())
        wanted = range(400, 401) if block.section == "Errors" else range(200, 300)
        assert int(status) in wanted, (block, answer)
        is_lines = block.section == "Long lists"
        self.said = [json.loads(line) for line in answer.splitlines()] if is_lines else json.loads(answer)
        self.look_at(block.section)

    def check_headers(self, section: str, headers: str) -> None:
        wanted = {"Long lists": ["link: <"], "Catch up": ["webhook-id: ", "webhook-timestamp: ", "webhook-signature: "]}
        assert [name for name in wanted[section] if f"\n{name}" not in headers] == []

    def look_at(self, section: str) -> None:
        match section:
            case "Go live: the checks" | "Move your endpoint":
                assert [check for check in self.said["checks"] if not check["passed"]] == []
            case "Long lists":
                assert self.said[0]["subject"] == "site:3"
            case "Rotate":
                self.secrets.append(self.said["secret"])
            case "Catch up" if "notices" in self.said:
                assert [notice["sequence"] for notice in self.said["notices"]] == [3, 4, 5]

    def run_json(self, block: Block, text: str) -> None:
        shown = json.loads(text)
        match block.note:
            case "a message":
                assert differences(shown, json.loads(self.receiver.received[0].body)) == []
            case "the answer":
                assert differences(shown, self.said) == []
            case "a line":
                answer = self.post(text.encode())
                assert answer == {"accepted": 1, "unchanged": 0, "refused": []}
            case _:
                raise AssertionError(f"Say what this is, in a comment before it: {text}")

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
        said = {"Authorization": f"Bearer {self.made.api_key}", "Content-Type": "application/json", **(headers or {})}
        response = requests.post(f"{self.platform.url}/v1/acknowledgements", body, headers=said, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()

    def run_python(self, block: Block, text: str) -> None:
        message = self.receiver.received[0]
        names: dict[str, Any] = {"body_bytes": message.body, "headers": message.headers}
        printed = StringIO()
        if block.section == "Catch up":
            names["notices"] = self.pull()
        with chdir(self.folder), redirect_stdout(printed):
            exec(text, names)
        match block.section:
            case "Sign your answers" if keys := printed.getvalue().split():
                assert [key[:5] for key in keys] == ["whsk_", "whpk_"]
                self.instead |= {f"{key[:5]}…": key for key in keys}
            case "Sign your answers":
                assert self.post(names["body"], names["headers"]) == {"accepted": 1, "unchanged": 0, "refused": []}
            case "Catch up":
                assert names["digest"] == self.said["data"]["digest"]
            case "With the kit":
                status, _, _ = names["receiver"].receive(message.headers, message.body)
                assert status == 200
                assert names["db"].execute("SELECT count(*) FROM notices").fetchone() == (5,)
                names["db"].close()

    def pull(self) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.made.api_key}"}
        answer = requests.get(f"{self.platform.url}/v1/stream", headers=headers, timeout=30)
        notices: list[dict[str, Any]] = answer.json()["notices"]
        return notices

    def run_javascript(self, block: Block, text: str) -> None:
        message = self.receiver.received[0]
        (self.folder / "removal_kit.mjs").write_bytes((KIT / "removal_kit.mjs").read_bytes())
        program = self.folder / "receiver.mjs"
        program.write_text(
            text.replace('"notices.ndjson"', json.dumps(str(self.folder / "notices.ndjson")))
            + 'import { readFileSync } from "node:fs";\n'
            "const given = JSON.parse(readFileSync(0, 'utf8'));\n"
            "const { status } = await receiver.receive(given.headers, Buffer.from(given.body));\n"
            "console.log(status);\n"
        )
        given = {"headers": message.headers, "body": message.body.decode()}
        assert run_node(str(program), given=given) == 200
        assert len((self.folder / "notices.ndjson").read_text().splitlines()) == 5


def let_a_minute_pass() -> None:
    """Verifications may be asked for once a minute: make the last one older, past the guard that forbids it."""
    with connection.cursor() as cursor:
        cursor.execute("alter table partners_verification disable trigger user")
        cursor.execute("update partners_verification set started_at = started_at - interval '1 minute'")
        cursor.execute(
            "select tgname from pg_trigger where tgrelid = 'partners_verification'::regclass and not tgisinternal"
        )
        for (name,) in cursor.fetchall():
            cursor.execute(f'alter table partners_verification enable always trigger "{name}"')


def owe(made: NewPartner) -> None:
    """Make the notices that the page speaks of: 1199, 1200, two items in two releases, one withdrawn, a long list."""
    disclose(make_release("2024-02", contents={"site:123": ["post:9"]}), made.partner)
    contents = {"site:1": ["post:1"], "site:123": ["post:9", "post:12"], "site:2": ["post:1"],
                "site:3": [f"post:{n}" for n in range(1500)], "site:4": ["post:1"]}  # fmt: skip
    disclose(make_release("2025-01", contents=contents), made.partner)
    for subject in ("site:4", "site:1", "site:123", "site:2"):
        wanted = record(make_wish(subject, kind="deletion" if subject == "site:2" else "opt_out"))
        planning.plan(budget=timedelta(seconds=10))
    intake.withdraw_request(source="blogs", actor="test", public_id=wanted.public_id)
    record(make_wish("site:3"))
    planning.plan(budget=timedelta(seconds=10))


def test_everything_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shutil.which("curl"), "curl is missing: the page's requests are its"
    secrets: list[str] = []
    partner = kit.Receiver("acme", lambda _: None, secrets=["whsec_" + b64encode(bytes(24)).decode()])
    partner.secrets = secrets

    def answer(message: Received) -> Reply:
        status, headers, body = partner.receive(message.headers, message.body)
        return Reply(status, body, dict(headers))

    with ExitStack() as stack:
        platform = stack.enter_context(installation(tmp_path))
        receiver, elsewhere = (stack.enter_context(listening(answer)) for _ in range(2))
        made = make_partner("acme", url=receiver.url)
        secrets.append(made.secret)
        owe(made)
        platform.start_web()
        platform.processes.start_worker()
        platform.wait_until(lambda: len(receiver.received) > 0, "the message")
        for name, value in {
            "PARTNER": "acme", "SECRET": made.secret, "API_KEY": made.api_key, "SERVICE_URL": "https://removal.example",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(KIT))
        reader = Reader(
            platform, made, receiver, secrets, folder=tmp_path,
            instead={
                # numbers of this stream, before a port or a key can look like one
                **{str(1199 + n): str(1 + n) for n in range(5)},
                # who and where
                "https://removal.example": platform.url,
                "https://new.example/removal": elsewhere.url,
                "http://127.0.0.1:8080/": receiver.url,
                "rk_…": made.api_key,
                "whsec_…": made.secret,
                # moments that will not pass
                "2026-11-25T09:00:00Z": as_time(timezone.now() - timedelta(hours=1)),
                "2027-02-28T00:00:00Z": as_time(timezone.now() + timedelta(days=100)),
            },
        )  # fmt: skip
        # That 1199 was answered before is what the page's answer shows.
        reader.post(b'{"sequence": 1, "status": "completed"}')
        for block in blocks():
            reader.read(block)
        assert (reader.left_out, reader.done) == (LEFT_OUT, len(list(blocks())) - LEFT_OUT)
        headers = {"Authorization": f"Bearer {made.api_key}"}
        for path in re.findall(r"`GET (/[^`]+)`", GUIDE):
            real = path.replace("1203", "5")
            assert requests.get(f"{platform.url}{real}", headers=headers, timeout=30).status_code == 200, path
        platform.assert_promises_hold()


def test_every_link_inside_the_page_leads_to_a_section() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.+)$", GUIDE, re.M)
    }
    links = re.findall(r"\]\(#([^)]+)\)", GUIDE)
    assert links
    assert set(links) - headings == set()


@pytest.mark.parametrize(
    ("shown", "real", "found"),
    [
        ({"a": 1}, {"a": 2}, []),
        ({"a": 1}, {}, [".a is shown, and is not there"]),
        ({}, {"a": 1}, [".a is there, and not shown"]),
        ({"a": [{"b": "…"}]}, {"a": [{"b": 1}, {"c": 1}]}, []),
        ({"a": [{"b": "…"}]}, {"a": []}, [".a has nothing like {'b': '…'}"]),
        ({"a": "1"}, {"a": 1}, [".a is int, shown as str"]),
    ],
)
def test_forms_are_compared(shown: Any, real: Any, found: list[str]) -> None:
    assert differences(shown, real) == found
