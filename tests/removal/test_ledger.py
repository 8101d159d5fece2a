"""Releases are filled, sealed for ever, and handed over."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from removal import ledger, uploads
from removal.models import Disclosure, LogEntry, ManifestEntry, Release, Stream
from tests.factories import disclose, make_partner, make_release

pytestmark = pytest.mark.django_db(transaction=True)


def fill(name: str, *entries: tuple[str, list[str]]) -> ledger.Counts:
    return uploads.replace_manifest(
        actor="test",
        name=name,
        entries=(ledger.Entry(line, subject, items) for line, (subject, items) in enumerate(entries, start=1)),
    )


def manifest(release: Release) -> dict[str, list[str]]:
    return {entry.subject.key: entry.items for entry in ManifestEntry.objects.filter(release=release)}


def test_a_sealed_release_knows_its_counts_and_a_digest_of_its_content() -> None:
    one = make_release(contents={"site:1": ["b", "a"], "site:2": ["ß"]})
    same = make_release(contents={"site:2": ["ß"], "site:1": ["a", "b"]})
    other = make_release(contents={"site:1": ["a", "b"], "site:2": ["ss"]})
    assert (one.subject_count, one.item_count) == (2, 3)
    assert one.digest == same.digest != other.digest

    def entry(subject: str, *items: str) -> bytes:
        parts = [f"{len(part.encode())}:{part}" for part in (subject, *sorted(items))]
        return hashlib.sha256("".join(parts).encode()).digest()

    hashes = sorted([entry("site:1", "a", "b"), entry("site:2", "ß")])
    buckets: dict[bytes, list[bytes]] = {}
    for digest in hashes:
        buckets.setdefault(digest[:2], []).append(digest)
    expected = hashlib.sha256(b"".join(hashlib.sha256(b"".join(buckets[b])).digest() for b in sorted(buckets))).digest()
    assert bytes(one.digest or b"") == expected


def test_a_sealed_release_never_changes() -> None:
    release = make_release("r", contents={"site:1": ["post:1"]})
    with pytest.raises(ledger.ReleaseIsSealed):
        ledger.seal_release(actor="test", name="r")
    with pytest.raises(ledger.ReleaseIsSealed):
        fill("r", ("site:2", ["post:1"]))
    for statement in (
        "delete from removal_manifestentry",
        "update removal_manifestentry set items = '{}', item_count = 0",
        "truncate removal_manifestentry",
        "update removal_release set state = 'building'",
        "update removal_release set item_count = 7",
        f"insert into removal_manifestentry values (0, {release.pk}, '{{post:1}}', 1)",
    ):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
    assert manifest(release) == {"site:1": ["post:1"]}


def test_an_empty_release_is_not_sealed() -> None:
    make_release("r", contents={}, sealed=False)
    with pytest.raises(ledger.EmptyManifest):
        ledger.seal_release(actor="test", name="r")


def test_a_name_is_taken_once() -> None:
    make_release("r", contents={}, sealed=False)
    with pytest.raises(ledger.ReleaseExists):
        ledger.create_release(actor="test", name="r", dataset="posts", source="")
    with pytest.raises(ledger.InvalidName):
        ledger.create_release(actor="test", name="a/b", dataset="posts", source="")


def record(reference: str = "s-1", **said: Any) -> tuple[Disclosure, bool]:
    details: dict[str, Any] = {"release": "r", "partner": "acme", "disclosed_at": None, "now": timezone.now(), **said}
    return ledger.record_disclosure(actor="test", reference=reference, **details)


def test_a_handover_is_recorded_once_per_reference() -> None:
    make_release("r", contents={"site:1": ["post:1"]})
    partner = make_partner("acme").partner
    first, created = record()
    assert created
    assert record() == (first, False)
    assert record("s-2")[1]
    assert Disclosure.objects.count() == 2
    assert Stream.objects.filter(partner=partner).count() == 1
    with pytest.raises(ledger.InvalidDisclosure):
        record(usages=("search",))


def test_only_a_sealed_release_is_handed_over() -> None:
    release = make_release("r", contents={"site:1": ["post:1"]}, sealed=False)
    partner = make_partner("acme").partner
    with pytest.raises(ledger.ReleaseIsNotSealed):
        record()
    with pytest.raises(DatabaseError, match="only a sealed release is disclosed"), transaction.atomic():
        Disclosure.objects.create(release=release, partner=partner, usages=["all"], reference="x")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"release": "nope"}, ledger.UnknownRelease),
        ({"partner": "nope"}, ledger.UnknownPartner),
        ({"disclosed_at": timezone.now() + timedelta(hours=1)}, ledger.InvalidDisclosure),
    ],
)
def test_a_handover_that_cannot_be_is_refused(said: dict[str, Any], error: type[Exception]) -> None:
    make_release("r", contents={"site:1": ["post:1"]})
    make_partner("acme")
    with pytest.raises(error):
        record(**said)
    assert Disclosure.objects.count() == 0


@pytest.mark.parametrize("table", ["removal_disclosure", "removal_logentry", "removal_acknowledgement"])
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_history_refuses_change_even_as_a_replica(table: str, role: str) -> None:
    disclose(make_release(contents={"site:1": ["post:1"]}), make_partner().partner)
    with connection.cursor() as cursor:
        if table == "removal_acknowledgement":
            cursor.execute(
                "insert into removal_acknowledgement (stream_id, epoch, first_sequence, last_sequence, status, reason,"
                " amends, outcomes, attestations, channel, key_prefix, text_digest) select partner_id, 1, 1, 1,"
                " 'received', '', false, '{}', '[]', 'api', '', '' from removal_stream"
            )
        for statement in (f"update {table} set id = id", f"delete from {table}", f"truncate {table} cascade"):
            as_role = f"set local session_replication_role = {role}; {statement}"
            with pytest.raises(DatabaseError), transaction.atomic():
                cursor.execute(as_role)


def test_log_entries_are_dated_and_sealed_by_the_database() -> None:
    make_partner()
    with connection.cursor() as cursor:
        cursor.execute(
            "select count(*) from removal_logentry where digest = removal_log_digest(at, actor, action, about)"
        )
        assert cursor.fetchone() == (LogEntry.objects.count(),)
