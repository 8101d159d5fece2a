"""What may not go into a release stays out, with the reason; and when anything fails, nothing is released."""

import hashlib
import io
import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django import Settings

from removal import exclusions, gate, intake, ledger, planning
from removal.models import Alarm, Disclosure, LogEntry, ManifestEntry, Notice, Preference, Release, RemovalRequest
from removal.preferences import EXCLUDING_STATES, Choice, record_preferences
from removal.recall import Line, Recall, record_recall
from tests.factories import make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = timedelta(seconds=5)


def line(subject: str = "site:1", *items: str, state: str = "public") -> bytes:
    return json.dumps({"subject": subject, "items": items or ["post:1"], "container_state": state}).encode() + b"\n"


def start_release(*usages: str, source: str = "") -> Release:
    return ledger.create_release(actor="test", name="next", dataset="posts", source=source, usages=usages or ("all",))


def sift(release: Release, *lines: bytes, **said: Any) -> tuple[bytes, list[dict[str, Any]], gate.Sifted]:
    """Sift some lines; returns those let through, the decisions, and the counts."""
    allowed, decisions = io.BytesIO(), io.BytesIO()
    done = gate.sift(actor="test", release=release, candidates=lines, allowed=allowed, decisions=decisions, **said)
    return allowed.getvalue(), [json.loads(text) for text in decisions.getvalue().splitlines()], done


def decision(subject: str, rule: str, *, items: list[str] | None = None, **on: Any) -> dict[str, Any]:
    return {"subject": subject, "items": items, "rule": rule, "preference": None, "request": None} | on


def say(subject: str, usage: str, value: str, source: str) -> Preference:
    record_preferences(actor="test", choices=[Choice(subject, usage, value, source)], now=timezone.now())
    return Preference.objects.get(subject__key=subject, usage=usage, source=source, valid_to=None)


def take_back(release: Release, subject: str, *items: str) -> RemovalRequest:
    done = record_recall(
        source="blogs",
        actor="test",
        recall=Recall(idempotency_key=f"recall-{subject}", releases=(release.name,)),
        lines=[Line(1, subject, list(items) or None)],
        now=timezone.now(),
    )
    return RemovalRequest.objects.get(public_id=done.public_id)


# --- what stays out ---


def test_what_is_not_restricted_passes_as_the_bytes_that_came() -> None:
    lines = [
        b'{"subject":"site:1","items":["post:1","post:2"],"container_state":"public"}\n',
        b'{ "container_state": "public", "items": ["\\u00e9"], "subject": "site:2" }\n',
    ]
    allowed, decisions, done = sift(start_release(), *lines)
    assert (allowed, decisions) == (b"".join(lines), [])
    assert done == gate.Sifted(allowed=3, excluded=0, digest=hashlib.sha256(allowed).hexdigest())


def test_each_rule_keeps_out_and_is_named() -> None:
    shipped = make_release("shipped", contents={"site:recalled": ["post:1"], "site:part": ["post:1", "post:2"]})
    opt_out = record(make_wish("site:out"))
    gpc = say("site:gpc", "train-ai", "disallow", "gpc")
    closed = say("site:closed", "all", "disallow", "container_state")
    deletion = record(make_wish("site:gone", kind="deletion"))
    items_deletion = record(make_wish("site:some", kind="deletion", items=("post:2", "post:9")))
    recall = take_back(shipped, "site:recalled")
    items_recall = take_back(shipped, "site:part", "post:1")

    allowed, decisions, done = sift(
        start_release("train-ai"),
        line("site:free", "post:1", "post:2"),
        line("site:out", "post:1", "post:2"),
        line("site:gpc"),
        line("site:closed"),
        line("site:gone"),
        line("site:some", "post:1", "post:2", "post:3"),
        line("site:recalled", "post:7"),
        line("site:part", "post:1"),
        line("site:private", state="private"),
    )

    assert allowed == (
        line("site:free", "post:1", "post:2")
        + b'{"subject":"site:some","items":["post:1","post:3"],"container_state":"public"}\n'
    )
    said = Preference.objects.get(request=opt_out)
    assert decisions == [
        decision("site:out", "explicit", preference=said.pk, request=opt_out.public_id),
        decision("site:gpc", "gpc", preference=gpc.pk),
        decision("site:closed", "container_state", preference=closed.pk),
        decision("site:gone", "deletion", request=deletion.public_id),
        decision("site:some", "deletion", items=["post:2"], request=items_deletion.public_id),
        decision("site:recalled", "recall", request=recall.public_id),
        decision("site:part", "recall", items=["post:1"], request=items_recall.public_id),
        decision("site:private", "container_state"),
    ]
    assert done == gate.Sifted(allowed=4, excluded=9, digest=hashlib.sha256(allowed).hexdigest())


def test_an_opt_out_from_one_usage_keeps_out_of_releases_for_it_alone() -> None:
    record(make_wish("site:1", usages=("train-ai",)))
    for usages, excluded in ((("train-ai",), 1), (("search",), 0), (("all",), 1), (("search", "train-ai"), 1)):
        release = ledger.create_release(actor="test", name="-".join(usages), dataset="posts", source="", usages=usages)
        assert sift(release, line("site:1"))[2].excluded == excluded


@pytest.mark.parametrize("state", EXCLUDING_STATES)
def test_a_container_that_is_not_public_stays_out(state: str) -> None:
    assert sift(start_release(), line(state=state)) == (
        b"",
        [decision("site:1", "container_state")],
        gate.Sifted(allowed=0, excluded=1, digest=hashlib.sha256(b"").hexdigest()),
    )


def test_the_platforms_default_may_be_to_keep_out(settings: Settings) -> None:
    settings.DEFAULT_PREFERENCE = "disallow"
    say("site:1", "all", "allow", "explicit")
    allowed, decisions, _ = sift(start_release(), line("site:1"), line("site:never-heard-of"))
    assert (allowed, decisions) == (line("site:1"), [decision("site:never-heard-of", "default")])


def test_what_was_withdrawn_or_undone_passes_again() -> None:
    release = start_release()
    request = record(make_wish("site:1", kind="deletion"))
    record(make_wish("site:2"))
    assert sift(release, line("site:1"), line("site:2"))[2].excluded == 2
    intake.withdraw_request(source="blogs", actor="test", public_id=request.public_id)
    record(make_wish("site:2", kind="reinstatement"))
    assert sift(release, line("site:1"), line("site:2"))[2].excluded == 0


def test_an_opt_out_counts_a_few_blocks_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 1)

    def opt_out(lines: int) -> None:
        if lines == 1:
            record(make_wish("site:1"))

    allowed, _, done = sift(start_release(), *[line("site:1")] * 12, progress=opt_out)
    assert done.excluded >= 1
    assert allowed == line("site:1") * done.allowed


def test_pieces_may_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 200)
    record(make_wish("site:3"))
    body = b"".join(line(f"site:{n}", "post:ü") for n in range(9))
    for size in (1, 7, 64, 10_000):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        allowed, decisions, done = sift(Release.objects.first() or start_release(), *pieces)
        assert allowed == body.replace(line("site:3", "post:ü"), b"")
        assert ([one["subject"] for one in decisions], done.allowed) == (["site:3"], 8)


def test_blanks_and_a_missing_last_line_break_are_no_fault() -> None:
    body = b"\n" + line("site:1").replace(b"\n", b"\r\n") + b"   \n" + line("site:2").rstrip()
    allowed, _, done = sift(start_release(), body)
    assert (allowed, done.allowed) == (line("site:1").rstrip() + b"\r\n" + line("site:2"), 2)
    assert sift(Release.objects.get())[2] == gate.Sifted(0, 0, hashlib.sha256(b"").hexdigest())


def test_a_run_is_logged() -> None:
    release = start_release()
    _, _, done = sift(release, line("site:1"))
    entry = LogEntry.objects.get(action="candidates_sifted")
    assert (entry.actor, entry.about) == (
        "test",
        {"release": release.pk, "allowed": 1, "excluded": 0, "digest": done.digest},
    )


# --- it fails closed ---

FAULTS: list[tuple[bytes, str]] = [
    (b'{"subject": "site:2", "items": ["post:1"], "container_state": "published"}\n', "container_state must be one of"),
    (b'{"subject": "site:2", "items": ["post:1"], "container_state": null}\n', "container_state must be one of"),
    (b'{"subject": "site:2", "items": ["post:1"], "container_state": ["public"]}\n', "container_state must be one of"),
    (b'{"subject": "site:2", "items": ["post:1"]}\n', "Write an object with the fields"),
    (b'{"subject": "site:2", "items": ["post:1"], "container_state": "public", "x": 1}\n', "Write an object with"),
    (b'{"subject": "a", "subject": "b", "items": ["x"], "container_state": "public"}\n', "A field stands twice"),
    (b'{"subject": "a", "subject": "b", "container_state": "public"}\n', "A field stands twice"),
    (b'[["subject", "a"], ["items", ["x"]], ["container_state", "public"]]\n', "Write an object with the fields"),
    (b'{"subject": "site:2", "items": [], "container_state": "public"}\n', "items must be a list of at least one"),
    (b'{"subject": "site:2", "items": "post:1", "container_state": "public"}\n', "items must be a list of at least"),
    (b'{"subject": "site:2", "items": {"a": "b"}, "container_state": "public"}\n', "items must be a list of at least"),
    (b'{"subject": "site:2", "items": ["post:1", 2], "container_state": "public"}\n', "items[1]: It must be a string."),
    (b'{"subject": "site:2", "items": [NaN], "container_state": "public"}\n', "NaN is not a JSON number."),
    (b'{"subject": "site:2", "items": ["a", ""], "container_state": "public"}\n', "items[1]: It must have 1 to 512"),
    (b'{"subject": "site:2", "items": ["\\u0000"], "container_state": "public"}\n', "NUL characters"),
    (b'{"subject": "site:2", "items": ["\\ud83d"], "container_state": "public"}\n', "half of a surrogate pair"),
    (b'{"subject": 2, "items": ["post:1"], "container_state": "public"}\n', "subject: It must be a string."),
    (b'{"subject": "", "items": ["post:1"], "container_state": "public"}\n', "subject: It must have 1 to 512 bytes"),
    (line("s" * 513), "subject: It must have 1 to 512 bytes"),
    (line("site:2", "i" * 513), "items[0]: It must have 1 to 512 bytes"),
    (line("site:2", "é" * 300), "items[0]: It must have 1 to 512 bytes"),
    (b'{"subject": "site:2", "items": ["\xff"], "container_state": "public"}\n', "It is not UTF-8"),
    (b"[" * 100_000 + b"\n", "nested too deep"),
    (b"null\n", "Write an object with the fields"),
    (line("site:2").rstrip() + b" {}\n", "It is not JSON"),
    (line("site:2")[:-20], "It is not JSON"),  # the stream was cut off here
]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run the command over files that are there; its outputs had content before."""
    start_release()
    for name in ("allowed", "decisions"):
        (tmp_path / name).write_text("as before")

    def call(candidates: bytes, **given: Any) -> None:
        (tmp_path / "candidates").write_bytes(candidates)
        paths = {"in": "candidates", "out": "allowed", "decisions": "decisions"} | given
        arguments = [part for name, path in paths.items() for part in (f"--{name}", str(tmp_path / path))]
        call_command("gate", "--release", "next", *arguments, stdout=io.StringIO())

    return call


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.name != "candidates"}


UNTOUCHED = {"allowed": "as before", "decisions": "as before"}


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_a_line_with_a_fault_releases_nothing(
    run: Callable[..., None], tmp_path: Path, fault: bytes, said: str
) -> None:
    with pytest.raises(CommandError) as stopped:
        run(line("site:1") + b"\n" + fault + (line("site:3") if fault.endswith(b"\n") else b""))
    assert stopped.value.returncode == 1
    message = str(stopped.value)
    assert f"Line 3: {said}" in message or ("Line 3: " in message and said in message)
    assert message.endswith("Nothing was released; files that were there before are as they were.")
    assert files(tmp_path) == UNTOUCHED
    assert LogEntry.objects.filter(action="candidates_sifted").count() == 0


def test_a_fault_in_a_late_block_releases_nothing_either(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 1000)
    with pytest.raises(CommandError, match="Line 30001: "):
        run(line("site:1") * 30_000 + b"{")
    assert files(tmp_path) == UNTOUCHED


def test_a_line_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(gate, "BLOCK_BYTES", 1000)
    with pytest.raises(gate.InvalidCandidate, match="Line 2: It is longer than"):
        sift(start_release(), line("site:1"), *[b"x" * 100] * 100)


def terminate_this_connection() -> None:
    """End the backend of this thread's own connection, from another one."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid

    def terminate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("select pg_terminate_backend(%s, 5000)", [pid])
        connection.close()

    with ThreadPoolExecutor(1) as another:
        another.submit(terminate).result()


def test_a_database_that_goes_away_releases_nothing(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask_about = exclusions.ask_about

    def end_at_the_second(**said: Any) -> Any:
        asked.append(said)
        if len(asked) == 2:
            terminate_this_connection()
        return ask_about(**said)

    monkeypatch.setattr(exclusions, "ask_about", end_at_the_second)
    with pytest.raises(CommandError, match=r"^The database cannot answer"):
        run(line("site:1") * 60_000)
    connection.close()
    assert files(tmp_path) == UNTOUCHED


def test_a_query_that_takes_too_long_releases_nothing(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_about = exclusions.ask_about

    def ask_in_a_hurry(**said: Any) -> Any:
        with connection.cursor() as cursor:  # this thread's
            cursor.execute("set statement_timeout = 1")
        return ask_about(**said)

    monkeypatch.setattr(exclusions, "ask_about", ask_in_a_hurry)
    with pytest.raises(CommandError, match=r"^The database cannot answer"):
        run(b"".join(line(f"site:{n}") for n in range(20_000)))
    assert files(tmp_path) == UNTOUCHED


def test_a_disk_that_is_full_releases_nothing(run: Callable[..., None], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    candidates = line("site:1") * 20_000
    (tmp_path / "candidates").write_bytes(candidates)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(candidates) // 2, limits[1]))
    try:
        with pytest.raises(CommandError, match="File too large"):
            call_command(
                "gate", "--release", "next", "--in", str(tmp_path / "candidates"), "--out", str(tmp_path / "allowed"),
                "--decisions", str(tmp_path / "decisions"), stdout=io.StringIO(),
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == UNTOUCHED


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"in": "nowhere"}, "nowhere: No such file or directory."),
        ({"out": "nowhere/allowed"}, "No such file or directory."),
        ({"decisions": "."}, "is a directory."),
        ({"out": "decisions"}, "must be three different files"),
        ({"out": "candidates"}, "must be three different files"),
    ],
)
def test_files_that_cannot_be_used_release_nothing(
    run: Callable[..., None], tmp_path: Path, given: dict[str, str], said: str
) -> None:
    with pytest.raises(CommandError, match=said):
        run(line("site:1"), **given)
    assert files(tmp_path) == UNTOUCHED


@pytest.mark.usefixtures("run")
def test_a_feed_has_a_short_name(tmp_path: Path) -> None:
    arguments = [part for name in ("in", "out", "decisions") for part in (f"--{name}", str(tmp_path / name))]
    with pytest.raises(CommandError, match="--feed has at most 200 characters"):
        call_command("gate", "--release", "next", *arguments, "--feed", "x" * 201)
    assert files(tmp_path) == UNTOUCHED


def test_an_unknown_release_is_named(run: Callable[..., None], tmp_path: Path) -> None:
    Release.objects.all().delete()
    with pytest.raises(CommandError, match=r"^No release is called next."):
        run(line("site:1"))
    assert files(tmp_path) == UNTOUCHED


# --- the command ---


def test_the_command_writes_both_files_and_ends_each_with_the_same_line(
    run: Callable[..., None], tmp_path: Path
) -> None:
    record(make_wish("site:2"))
    run(line("site:1", "post:1", "post:2") + line("site:2"))
    digest = hashlib.sha256(line("site:1", "post:1", "post:2")).hexdigest()
    end = {"end": True, "allowed": 2, "excluded": 1, "digest": digest}
    [first, last] = (tmp_path / "allowed").read_bytes().splitlines(keepends=True)
    assert (first, json.loads(last)) == (line("site:1", "post:1", "post:2"), end)
    [kept_out, last] = [json.loads(text) for text in (tmp_path / "decisions").read_text().splitlines()]
    assert (kept_out["subject"], kept_out["rule"], last) == ("site:2", "explicit", end)
    assert set(files(tmp_path)) == {"allowed", "decisions"}


def generate(count: int) -> Iterator[bytes]:
    for first in range(0, count, 500):
        yield b"".join(line(f"site:{n}", "post:1", "post:2", "post:3") for n in range(first, first + 500))


class Discarding(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def test_memory_stays_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 256 * 1024)
    release = start_release()
    record_preferences(
        actor="test",
        choices=[Choice(f"site:{n}", "all", "disallow", "gpc") for n in range(0, 200_000, 1000)],
        now=timezone.now(),
    )

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            out: Any = Discarding()
            done = gate.sift(actor="test", release=release, candidates=generate(count), allowed=out, decisions=out)
            assert (done.allowed, done.excluded) == (3 * (count - count // 1000), 3 * count // 1000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(200_000) < 1.2 * peak(50_000)


# --- what comes back ---


def alarms() -> list[tuple[str, str, str, int]]:
    rows = Alarm.objects.order_by("id").values_list("request__public_id", "subject__key", "feed", "items")
    return list(rows)


def test_removed_content_that_comes_back_raises_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    deletion = record(make_wish("site:1", kind="deletion"))
    of_items = record(make_wish("site:2", kind="deletion", items=("post:1", "post:2", "post:9")))
    recall = take_back(make_release(contents={"site:3": ["post:1"]}), "site:3")
    record(make_wish("site:4"))  # an opt-out is no removal: its content is still there
    release = start_release(source="main database")
    lines = [
        line("site:1", "post:1", "post:2"),
        line("site:2", "post:1", "post:2", "post:3"),
        line("site:3"),
        line("site:4"),
        line("site:5"),
    ]
    _, _, done = sift(release, *lines)
    assert (done.allowed, done.excluded) == (2, 6)
    raised = [
        (deletion.public_id, "site:1", "main database", 2),
        (of_items.public_id, "site:2", "main database", 2),
        (recall.public_id, "site:3", "main database", 1),
    ]
    assert alarms() == raised
    about = [entry.about for entry in LogEntry.objects.filter(action="reentry_alarm").order_by("id")]
    assert sorted(about, key=lambda one: str(one["request"])) == [
        {"release": release.pk, "request": request, "subjects": 1} for request, *_ in sorted(raised)
    ]
    assert caplog.text.count("reentry_alarm") == 3
    assert "site:1" not in caplog.text

    # Again from the same feed is the same alarm; another feed is another.
    sift(release, *lines)
    assert alarms() == raised
    assert LogEntry.objects.filter(action="reentry_alarm").count() == 3
    sift(release, line("site:1"), feed="backup")
    assert alarms() == [*raised, (deletion.public_id, "site:1", "backup", 1)]


def test_an_alarm_is_raised_whatever_else_keeps_the_content_out() -> None:
    deletion = record(make_wish("site:1", kind="deletion", items=("post:1",)))
    record(make_wish("site:1"))
    _, decisions, _ = sift(start_release(), line("site:1"), line("site:1", state="deleted"))
    assert [one["rule"] for one in decisions] == ["explicit", "container_state"]
    assert alarms() == [(deletion.public_id, "site:1", "unnamed", 2)]


def test_items_that_did_not_come_back_raise_nothing() -> None:
    record(make_wish("site:1", kind="deletion", items=("post:9",)))
    allowed, _, _ = sift(start_release(), line("site:1", "post:1"))
    assert (allowed, alarms()) == (line("site:1", "post:1"), [])


# --- sealing and handing over ---

CONTENTS = {"site:1": ["post:1"], "site:2": ["post:1", "post:2", "post:3"], "site:3": ["post:1"], "site:4": ["post:5"]}


def contents(release: Release) -> dict[str, list[str]]:
    return {entry.subject.key: entry.items for entry in ManifestEntry.objects.filter(release=release)}


def test_a_release_is_not_sealed_with_what_must_go() -> None:
    release = make_release("r", contents=CONTENTS, sealed=False)
    opt_out = record(make_wish("site:1"))
    deletion = record(make_wish("site:2", kind="deletion", items=("post:2", "post:3", "post:9")))
    gone = record(make_wish("site:3", kind="deletion"))
    preference = Preference.objects.get(request=opt_out)
    with pytest.raises(ledger.ContentMustGo) as refused:
        ledger.seal_release(actor="test", name="r")
    assert refused.value.subjects == 3
    assert list(refused.value.first) == [
        exclusions.Exclusion("site:1", None, "explicit", preference.pk, opt_out.public_id),
        exclusions.Exclusion("site:2", ["post:2", "post:3"], "deletion", None, deletion.public_id),
        exclusions.Exclusion("site:3", None, "deletion", None, gone.public_id),
    ]
    release.refresh_from_db()
    assert (release.state, contents(release)) == ("building", CONTENTS)

    sealed = ledger.seal_release(actor="test", name="r", exclude=True)

    assert sealed.dropped.subjects == 3
    assert list(sealed.dropped.first) == list(refused.value.first)
    assert (sealed.release.state, sealed.release.subject_count, sealed.release.item_count) == ("sealed", 2, 2)
    assert contents(sealed.release) == {"site:2": ["post:1"], "site:4": ["post:5"]}


def test_a_release_of_which_nothing_is_left_is_not_sealed() -> None:
    release = make_release("r", contents={"site:1": ["post:1", "post:2"]}, sealed=False)
    record(make_wish("site:1", kind="deletion", items=("post:1",)))
    record(make_wish("site:1", kind="deletion", items=("post:2",)))
    with pytest.raises(ledger.EmptyManifest):
        ledger.seal_release(actor="test", name="r", exclude=True)
    assert contents(release) == {"site:1": ["post:1", "post:2"]}


def test_a_release_is_sealed_if_nobody_opted_out_of_its_usages() -> None:
    make_release("r", contents={"site:1": ["post:1"]}, sealed=False)
    Release.objects.update(usages=["search"])
    record(make_wish("site:1", usages=("train-ai",)))
    sealed = ledger.seal_release(actor="test", name="r")
    assert (sealed.release.state, sealed.dropped.subjects) == ("sealed", 0)


def test_the_default_is_asked_when_a_release_is_sealed(settings: Settings) -> None:
    settings.DEFAULT_PREFERENCE = "disallow"
    make_release("r", contents={"site:1": ["post:1"], "site:2": ["post:1"]}, sealed=False)
    say("site:2", "all", "allow", "explicit")
    with pytest.raises(ledger.ContentMustGo) as refused:
        ledger.seal_release(actor="test", name="r")
    assert list(refused.value.first) == [exclusions.Exclusion("site:1", None, "default", None, None)]


def test_of_many_only_the_first_hundred_are_listed() -> None:
    many = {f"site:{n}": [f"post:{i}" for i in range(150)] for n in range(120)}
    make_release("r", contents=many, sealed=False)
    for subject in list(many)[:110]:
        record(make_wish(subject, kind="deletion", items=tuple(many[subject])))
    with pytest.raises(ledger.ContentMustGo) as refused:
        ledger.seal_release(actor="test", name="r")
    assert (refused.value.subjects, len(refused.value.first)) == (110, 100)
    assert {len(one.items or ()) for one in refused.value.first} == {100}


def hand_over(reference: str = "s-1", **said: Any) -> Disclosure:
    details = {"release": "r", "partner": "acme", "disclosed_at": None, "now": timezone.now()} | said
    return ledger.record_disclosure(actor="test", reference=reference, **details)[0]


def test_nobody_is_handed_what_was_opted_out_since() -> None:
    make_partner("acme")
    make_release("r", contents={"site:1": ["post:1"]})
    first = hand_over()
    request = record(make_wish("site:1"))
    with pytest.raises(ledger.ContentMustGo) as refused:
        hand_over("s-2")
    assert [(one.subject, one.request) for one in refused.value.first] == [("site:1", request.public_id)]
    assert list(Disclosure.objects.all()) == [first]
    # A repeat of what was handed over before is a repeat.
    assert hand_over() == first


def test_a_handover_that_has_happened_is_recorded_and_its_partner_told() -> None:
    partner = make_partner("acme").partner
    make_release("r", contents={"site:1": ["post:1"]})
    request = record(make_wish("site:1"))
    past = hand_over(disclosed_at=timezone.now())
    planning.plan(budget=BUDGET)
    notice = Notice.objects.get()
    assert (notice.stream.partner, notice.request, notice.disclosures) == (partner, request, [past.pk])


def test_a_handover_is_for_what_the_partner_is_licensed_for() -> None:
    make_partner("acme", usages=("search",))
    make_partner("globex", usages=("train-ai",))
    make_release("r", contents={"site:1": ["post:1"]})
    record(make_wish("site:1", usages=("train-ai",)))
    assert hand_over().usages == ["search"]
    with pytest.raises(ledger.ContentMustGo):
        hand_over(partner="globex")
    with pytest.raises(ledger.ContentMustGo):
        hand_over("s-2", usages=["search", "train-ai"])


# --- an opt-out in the middle ---


@pytest.fixture
def opt_out_after_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody opt out, on another connection, just after a release was looked through."""
    find = exclusions.find_in_release

    def find_and_opt_out(**said: Any) -> exclusions.Found:
        found = find(**said)

        def opt_out() -> None:
            record(make_wish("site:1"))
            connection.close()

        with ThreadPoolExecutor(1) as another:
            another.submit(opt_out).result()
        return found

    monkeypatch.setattr(exclusions, "find_in_release", find_and_opt_out)


@pytest.mark.usefixtures("opt_out_after_the_check")
def test_what_was_opted_out_while_sealing_is_not_handed_over() -> None:
    make_partner("acme")
    assert make_release("r", contents={"site:1": ["post:1"]}).state == "sealed"
    with pytest.raises(ledger.ContentMustGo):
        hand_over()


def test_what_was_opted_out_while_it_was_handed_over_is_told(request: pytest.FixtureRequest) -> None:
    make_partner("acme")
    make_release("r", contents={"site:1": ["post:1"]})
    request.getfixturevalue("opt_out_after_the_check")
    disclosure = hand_over()
    planning.plan(budget=BUDGET)
    assert Notice.objects.get().disclosures == [disclosure.pk]


def test_a_database_error_in_the_check_records_no_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    make_partner("acme")
    make_release("r", contents={"site:1": ["post:1"]})

    def fail(**_: Any) -> None:
        terminate_this_connection()
        with connection.cursor() as cursor:
            cursor.execute("select 1")

    monkeypatch.setattr(exclusions, "find_in_release", fail)
    with pytest.raises(OperationalError):
        hand_over()
    connection.close()
    assert Disclosure.objects.count() == 0
