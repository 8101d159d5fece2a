"""Signatures, held against published vectors and other people's libraries, not only against ourselves."""

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
import standardwebhooks
import svix.webhooks
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from partners import signing
from partners.signing import Ed25519PrivateKey, Ed25519PublicKey, HmacSecret

# Published vectors. All of them sign this id, this moment and this body.
PUBLISHED_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
PUBLISHED_TIMESTAMP = 1614265330
PUBLISHED_BODY = b'{"test": 2432232314}'
# Standard Webhooks, libraries/javascript/src/webhook.test.ts, "sign function works".
PUBLISHED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLISHED_V1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
# Standard Webhooks, libraries/go/webhook_asymmetric_test.go, TestAsymmetricWebhookSign: the key is a bare seed.
PUBLISHED_SEED = "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="
PUBLISHED_SEED_V1A = "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="
# svix/svix-webhooks, server/svix-server/src/worker.rs, test_asymmetric_key_signing: the key is seed and public key.
# The specification shows the same signature in its section "Webhook headers".
PUBLISHED_PAIR = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLISHED_PAIR_V1A = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="

NOW = datetime(2026, 11, 24, 0, 20, tzinfo=UTC)
SECRET = HmacSecret(bytes(range(32)))
PRIVATE_KEY = Ed25519PrivateKey(bytes(range(100, 132)))
BODY = b'{"type": "removal.ping", "data": {"partner": "acme"}}'


def signed(*keys: signing.SigningKey, at: datetime = NOW, message_id: str = "msg_1") -> dict[str, str]:
    return signing.headers(message_id=message_id, timestamp=at, body=BODY, keys=keys or (SECRET,))


def verify(headers: dict[str, str], *keys: signing.VerifyingKey, body: bytes = BODY, now: datetime = NOW) -> str:
    return signing.verify(headers=headers, body=body, keys=keys or (SECRET,), now=now)


# --- published vectors, and other implementations ---


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (HmacSecret.from_text(PUBLISHED_SECRET), PUBLISHED_V1),
        (Ed25519PrivateKey.from_text(PUBLISHED_SEED), PUBLISHED_SEED_V1A),
        (Ed25519PrivateKey.from_text(PUBLISHED_PAIR), PUBLISHED_PAIR_V1A),
    ],
    ids=["v1", "v1a with a seed", "v1a with a seed and public key"],
)
def test_published_vectors_are_met(key: signing.SigningKey, signature: str) -> None:
    made = signing.sign(message_id=PUBLISHED_ID, timestamp=PUBLISHED_TIMESTAMP, body=PUBLISHED_BODY, keys=[key])

    assert made == signature


def test_published_signatures_are_verified_together() -> None:
    headers = {
        "webhook-id": PUBLISHED_ID,
        "webhook-timestamp": str(PUBLISHED_TIMESTAMP),
        "webhook-signature": f"{PUBLISHED_V1} {PUBLISHED_SEED_V1A} {PUBLISHED_PAIR_V1A}",
    }
    now = datetime.fromtimestamp(PUBLISHED_TIMESTAMP, tz=UTC)

    for key in (
        HmacSecret.from_text(PUBLISHED_SECRET),
        Ed25519PrivateKey.from_text(PUBLISHED_SEED).public_key,
        Ed25519PublicKey.from_text("whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="),
    ):
        assert verify(headers, key, body=PUBLISHED_BODY, now=now) == PUBLISHED_ID


def test_ed25519_is_the_primitive_of_rfc_8032() -> None:
    # RFC 8032 §7.1, test 1: the empty message.
    key = Ed25519PrivateKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))

    assert key.public_key.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_v1a_signs_id_timestamp_and_body_joined_by_full_stops() -> None:
    headers = signed(PRIVATE_KEY)
    version, _, signature = headers["webhook-signature"].partition(",")

    assert version == "v1a"
    # Raises when it does not verify.
    ed25519.Ed25519PublicKey.from_public_bytes(PRIVATE_KEY.public_key.raw).verify(
        base64.b64decode(signature), b"msg_1." + headers["webhook-timestamp"].encode() + b"." + BODY
    )


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.webhooks.Webhook])
def test_other_libraries_verify_ours(library: type[standardwebhooks.Webhook]) -> None:
    # These libraries read the clock themselves. Our second signature is one that they must step over.
    headers = signed(PRIVATE_KEY, SECRET, at=datetime.now(UTC))

    library(SECRET.to_text()).verify(BODY, headers)  # raises when it does not verify


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.webhooks.Webhook])
def test_ours_verifies_other_libraries(library: type[standardwebhooks.Webhook]) -> None:
    # standardwebhooks relabels the time as UTC instead of converting it, so it must be UTC already.
    signature = library(SECRET.to_text()).sign("msg_1", NOW, BODY.decode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": signature,
    }

    assert verify(headers) == "msg_1"


# --- signing ---


def test_headers_hold_one_signature_a_key_in_order() -> None:
    headers = signed(SECRET, PRIVATE_KEY)

    assert list(headers) == ["webhook-id", "webhook-timestamp", "webhook-signature"]
    assert headers["webhook-id"] == "msg_1"
    assert headers["webhook-timestamp"] == "1795479600"
    assert [part.partition(",")[0] for part in headers["webhook-signature"].split(" ")] == ["v1", "v1a"]


def test_a_moment_signs_the_same_in_every_form() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))

    assert signed(at=elsewhere) == signed(at=NOW) == signed(at=NOW + timedelta(microseconds=999_999))
    assert signed(at=NOW) == signing.headers(message_id="msg_1", timestamp=1795479600, body=BODY, keys=[SECRET])


@pytest.mark.parametrize(
    "message_id", ["", "msg.1", ".", "msg 1", "msg\r\nx: y", "msg\x00", "mség", pytest.param("m" * 257, id="long")]
)
def test_an_id_that_could_be_read_otherwise_is_not_signed(message_id: str) -> None:
    with pytest.raises(signing.MessageUnusable, match="message id"):
        signed(message_id=message_id)


@pytest.mark.parametrize("timestamp", [-1, 10**11, datetime(2026, 11, 24, 0, 20), datetime(1969, 1, 1, tzinfo=UTC)])
def test_a_timestamp_that_could_be_read_otherwise_is_not_signed(timestamp: datetime | int) -> None:
    with pytest.raises(signing.MessageUnusable, match="timestamp"):
        signing.sign(message_id="msg_1", timestamp=timestamp, body=BODY, keys=[SECRET])


@pytest.mark.parametrize("count", [0, 9])
def test_nothing_is_signed_with_no_key_or_with_more_than_are_looked_at(count: int) -> None:
    with pytest.raises(signing.KeyUnusable, match="1 to 8 keys"):
        signing.sign(message_id="msg_1", timestamp=NOW, body=BODY, keys=[SECRET] * count)


# --- S27: signatures ---

GOOD = signed()["webhook-signature"]
GOOD_V1A = signed(PRIVATE_KEY)["webhook-signature"]
OTHER = signed(HmacSecret(b"another secret, also 32 bytes ok"))["webhook-signature"]


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "v1",
        "v1,",
        ",",
        OTHER,
        GOOD[:-4],
        GOOD[:-1],
        GOOD + "A",
        GOOD.removeprefix("v1,"),
        GOOD.upper(),
        GOOD.replace(",", ", "),
        "v1,not base64",
        "v1,ééé",
        pytest.param("v1," + "A" * 100_000, id="very long"),
    ],
)
def test_a_signature_that_does_not_match_is_refused(signature: str) -> None:
    with pytest.raises(signing.NoMatchingSignature):
        verify(signed() | {"webhook-signature": signature})


def test_at_most_eight_signatures_are_looked_at() -> None:
    eighth = " ".join([OTHER] * 7 + [GOOD])
    ninth = " ".join([OTHER] * 8 + [GOOD])
    flood = " ".join([OTHER] * 10_000 + [GOOD])

    assert verify(signed() | {"webhook-signature": eighth}) == "msg_1"
    for signatures in (ninth, flood):
        with pytest.raises(signing.NoMatchingSignature):
            verify(signed() | {"webhook-signature": signatures})


@pytest.mark.parametrize("companion", ["v1,%%%", "v1,", "v2,AAAA", "nonsense", OTHER])
def test_a_bad_signature_does_not_hide_a_good_one(companion: str) -> None:
    assert verify(signed() | {"webhook-signature": f"{companion} {GOOD}"}) == "msg_1"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed()
    del headers[name]

    with pytest.raises(signing.HeaderMissing, match=f"{name} must be there once, not 0 times"):
        verify(headers)


def test_header_names_may_have_any_case_but_only_one() -> None:
    assert verify({name.title(): value for name, value in signed().items()}) == "msg_1"
    with pytest.raises(signing.HeaderMissing, match="webhook-timestamp must be there once, not 2 times"):
        verify(signed() | {"Webhook-Timestamp": "1795479600"})


@pytest.mark.parametrize("message_id", ["", "msg.1", "msg 1", "mség"])
def test_an_id_that_may_not_be_signed_is_not_believed(message_id: str) -> None:
    with pytest.raises(signing.HeaderUnreadable, match="message id"):
        verify(signed() | {"webhook-id": message_id})


# --- S28: timestamps ---


@pytest.mark.parametrize("offset_seconds", [-300, -299, 0, 299, 300])
def test_a_timestamp_within_the_tolerance_is_good(offset_seconds: int) -> None:
    assert verify(signed(at=NOW + timedelta(seconds=offset_seconds))) == "msg_1"


@pytest.mark.parametrize(
    ("offset_seconds", "error"),
    [
        (-301, signing.SignatureTooOld),
        (-86_400 * 365, signing.SignatureTooOld),
        (301, signing.SignatureTooNew),
        (86_400 * 365, signing.SignatureTooNew),
    ],
)
def test_a_timestamp_outside_the_tolerance_is_refused(offset_seconds: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        verify(signed(at=NOW + timedelta(seconds=offset_seconds)))


def test_the_tolerance_is_the_callers() -> None:
    headers = signed(at=NOW - timedelta(seconds=301))

    assert signing.verify(headers=headers, body=BODY, keys=[SECRET], now=NOW, tolerance=timedelta(hours=1)) == "msg_1"


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        " 1795479600",
        "1795479600\n",
        "1795479600.0",
        "-1795479600",
        "+1795479600",
        "1_795_479_600",
        "1e9",
        "0x6b04f7b0",
        "nan",
        "inf",
        "2026-11-24T00:20:00Z",
        "1795479600, 1795479600",
        "١٧٩٥٤٧٩٦٠٠",  # Arabic-Indic digits
        "１７９５４７９６００",  # noqa: RUF001 (full-width digits)
        "9" * 12,
        pytest.param("9" * 5_000, id="longer than int() reads"),
    ],
)
def test_a_timestamp_is_an_integer_in_ascii_digits(timestamp: str) -> None:
    with pytest.raises(signing.HeaderUnreadable, match="whole seconds"):
        verify(signed() | {"webhook-timestamp": timestamp})


@pytest.mark.parametrize("timestamp", ["01795479600", "1795479601"])
def test_the_timestamp_is_signed_as_it_is_written(timestamp: str) -> None:
    with pytest.raises(signing.NoMatchingSignature):
        verify(signed() | {"webhook-timestamp": timestamp})


# --- S29: the exact bytes ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY + b"\n",
        BODY.replace(b" ", b""),
        b'{"data": {"partner": "acme"}, "type": "removal.ping"}',
        BODY.replace(b"acme", b"Acme"),
    ],
)
def test_the_same_json_in_other_bytes_is_refused(body: bytes) -> None:
    with pytest.raises(signing.NoMatchingSignature):
        verify(signed(), body=body)


def test_the_boundary_between_timestamp_and_body_cannot_move() -> None:
    signature = signing.sign(message_id="msg_1", timestamp=NOW, body=b"5.x", keys=[SECRET])
    headers = {"webhook-id": "msg_1", "webhook-timestamp": "1795479600.5", "webhook-signature": signature}

    with pytest.raises(signing.HeaderUnreadable):
        verify(headers, body=b"x")


# --- S34: one key, one algorithm; rotation ---


@pytest.mark.parametrize(
    "signature",
    [
        "v1a," + GOOD.removeprefix("v1,"),
        "v1," + GOOD_V1A.removeprefix("v1a,"),
        "v2," + GOOD.removeprefix("v1,"),
        "V1," + GOOD.removeprefix("v1,"),
        "v1b," + GOOD_V1A.removeprefix("v1a,"),
        "none,",
    ],
)
def test_a_signature_counts_only_under_its_own_version(signature: str) -> None:
    with pytest.raises(signing.NoMatchingSignature):
        verify(signed() | {"webhook-signature": signature}, SECRET, PRIVATE_KEY.public_key)


def test_our_public_key_cannot_be_used_as_a_secret() -> None:
    # The classic confusion: sign with HMAC, using as the secret what everybody knows.
    forged = signed(HmacSecret(PRIVATE_KEY.public_key.raw))

    for version in ("v1", "v1a"):
        signature = f"{version}," + forged["webhook-signature"].removeprefix("v1,")
        with pytest.raises(signing.NoMatchingSignature):
            verify(forged | {"webhook-signature": signature}, PRIVATE_KEY.public_key)


def test_a_receiver_with_either_key_verifies_during_rotation() -> None:
    old, new = HmacSecret.generate(), HmacSecret.generate()
    headers = signed(new, old, PRIVATE_KEY)

    for keys in ([old], [new], [new, old], [PRIVATE_KEY.public_key]):
        assert verify(headers, *keys) == "msg_1"
    with pytest.raises(signing.NoMatchingSignature):
        verify(headers, HmacSecret.generate(), Ed25519PrivateKey.generate().public_key)


def test_without_a_key_nothing_is_verified() -> None:
    with pytest.raises(signing.NoMatchingSignature):
        signing.verify(headers=signed(), body=BODY, keys=[], now=NOW)


# --- S36: keys ---


@pytest.mark.parametrize("length", [0, 8, 23, 65, 1000])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(signing.KeyUnusable, match=f"24 to 64 bytes, not {length}"):
        HmacSecret(b"k" * length)


@pytest.mark.parametrize("length", [24, 32, 64])
def test_a_secret_of_24_to_64_bytes_is_good(length: int) -> None:
    assert HmacSecret.from_text(HmacSecret(b"k" * length).to_text()) == HmacSecret(b"k" * length)


@pytest.mark.parametrize("length", [0, 31, 33, 63, 65])
def test_ed25519_keys_of_another_length_are_refused(length: int) -> None:
    encoded = base64.b64encode(b"k" * length).decode()

    with pytest.raises(signing.KeyUnusable, match=f"not {length}"):
        Ed25519PrivateKey.from_text(f"whsk_{encoded}")
    with pytest.raises(signing.KeyUnusable, match=f"not {length}"):
        Ed25519PublicKey.from_text(f"whpk_{encoded}")


def test_a_private_key_with_the_public_key_of_another_is_refused() -> None:
    pair = PRIVATE_KEY.seed + Ed25519PrivateKey.generate().public_key.raw

    with pytest.raises(signing.KeyUnusable, match="belongs to another"):
        Ed25519PrivateKey.from_text("whsk_" + base64.b64encode(pair).decode())


KEY_TYPES: list[type[HmacSecret | Ed25519PublicKey | Ed25519PrivateKey]] = [
    HmacSecret,
    Ed25519PublicKey,
    Ed25519PrivateKey,
]


@pytest.mark.parametrize("key_type", KEY_TYPES)
@pytest.mark.parametrize("made_of", KEY_TYPES)
def test_a_key_is_read_only_under_its_own_prefix(
    key_type: type[HmacSecret | Ed25519PublicKey | Ed25519PrivateKey],
    made_of: type[HmacSecret | Ed25519PublicKey | Ed25519PrivateKey],
) -> None:
    text = made_of.prefix + base64.b64encode(PRIVATE_KEY.seed).decode()

    if key_type is made_of:
        assert key_type.from_text(text).to_text() == text
    else:
        with pytest.raises(signing.KeyUnusable, match=f"must start with {key_type.prefix}"):
            key_type.from_text(text)


@pytest.mark.parametrize("encoded", ["hunter2!", "hünter2", "aHVudGVyMg", "aHVudGVyMg==\n", "-_-_" * 10])
def test_a_key_that_is_not_base64_is_refused_without_quoting_it(encoded: str) -> None:
    for key_type in KEY_TYPES:
        with pytest.raises(signing.KeyUnusable) as caught:
            key_type.from_text(key_type.prefix + encoded)
        assert str(caught.value) == f"this {key_type.prefix} key is not base64"


def test_no_repr_shows_a_secret() -> None:
    assert f"{SECRET!r} {SECRET} {PRIVATE_KEY!r} {PRIVATE_KEY}" == (
        "HmacSecret() HmacSecret() Ed25519PrivateKey() Ed25519PrivateKey()"
    )


def test_generated_keys_differ_and_survive_their_text_form() -> None:
    for key_type in (HmacSecret, Ed25519PrivateKey):
        key = key_type.generate()
        assert key != key_type.generate()
        assert key_type.from_text(key.to_text()) == key


# --- round trip ---

MESSAGE_IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="."), min_size=1)
SECRETS = st.binary(min_size=24, max_size=64).map(HmacSecret)
PRIVATE_KEYS = st.binary(min_size=32, max_size=32).map(Ed25519PrivateKey)


# No deadline and no database: neither a slow machine nor an earlier run changes the outcome.
@settings(deadline=None, database=None)
@given(
    message_id=MESSAGE_IDS,
    seconds=st.integers(min_value=0, max_value=99_999_999_999),
    body=st.binary(),
    keys=st.lists(SECRETS | PRIVATE_KEYS, min_size=1, max_size=4),
    data=st.data(),
)
def test_whatever_is_signed_is_verified_by_each_key_and_nothing_else_is(
    message_id: str, seconds: int, body: bytes, keys: list[signing.SigningKey], data: st.DataObject
) -> None:
    headers = signing.headers(message_id=message_id, timestamp=seconds, body=body, keys=keys)
    now = datetime.fromtimestamp(seconds, tz=UTC)
    key = data.draw(st.sampled_from(keys))
    other_body = data.draw(st.binary().filter(lambda other: other != body))
    verifying_key = key.public_key if isinstance(key, Ed25519PrivateKey) else key

    assert signing.verify(headers=headers, body=body, keys=[verifying_key], now=now) == message_id
    with pytest.raises(signing.NoMatchingSignature):
        signing.verify(headers=headers, body=other_body, keys=[verifying_key], now=now)


# --- answers, which are signed the other way ---


def test_an_answer_is_signed_over_its_purpose_id_timestamp_and_body() -> None:
    made = signing.sign(
        message_id="a1", timestamp=1700000000, body=b"{}", keys=[PRIVATE_KEY], purpose="acknowledgement"
    )
    key = ed25519.Ed25519PublicKey.from_public_bytes(PRIVATE_KEY.public_key.raw)
    key.verify(base64.b64decode(made.removeprefix("v1a,")), b"acknowledgement.a1.1700000000.{}")


@pytest.mark.parametrize(("signed_for", "checked_for"), [("", "acknowledgement"), ("acknowledgement", "")])
def test_what_was_signed_for_one_direction_does_not_count_in_the_other(signed_for: str, checked_for: str) -> None:
    headers = signing.headers(message_id="a1", timestamp=NOW, body=BODY, keys=[PRIVATE_KEY], purpose=signed_for)
    keys = [PRIVATE_KEY.public_key]
    assert signing.verify(headers=headers, body=BODY, keys=keys, now=NOW, purpose=signed_for) == "a1"
    with pytest.raises(signing.NoMatchingSignature):
        signing.verify(headers=headers, body=BODY, keys=keys, now=NOW, purpose=checked_for)


def test_no_id_passes_for_a_purpose() -> None:
    """A full stop in an id would let one side's content read as the other's."""
    with pytest.raises(signing.MessageUnusable):
        signing.sign(message_id="acknowledgement.a1", timestamp=1700000000, body=b"", keys=[PRIVATE_KEY])


def test_the_key_that_signed_is_found() -> None:
    other = Ed25519PrivateKey.generate()
    headers = signing.headers(message_id="a1", timestamp=NOW, body=BODY, keys=[other])
    found = signing.find_key(headers=headers, body=BODY, keys=[PRIVATE_KEY.public_key, other.public_key], now=NOW)
    assert found == other.public_key


@pytest.mark.parametrize("point", sorted(signing.SMALL_ORDER))
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_key_for_which_anybody_can_sign_is_none(point: bytes, sign: int) -> None:
    with pytest.raises(signing.KeyUnusable, match="small order"):
        signing.Ed25519PublicKey(point[:31] + bytes([point[31] | sign]))
