"""Manifests come in over the API in every format, whole and in parts."""

import gzip
import hashlib
from typing import Any

import pytest
import zstandard

from removal.models import ManifestEntry
from tests.removal.api.conftest import NDJSON, Caller, ndjson, problem_of

pytestmark = pytest.mark.django_db(transaction=True)

LINE = {"subject": "site:1", "items": ["post:1", "post:2"]}


@pytest.fixture(autouse=True)
def _release(platform: Caller) -> None:
    platform.post("/v1/releases", {"name": "r", "dataset": "posts"})


def put(caller: Caller, body: bytes, media_type: str = NDJSON, *, part: int | None = None, encoding: str = "") -> Any:
    path = "/v1/releases/r/manifest" + ("" if part is None else f"/parts/{part}")
    return caller.client.put(path, body, media_type, headers={"Content-Encoding": encoding} if encoding else {})


def manifest() -> dict[str, list[str]]:
    return {entry.subject.key: entry.items for entry in ManifestEntry.objects.all()}


def test_csv_is_taken_with_the_rows_of_a_subject_apart(platform: Caller) -> None:
    answer = put(platform, b"subject,item\nsite:1,post:2\nsite:2,post:1\nsite:1,post:1\n", "text/csv; charset=utf-8")
    assert (answer.status_code, answer.json()) == (200, {"subjects": 2, "items": 3})
    assert manifest() == {"site:1": ["post:1", "post:2"], "site:2": ["post:1"]}


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_packed_manifest_is_unpacked(platform: Caller, encoding: str, pack: Any) -> None:
    assert put(platform, pack(ndjson(LINE)), encoding=encoding).json() == {"subjects": 1, "items": 2}
    assert manifest() == {"site:1": ["post:1", "post:2"]}


def test_what_cannot_be_unpacked_or_read_is_refused_and_nothing_kept(platform: Caller) -> None:
    bomb = gzip.compress(bytes(80 << 20))
    row = b"subject,item\nsite:1,post:1,post:2\n"
    said = [
        problem_of(put(platform, ndjson(LINE), encoding="br")),
        problem_of(put(platform, ndjson(LINE), encoding="gzip")),
        problem_of(put(platform, bomb, encoding="gzip")),
        problem_of(put(platform, row, "text/csv")),
        problem_of(put(platform, b"<rss/>", "application/xml"))[:2],
    ]
    assert said == [
        (415, "unknown_format", "Send it as it is, or with Content-Encoding gzip or zstd."),
        (422, "cannot_unpack", "The body cannot be unpacked. It is not gzip, or is damaged. Pack it again."),
        (
            422,
            "cannot_unpack",
            "The body cannot be unpacked. It becomes more than 200 times larger. Send it unpacked.",
        ),
        (422, "invalid_manifest", "Line 2: It has 3 columns, and a row has two: subject,item."),
        (422, "invalid_manifest"),
    ]
    assert manifest() == {}


def test_parts_are_put_shown_and_sealed(platform: Caller) -> None:
    body = ndjson(LINE)
    first = put(platform, body, part=2)
    assert (first.status_code, first.json()) == (
        200,
        {"number": 2, "digest": hashlib.sha256(body).hexdigest(), "subjects": 1, "items": 2, "changed": True},
    )
    assert put(platform, body, part=2).json() == first.json() | {"changed": False}
    put(platform, b"subject,item\nsite:2,post:1\n", "text/csv", part=4)
    assert platform.get("/v1/releases/r").json()["uploaded"] == {"parts": [[2, 2], [4, 4]], "subjects": 2, "items": 3}

    assert problem_of(platform.post("/v1/releases/r/seal", {"parts": 5})) == (
        409,
        "parts_differ",
        "These parts are missing: 1, 3, 5.",
    )
    assert problem_of(platform.post("/v1/releases/r/seal"))[:2] == (409, "parts_differ")
    for number in (1, 3):
        put(platform, ndjson({"subject": f"site:of-{number}", "items": ["a"]}), part=number)
    sealed = platform.post("/v1/releases/r/seal", {"parts": 4}).json()
    assert (sealed["state"], sealed["subjects"], sealed["items"], sealed["uploaded"]) == ("sealed", 4, 5, None)
    assert platform.get("/v1/releases/r").json().items() <= sealed.items()


def test_a_part_that_cannot_be_is_refused(platform: Caller) -> None:
    assert problem_of(put(platform, ndjson(LINE), part=0))[:2] == (422, "invalid_field")
    put(platform, ndjson(LINE), part=1)
    assert problem_of(put(platform, ndjson(LINE), part=2)) == (
        422,
        "invalid_manifest",
        "Line 1: Its subject is in part 1 already. Keep a subject's items in one part.",
    )
    put(platform, ndjson(LINE))
    assert problem_of(put(platform, ndjson({"subject": "site:2", "items": ["a"]}), part=2))[:2] == (
        409,
        "has_whole_manifest",
    )
    assert manifest() == {"site:1": ["post:1", "post:2"]}
