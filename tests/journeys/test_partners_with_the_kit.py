"""Two partners run the kit's examples: opt-outs reach both, they are killed in between, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from django.utils import timezone

from partners import keys, signing
from partners.kit import removal_kit as kit
from partners.models import Endpoint
from removal.config.children import ending_with_parent
from removal.demo.processes import free_port
from removal.models import Acknowledgement, DeliveryBody, Notice
from removal.partnerships import NewPartner
from tests.factories import disclose, make_partner, make_release
from tests.faults.harness import Installation, installation
from tests.partners.kit.node import EXAMPLES, KIT, node
from tests.receivers import listening

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey, pytest.mark.long]


@dataclass
class Example:
    """An example receiver of one partner, with a store that outlives its process."""

    command: list[str]
    made: NewPartner
    port: int
    folder: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return (self.folder / f"{self.made.partner.slug}.out").read_text()

    @property
    def removed(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("removed")]

    def start(self) -> None:
        with (self.folder / f"{self.made.partner.slug}.out").open("ab") as out:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.environment}, stdout=out, stderr=out,
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )  # fmt: skip
        end = time.monotonic() + 30
        while not self.is_listening():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def is_listening(self) -> bool:
        try:
            # No signature: any answer says that it is there.
            return requests.post(f"http://127.0.0.1:{self.port}/", timeout=2).status_code == 401
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def add_example(platform: Installation, stack: ExitStack, slug: str) -> Example:
    made, port = make_partner(slug), free_port()
    Endpoint.objects.filter(partner=made.partner).update(url=f"http://127.0.0.1:{port}/")
    command = {
        "in-python": [sys.executable, str(EXAMPLES / "wsgi_receiver.py")],
        "in-node": [node(), str(EXAMPLES / "node_receiver.mjs")],
    }[slug]
    example = Example(
        command, made, port, platform.folder,
        {
            "PARTNER": slug, "SECRET": made.secret, "API_KEY": made.api_key, "SERVICE_URL": platform.url,
            "PORT": str(port), "STORE": str(platform.folder / f"{slug}.store"), "PYTHONPATH": str(KIT),
        },
    )  # fmt: skip
    stack.callback(example.kill)
    return example


def test_an_opt_out_is_done_once_by_both_whatever_ends_in_between(tmp_path: Path, stack: ExitStack) -> None:
    with installation(tmp_path) as platform:
        platform.start_web()
        platform.processes.start_worker()
        examples = [add_example(platform, stack, slug) for slug in ("in-python", "in-node")]
        # 1,001 items do not fit into a message: they are fetched.
        release = make_release(contents={"site:1": ["post:1", "post:2"], "site:2": [f"post:{n}" for n in range(1001)]})
        for example in examples:
            disclose(release, example.made.partner)
            example.start()

        first = platform.opt_out("site:1")
        platform.wait_until_all_answered(notices=2)
        for example in examples:
            assert len(example.removed) == 2, example.output

        # Down while the next comes; and killed once more as soon as it is there.
        for example in examples:
            example.kill()
        second = platform.opt_out("site:2")
        platform.wait_until(lambda: Notice.objects.count() == 4, "four notices")
        for example in examples:
            example.start()
        platform.wait_until(
            lambda: Notice.objects.filter(sequence=2).exclude(handling="none").count() == 2, "both have heard of it"
        )
        for example in examples:
            example.kill()
            example.start()
        platform.wait_until_all_answered(notices=4)

        for request_id in (first, second):
            status = platform.ask("GET", f"/v1/requests/{request_id}").json()
            assert (status["state"], status["outcome"]) == ("closed", "fulfilled")
            assert {line["partner"] for line in status["partners"]} == {"in-python", "in-node"}
        # The same notices again, in messages with new ids, to processes that have just begun: done before, done once.
        done = [example.removed for example in examples]
        answers = Acknowledgement.objects.count()
        for example in examples:
            example.kill()
            example.start()
            _send_under_a_new_id(example)
        time.sleep(2)  # longer than the examples wait between looks at their stores
        assert [example.removed for example in examples] == done
        assert Acknowledgement.objects.count() == answers
        platform.assert_promises_hold()
    completed = Acknowledgement.objects.filter(status="completed").order_by("stream_id", "first_sequence")
    assert list(completed.values_list("first_sequence", "outcomes")) == [
        (1, {"removed": 2}), (2, {"removed": 1001}), (1, {"removed": 2}), (2, {"removed": 1001}),
    ]  # fmt: skip


def _send_under_a_new_id(example: Example) -> None:
    """Send what the service sent, as another message; it gets the same answer as the first time."""
    of_partner = DeliveryBody.objects.filter(delivery__stream_id=example.made.partner.pk)
    secret = signing.HmacSecret.from_text(example.made.secret)
    for body in of_partner.order_by("delivery__first_sequence"):
        headers = signing.headers(message_id="again", timestamp=timezone.now(), body=bytes(body.body), keys=[secret])
        answer = requests.post(f"http://127.0.0.1:{example.port}/", bytes(body.body), headers=headers, timeout=10)
        assert answer.status_code == 200
        assert answer.json()["acknowledgements"][0]["status"] == "received"


def test_the_service_agrees_with_the_kit_on_keys_signatures_and_the_stream(tmp_path: Path) -> None:
    keys.ensure_service_key()
    with installation(tmp_path) as platform, listening() as receiver:
        platform.start_web()
        platform.processes.start_worker()
        made = make_partner("acme", url=receiver.url)
        disclose(make_release(contents={"site:1": ["post:1", "post:2"]}), made.partner)
        platform.opt_out("site:1")
        platform.wait_until(lambda: len(receiver.received) > 0, "the message")
        [sent] = receiver.received
        client = kit.Client(platform.url, made.api_key, allow_http=True)

        for secrets, public_keys in (([made.secret], []), ([], client.public_keys())):
            assert kit.verify(sent.headers, sent.body, secrets=secrets, public_keys=public_keys) == sent.webhook_id
        [notice] = kit.parse(sent.body, "acme").notices
        assert notice.items == (("site:1", "post:1"), ("site:1", "post:2"))
        assert list(client.items(notice.sequence)) == [("site:1", ["post:1", "post:2"])]
        with pytest.raises(kit.ServiceFailed) as caught:
            kit.Client(platform.url, "rk_nobody", allow_http=True).acknowledge([{"sequence": 1, "status": "received"}])
        assert caught.value.status == 401
        line = {"sequence": 1, "status": "completed", "outcomes": {"removed": 1}}
        refused = client.acknowledge([line, {"through": 1, "status": "received"}])
        assert (refused.accepted, refused.unchanged) == (1, 0)
        assert [each["code"] for each in refused.refused] == ["outcomes_do_not_add_up"]

        if platform.ask("GET", "/v1/stream").status_code == 404:
            pytest.skip("This service has no GET /v1/stream yet.")
        [page] = client.pull(wait=0)
        assert (page.epoch, page.notices) == (1, (notice,))
        statement = client.statement(secrets=[made.secret])
        assert (statement["head"], statement["pulled"]) == (1, [[1, 1]])  # the last page, too
