"""A real export goes through the gate and is handed over; a post is recalled, its site opts out and comes back."""

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from removal import planning, wxr
from removal.models import Notice, Preference
from tests.faults.harness import Installation, installation
from tests.journeys.test_wordpress_site_opts_out import SITE, export

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.journey]

__all__ = ["export"]  # the fixture is used by name


def sift(
    folder: Path, release: str, candidates: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the gate's command; returns what it let through and what it decided, each without its last line."""
    source, allowed, decisions = folder / "candidates", folder / f"{release}.allowed", folder / f"{release}.decisions"
    source.write_text("".join(json.dumps(line) + "\n" for line in candidates))
    call_command(
        "gate", "--release", release, "--in", str(source), "--out", str(allowed), "--decisions", str(decisions),
        "--feed", "export", stdout=StringIO(),
    )  # fmt: skip
    *lines, last = (json.loads(line) for line in allowed.read_text().splitlines())
    *decided, _ = (json.loads(line) for line in decisions.read_text().splitlines())
    assert last["end"] is True
    return lines, decided


def make_release(platform: Installation, name: str, lines: list[dict[str, Any]]) -> None:
    assert platform.ask("POST", "/v1/releases", json={"name": name, "dataset": "posts"}).status_code == 201
    manifest = "".join(json.dumps({"subject": line["subject"], "items": line["items"]}) + "\n" for line in lines)
    answer = platform.ask("PUT", f"/v1/releases/{name}/manifest", data=manifest.encode())
    assert answer.status_code == 200, answer.text


def test_every_decision_is_explained(export: Path, tmp_path: Path) -> None:
    with export.open("rb") as stream:
        items = [entry.item for entry in wxr.read(stream).entries if isinstance(entry, wxr.Public)]
    candidate = {"subject": SITE, "items": items, "container_state": "public"}

    with installation(tmp_path) as platform:
        platform.start_web()
        platform.processes.start_worker()
        platform.add_partner("acme")

        # Through the gate, into a release, sealed, handed over.
        make_release(platform, "2024-02", [candidate])
        lines, decided = sift(tmp_path, "2024-02", [candidate])
        assert (lines, decided) == ([candidate], [])
        allowed = (tmp_path / "2024-02.allowed").read_bytes()  # a manifest as it is
        assert platform.ask("PUT", "/v1/releases/2024-02/manifest", data=allowed).status_code == 200
        assert platform.ask("POST", "/v1/releases/2024-02/seal").json()["items"] == 107
        handover = {"partner": "acme", "reference": "1"}
        assert platform.ask("POST", "/v1/releases/2024-02/disclosures", json=handover).status_code == 201

        # One post turns out to have been private.
        recall = platform.ask(
            "POST", "/v1/recalls?release=2024-02&reason=made_private",
            data=json.dumps({"subject": SITE, "items": [items[0]]}), headers={"Idempotency-Key": "recall-1"},
        )  # fmt: skip
        assert recall.status_code == 201, recall.text
        platform.wait_until_all_answered(notices=1)
        make_release(platform, "2024-03", [candidate])
        lines, decided = sift(tmp_path, "2024-03", [candidate])
        assert lines == [{**candidate, "items": items[1:]}]
        by_recall = {
            "subject": SITE, "items": [items[0]], "rule": "recall", "preference": None, "request": recall.json()["id"],
        }  # fmt: skip
        assert decided == [by_recall]
        refused = platform.ask("POST", "/v1/releases/2024-03/seal")
        assert (refused.status_code, refused.json()["code"]) == (409, "opted_out_content")

        # Its site opts out.
        opt_out = platform.opt_out(SITE)
        platform.wait_until_all_answered(notices=2)
        lines, decided = sift(tmp_path, "2024-03", [candidate])
        preference = Preference.objects.get(valid_to=None, value="disallow")
        assert lines == []
        assert {(line["rule"], line["preference"], line["request"]) for line in decided} >= {
            ("explicit", preference.pk, opt_out)
        }

        # And comes back: everything may go but the recalled post.
        back = platform.ask(
            "POST", "/v1/requests", json={"kind": "reinstatement", "subject": SITE}, headers={"Idempotency-Key": "back"}
        )
        assert back.status_code == 201
        platform.wait_until_all_answered(notices=3)
        lines, decided = sift(tmp_path, "2024-03", [candidate])
        assert lines == [{**candidate, "items": items[1:]}]
        assert decided == [by_recall]
        sealed = platform.ask("POST", "/v1/releases/2024-03/seal", json={"exclude": True})
        assert (sealed.status_code, sealed.json()["items"]) == (200, 106), sealed.text
        assert platform.ask("POST", "/v1/releases/2024-03/disclosures", json=handover).status_code == 201
        planning.plan(budget=timedelta(seconds=10))
        platform.assert_promises_hold()
    kinds = Notice.objects.order_by("sequence").values_list("kind", "item_count")
    assert list(kinds) == [("recall", 1), ("opt_out", 107), ("reinstatement", 0)]
