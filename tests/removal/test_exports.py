"""Exports: every line, safe in a spreadsheet, in the same memory for many, and each in the log."""

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from partners.models import Partner
from removal import acknowledgement, closing, delivery, exports, planning, reports
from removal.models import Export, LogEntry, Notice, RemovalRequest, Stream
from removal.statements import Statement
from tests.factories import disclose, make_partner, make_release, make_wish, record

pytestmark = pytest.mark.django_db

BUDGET = timedelta(seconds=5)
FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "'=1", "''", "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil.example","x")', "plain", "a=1", 'quo"te', "semi;colon,comma", "عربي", "",
]  # fmt: skip


def tell(slug: str, *subjects: str) -> list[RemovalRequest]:
    partner = make_partner(slug).partner
    disclose(make_release(contents={subject: ["post:1"] for subject in subjects}), partner)
    requests = [record(make_wish(subject)) for subject in subjects]
    planning.plan(budget=BUDGET)
    delivery.claim(partner_id=partner.pk)
    return requests


def say(slug: str, sequence: int, status: str, **said: Any) -> None:
    partner = Notice.objects.filter(stream__partner__slug=slug).values_list("stream_id", flat=True)[0]
    statement = Statement(status=status, text="{}", sequence=sequence, **said)
    acknowledgement.acknowledge(partner_id=partner, key_prefix="rk_test", statements=[statement])


def read(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def run(scope: exports.Scope) -> list[dict[str, str]]:
    return read("".join(exports.export(scope, actor="test")))


def test_a_request_a_partner_and_a_period_have_their_lines() -> None:
    first, second = tell("acme", "site:1", "site:2")
    nobody = record(make_wish("site:none"))
    planning.plan(budget=BUDGET)
    say("acme", 1, "completed", outcomes={"removed": 1})
    [line] = run(exports.of_request(public_id=first.public_id))
    assert {name: line[name] for name in ("request", "subject", "partner", "sequence", "handling", "outcome")} == {
        "request": first.public_id, "subject": "site:1", "partner": "acme", "sequence": "1", "handling": "completed",
        "outcome": "fulfilled",
    }  # fmt: skip
    assert [line["request"] for line in run(exports.of_partner(slug="acme"))] == [first.public_id, second.public_id]
    today = timezone.now()
    period = run(exports.of_period(start=today - timedelta(days=1), end=today + timedelta(days=1)))
    assert [(line["request"], line["partner"]) for line in period] == [
        (first.public_id, "acme"),
        (second.public_id, "acme"),
        (nobody.public_id, ""),
    ]
    assert run(exports.of_period(start=today - timedelta(days=9), end=today - timedelta(days=8))) == []


def test_what_a_person_closed_is_said(db: None) -> None:
    [request] = tell("acme", "site:1")
    user = User.objects.create_user("lead")
    closing.close_notice(user_id=user.pk, notice_id=Notice.objects.get().pk, reason="duplicate", text="x")
    [line] = run(exports.of_request(public_id=request.public_id))
    assert (line["handling"], line["closed_by_hand_because"], line["outcome"]) == (
        "none",
        "duplicate",
        "partially_fulfilled",
    )


def test_the_file_says_of_a_delivery_what_the_page_says(db: None) -> None:
    partner = make_partner("acme").partner
    disclose(make_release(contents={"site:1": ["post:1"]}), partner)
    request = record(make_wish("site:1"))
    planning.plan(budget=BUDGET)
    said = []

    def look() -> None:
        [line] = run(exports.of_request(public_id=request.public_id))
        [shown] = reports.partner_lines(request)
        assert (line["delivery"], bool(line["delivered_at"])) == (shown.delivery, shown.delivered_at is not None)
        said.append(shown.delivery)

    for state in ("onboarding", "paused", "live"):
        Partner.objects.update(state=state)
        look()
    Stream.objects.update(served=((1, 1),), pulled=((1, 1),))
    look()
    assert said == ["held", "held", "waiting", "delivered"]


@pytest.mark.parametrize("value", FORMULAS)
def test_no_cell_is_a_formula_and_every_value_comes_back(value: str) -> None:
    [written] = read("".join(exports.as_csv(iter([[value]]), ["cell"])))
    cell = written["cell"]
    assert not cell.lstrip(" ").startswith(
        ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    )
    assert (cell[1:] if cell.startswith("'") else cell) == value


def test_hostile_subjects_are_safe_in_the_file(db: None) -> None:
    tell("acme", *[subject for subject in FORMULAS if subject.strip()])
    cells = [line["subject"] for line in run(exports.of_partner(slug="acme"))]
    assert sorted(cell[1:] if cell.startswith("'") else cell for cell in cells) == sorted(
        subject for subject in FORMULAS if subject.strip()
    )


def test_pages_neither_miss_nor_repeat_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [f"site:{n}" for n in range(7)]
    tell("acme", *subjects)
    tell("bolt", *[f"blog:{n}" for n in range(4)])
    now = timezone.now()
    scopes = [exports.of_partner(slug="acme"), exports.of_period(start=now - timedelta(1), end=now + timedelta(1))]
    whole = [run(scope) for scope in scopes]
    monkeypatch.setattr(exports, "PAGE", 2)
    monkeypatch.setattr(exports, "PIECE", 2)
    assert [run(scope) for scope in scopes] == whole
    assert [len(lines) for lines in whole] == [exports.estimate(scope) for scope in scopes] == [7, 11]


def test_a_period_is_named_by_its_first_and_its_last_day() -> None:
    period = exports.of_period(start=datetime(2026, 11, 20, tzinfo=UTC), end=datetime(2026, 11, 22, tzinfo=UTC))
    assert period.name == "2026-11-20..2026-11-21"


def test_an_export_holds_no_more_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    tell("acme", *[f"site:{n}" for n in range(20)])
    monkeypatch.setattr(exports, "PAGE", 5)
    monkeypatch.setattr(exports, "PIECE", 5)
    asked: list[int] = []

    def count(run: Any, *rest: Any) -> Any:
        asked.append(1)
        return run(*rest)

    rows = exports.lines(exports.of_partner(slug="acme"))
    with connection.execute_wrapper(count):
        for _ in range(6):
            next(rows)
    assert len(asked) == 2


def test_its_row_says_how_far_an_export_has_come(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tell("acme", *[f"site:{n}" for n in range(25)])
    monkeypatch.setattr(exports, "PIECE", 10)
    monkeypatch.setattr(exports, "TELL_EVERY_SECONDS", 0)
    running = exports.export(exports.of_partner(slug="acme"), actor="staff:7")
    for _ in range(3):  # the heading, and two pieces; the second is still in our hands
        next(running)
    row = Export.objects.get()
    assert (row.state, row.lines, row.expected > 0) == ("running", 10, True)
    page = admin_client.get("/admin/removal/export/").content.decode()
    assert "10 of about " in page
    assert ">running<" in page
    Export.objects.update(seen_at=timezone.now() - timedelta(minutes=3))
    assert ">stands still<" in admin_client.get("/admin/removal/export/").content.decode()
    list(running)
    row.refresh_from_db()
    assert (row.state, row.lines) == ("finished", 25)
    assert "25 lines" in admin_client.get("/admin/removal/export/").content.decode()


def test_the_log_says_who_took_what_and_how_it_ended() -> None:
    tell("acme", "site:1", "site:2")
    scope = exports.of_partner(slug="acme")
    run(scope)
    cut: Any = exports.export(scope, actor="staff:7")
    next(cut)
    cut.close()
    entries = LogEntry.objects.filter(action__startswith="export").order_by("pk")
    assert [(entry.actor, entry.action, entry.about.get("lines")) for entry in entries] == [
        ("test", "export_begun", None),
        ("test", "export_finished", 2),
        ("staff:7", "export_begun", None),
        ("staff:7", "export_cut_off", 0),
    ]
    assert "site:1" not in str([entry.about for entry in entries])


def test_from_a_shell_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [request] = tell("acme", "site:1")
    out = tmp_path / "acme.csv"
    call_command("export", "partner", "acme", "--out", str(out))
    assert [line["request"] for line in read(out.read_bytes().decode())] == [request.public_id]
    assert re.search(r"^1 of about \d+ lines …$", capsys.readouterr().err, re.MULTILINE)
    assert out.stat().st_mode & 0o077 == 0
    for wrong in (("partner", "nobody"), ("request", "nothing")):
        with pytest.raises(CommandError, match="is called"):
            call_command("export", *wrong)


def test_an_export_cut_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell("acme", "site:1", "site:2")
    monkeypatch.setattr(exports, "PAGE", 1)
    monkeypatch.setattr(exports, "PIECE", 1)
    real = exports.lines

    def interrupted(scope: exports.Scope) -> Any:
        yield next(real(scope))
        raise KeyboardInterrupt

    monkeypatch.setattr(exports, "lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call_command("export", "partner", "acme", "--out", str(tmp_path / "acme.csv"))
    assert list(tmp_path.iterdir()) == []
    assert LogEntry.objects.get(action="export_cut_off").about["lines"] == 1


def finish(request: RemovalRequest, *, received: datetime, days: float, outcome: str) -> None:
    """Let a request have come and ended at other times than now. The guard of what was asked is in the way."""
    with connection.cursor() as cursor:
        cursor.execute("alter table removal_removalrequest disable trigger a_request_keeps_what_was_asked")
        cursor.execute(
            "update removal_removalrequest set received_at = %s, state = 'closed', outcome = %s, closed_at = %s"
            " where id = %s",
            [received, outcome, received + timedelta(days=days), request.pk],
        )
        cursor.execute("alter table removal_removalrequest enable always trigger a_request_keeps_what_was_asked")


def test_yearly_metrics_count_and_time_what_the_law_asks_for() -> None:
    requests = tell("acme", *[f"site:{n}" for n in range(4)])
    nothing = record(make_wish("site:none"))
    planning.plan(budget=BUDGET)
    say("acme", 1, "completed", outcomes={"removed": 1})
    say("acme", 2, "rejected", reason="legal_obligation")
    say("acme", 3, "partially_completed", outcomes={"cannot_comply": 1})
    connection.check_constraints()  # what waits for the commit would keep the table from being altered
    year = datetime(2024, 3, 1, tzinfo=UTC)
    finish(requests[0], received=year, days=2, outcome="fulfilled")
    finish(requests[1], received=year, days=10, outcome="partially_fulfilled")
    finish(requests[2], received=year, days=30, outcome="partially_fulfilled")
    finish(nothing, received=datetime(2023, 12, 31, 23, 59, tzinfo=UTC), days=1, outcome="nothing_disclosed")
    rows = exports.yearly_metrics(first_year=2020, last_year=2025)
    assert rows == [
        exports.YearlyMetrics(2024, "opt_out", 3, 1, 1, 1, 0, 0, 10.0, 14.0),
        exports.YearlyMetrics(2023, "opt_out", 1, 1, 0, 0, 0, 0, 1.0, 1.0),
    ]
    now = timezone.now().year
    [open_one] = exports.yearly_metrics(first_year=now, last_year=now)
    assert (open_one.received, open_one.still_open, open_one.median_days) == (1, 1, None)


@pytest.mark.parametrize(("many", "counted"), [(2, "2"), (1, "1")])
def test_yearly_metrics_of_many_are_counted_once_for_a_while(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, many: int, counted: str
) -> None:
    monkeypatch.setattr("removal.admin.exports.MANY", many)
    cache.clear()
    for subject in ("site:1", "site:2"):
        record(make_wish(subject))
        file = admin_client.get("/admin/metrics/?csv")
        [line] = read(b"".join(file.streaming_content).decode())  # type: ignore[attr-defined]
    assert line["received"] == counted
    cache.clear()


def test_on_pages(settings: Settings) -> None:
    from tests.removal.admin.conftest import open_desk

    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)
    [request] = tell("acme", '=1"><script>alert(1)</script>')
    user = User.objects.create_superuser("lead")
    desk: Client = open_desk(user)

    def send(url: str, **said: str) -> Any:
        token = desk.get(url).context["token"]
        return desk.post(url, {"token": str(token), **said})

    url = f"/admin/removal/removalrequest/act/export/?rows={request.pk}"
    file = send(url, as_what="csv")
    assert file["Content-Type"] == "text/csv; charset=utf-8"
    assert file["Content-Disposition"] == f'attachment; filename="removal-request-{request.public_id}.csv"'
    [line] = read(b"".join(file.streaming_content).decode())
    assert line["subject"] == "'=1\"><script>alert(1)</script>"
    page = send(url, as_what="print").content.decode()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    today = f"{timezone.now():%Y-%m-%d}"
    file = send("/admin/exports/", as_what="csv", first=today, last=today)
    assert len(read(b"".join(file.streaming_content).decode())) == 1
    assert send("/admin/exports/", as_what="csv", first="2026-02-01", last="2026-01-01").status_code == 200
    again = {"token": str(desk.get(url).context["token"])}  # a page that is answered stays open
    assert [desk.post(url, again | {"as_what": "print"}).status_code for _ in range(2)] == [200, 200]
    cut = send(url, as_what="csv")
    next(iter(cut.streaming_content))
    for close in cut._resource_closers:  # as the web server does when the browser has gone
        close()
    done = LogEntry.objects.filter(actor=f"staff:{user.pk}").order_by("pk").values_list("action", flat=True)
    assert list(done) == [
        "export_begun", "export_finished", "export_printed", "export_begun", "export_finished", "export_printed",
        "export_printed", "export_begun", "export_cut_off",
    ]  # fmt: skip
    assert "11 CCR §7102" in desk.get("/admin/metrics/").content.decode()
    assert read(b"".join(desk.get("/admin/metrics/?csv").streaming_content).decode())[0]["received"] == "1"  # type: ignore[attr-defined]
    assert exports_name('a\r\nSet-Cookie: x=1"/../é') == 'attachment; filename="a--Set-Cookie--x-1------.csv"'


def exports_name(name: str) -> str:
    from removal.admin.exports import as_file

    return str(as_file(iter([]), name=name)["Content-Disposition"])
