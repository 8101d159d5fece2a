"""Manifests are loaded whole or in parts, completely or not at all."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from django.db import connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from removal import ledger, uploads
from removal.formats import Digested
from removal.ledger import Counts, Entry, InvalidManifest
from removal.manifests import read_ndjson
from removal.models import LogEntry, ManifestEntry, ManifestPart, Release, RemovalRequest, Subject
from removal.uploads import Part, put_part, replace_manifest
from tests.factories import make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def release() -> Release:
    return make_release("r", contents={}, sealed=False)


def entries(*contents: tuple[str, list[str]]) -> Iterator[Entry]:
    return (Entry(line, subject, items) for line, (subject, items) in enumerate(contents, start=1))


def fill(*contents: tuple[str, list[str]], one_line_each: bool = True) -> Counts:
    return replace_manifest(actor="test", name="r", entries=entries(*contents), one_line_each=one_line_each)


def put(number: int, body: bytes) -> Part:
    chunks = Digested([body])
    return put_part(actor="test", name="r", number=number, entries=read_ndjson(chunks), digest=chunks.digest)


def line(subject: str, *items: str) -> bytes:
    listed = ", ".join(f'"{item}"' for item in items)
    return f'{{"subject": "{subject}", "items": [{listed}]}}\n'.encode()


def manifest(release: Release) -> dict[str, list[str]]:
    return {entry.subject.key: entry.items for entry in ManifestEntry.objects.filter(release=release)}


# Whole


def test_a_manifest_is_replaced_as_a_whole(release: Release) -> None:
    fill(("site:1", ["post:1"]), ("site:2", ["post:2"]))
    assert fill(("site:3", ["post:3", "post:4"])) == Counts(subjects=1, items=2)
    assert manifest(release) == {"site:3": ["post:3", "post:4"]}


@pytest.mark.parametrize("items", [[], ["a", "b", "a"]])
def test_an_entry_names_an_item_or_more_each_once(items: list[str]) -> None:
    with pytest.raises(ValueError, match="item"):
        Entry(1, "site:1", items)


def test_a_subject_that_stands_twice_is_refused_and_nothing_kept(release: Release) -> None:
    fill(("site:9", ["post:1"]))
    with pytest.raises(InvalidManifest) as refused:
        fill(("site:1", ["a"]), ("site:2", ["a"]), ("site:1", ["b"]))
    assert str(refused.value) == "Line 3: Its subject stands on line 1 already. Join the two lines."
    assert manifest(release) == {"site:9": ["post:1"]}
    assert list(Subject.objects.values_list("key", flat=True)) == ["site:9"]


def test_an_upload_that_breaks_off_keeps_nothing(release: Release) -> None:
    fill(("site:9", ["post:1"]))

    def broken() -> Iterator[Entry]:
        yield Entry(1, "site:1", ["a"])
        raise InvalidManifest(2, "broken off")

    with pytest.raises(InvalidManifest):
        replace_manifest(actor="test", name="r", entries=broken())
    assert manifest(release) == {"site:9": ["post:1"]}


def test_lines_of_a_subject_are_joined_where_that_is_asked(release: Release) -> None:
    counts = fill(("site:1", ["b"]), ("site:2", ["x"]), ("site:1", ["a"]), ("site:1", ["c"]), one_line_each=False)
    assert counts == Counts(subjects=2, items=4)
    assert manifest(release) == {"site:1": ["a", "b", "c"], "site:2": ["x"]}


def test_an_item_that_stands_on_two_lines_is_refused(release: Release) -> None:
    with pytest.raises(InvalidManifest) as refused:
        fill(("site:1", ["a"]), ("site:2", ["a"]), ("site:1", ["b"]), ("site:1", ["a"]), one_line_each=False)
    assert str(refused.value) == "Line 4: Its item stands on line 1 already. Leave one of the two out."
    assert manifest(release) == {}


KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@pytest.mark.parametrize("key", ["\\N", "\\.", "NULL", "a\tb\n\r", '"', "{},", "\\\\", "'", "\x7f\x08\x0b", "ü😀"])
def test_whatever_a_key_holds_is_stored_as_it_is(release: Release, key: str) -> None:
    fill((key, [key, "post:1", key * 2]))
    assert manifest(release) == {key: [key, "post:1", key * 2]}


@given(subject=KEYS, items=st.lists(KEYS, min_size=1, max_size=4, unique=True))
def test_a_row_means_to_copy_what_the_entry_says(subject: str, items: list[str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("create temporary table if not exists told (line bigint, subject text, items text[])")
        cursor.execute("truncate told")
        with cursor.copy("copy told from stdin") as copy:
            copy.write(uploads._as_row(Entry(7, subject, items)))
        cursor.execute("select * from told")
        assert cursor.fetchall() == [(7, subject, items)]


def test_many_entries_are_loaded_with_what_they_say(release: Release) -> None:
    said = [(f"site:{n}", [f"post:{n}", f"page:{n}"]) for n in range(20_000)]
    assert fill(*said) == Counts(subjects=20_000, items=40_000)
    assert manifest(release) == dict(said)


# In parts


def test_parts_come_in_any_order_and_are_sealed_together(release: Release) -> None:
    put(2, line("site:2", "b"))
    put(1, line("site:1", "a", "b"))
    assert manifest(release) == {"site:1": ["a", "b"], "site:2": ["b"]}
    sealed = ledger.seal_release(actor="test", name="r", parts=2).release
    whole = make_release(contents={"site:1": ["b", "a"], "site:2": ["b"]})
    assert (sealed.subject_count, sealed.item_count, sealed.digest) == (2, 3, whole.digest)


def test_the_same_bytes_again_change_nothing(release: Release) -> None:
    body = line("site:1", "a", "b")
    first = put(1, body)
    before = (ManifestPart.objects.get().recorded_at, LogEntry.objects.count())
    again = put(1, body)
    assert (first.subjects, first.items, first.changed) == (1, 2, True)
    assert (again.subjects, again.items, again.digest, again.changed) == (1, 2, first.digest, False)
    assert (ManifestPart.objects.get().recorded_at, LogEntry.objects.count()) == before


def test_other_bytes_take_the_place_of_a_part_and_leave_the_others(release: Release) -> None:
    put(1, line("site:1", "a") + line("site:2", "a"))
    put(2, line("site:3", "a"))
    put(1, line("site:1", "b"))
    assert manifest(release) == {"site:1": ["b"], "site:3": ["a"]}
    assert list(ManifestPart.objects.order_by("number").values_list("number", "subject_count", "item_count")) == [
        (1, 1, 1),
        (2, 1, 1),
    ]


def test_a_subject_stands_in_one_part(release: Release) -> None:
    put(3, line("site:1", "a"))
    with pytest.raises(InvalidManifest) as refused:
        put(4, line("site:2", "a") + line("site:1", "b"))
    assert str(refused.value) == "Line 2: Its subject is in part 3 already. Keep a subject's items in one part."
    assert manifest(release) == {"site:1": ["a"]}
    assert ManifestPart.objects.count() == 1


def test_a_whole_manifest_takes_the_place_of_all_parts(release: Release) -> None:
    put(1, line("site:1", "a"))
    put(2, line("site:2", "a"))
    fill(("site:1", ["z"]))
    assert manifest(release) == {"site:1": ["z"]}
    assert ManifestPart.objects.count() == 0


def test_parts_do_not_go_beside_a_whole_manifest(release: Release) -> None:
    fill(("site:1", ["a"]))
    with pytest.raises(uploads.HasWholeManifest):
        put(1, line("site:2", "a"))
    fill()
    put(1, line("site:2", "a"))
    assert manifest(release) == {"site:2": ["a"]}


@pytest.mark.parametrize("number", [0, -1, 100_001])
def test_parts_are_numbered_from_1(release: Release, number: int) -> None:
    with pytest.raises(uploads.InvalidPart):
        put(number, line("site:2", "a"))


@pytest.mark.parametrize(
    ("come", "announced", "message"),
    [
        ([1, 4, 5], 7, "These parts are missing: 2-3, 6-7."),
        ([1, 2, 3], None, "It came in parts: 1-3. Say how many there are in all."),
        ([1, 2, 4], 2, "It has more parts than 2: 4. Say how many there are in all."),
        ([], 2, "These parts are missing: 1-2."),
    ],
)
def test_a_release_is_sealed_only_with_all_its_parts(
    release: Release, come: list[int], announced: int | None, message: str
) -> None:
    for number in come:
        put(number, line(f"site:{number}", "a"))
    with pytest.raises(ledger.PartsDiffer) as refused:
        ledger.seal_release(actor="test", name="r", parts=announced)
    assert str(refused.value) == message
    release.refresh_from_db()
    assert release.state == "building"


def test_nothing_comes_into_a_sealed_release(release: Release) -> None:
    put(1, line("site:1", "a"))
    ledger.seal_release(actor="test", name="r", parts=1)
    for upload in (lambda: put(1, line("site:1", "a")), lambda: fill(("site:1", ["a"]))):
        with pytest.raises(ledger.ReleaseIsSealed):
            upload()


def test_a_release_that_is_sealed_during_an_upload_takes_nothing_more(release: Release) -> None:
    put(1, line("site:1", "a"))

    def sealed_meanwhile() -> Iterator[Entry]:
        yield Entry(1, "site:2", ["a"])
        in_thread(lambda: ledger.seal_release(actor="test", name="r", parts=1))

    with pytest.raises(ledger.ReleaseIsSealed):
        replace_manifest(actor="test", name="r", entries=sealed_meanwhile())
    assert manifest(release) == {"site:1": ["a"]}


def test_parts_that_come_at_once_all_stand(release: Release) -> None:
    """Two of each number, with new subjects in opposite orders: nobody deadlocks, and one of each pair stands."""
    parts = 6
    ready = threading.Barrier(2 * parts)
    failures: list[Exception] = []

    def upload(number: int, order: int) -> Callable[[], None]:
        lines = [line(f"site:{number}:{n}", "a") for n in range(500)][::order]

        def run() -> None:
            ready.wait()
            try:
                put(number, b"".join(lines))
            except Exception as error:  # noqa: BLE001 (whatever it is, the test shows it)
                failures.append(error)

        return run

    in_threads(*(upload(number, order) for number in range(1, parts + 1) for order in (1, -1)))
    assert failures == []
    assert len(manifest(release)) == parts * 500
    ledger.seal_release(actor="test", name="r", parts=parts)


@pytest.mark.parametrize("key", ["site:1", "site:3"])
def test_an_opt_out_of_a_new_subject_does_not_wait_for_the_load(release: Release, key: str) -> None:
    """The load's transaction is open, and cannot go on: somebody keeps it from writing its entries."""
    is_kept, may_go_on = threading.Event(), threading.Event()

    def keep_waiting() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("lock table removal_manifestentry in share mode")
            is_kept.set()
            may_go_on.wait(30)

    def upload() -> None:
        is_kept.wait(30)
        put(1, line("site:1", "a") + line("site:2", "a") + line("site:3", "a"))

    def opt_out() -> None:
        try:
            wait_until_blocked("removal_manifestentry")
            with connection.cursor() as cursor:
                cursor.execute("set lock_timeout = '5s'")
            record(make_wish(key))
        finally:
            may_go_on.set()

    in_threads(keep_waiting, upload, opt_out)
    assert list(RemovalRequest.objects.values_list("targets__subject__key", flat=True)) == [key]
    assert manifest(release) == {"site:1": ["a"], "site:2": ["a"], "site:3": ["a"]}


def test_new_subjects_are_committed_in_batches_of_their_own(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SUBJECTS_AT_ONCE", 2)
    make_release(contents={"site:2": ["a"]})
    fill(*((f"site:{n}", ["a"]) for n in (5, 4, 3, 2, 1)))
    assert list(Subject.objects.order_by("id").values_list("key", flat=True)) == [
        "site:2",
        "site:1",
        "site:3",
        "site:4",
        "site:5",
    ]
    with connection.cursor() as cursor:
        cursor.execute("select count(distinct xmin::text) from removal_subject")
        assert cursor.fetchone() == (3,)


def wait_until_blocked(table: str) -> None:
    """Wait until some session waits for a lock on a table."""
    for _ in range(1000):
        with connection.cursor() as cursor:
            cursor.execute("select from pg_locks where relation = %s::regclass and not granted", [table])
            if cursor.rowcount:
                return
        time.sleep(0.01)
    raise AssertionError(f"Nobody waits for {table}.")


def in_thread(run: Callable[[], object]) -> None:
    in_threads(run)


def in_threads(*runs: Callable[[], object]) -> None:
    def closing(run: Callable[[], object]) -> None:
        try:
            run()
        finally:
            connection.close()

    threads = [threading.Thread(target=closing, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
