"""What both kits must make of the same bytes: a table that Python and Node run through (attacks S27–S29, S34, S36)."""

import base64
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from partners import signing
from partners.kit import removal_kit as kit
from partners.signing import Ed25519PrivateKey, HmacSecret

NOW = 1795479600  # 2026-11-24T00:20:00Z
SECRET = HmacSecret(bytes(range(32)))
OTHER_SECRET = HmacSecret(b"another secret, also 32 bytes ok")
PRIVATE_KEY = Ed25519PrivateKey(bytes(range(100, 132)))
BODY = b'{"type": "removal.ping", "data": {"partner": "acme"}}'


@dataclass(frozen=True)
class Case:
    """One call and what must come of it; all of it is JSON."""

    name: str
    expected: dict[str, Any]
    given: dict[str, Any] = field(repr=False)


def notice(sequence: int, /, **other: Any) -> dict[str, Any]:
    """Make the JSON of an opt-out of two items; a value of None leaves a field out."""
    made = {
        "sequence": sequence,
        "kind": "opt_out",
        "reason": "user_request",
        "request": f"request-{sequence}",
        "subject": "site:1",
        "usages": ["all"],
        "items_total": 2,
        "held": [
            {"release": "2024-02", "items_total": 1, "items": ["post:9"]},
            {"release": "2025-01", "items_total": 2, "items": ["post:9", "post:12"]},
        ],
        "received_at": "2026-11-24T00:19:58Z",
        "respond_by": "2026-12-24T00:19:58Z",
        **other,
    }
    return {name: value for name, value in made.items() if value is not None}


def message(*notices: Any, type_: str = "removal.notices", version: str = "1", **data: Any) -> bytes:
    numbers = [each["sequence"] for each in notices if isinstance(each, dict) and "sequence" in each]
    span = {"first": numbers[0], "last": numbers[-1]} if numbers else {}
    inner = {"partner": "acme", "epoch": 1, **span, "head": 9, **data}
    if type_ == "removal.notices":
        inner.setdefault("notices", list(notices))
    whole = {"type": type_, "version": version, "timestamp": "2026-11-24T00:20:00Z", "data": inner}
    return json.dumps(whole, ensure_ascii=False).encode()


def signed(
    body: bytes = BODY, *keys: signing.SigningKey, at: int = NOW, message_id: str = "msg_1"
) -> list[tuple[str, str]]:
    return list(signing.headers(message_id=message_id, timestamp=at, body=body, keys=keys or (SECRET,)).items())


def replaced(name: str, value: str) -> list[tuple[str, str]]:
    return [(key, value if key == name else old) for key, old in signed()]


# --- verify ---

GOOD = dict(signed())["webhook-signature"]
GOOD_V1A = dict(signed(BODY, PRIVATE_KEY))["webhook-signature"]
WRONG = dict(signed(BODY, OTHER_SECRET))["webhook-signature"]
BOTH_KEYS: dict[str, Any] = {"secrets": [SECRET.to_text()], "public_keys": [PRIVATE_KEY.public_key.to_text()]}


def verify_case(
    name: str, expected: str, headers: Iterable[tuple[str, str]] = (), *, body: bytes = BODY, **keys: list[str]
) -> Case:
    keys = keys or {"secrets": [SECRET.to_text()]}
    given = {
        "call": "verify",
        "headers": [list(pair) for pair in headers or signed()],
        "body": base64.b64encode(body).decode(),
        "now": NOW,
        "secrets": keys.get("secrets", []),
        "public_keys": keys.get("public_keys", []),
    }
    return Case(name, {"id": "msg_1"} if expected == "good" else {"code": expected}, given)


def verify_cases() -> Iterable[Case]:
    yield verify_case("good v1", "good")
    yield verify_case("good v1a", "good", signed(BODY, PRIVATE_KEY), **BOTH_KEYS)
    yield verify_case("headers in capitals", "good", [(name.upper(), value) for name, value in signed()])
    yield verify_case("an old and a new secret", "good", secrets=[OTHER_SECRET.to_text(), SECRET.to_text()])
    yield verify_case("another secret", "no_matching_signature", secrets=[OTHER_SECRET.to_text()])
    yield verify_case("no key at all", "no_matching_signature", secrets=[])
    # S27
    for signature in (
        "", " ", "v1", "v1,", ",", WRONG, GOOD[:-4], GOOD[:-1], GOOD + "A", GOOD.removeprefix("v1,"), GOOD.upper(),
        GOOD.replace(",", ", "), "v1,not base64", "v1,ééé", "v1," + "A" * 100_000, "v1,_-" + GOOD[5:],
    ):  # fmt: skip
        headers = replaced("webhook-signature", signature)
        yield verify_case(f"signature {signature[:20]!r}", "no_matching_signature", headers)
    for count, expected in ((7, "good"), (8, "no_matching_signature"), (10_000, "no_matching_signature")):
        headers = replaced("webhook-signature", " ".join([WRONG] * count + [GOOD]))
        yield verify_case(f"the good one behind {count} others", expected, headers)
    for companion in ("v1,%%%", "v1,", "v2,AAAA", "nonsense", WRONG):
        yield verify_case(f"beside {companion[:10]!r}", "good", replaced("webhook-signature", f"{companion} {GOOD}"))
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        rest = [pair for pair in signed() if pair[0] != name]
        yield verify_case(f"no {name}", "header_missing", rest)
        yield verify_case(f"{name} twice", "header_missing", [*signed(), (name, dict(signed())[name])])
        yield verify_case(f"{name} in two cases", "header_missing", [*signed(), (name.title(), dict(signed())[name])])
    for message_id in ("", "msg.1", "msg 1", "mség", "m" * 257, "msg_1\n"):
        yield verify_case(f"id {message_id[:9]!r}", "header_unreadable", replaced("webhook-id", message_id))
    # S28
    for offset, expected in (
        (-300, "good"), (300, "good"), (-301, "signature_too_old"), (301, "signature_too_new"),
        (-86_400 * 365, "signature_too_old"), (86_400 * 365, "signature_too_new"),
    ):  # fmt: skip
        yield verify_case(f"signed {offset} s from now", expected, signed(at=NOW + offset))
    for timestamp in (
        "", f" {NOW}", f"{NOW}\n", f"{NOW}.0", f"-{NOW}", f"+{NOW}", "1_795_479_600", "1e9", "0x6b04f7b0", "nan", "inf",
        "2026-11-24T00:20:00Z", f"{NOW}, {NOW}", "١٧٩٥٤٧٩٦٠٠", "１７９５４７９６００", "9" * 12, "9" * 5000,  # noqa: RUF001
    ):  # fmt: skip
        headers = replaced("webhook-timestamp", timestamp)
        yield verify_case(f"timestamp {timestamp[:20]!r}", "header_unreadable", headers)
    for timestamp in (f"0{NOW}", str(NOW + 1)):
        yield verify_case(f"timestamp {timestamp}", "no_matching_signature", replaced("webhook-timestamp", timestamp))
    # S29
    for body in (b"", BODY + b"\n", BODY.replace(b" ", b""), b'{"data": {"partner": "acme"}, "type": "removal.ping"}'):
        yield verify_case(f"body {body[:12]!r} {len(body)}", "no_matching_signature", body=body)
    # S34
    forged = dict(signed(BODY, HmacSecret(PRIVATE_KEY.public_key.raw)))["webhook-signature"].removeprefix("v1,")
    for signature in (
        "v1a," + GOOD.removeprefix("v1,"), "v1," + GOOD_V1A.removeprefix("v1a,"), "v2," + GOOD.removeprefix("v1,"),
        "V1," + GOOD.removeprefix("v1,"), "v1b," + GOOD_V1A.removeprefix("v1a,"), "none,",
        "v1," + forged, "v1a," + forged,
    ):  # fmt: skip
        headers = replaced("webhook-signature", signature)
        yield verify_case(f"version {signature[:9]!r}", "no_matching_signature", headers, **BOTH_KEYS)
    # S36
    for raw in (b"", b"8 bytes!", b"k" * 23, b"k" * 65):
        text = "whsec_" + base64.b64encode(raw).decode()
        yield verify_case(f"a secret of {len(raw)} bytes", "key_unusable", secrets=[text])
    for text in (
        "", SECRET.to_text().removeprefix("whsec_"), SECRET.to_text().upper(), "whsec_hunter2!", "whsec_aHVudGVyMg",
        SECRET.to_text() + "\n", "whsec_" + "-_-_" * 10, PRIVATE_KEY.public_key.to_text(),
    ):  # fmt: skip
        yield verify_case(f"the secret {text[:12]!r}", "key_unusable", secrets=[text])
    for text in (SECRET.to_text(), "whpk_", "whpk_" + base64.b64encode(b"k" * 31).decode(), PRIVATE_KEY.to_text()):
        yield verify_case(f"the public key {text[:9]!r}", "key_unusable", public_keys=[text])


# --- parse ---


def parse_case(name: str, body: bytes, expected: str | list[dict[str, Any]], *, type_: str = "removal.notices") -> Case:
    """``expected`` is an error's code, or what each notice reads as beside the fields that an opt-out has here."""
    given = {"call": "parse", "body": base64.b64encode(body).decode()}
    if isinstance(expected, str):
        return Case(name, {"code": expected}, given)
    plain = {
        "epoch": 1, "kind": "opt_out", "items_total": 2, "subject": "site:1", "items_url": None,
        "items": [["site:1", "post:9"], ["site:1", "post:12"]], "releases": [], "withdrawn": False,
    }  # fmt: skip
    return Case(name, {"type": type_, "epoch": 1, "notices": [{**plain, **notice} for notice in expected]}, given)


def parse_cases() -> Iterable[Case]:
    url = "https://removal.example/v1/stream/5/items"
    recall = notice(5, kind="recall", subject=None, held=None, items_total=7, items_url=url, releases=["2025-01"])
    yield parse_case("two notices", message(notice(1), notice(2)), [{"sequence": 1}, {"sequence": 2}])
    yield parse_case(
        "a recall", message(recall),
        [{"sequence": 5, "kind": "recall", "subject": None, "items": [], "items_total": 7, "items_url": url,
          "releases": ["2025-01"]}],
    )  # fmt: skip
    yield parse_case(
        "withdrawn", message(notice(3, items_total=0, subject=None, held=None, withdrawn_at="2026-11-24T00:19:59Z")),
        [{"sequence": 3, "items": [], "items_total": 0, "subject": None, "withdrawn": True}],
    )  # fmt: skip
    yield parse_case(
        "a reinstatement", message(notice(4, kind="reinstatement", items_total=0, held=None, undoes=[1])),
        [{"sequence": 4, "kind": "reinstatement", "items": [], "items_total": 0}],
    )  # fmt: skip
    yield parse_case(
        "an offboarding", message(notice(6, kind="offboarding", subject=None, held=None, releases=["a", "b"])),
        [{"sequence": 6, "kind": "offboarding", "subject": None, "items": [], "releases": ["a", "b"]}],
    )  # fmt: skip
    newer = message(notice(1, colour={"a": [1.5]}), subscription="gold")
    yield parse_case("unknown fields", newer, [{"sequence": 1}])
    yield parse_case("a ping", message(type_="removal.ping"), [], type_="removal.ping")
    yield parse_case("a reminder", message(type_="removal.reminder", sequences=[1]), [], type_="removal.reminder")
    text = message(notice(1, subject="seite:ü")).decode()
    items = [["seite:ü", "post:9"], ["seite:ü", "post:12"]]
    yield parse_case("beyond ASCII", text.encode(), [{"sequence": 1, "subject": "seite:ü", "items": items}])

    yield parse_case("another partner's", message(notice(1), partner="globex"), "wrong_partner")
    yield parse_case("no partner", message(notice(1), partner=None), "unreadable")
    yield parse_case("version 2", message(notice(1), version="2"), "unknown_version")
    yield parse_case("another type", message(type_="removal.party"), [], type_="removal.party")
    yield parse_case("another kind", message(notice(1, kind="forget_everything")), "unknown_kind")
    yield parse_case("a gap", message(notice(1), notice(3)), "unreadable")
    yield parse_case("less than it says", message(notice(1), last=2), "unreadable")
    yield parse_case("numbers out of order", message(notice(2), notice(1), notice(3), first=1), "unreadable")
    yield parse_case("a number twice", message(notice(1), notice(1)), "unreadable")
    for field_, value in (
        ("sequence", "1"), ("sequence", 1.5), ("sequence", True), ("sequence", -1), ("sequence", 2**53), ("kind", 7),
        ("items_total", "2"), ("held", {}), ("held", [7]), ("held", [{"release": "a"}]), ("held", [{"items": [1]}]),
        ("subject", 7), ("items_url", 7), ("releases", "2025-01"), ("releases", [1]),
    ):  # fmt: skip
        body = message(notice(1, **{field_: value}), first=1, last=1)
        yield parse_case(f"{field_} is {json.dumps(value)}", body, "unreadable")
    for field_ in ("sequence", "kind", "items_total", "held", "subject"):
        yield parse_case(f"no {field_}", message(notice(1, **{field_: None}), first=1, last=1), "unreadable")
    strange: list[Any] = [None, 7, [], "x"]
    for raw in strange:
        yield parse_case(f"a notice is {raw}", message(raw), "unreadable")
    datas: list[dict[str, Any]] = [{"epoch": "1"}, {"epoch": None}, {"notices": None}, {"notices": {}}]
    for data in datas:
        yield parse_case(f"data with {data}", message(**data), "unreadable")
    for body in (
        b"", b"{", b"null", b"[]", b"7", b"\xff", b"\xef\xbb\xbf" + message(notice(1)), text.encode("utf-16"),
        text.encode("latin-1"), message(notice(1)) + b"}", message(notice(1)).replace(b'"head": 9', b'"head": NaN'),
        message(notice(1)).replace(b'"head": 9', b'"head": Infinity'),
        message(notice(1)).replace(b'"head": 9', b'"head": 9, "epoch": 2'),
        message(notice(1)).replace(b'"head": 9', b'"head": 9, "\\u0065poch": 2'),
        message(notice(1)).replace(b'"kind"', b'"sequence": 1, "kind"'),
    ):  # fmt: skip
        yield parse_case(f"{body[:16]!r}… {len(body)}", body, "unreadable")
    tricky = message(notice(1, request='{"a": "b\\", "sequence": 2', reason='\\"'))
    yield parse_case("JSON inside a text", tricky, [{"sequence": 1}])


# --- receive ---


def receive_case(
    name: str, body: bytes, status: int, *, answer: Any = "", said: Iterable[list[Any]] = (), **given: Any
) -> Case:
    given = {
        "call": "receive",
        "headers": [list(pair) for pair in signed(body)],
        "body": base64.b64encode(body).decode(),
        "now": NOW,
        "secrets": [SECRET.to_text()],
        "public_keys": [],
        "broken": 0,
        "seen": [],
        "take_samples": False,
        **given,
    }
    return Case(name, {"status": status, "body": answer, "said": list(said)}, given)


def received(*sequences: int) -> dict[str, Any]:
    return {"acknowledgements": [{"sequence": sequence, "status": "received"} for sequence in sequences]}


def receive_cases() -> Iterable[Case]:
    two = message(notice(1), notice(2))
    taken = [["take", 1, 1], ["take", 1, 2]]
    yield receive_case("two new notices", two, 200, answer=received(1, 2), said=taken)
    yield receive_case("one is known", two, 200, answer=received(1, 2), said=taken[1:], seen=[[1, 1]])
    yield receive_case("both are known", two, 200, answer=received(1, 2), seen=[[1, 1], [1, 2]])
    yield receive_case("known in another epoch", two, 200, answer=received(1, 2), said=taken, seen=[[2, 1], [2, 2]])
    yield receive_case("the store breaks", two, 500, said=taken[:1], broken=2)
    yield receive_case("v1a", two, 200, answer=received(1, 2), said=taken, secrets=[],
                       public_keys=[PRIVATE_KEY.public_key.to_text()],
                       headers=[list(pair) for pair in signed(two, PRIVATE_KEY)])  # fmt: skip
    samples = message(notice(1), epoch=0)
    yield receive_case("a sample", samples, 200, answer=received(1))
    yield receive_case("a wanted sample", samples, 200, answer=received(1), said=[["take", 0, 1]], take_samples=True)
    yield receive_case("a ping", message(type_="removal.ping"), 200, answer={})
    yield receive_case("a reminder", message(type_="removal.reminder"), 200, answer={}, said=[["remind"]])
    yield receive_case("forged", two, 401, headers=[list(pair) for pair in signed(two, OTHER_SECRET)])
    yield receive_case("no headers", two, 401, headers=[])
    partner = {"code": "wrong_partner", "detail": "this message is for another partner"}
    yield receive_case("another partner's", message(notice(1), partner="globex"), 403, answer=partner)
    unreadable = {"code": "unreadable", "detail": "the body is not JSON in UTF-8, with each name once"}
    yield receive_case("not JSON", b"{", 400, answer=unreadable)
    kind = {"code": "unknown_kind", "detail": "this file does not know this kind of notice; get a newer one"}
    yield receive_case("one of two is of an unknown kind", message(notice(1), notice(2, kind="new")), 400, answer=kind)
    yield receive_case("over a mebibyte", b" " * (2**20 + 1), 413, answer={"code": "too_large"})


CASES = [
    replace(case, name=f"{number}: {case.name}")
    for number, case in enumerate([*verify_cases(), *parse_cases(), *receive_cases()])
]


def run_in_python(given: dict[str, Any]) -> dict[str, Any]:
    """Do what ``cases.mjs`` does."""
    body = base64.b64decode(given["body"])
    try:
        if given["call"] == "verify":
            keys = {"secrets": given["secrets"], "public_keys": given["public_keys"]}
            return {"id": kit.verify([(n, v) for n, v in given["headers"]], body, now=given["now"], **keys)}
        if given["call"] == "receive":
            return _receive(given, body)
        parsed = kit.parse(body, "acme")
    except kit.KitError as error:
        return {"code": error.code}
    notices = [
        {**{name: value for name, value in vars(notice).items() if name != "raw"},
         "items": [list(item) for item in notice.items], "releases": list(notice.releases)}
        for notice in parsed.notices
    ]  # fmt: skip
    return {"type": parsed.type, "epoch": parsed.epoch, "notices": notices}


def _receive(given: dict[str, Any], body: bytes) -> dict[str, Any]:
    said: list[list[Any]] = []

    def take(notice: kit.Notice) -> None:
        if notice.sequence == given["broken"]:
            raise OSError("the disk is full")
        said.append(["take", notice.epoch, notice.sequence])

    receiver = kit.Receiver(
        "acme",
        take,
        seen=lambda epoch, sequence: [epoch, sequence] in given["seen"],
        secrets=given["secrets"],
        public_keys=given["public_keys"],
        remind=lambda message: said.append(["remind"]),
        take_samples=given["take_samples"],
    )
    logging.getLogger("removal_kit").setLevel(logging.CRITICAL)
    status, _, answer = receiver.receive([(n, v) for n, v in given["headers"]], body, given["now"])
    return {"status": status, "body": json.loads(answer) if answer else "", "said": said}
