"""A real WordPress export is released to two of three partners; its site opts out; exactly those two are told."""

import json
import os
import sqlite3
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command

from removal.models import ManifestEntry, Notice
from tests.conftest import ROOT
from tests.faults.harness import installation

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey]

EXPORT = ROOT.parent / "shared" / "data" / "theme-unit-test.wordpress.xml"
SITE = "site:wpthemetestdata.wordpress.com"


@pytest.fixture
def export() -> Path:
    if not EXPORT.exists():
        if os.environ.get("REQUIRE_SHARED_DATA") == "1":
            pytest.fail(f"{EXPORT} is missing, and REQUIRE_SHARED_DATA=1 asks for it.")
        pytest.skip(f"{EXPORT} is missing.")
    return EXPORT


def test_exactly_the_two_holders_are_told_what_they_hold(export: Path, tmp_path: Path) -> None:
    said = StringIO()
    call_command("import_wxr", str(export), "--release", "2024-02", stdout=said)
    items = ManifestEntry.objects.get().items
    assert len(items) == 107
    kinds = [item.partition(":")[0] for item in items]
    assert (kinds.count("post"), kinds.count("page"), kinds.count("attachment")) == (48, 21, 38)
    left_out = [line for line in said.getvalue().splitlines() if line.startswith("left out ")]
    assert len(left_out) == 73
    assert {line for line in left_out if "not content" not in line} == {
        "left out post:1153: scheduled",
        "left out post:1164: draft",
        "left out post:1168: password protected",
    }
    assert all(line.startswith("left out nav_menu_item:") for line in left_out if "not content" in line)

    with installation(tmp_path) as platform:
        platform.start_web()
        platform.processes.start_worker()
        for slug in ("acme", "globex", "initech"):
            platform.add_partner(slug)
        assert platform.ask("POST", "/v1/releases/2024-02/seal").status_code == 200
        for slug in ("acme", "globex"):
            handover = {"partner": slug, "reference": "delivery-1"}
            assert platform.ask("POST", "/v1/releases/2024-02/disclosures", json=handover).status_code == 201
        request_id = platform.opt_out(SITE)
        platform.wait_until_all_answered(notices=2)

        status = platform.ask("GET", f"/v1/requests/{request_id}").json()
        assert (status["state"], status["outcome"]) == ("closed", "fulfilled")
        assert [(line["partner"], line["sequence"], line["handling"]) for line in status["partners"]] == [
            ("acme", 1, "completed"),
            ("globex", 1, "completed"),
        ]
        for slug in ("acme", "globex"):
            [(verified, body)] = _received(platform.database_of(slug))
            assert verified == 1
            [notice] = json.loads(body)["data"]["notices"]
            assert (notice["sequence"], notice["kind"], notice["subject"]) == (1, "opt_out", SITE)
            assert notice["request"] == request_id
            assert notice["items_total"] == 107
            assert notice["held"] == [{"release": "2024-02", "items_total": 107, "items": items}]
        assert _received(platform.database_of("initech")) == []
        platform.assert_promises_hold()
    assert set(Notice.objects.values_list("stream__partner__slug", flat=True)) == {"acme", "globex"}


def _received(database: Path) -> list[tuple[int, bytes]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as log:
        rows = log.execute("select verified, body from received order by id").fetchall()
    log.close()
    return rows
