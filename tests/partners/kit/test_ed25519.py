"""The kit's own Ed25519, held against RFC 8032 and against OpenSSL."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from partners.kit import removal_kit as kit

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
SEED = bytes(range(32))
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
PUBLIC = KEY.public_key().public_bytes_raw()
SIGNATURE = KEY.sign(b"hello")

# RFC 8032 §7.1: tests 1 to 3 and SHA(abc): seed, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]


def openssl_verifies(public_key: bytes, content: bytes, signature: bytes) -> bool:
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize(("seed", "public_key", "content", "signature"), VECTORS)
def test_the_vectors_of_rfc_8032_are_met(seed: str, public_key: str, content: str, signature: str) -> None:
    assert kit.ed25519_sign(bytes.fromhex(seed), bytes.fromhex(content)).hex() == signature
    assert kit.ed25519_verify(bytes.fromhex(public_key), bytes.fromhex(content), bytes.fromhex(signature))


@settings(deadline=None, database=None, max_examples=50)
@given(seed=st.binary(min_size=32, max_size=32), content=st.binary(), flip=st.integers(0, 64 * 8 - 1))
def test_openssl_and_the_kit_agree(seed: bytes, content: bytes, flip: int) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    public_key, signature = key.public_key().public_bytes_raw(), key.sign(content)
    flipped = (int.from_bytes(signature, "big") ^ 1 << flip).to_bytes(64, "big")

    assert kit.ed25519_sign(seed, content) == signature
    assert kit.ed25519_verify(public_key, content, signature)
    for other in (flipped, signature[32:] + signature[:32]):
        assert not kit.ed25519_verify(public_key, content, other)
    assert not kit.ed25519_verify(public_key, content + b"x", signature)


def test_a_signature_has_no_second_form() -> None:
    s = int.from_bytes(SIGNATURE[32:], "little")

    assert kit.ed25519_verify(PUBLIC, b"hello", SIGNATURE)
    for more in range(L, 2**256 - s, L):
        second = SIGNATURE[:32] + (s + more).to_bytes(32, "little")
        assert not kit.ed25519_verify(PUBLIC, b"hello", second)
        assert not openssl_verifies(PUBLIC, b"hello", second)


@pytest.mark.parametrize("length", [0, 31, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    assert not kit.ed25519_verify(PUBLIC, b"hello", (SIGNATURE * 2)[:length])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    assert not kit.ed25519_verify((PUBLIC * 2)[:length], b"hello", SIGNATURE)


@pytest.mark.parametrize(
    "number",
    [
        2,  # on no point of the curve
        1 | 1 << 255,  # x is 0, and 0 has no sign
        P + 1,  # 1 written as p + 1
        2**255 - 1,
        P - 1 | 1 << 255,  # x is 0 here, too
    ],
)
def test_what_is_no_point_is_no_key(number: int) -> None:
    raw = number.to_bytes(32, "little")
    # With a key of small order, R = S·B would verify: so it does here when the point is believed.
    for signature in (SIGNATURE, raw + bytes(32), (1).to_bytes(32, "little") + bytes(32)):
        assert not kit.ed25519_verify(raw, b"hello", signature)


def test_a_point_that_is_written_otherwise_is_not_its_signature() -> None:
    # The neutral point as a key, R the same point: S = 0 verifies, unless R is written as p + 1.
    neutral = (1).to_bytes(32, "little")

    assert kit.ed25519_verify(neutral, b"hello", neutral + bytes(32)) == openssl_verifies(
        neutral, b"hello", neutral + bytes(32)
    )
    assert not kit.ed25519_verify(neutral, b"hello", (P + 1).to_bytes(32, "little") + bytes(32))
