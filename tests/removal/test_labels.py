"""What people call a subject: found by, erased, and never sent, exported or logged."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from removal import exports, labels, planning
from removal.labels import requests_named, set_label, set_labels, subjects_named
from removal.models import DeliveryBody, LogEntry, Subject
from removal.preferences import UnknownSubject
from tests.factories import make_partner, make_release, make_wish, record
from tests.receivers import listening
from tests.removal.admin.story import owe, send

pytestmark = pytest.mark.django_db(transaction=True)

BLOG = "https://Blog.example/100%_Anna"


def keys(term: str) -> list[str]:
    return [subject.key for subject in subjects_named(term)]


@pytest.fixture
def labelled() -> None:
    make_release(contents={f"site:{n}": ["post:1"] for n in (1, 2, 3, 4)})
    set_labels(actor="test", labels={"site:1": BLOG, "site:2": "https://blog.example/100_percent", "site:3": "site:1"})


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("site:4", ["site:4"]),
        ("site:1", ["site:1", "site:3"]),  # its key first, then what is labelled so
        (BLOG, ["site:1"]),
        ("HTTPS://BLOG.EXAMPLE/1", ["site:1", "site:2"]),
        ("https://blog.example/100%", ["site:1"]),  # no wildcard
        ("https://blog.example/100_", ["site:2"]),
        ("blog.example", []),
        ("", []),
        ("   ", []),
        ("a\0b", []),
        ("\\", []),
    ],
)
def test_a_subject_is_found_by_its_key_its_label_or_the_beginning_of_it(term: str, found: list[str]) -> None:
    assert keys(term) == found


@pytest.mark.usefixtures("labelled")
def test_a_search_goes_on_with_so_many_subjects_at_most() -> None:
    assert [subject.key for subject in subjects_named("https", most=1)] == ["site:1"]


@pytest.mark.usefixtures("labelled")
def test_requests_are_found_by_id_key_and_label() -> None:
    one, other = record(make_wish("site:1")), record(make_wish("site:2"))
    assert requests_named(one.public_id.lower()) == [one.pk]
    assert requests_named("site:2") == [other.pk]
    assert requests_named("https://blog") == [one.pk, other.pk]
    assert requests_named("nothing") == []


@pytest.mark.usefixtures("labelled")
def test_an_erased_label_is_gone_and_finds_nothing() -> None:
    set_label(actor="test", subject="site:1", label=None)
    assert Subject.objects.get(key="site:1").label == ""
    assert keys(BLOG) == []


def test_a_label_makes_no_subject() -> None:
    with pytest.raises(UnknownSubject):
        set_label(actor="test", subject="site:1", label="Anna's blog")
    assert set_labels(actor="test", labels={"site:1": "Anna's blog"}) == 0
    assert not Subject.objects.exists()
    assert not LogEntry.objects.filter(action__startswith="label").exists()


def test_the_same_label_again_changes_and_logs_nothing() -> None:
    make_release(contents={"site:1": ["post:1"]})
    assert [set_labels(actor="test", labels={"site:1": BLOG}) for _ in range(2)] == [1, 0]
    set_label(actor="test", subject="site:1", label=BLOG)
    assert [entry.action for entry in LogEntry.objects.filter(action__startswith="label")] == ["labels_set"]


def test_a_search_by_label_reads_an_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into removal_subject (key, label)"
            " select 'site:' || n, 'https://' || n || '.example' from generate_series(1, 20000) n"
        )
        cursor.execute("analyze removal_subject")
        cursor.execute(f"explain {labels.NAMED}", {"term": "site:7", "beginning": "https://77", "most": 100})
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "subject_label" in plan
    assert "Seq Scan" not in plan


def test_a_label_is_in_no_message_export_or_log(loopback_partners: None) -> None:
    with listening() as receiver:
        partner = make_partner(url=receiver.url).partner
        make_release(contents={"site:1": ["post:1"]})
        set_label(actor="test", subject="site:1", label=BLOG)
        request = owe(partner, subject="site:1")
        planning.plan(budget=timedelta(seconds=5))
        send(partner)
    assert b"Anna" not in bytes(DeliveryBody.objects.get().body)
    assert "Anna" not in "".join(exports.export(exports.of_request(public_id=request.public_id), actor="test"))
    assert "Anna" not in json.dumps(list(LogEntry.objects.values_list("about", flat=True)))


def load(file: Path, *lines: object) -> str:
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    out = StringIO()
    call_command("label", str(file), stdout=out)
    return out.getvalue()


def test_a_file_labels_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("removal.management.commands.label.BATCH", 2)
    make_release(contents={f"site:{n}": ["post:1"] for n in (1, 2, 3)})
    set_label(actor="test", subject="site:3", label="Old")
    lines = [{"subject": f"site:{n}", "label": f"Blog {n}"} for n in (1, 2, 9)] + [{"subject": "site:3", "label": None}]
    assert load(tmp_path / "labels", *lines) == (
        "4 lines, 3 labels changed; the others were so, or name no subject known.\n"
    )
    assert list(Subject.objects.order_by("key").values_list("label", flat=True)) == ["Blog 1", "Blog 2", ""]


def test_a_broken_line_is_named_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="line 2: ") as caught:
        load(tmp_path / "labels", {"subject": "site:1", "label": None}, {"subject": "site:2", "label": "A" * 501})
    assert "AAA" not in str(caught.value)
