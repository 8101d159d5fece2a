"""Partners that lie, replay, contradict themselves and send rubbish. Ids begin with the row of the list of attacks."""

import io
import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from partners import keys, signing
from partners.models import Partner, Secret
from partners.signing import Ed25519PrivateKey, HmacSecret
from removal import acknowledgement, delivery, signed_answers
from removal.api import signatures
from removal.models import Acknowledgement, Extension, LogEntry, Notice, SignedAnswer, SignedAnswerBody, Stream
from removal.partnerships import NewPartner
from removal.statements import Statement
from tests.factories import make_partner
from tests.removal.api.conftest import NDJSON, Caller, ndjson, problem_of, rows
from tests.removal.api.test_partner import PATH, handlings, owe
from tests.removal.api.test_streams import Gunicorn

Headers = dict[str, str]

KEY = Ed25519PrivateKey.generate()
LINE = b'{"sequence": 1, "status": "completed"}'


def register(partner: Partner, key: Ed25519PrivateKey, **said: Any) -> Secret:
    text = key.public_key.to_text()
    return Secret.objects.create(partner=partner, direction="inbound", algorithm="ed25519", key=text, **said)


def sign(body: bytes = LINE, *, key: Any = KEY, message_id: str = "answer-1", **more: Any) -> Headers:
    said: dict[str, Any] = {"timestamp": timezone.now(), "purpose": "acknowledgement"} | more
    return signing.headers(message_id=message_id, body=body, keys=[key], **said)


def post(partner: Caller, headers: Headers, body: bytes = LINE, *, content_type: str = "application/json") -> Any:
    return partner.client.post(PATH, body, content_type, headers=headers)


def without(headers: Headers, name: str) -> Headers:
    return {each: value for each, value in headers.items() if each != name}


def changed(name: str, value: Any) -> Callable[[], Headers]:
    def make() -> Headers:
        headers = sign()
        return headers | {name: value(headers[name]) if callable(value) else value}

    return make


FORGERIES: dict[str, Callable[[], Headers]] = {
    "S27-no-signature": lambda: without(sign(), "webhook-signature"),
    "S27-no-id": lambda: without(sign(), "webhook-id"),
    "S27-empty-signature": changed("webhook-signature", ""),
    "S27-truncated": changed("webhook-signature", lambda text: text[:-8]),
    "S27-of-another-body": lambda: sign(LINE + b" "),
    "S27-behind-ten-thousand-others": changed("webhook-signature", lambda text: "v1a,AAAA " * 10_000 + text),
    "S28-too-old": lambda: sign(timestamp=timezone.now() - timedelta(seconds=301)),
    "S28-too-new": lambda: sign(timestamp=timezone.now() + timedelta(seconds=310)),
    "S28-float": changed("webhook-timestamp", lambda text: text + ".0"),
    "S28-negative": changed("webhook-timestamp", "-1"),
    "S28-exponent": changed("webhook-timestamp", "1e9"),
    "S28-twice": changed("webhook-timestamp", lambda text: f"{text},{text}"),
    "S28-missing": lambda: without(sign(), "webhook-timestamp"),
    "S29-spaces": lambda: sign(LINE.replace(b" ", b"")),
    "S31-signed-as-our-own-messages-are": lambda: sign(purpose=""),
    "S31-signed-for-something-else": lambda: sign(purpose="statement"),
    "S32-another-partners-key": lambda: sign(key=Ed25519PrivateKey.generate()),
    "S34-under-another-version": changed("webhook-signature", lambda text: text.replace("v1a,", "v1,")),
    "S34-under-an-unknown-version": changed("webhook-signature", lambda text: text.replace("v1a,", "v9,")),
    "S34-hmac-with-the-public-key": lambda: sign(key=HmacSecret(KEY.public_key.raw)),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
def test_what_is_not_verified_is_not_taken(
    partner: Caller, holder: NewPartner, forgery: Callable[[], Headers], content_type: str
) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    before = rows()
    response = post(partner, forgery(), content_type=content_type)
    assert problem_of(response)[:2] == (401, "not_verified")
    assert handlings(holder.partner) == ["none"]
    assert rows() == before | {"LogEntry": before["LogEntry"] + 1}
    entry = LogEntry.objects.latest("pk")
    assert (entry.actor, entry.action) == (f"api:{holder.api_key[:11]}", "answer_not_verified")
    assert entry.about.keys() == {"partner", "why"}
    assert SignedAnswer.objects.count() == 0


@pytest.mark.parametrize(
    "ended",
    [
        {"retire_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"revoked_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"active_from": datetime(2100, 1, 1, tzinfo=UTC)},
    ],
    ids=["S38-retired", "S38-revoked", "S38-not-yet"],
)
def test_a_key_that_is_not_in_force_verifies_nothing(
    partner: Caller, holder: NewPartner, ended: dict[str, datetime]
) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY, **ended)
    assert post(partner, sign()).status_code == 401
    assert handlings(holder.partner) == ["none"]


def test_s31_our_own_message_is_no_answer(partner: Caller, holder: NewPartner) -> None:
    """Even where somebody has registered our public key as the own one of the partner."""
    owe(holder.partner, notices=1)
    now = timezone.now()
    signer = keys.signer_for(partner_id=holder.partner.pk, now=now)
    ours = next(key for key in signer.keys if isinstance(key, Ed25519PrivateKey))
    register(holder.partner, ours)
    captured = signing.headers(message_id="msg_1", timestamp=now, body=LINE, keys=signer.keys)
    assert problem_of(post(partner, captured))[:2] == (401, "not_verified")
    assert handlings(holder.partner) == ["none"]


def test_s32_a_signature_counts_for_its_own_partner_only(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(make_partner("globex").partner, KEY)
    assert post(partner, sign()).status_code == 401


def test_a_signed_answer_is_kept_word_for_word(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    secret = register(holder.partner, KEY)
    headers = sign()
    assert post(partner, headers).json() == {"accepted": 1, "unchanged": 0, "refused": []}
    kept = SignedAnswer.objects.get()
    assert (kept.partner, kept.key) == (holder.partner, secret)
    assert {
        "webhook-id": kept.message_id, "webhook-timestamp": kept.timestamp, "webhook-signature": kept.signature
    } == headers  # fmt: skip
    assert bytes(kept.body.body) == LINE
    assert Acknowledgement.objects.get().signed_answer == kept


def test_an_unsigned_answer_is_taken_beside_signed_ones(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    assert post(partner, {}).json()["accepted"] == 1
    assert Acknowledgement.objects.get().signed_answer is None


def test_s30_a_replay_changes_nothing(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    headers = sign()
    post(partner, headers)
    before = rows()
    assert (post(partner, headers).status_code, post(partner, headers).json()["unchanged"]) == (200, 1)
    later = sign(timestamp=timezone.now() + timedelta(seconds=5))  # the same id, tried again
    assert post(partner, later).json()["unchanged"] == 1
    assert (rows(), SignedAnswer.objects.count()) == (before, 1)


def test_an_id_is_of_one_body(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    post(partner, sign(b'{"sequence": 1, "status": "received"}'), b'{"sequence": 1, "status": "received"}')
    assert problem_of(post(partner, sign()))[:2] == (409, "id_reused")
    assert handlings(holder.partner) == ["received"]


def test_a_signed_stream_is_verified_before_any_line_is_taken(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=3)
    register(holder.partner, KEY)
    wish = {
        "sequence": 3,
        "extend_until": f"{timezone.now() + timedelta(days=90):%Y-%m-%dT00:00:00Z}",
        "reason": "Tape.",
    }
    body = ndjson({"through": 2, "status": "received"}, {"sequence": 1, "status": "completed"}, wish)
    assert post(partner, sign(body), body + b"\n", content_type=NDJSON).status_code == 401
    assert Stream.objects.get(partner=holder.partner).received_through == 0
    assert post(partner, sign(body), body, content_type=NDJSON).json()["accepted"] == 4
    kept = SignedAnswer.objects.get()
    assert kept.acknowledgements.count() == 2
    assert Extension.objects.get().signed_answer == kept


def test_a_signed_stream_that_is_too_long_is_refused(
    partner: Caller, holder: NewPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(holder.partner, KEY)
    monkeypatch.setattr(signatures, "MAX_SIGNED_BYTES", 10)
    assert problem_of(post(partner, sign(), content_type=NDJSON))[:2] == (413, "body_too_large")


# What is verified again


@pytest.fixture
def signed_bodies(partner: Caller, holder: NewPartner) -> Secret:
    """Answers of all three forms, signed."""
    owe(holder.partner, notices=4)
    secret = register(holder.partner, KEY)
    listed = b'{"acknowledgements": [{"sequence":  2, "status": "received"}, {"sequence": 3, "status": "received"}]}'
    lines = ndjson({"sequence": 4, "status": "received"}, {"through": 4, "status": "in_progress"})
    post(partner, sign())
    post(partner, sign(listed, message_id="answer-2"), listed)
    post(partner, sign(lines, message_id="answer-3"), lines, content_type=NDJSON)
    return secret


def verify_answers(*arguments: str) -> tuple[str, int]:
    said = io.StringIO()
    try:
        call_command("verify_answers", *arguments, stdout=said)
    except CommandError as error:
        return said.getvalue(), error.returncode
    return said.getvalue(), 0


def test_signed_answers_can_be_verified_later_although_the_key_is_gone(signed_bodies: Secret) -> None:
    Secret.objects.filter(pk=signed_bodies.pk).update(retire_at=timezone.now(), revoked_at=timezone.now())
    assert verify_answers() == ("3 verified, 0 whose words were erased, 0 not as they were\n", 0)
    assert verify_answers("--partner", "acme")[1] == 0
    SignedAnswerBody.objects.first().delete()  # type: ignore[union-attr]
    assert verify_answers() == ("2 verified, 1 whose words were erased, 0 not as they were\n", 0)
    assert verify_answers("--partner", "nobody")[1] == 1


TAMPERINGS = {
    "body": "update removal_signedanswerbody set body = body || ' '::bytea",
    "timestamp": "update removal_signedanswer set timestamp = timestamp::bigint + 1",
    "moment": "update removal_signedanswer set received_at = received_at + interval '10 minutes'",
    "text": "update removal_acknowledgement set text_digest = sha256('x')",
    "key": "update partners_secret set active_from = active_from + interval '1 day' where direction = 'inbound'",
    "ended": "update partners_secret set revoked_at = active_from - interval '1 day' where direction = 'inbound'",
}


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_what_was_changed_since_is_named(signed_bodies: Secret, tampering: str) -> None:
    with connection.cursor() as cursor:
        for table in ("removal_signedanswer", "removal_acknowledgement"):
            cursor.execute(f"set constraints all immediate; alter table {table} disable trigger user")
        cursor.execute(tampering)
    said, code = verify_answers()
    assert code == 1
    assert said.count(" of acme (answer-") == 3
    assert said.endswith("0 verified, 0 whose words were erased, 3 not as they were\n")


def test_a_signed_answer_is_history(signed_bodies: Secret) -> None:
    with pytest.raises(DatabaseError, match="is history"), transaction.atomic():
        SignedAnswer.objects.update(signature="")
    with pytest.raises(DatabaseError, match="is history"), transaction.atomic():
        Acknowledgement.objects.update(signed_answer=None)


# What stands in a line

RUBBISH: dict[str, tuple[bytes, str]] = {
    "F68-deep": (b"[" * 100_000, "unreadable"),
    "F68-deep-in-a-field": (b'{"sequence": 1, "status": "received", "items": ' + b"[" * 100_000, "unreadable"),
    "field-twice": (b'{"sequence": 1, "status": "received", "status": "completed"}', "unreadable"),
    "number-twice": (b'{"sequence": 2, "status": "received", "sequence": 1}', "unreadable"),
    "outcome-twice": (
        b'{"sequence": 1, "status": "completed", "outcomes": {"removed": 1, "removed": 2}}', "unreadable"),
    "escaped-field-twice": (b'{"sequence": 1, "status": "received", "st\\u0061tus": "completed"}', "unreadable"),
    "item-field-twice": (
        b'{"sequence": 1, "status": "completed", "items": [{"item": "a", "item": "b", "outcome": "removed"}]}',
        "unreadable"),
    "nan": (b'{"sequence": NaN, "status": "received"}', "unreadable"),
    "infinity": (b'{"sequence": 1, "status": "completed", "outcomes": {"removed": Infinity}}', "unreadable"),
    "S42-nul": (b'{"sequence": 1, "status": "received", "detail": "\\u0000"}', "invalid"),
    "S42-nul-byte": (b'{"sequence": 1, "status": "received", "detail": "\0"}', "unreadable"),
    "S42-half-a-pair": (b'{"sequence": 1, "status": "received", "detail": "\\ud800"}', "invalid"),
    "S42-nul-in-an-item": (
        b'{"sequence": 1, "status": "completed", "items": [{"item": "\\u0000", "outcome": "removed"}]}', "invalid"),
    "not-utf8": (b'{"sequence": 1, "status": "received", "detail": "\xff"}', "unreadable"),
    "not-utf8-in-a-plain-line": (
        b'{"sequence": 1, "status": "completed", "items": [{"item": "\xff", "outcome": "removed"}]}', "unreadable"),
    "unknown-outcome": (b'{"sequence": 1, "status": "completed", "outcomes": {"erased": 2}}', "invalid"),
    "unknown-outcome-of-an-item": (
        b'{"sequence": 1, "status": "completed", "items": [{"item": "post:1", "outcome": "erased"}]}', "invalid"),
    "empty-item": (
        b'{"sequence": 1, "status": "completed", "items": [{"item": "", "outcome": "removed"}]}', "invalid"),
    "date-not-there": (
        b'{"sequence": 1, "status": "completed", "attestations": [{"claim": "backups_expire_by"}]}', "date_needed"),
    "date-not-one": (
        b'{"sequence": 1, "status": "completed", "attestations": [{"claim": "backups_expire_by", "detail": "soon"}]}',
        "date_needed"),
    "negative-zero": (b'{"sequence": -0, "status": "received"}', "invalid"),
    "float": (b'{"sequence": 1.0, "status": "received"}', "invalid"),
    "impossible-date": (b'{"sequence": 1, "status": "completed", "completed_at": "2026-02-30T00:00:00Z"}', "invalid"),
    "before-1970": (b'{"sequence": 1, "status": "completed", "completed_at": "1969-12-31T00:00:00Z"}', "invalid"),
    "another-epoch": (b'{"sequence": 1, "status": "completed", "epoch": 2}', "wrong_epoch"),
    "a-samples-epoch": (b'{"sequence": 1, "status": "completed", "epoch": 0}', "wrong_epoch"),
    "another-epochs-range": (b'{"through": 1, "status": "completed", "epoch": 2}', "wrong_epoch"),
    "range-with-items": (
        b'{"through": 1, "status": "completed", "items": [{"item": "post:1", "outcome": "removed"}]}',
        "outcomes_need_a_sequence"),
    "S40-not-sent": (b'{"sequence": 2, "status": "received"}', "not_yet_sent"),
    "S40-above-head": (b'{"sequence": 3, "status": "received"}', "unknown_sequence"),
    "S48-sql": (b'{"sequence": 1, "status": "received\'; drop table removal_notice; --"}', "invalid"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "code"), RUBBISH.values(), ids=RUBBISH)
def test_a_hostile_line_changes_nothing(partner: Caller, holder: NewPartner, line: bytes, code: str) -> None:
    owe(holder.partner, notices=2, sent=1)
    answer = partner.post(PATH, ndjson(line, {"sequence": 1, "status": "in_progress"}), content_type=NDJSON).json()
    assert ([refusal["code"] for refusal in answer["refused"]], answer["accepted"]) == ([code], 1)
    assert handlings(holder.partner) == ["in_progress", "none"]


def test_attestations_are_kept_with_their_facts(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    said = [{"claim": "backups_expire_by", "detail": "2027-01-31"}, {"claim": "sub_recipients_notified"}]
    line = {"sequence": 1, "status": "completed", "epoch": 1, "attestations": said}
    assert partner.post(PATH, line).json()["accepted"] == 1
    assert Acknowledgement.objects.get().attestations == said


def test_s39_no_word_takes_a_notice_back(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    partner.post(PATH, LINE)
    for status in ("received", "in_progress"):
        assert partner.post(PATH, {"sequence": 1, "status": status}).json()["unchanged"] == 1
    with pytest.raises(DatabaseError, match="does not go back"), transaction.atomic():
        Notice.objects.update(handling="received")
    assert handlings(holder.partner) == ["completed"]


def test_refusals_beyond_ten_thousand_are_counted_only(
    partner: Caller, holder: NewPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owe(holder.partner, notices=1)
    monkeypatch.setattr("removal.statements.MAX_LISTED", 3)
    lines = [{"sequence": n, "status": "received"} for n in range(1, 3000)]
    response = partner.post_lines(PATH, *lines, {"sequence": 1})
    answer = response.json()
    assert response.status_code == 207
    assert [line["sequence"] for line in answer["refused"]] == [2, 3, 4]
    assert (answer["accepted"], answer["refused_total"]) == (1, 2999)


# Breaking off, racing. These commit.


@pytest.mark.django_db(transaction=True)
def test_an_upload_that_breaks_says_where_to_go_on_and_its_repeat_changes_nothing(
    partner: Caller, holder: NewPartner
) -> None:
    owe(holder.partner, notices=6)
    lines = ndjson(*({"sequence": n, "status": "completed"} for n in range(1, 7)))
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {holder.api_key}\r\n"
        f"Content-Type: {NDJSON}\r\nContent-Length: {len(lines)}\r\n\r\n"
    )
    with Gunicorn() as gunicorn, socket.create_connection(("127.0.0.1", gunicorn.port), timeout=30) as connected:
        connected.sendall(head.encode() + lines[: lines.index(b"6")])  # five lines come whole
        connected.shutdown(socket.SHUT_WR)
        answered = connected.makefile("rb").read()
    problem = json.loads(answered.partition(b"\r\n\r\n")[2])
    assert (problem["status"], problem["code"]) == (400, "body_cut_off")
    assert (problem["accepted"], problem["unchanged"], problem["resume_at_line"]) == (5, 0, 6)
    assert handlings(holder.partner) == ["completed"] * 5 + ["none"]
    answer = partner.post(PATH, lines, content_type=NDJSON).json()
    assert (answer["accepted"], answer["unchanged"]) == (1, 5)
    before = rows()
    assert partner.post(PATH, lines, content_type=NDJSON).json()["unchanged"] == 6
    assert rows() == before


@pytest.mark.django_db(transaction=True)
def test_a_database_that_fails_in_the_middle_leaves_what_was_counted(
    partner: Caller, holder: NewPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owe(holder.partner, notices=5)
    monkeypatch.setattr(acknowledgement, "BLOCK", 2)
    with connection.cursor() as cursor:
        cursor.execute(
            "create function fail() returns trigger language plpgsql as"
            " $$ begin raise exception using errcode = 'admin_shutdown'; end $$;"
            "create trigger fail before update on removal_notice for each row when (new.sequence = 4)"
            " execute function fail()"
        )
    lines = ndjson(*({"sequence": n, "status": "completed"} for n in range(1, 6)))
    try:
        problem = partner.post(PATH, lines, content_type=NDJSON).json()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("drop function fail() cascade")
    assert (problem["status"], problem["code"]) == (503, "unavailable")
    assert (problem["accepted"], problem["resume_at_line"]) == (2, 3)
    assert handlings(holder.partner) == ["completed"] * 2 + ["none"] * 3
    assert partner.post(PATH, lines, content_type=NDJSON).json()["accepted"] == 3


@pytest.mark.django_db(transaction=True)
def test_f68_of_two_contradicting_answers_at_once_one_stands(holder: NewPartner) -> None:
    owe(holder.partner, notices=8)
    for sequence in range(1, 9):
        ready = threading.Barrier(2)
        answers: dict[str, Any] = {}

        def say(status: str, sequence: int = sequence, ready: Any = ready, answers: Any = answers) -> None:
            caller = Caller(holder.api_key)
            try:
                ready.wait()
                answers[status] = caller.post(PATH, {"sequence": sequence, "status": status, "reason": "no_match"})
            finally:
                connection.close()

        threads = [threading.Thread(target=say, args=(status,)) for status in ("completed", "rejected")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stands = Notice.objects.get(sequence=sequence).handling
        other = {"completed": "rejected", "rejected": "completed"}[stands]
        assert answers[stands].json()["accepted"] == 1
        assert [refusal["code"] for refusal in answers[other].json()["refused"]] == ["already_answered"]
        assert list(Acknowledgement.objects.filter(first_sequence=sequence).values_list("status", flat=True)) == [
            stands
        ]


@pytest.mark.django_db(transaction=True)
def test_f65_an_answer_before_our_own_post_returned_stands(partner: Caller, holder: NewPartner) -> None:
    owe(holder.partner, notices=1, sent=0)
    assert partner.post(PATH, LINE).json()["refused"][0]["code"] == "not_yet_sent"
    delivery.claim(partner_id=holder.partner.pk)  # our POST is on its way
    assert partner.post(PATH, LINE).json()["accepted"] == 1
    assert handlings(holder.partner) == ["completed"]


@pytest.mark.django_db(transaction=True)
def test_ten_replays_at_once_are_kept_once(holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    headers = sign()
    answers: list[tuple[int, int]] = []

    def call() -> None:
        try:
            said = post(Caller(holder.api_key), headers)
            answers.append((said.status_code, said.json()["accepted"]))
        finally:
            connection.close()

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(200, 0)] * 9 + [(200, 1)]
    assert (SignedAnswer.objects.count(), SignedAnswerBody.objects.count()) == (1, 1)


def test_a_large_signed_body_is_kept_and_verified(holder: NewPartner) -> None:
    owe(holder.partner, notices=1)
    register(holder.partner, KEY)
    body = LINE + b" " * (8 << 20)
    headers = sign(body)
    kept = signed_answers.record(
        partner_id=holder.partner.pk, key_prefix="rk_test", headers=headers, body=body, now=timezone.now()
    )
    said = Statement(status="received", sequence=1, text=body.decode())
    acknowledgement.acknowledge(
        partner_id=holder.partner.pk, key_prefix="rk_test", statements=[said], signed_answer_id=kept
    )
    assert [checked.fault for checked in signed_answers.check_again()] == [""]
