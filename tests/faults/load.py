"""What a platform and its partners do while things break; each call is remembered as its caller saw it."""

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.faults.oracle import Call

SUBJECTS = 400
TIMEOUT_SECONDS = (2, 6)
# How often each thing is done, in percent.
WEIGHTS = {"opt_out": 52, "deletion": 10, "reinstatement": 6, "recall": 3, "handover": 5, "repeat": 6, "answer": 18}


@dataclass(frozen=True)
class Wish:
    kind: str
    key: str
    path: str
    options: Mapping[str, Any]


@dataclass
class Client(threading.Thread):
    """One caller of the API, who does one thing after another until told to stop."""

    url: str
    name_: str
    seed: int
    platform_key: str
    partner_keys: Mapping[str, str]
    logs: Mapping[str, Path]
    pause_seconds: float = 0.1
    calls: list[Call] = field(default_factory=list)
    recorded: list[Wish] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def __post_init__(self) -> None:
        super().__init__(name=self.name_, daemon=True)
        self.chance = random.Random(f"{self.seed}/{self.name_}")

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        steps: dict[str, Callable[[], None]] = {
            "handover": self.hand_over, "repeat": self.repeat, "answer": self.answer, "recall": self.recall,
        }  # fmt: skip
        while not self.stopping.wait(self.pause_seconds * self.chance.uniform(0.2, 1.8)):
            kind = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            self.count += 1
            steps.get(kind, lambda kind=kind: self.ask(kind))()

    def ask(self, kind: str) -> None:
        wish: dict[str, Any] = {"kind": kind, "subject": f"site:{self.chance.randrange(SUBJECTS)}"}
        if kind == "deletion" and self.chance.random() < 0.5:
            wish["items"] = ["post:1"]
        if kind == "opt_out" and self.chance.random() < 0.3:
            wish["usages"] = ["train-ai"]
        self.insist(Wish(kind, f"{self.name_}-{self.count}", "/v1/requests", {"json": wish}))

    def recall(self) -> None:
        subjects = self.chance.sample(range(SUBJECTS), 5)
        lines = "".join(json.dumps({"subject": f"site:{n}"}) + "\n" for n in subjects)
        self.insist(
            Wish("recall", f"{self.name_}-{self.count}", "/v1/recalls?release=r1&release=r2", {"data": lines.encode()})
        )

    def repeat(self) -> None:
        """Send something again that had its answer: it must get the same one."""
        if self.recorded:
            self.call(self.chance.choice(self.recorded))

    def hand_over(self) -> None:
        """Make a small release and hand it to a partner; give up where a step is refused or not answered."""
        name = f"{self.name_}-{self.count}"
        subjects = self.chance.sample(range(SUBJECTS), 20)
        lines = "".join(json.dumps({"subject": f"site:{n}", "items": ["post:1", "post:2"]}) + "\n" for n in subjects)
        partner = self.chance.choice(list(self.partner_keys))
        for method, path, options in (
            ("POST", "/v1/releases", {"json": {"name": name, "dataset": "posts"}}),
            ("PUT", f"/v1/releases/{name}/manifest", {"data": lines.encode()}),
            ("POST", f"/v1/releases/{name}/seal", {"json": {"exclude": True}}),
        ):
            for _ in range(3):
                status, _answer = self.send(method, path, self.platform_key, options)
                if status is not None and status < 500:
                    break
                time.sleep(0.2)
        said = {"partner": partner, "reference": name}
        if self.chance.random() < 0.5:
            said["disclosed_at"] = "2026-01-01T00:00:00Z"
        self.insist(Wish("handover", name, f"/v1/releases/{name}/disclosures", {"json": said}))

    def answer(self) -> None:
        """Answer one notice as the partner, which has it in its log."""
        slug = self.chance.choice(list(self.partner_keys))
        try:
            lines = self.logs[slug].read_bytes().splitlines()[-30:]
        except FileNotFoundError:
            return
        open_ = [
            sequence
            for line in lines
            if line.endswith(b"}")
            for sequence, *_ in json.loads(line)["notices"]
            if f"{slug}/{sequence}" not in self.answered
        ]
        if open_:
            self.complete(slug, self.chance.choice(open_))

    def complete(self, slug: str, sequence: int) -> None:
        said = {"sequence": sequence, "status": "completed"}
        status, answer = self.send("POST", "/v1/acknowledgements", self.partner_keys[slug], {"json": said})
        outcome = "unknown" if status is None or status >= 500 else "ok" if status == 200 else "refused"
        if outcome == "ok":
            self.answered.add(f"{slug}/{sequence}")
        self.calls.append(Call("acknowledgement", f"{slug}/{sequence}", outcome, status, answer))

    def insist(self, wish: Wish) -> None:
        """Call, and mostly once or twice again with the same key if there was no answer."""
        for _ in range(self.chance.choice((1, 2, 3))):
            if self.call(wish) != "unknown":
                return
            time.sleep(self.chance.uniform(0.05, 0.5))

    def call(self, wish: Wish) -> str:
        options = {"headers": {"Idempotency-Key": wish.key}, **wish.options}
        status, answer = self.send("POST", wish.path, self.platform_key, options)
        outcome = "unknown" if status is None or status >= 500 else "ok" if status in {200, 201} else "refused"
        if outcome == "ok":
            self.recorded.append(wish)
        self.calls.append(Call(wish.kind, wish.key, outcome, status, answer))
        return outcome

    def send(self, method: str, path: str, key: str, options: Mapping[str, Any]) -> tuple[int | None, Any]:
        headers = {"Authorization": f"Bearer {key}", **options.get("headers", {})}
        more = {name: value for name, value in options.items() if name != "headers"}
        try:
            answer = requests.request(method, self.url + path, headers=headers, timeout=TIMEOUT_SECONDS, **more)
            return answer.status_code, answer.json()
        except (requests.RequestException, ValueError):
            return None, None
