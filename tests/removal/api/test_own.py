"""A partner looks after itself: it verifies, moves, and changes its keys, and learns nothing of anybody else's."""

import json
from contextlib import closing
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from partners.models import Endpoint, Partner, Secret, Verification
from partners.signing import Ed25519PrivateKey, HmacSecret
from removal import partnerships
from removal.api import own
from removal.models import LogEntry
from removal.partnerships import NewPartner
from tests.factories import make_partner
from tests.receivers import Received, Reply, listening
from tests.removal.api.conftest import Caller, fields_of, problem_of
from tests.removal.careful import careful

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_partners")]

NOWHERE = "http://127.0.0.1:9/"


def public_key() -> str:
    return Ed25519PrivateKey.generate().public_key.to_text()


def put_endpoint(caller: Caller, url: Any) -> Any:
    return caller.client.put("/v1/partner/endpoint", json.dumps({"url": url}), "application/json")


def key_prefix(holder: NewPartner) -> str:
    return holder.partner.api_keys.get().prefix


def actions() -> list[tuple[str, str]]:
    return list(LogEntry.objects.exclude(actor="test").order_by("id").values_list("actor", "action"))


def test_a_partner_sees_itself_and_no_secret(partner: Caller, holder: NewPartner) -> None:
    make_partner("globex")
    answer = partner.get("/v1/partner")
    said = answer.json()
    assert (said["slug"], said["state"], said["verification"]) == ("acme", "live", None)
    assert said["endpoint"] == {
        "url": "https://partner.example/removal", "pending_url": "", "state": "open", "window": 4, "max_notices": 100,
        "rate_per_second": 50,
    }  # fmt: skip
    [key] = said["keys"]
    secret = Secret.objects.get(partner=holder.partner)
    assert (key["id"], key["direction"], key["public_key"]) == (secret.key_id, "outbound", None)
    assert holder.secret not in answer.content.decode()


def test_a_partner_goes_live_by_its_own_call(partner: Caller, holder: NewPartner) -> None:
    Partner.objects.update(state="onboarding")
    with listening(lambda message: careful(message, secret=holder.secret)) as receiver:
        Endpoint.objects.update(url=receiver.url)
        answer = partner.post("/v1/partner/verify")
    said = answer.json()
    assert (answer.status_code, said["passed"], said["effect"]) == (200, True, "live")
    assert {check["passed"] for check in said["checks"]} == {True}
    assert Partner.objects.get().state == "live"
    assert actions() == [(f"api:{key_prefix(holder)}", "verification_passed")]
    assert partner.get("/v1/partner").json()["verification"] == said


def test_it_may_ask_once_a_minute(partner: Caller, holder: NewPartner) -> None:
    Endpoint.objects.update(url=NOWHERE)
    assert partner.post("/v1/partner/verify").status_code == 200
    for again in (partner.post("/v1/partner/verify"), put_endpoint(partner, "http://127.0.0.1:10/")):
        assert problem_of(again)[:2] == (429, "too_soon")
        assert 50 <= int(again["Retry-After"]) <= 60
    assert (Verification.objects.count(), Endpoint.objects.get().pending_url) == (1, "")


def test_while_one_runs_another_is_refused(partner: Caller) -> None:
    answers: list[Any] = []

    def ask_again(_: Received) -> Reply:
        with closing(connection):  # of this thread
            answers.append(partner.post("/v1/partner/verify"))
        return Reply(500)

    with listening(ask_again) as receiver:
        Endpoint.objects.update(url=receiver.url)
        partner.post("/v1/partner/verify")
    assert problem_of(answers[0])[:2] == (409, "verification_underway")


def test_verifications_leave_threads_for_everybody_else(partner: Caller) -> None:
    for _ in range(own.VERIFICATIONS_AT_ONCE):
        own._slots.acquire()
    try:
        busy = partner.post("/v1/partner/verify")
    finally:
        own._slots.release(own.VERIFICATIONS_AT_ONCE)
    assert problem_of(busy)[:2] == (503, "busy")
    assert busy["Retry-After"] == "60"


def test_the_staffs_details_are_not_for_the_partner(partner: Caller) -> None:
    Endpoint.objects.update(url=NOWHERE)
    answer = partner.post("/v1/partner/verify")
    assert "refused" in Verification.objects.get().checks[0]["detail"]
    assert [check for check in answer.json()["checks"] if "detail" in check] == []


def test_a_new_url_is_used_once_it_has_passed(partner: Caller, holder: NewPartner) -> None:
    with listening(lambda message: careful(message, secret=holder.secret)) as receiver:
        answer = put_endpoint(partner, receiver.url)
        assert (answer.status_code, answer.json()["effect"]) == (200, "url")
        assert partner.get("/v1/partner").json()["endpoint"]["url"] == receiver.url
    assert [action for _, action in actions()] == ["endpoint_proposed", "verification_passed"]


def test_a_new_url_that_fails_stays_pending(partner: Caller) -> None:
    with listening(lambda _: Reply(200)) as receiver:
        assert put_endpoint(partner, receiver.url).json()["passed"] is False
        endpoint = partner.get("/v1/partner").json()["endpoint"]
    assert (endpoint["url"], endpoint["pending_url"]) == ("https://partner.example/removal", receiver.url)


@pytest.mark.parametrize("url", ["", "ftp://acme.example/", "https://10.0.0.1/", "https://acme.example/#here", 7, None])
def test_a_url_that_cannot_be_is_named(partner: Caller, url: Any) -> None:
    assert fields_of(put_endpoint(partner, url)) in (["url"], ["body.url"])
    assert (Endpoint.objects.get().pending_url, Verification.objects.count()) == ("", 0)


def test_a_new_secret_is_shown_once_and_signs_beside_the_old_one(partner: Caller, holder: NewPartner) -> None:
    answer = partner.post("/v1/partner/secrets")
    said = answer.json()
    assert answer.status_code == 201
    assert HmacSecret.from_text(said["secret"]) != HmacSecret.from_text(holder.secret)
    old, new = Secret.objects.filter(partner=holder.partner).order_by("id")
    assert new.key == said["secret"]
    assert old.retire_at is not None
    assert old.retire_at.isoformat(timespec="seconds")[:19] == said["others_retire_at"][:19]
    assert said["secret"] not in partner.get("/v1/partner").content.decode()
    assert [key["id"] for key in partner.get("/v1/partner").json()["keys"]] == [old.key_id, new.key_id]
    assert actions() == [(f"api:{key_prefix(holder)}", "secret_rotated")]


def test_no_more_secrets_sign_than_a_receiver_looks_at(partner: Caller) -> None:
    answers = [partner.post("/v1/partner/secrets") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [201] * 5 + [409]
    assert problem_of(answers[-1])[1] == "too_many_secrets"


def test_a_signing_key_is_registered_once_and_ends_at_once(partner: Caller, holder: NewPartner) -> None:
    text = public_key()
    first, second = (partner.post("/v1/partner/signing-keys", {"public_key": text}) for _ in range(2))
    assert (first.status_code, first.json()) == (201, second.json())
    said = first.json()
    assert (said["public_key"], said["direction"], said["algorithm"]) == (text, "inbound", "ed25519")
    assert said in partner.get("/v1/partner").json()["keys"]

    gone = partner.client.delete(f"/v1/partner/signing-keys/{said['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert Secret.objects.get(direction="inbound").revoked_at is not None
    assert problem_of(partner.client.delete(f"/v1/partner/signing-keys/{said['id']}"))[:2] == (404, "unknown_key")
    assert [action for _, action in actions()] == ["signing_key_registered", "signing_key_revoked"]
    assert fields_of(partner.post("/v1/partner/signing-keys", {"public_key": text})) == ["public_key"]  # not revived


def test_four_signing_keys_are_enough(partner: Caller) -> None:
    answers = [partner.post("/v1/partner/signing-keys", {"public_key": public_key()}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [201] * 4 + [422]


def test_a_key_that_is_no_key_or_somebody_elses_is_refused(partner: Caller) -> None:
    theirs, ours = public_key(), Ed25519PrivateKey.from_text(Secret.objects.get(partner=None).key).public_key.to_text()
    make_partner("globex")
    partnerships.register_signing_key(actor="test", slug="globex", public_key=theirs, now=timezone.now())
    for text in ("", "whpk_", "whpk_AAAA", HmacSecret.generate().to_text(), theirs, ours):
        assert fields_of(partner.post("/v1/partner/signing-keys", {"public_key": text})) == ["public_key"]
    assert Secret.objects.filter(direction="inbound").count() == 1


def test_no_partner_ends_anothers_key_or_its_own_outbound_one(partner: Caller, holder: NewPartner) -> None:
    make_partner("globex")
    theirs = partnerships.register_signing_key(actor="test", slug="globex", public_key=public_key(), now=timezone.now())
    outbound = Secret.objects.get(partner=holder.partner)
    for key_id in (theirs.key_id, outbound.key_id, "key_999", "null,null", "key_0x1"):
        assert problem_of(partner.client.delete(f"/v1/partner/signing-keys/{key_id}"))[:2] == (404, "unknown_key")
    assert Secret.objects.filter(revoked_at=None).count() == Secret.objects.count()


@pytest.mark.parametrize(
    ("method", "path"),
    [("get", ""), ("post", "/verify"), ("put", "/endpoint"), ("post", "/secrets"), ("post", "/signing-keys"),
     ("delete", "/signing-keys/key_1")],
)  # fmt: skip
def test_only_a_partners_own_key_opens_these(stranger: Caller, platform: Caller, method: str, path: str) -> None:
    for caller, status in ((stranger, 401), (platform, 403)):
        assert getattr(caller.client, method)(f"/v1/partner{path}").status_code == status
