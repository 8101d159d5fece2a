"""Everybody's libraries agree on our messages: both kits, and `standardwebhooks` and `svix` from PyPI and from npm."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks
from cryptography.hazmat.primitives.asymmetric import ed25519

from partners.kit import removal_kit as kit
from partners.signing import Ed25519PrivateKey, HmacSecret
from tests.conftest import ROOT
from tests.partners.kit.cases import NOW, PRIVATE_KEY, SECRET, message, notice, run_in_python, signed
from tests.partners.kit.node import install_packages, run_node

BODY = message(notice(1, subject="seite:ü"))
OTHER_SECRET = HmacSecret(b"k" * 32)

# What a message may look like, and whether it is good. Checked now, since the libraries read the clock themselves.
MESSAGES: list[tuple[list[Any], bytes, bool]] = [
    ([SECRET], BODY, True),
    ([PRIVATE_KEY, SECRET], BODY, True),
    ([OTHER_SECRET, SECRET], BODY, True),
    ([SECRET], b"{}", True),
    ([OTHER_SECRET], BODY, False),
    ([PRIVATE_KEY], BODY, False),
]


def now_signed(keys: list[Any], body: bytes, *, late: int = 0) -> dict[str, str]:
    return dict(signed(body, *keys, at=int(time.time()) - late))


def agrees(library: Any, headers: dict[str, str], body: bytes) -> bool:
    try:
        library(SECRET.to_text()).verify(body, headers)
    except (standardwebhooks.WebhookVerificationError, svix.webhooks.WebhookVerificationError):
        return False
    return True


def kit_agrees(headers: dict[str, str], body: bytes) -> bool:
    try:
        kit.verify(headers, body, secrets=[SECRET.to_text()])
    except kit.NotVerified:
        return False
    return True


def test_the_libraries_of_pypi_and_the_kit_agree_on_our_messages() -> None:
    messages = [(now_signed(keys, body), body, good) for keys, body, good in MESSAGES]
    messages.append((now_signed([SECRET], BODY, late=301), BODY, False))

    for headers, body, good in messages:
        verdicts = [agrees(library, headers, body) for library in (standardwebhooks.Webhook, svix.webhooks.Webhook)]
        assert [*verdicts, kit_agrees(headers, body)] == [good] * 3


def test_the_libraries_of_npm_and_both_kits_agree_on_our_messages(tmp_path: Path) -> None:
    install_packages(tmp_path, "standardwebhooks@1", "svix@1")
    messages = [(now_signed(keys, body), body, good) for keys, body, good in MESSAGES]
    messages.append((now_signed([SECRET], BODY, late=301), BODY, False))

    judged = run_node(
        str(ROOT / "tests/partners/kit/judge.mjs"),
        given={
            "folder": str(tmp_path),
            "secret": SECRET.to_text(),
            "messages": [{"headers": headers, "body": body.decode()} for headers, body, _ in messages],
        },
    )

    assert judged["verdicts"] == [[good, good] for _, _, good in messages]
    # And what they sign, both kits believe.
    cases = [
        {
            "call": "verify",
            "headers": [["webhook-id", "msg_1"], ["webhook-timestamp", str(NOW)], ["webhook-signature", signature]],
            "body": base64.b64encode(b"{}").decode(),
            "now": NOW,
            "secrets": [SECRET.to_text()],
            "public_keys": [],
        }
        for signature in judged["signed"].values()
    ]
    assert len(cases) == 2
    believed = [{"id": "msg_1"}, {"id": "msg_1"}]
    assert [run_in_python(case) for case in cases] == believed
    assert run_node(str(ROOT / "tests/partners/kit/cases.mjs"), given=cases) == believed


@pytest.mark.parametrize("language", ["python", "node"])
def test_a_kits_signed_answer_is_good_for_cryptography_and_for_nothing_else(language: str) -> None:
    seed, body = PRIVATE_KEY.seed, json.dumps({"acknowledgements": []}).encode()
    if language == "python":
        headers = kit.sign_acknowledgement(seed, body, "ack_1", NOW)
    else:
        program = (
            f'import {{ signAcknowledgement }} from "{ROOT}/partners/kit/removal_kit.mjs";'
            f"const [seed, body] = ['{seed.hex()}', '{body.hex()}'].map((text) => Buffer.from(text, 'hex'));"
            f"console.log(JSON.stringify(signAcknowledgement(seed, body, 'ack_1', {NOW})));"
        )
        headers = run_node("--input-type=module", "--eval", program)

    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("ack_1", str(NOW))
    version, _, encoded = headers["webhook-signature"].partition(",")
    public_key = ed25519.Ed25519PublicKey.from_public_bytes(Ed25519PrivateKey(seed).public_key.raw)
    assert version == "v1a"
    # Raises when it does not verify.
    public_key.verify(base64.b64decode(encoded), b"acknowledgement.ack_1.%d." % NOW + body)
    # As a message of the service it is not believed: the word in front keeps the directions apart.
    with pytest.raises(kit.NotVerified) as caught:
        kit.verify(headers, body, public_keys=[PRIVATE_KEY.public_key.to_text()], now=NOW)
    assert caught.value.code == "no_matching_signature"
