"""The files that partners copy: what they lean on, how long they are, and that what we print of them runs."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from partners import signing
from tests.conftest import ROOT
from tests.partners.kit.cases import NOW, SECRET, message, notice, received, signed
from tests.partners.kit.node import EXAMPLES, KIT, run_node
from tests.test_architecture import imports

GUIDE = ROOT / "docs" / "partner-guide.md"
BODY = message(notice(1), notice(2))
ENVIRONMENT = {
    "PARTNER": "acme",
    "SECRET": SECRET.to_text(),
    "API_KEY": "rk_acme",
    "SERVICE_URL": "https://removal.example",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_python_file_leans_on_nothing_but_the_standard_library() -> None:
    roots = {name.split(".")[0] for name in imports(KIT / "removal_kit.py")}

    assert roots - sys.stdlib_module_names == set()


def test_the_python_file_is_written_for_python_3_9() -> None:
    ast.parse((KIT / "removal_kit.py").read_text(), feature_version=(3, 9))


def test_the_javascript_file_leans_on_nothing_but_node() -> None:
    for file in (KIT / "removal_kit.mjs", EXAMPLES / "node_receiver.mjs"):
        names = re.findall(r'^import [^;]*?"([^"]+)";', file.read_text(), flags=re.MULTILINE)
        assert names
        assert [name for name in names if not name.startswith("node:") and name != "../removal_kit.mjs"] == []
        assert "require(" not in file.read_text()


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("wsgi_receiver.py", {"removal_kit"}),
        ("flask_receiver.py", {"removal_kit", "flask", "wsgi_receiver"}),  # read here; Flask is not installed
    ],
)
def test_the_examples_lean_on_little(name: str, allowed: set[str]) -> None:
    roots = {imported.split(".")[0] for imported in imports(EXAMPLES / name)}

    assert roots - sys.stdlib_module_names <= allowed


@pytest.mark.parametrize(
    ("name", "most"), [("wsgi_receiver.py", 40), ("flask_receiver.py", 40), ("node_receiver.mjs", 50)]
)
def test_an_example_is_a_page(name: str, most: int) -> None:
    lines = (EXAMPLES / name).read_text().splitlines()

    assert len([line for line in lines if line.strip()]) <= most


@pytest.mark.parametrize("page", [KIT / "README.md", GUIDE], ids=["README", "guide"])
def test_the_python_on_the_page_runs(page: Path, tmp_path: Path) -> None:
    [program] = [block for block in blocks(page, "python") if "removal_kit" in block]
    program = program.replace('"whsec_…"', f'"{SECRET.to_text()}"')
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    asking = (
        "import sys\n"
        "given = json.load(sys.stdin)\n"
        "answers = [receiver.receive(given['headers'], given['body'].encode(), given['now']) for _ in range(2)]\n"
        "rows = db.execute('SELECT epoch, sequence, raw FROM notices ORDER BY 1, 2').fetchall()\n"
        "print(json.dumps([[[status, json.loads(body)] for status, _, body in answers], rows]))\n"
    )
    given = {"headers": signed(BODY), "body": BODY.decode(), "now": NOW}

    done = subprocess.run(
        [sys.executable, "-c", program + asking], cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True,
        timeout=60, env={**ENVIRONMENT, "PYTHONPATH": str(KIT)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = [[1, sequence, json.dumps(notice(sequence))] for sequence in (1, 2)]
    assert json.loads(done.stdout) == [[[200, received(1, 2)]] * 2, rows]


def test_the_javascript_in_the_guide_runs(tmp_path: Path) -> None:
    [program] = blocks(GUIDE, "javascript")
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    (tmp_path / "removal_kit.mjs").write_bytes((KIT / "removal_kit.mjs").read_bytes())
    (tmp_path / "receiver.mjs").write_text(
        program.replace('"notices.ndjson"', json.dumps(str(tmp_path / "notices.ndjson")))
        + 'import { readFileSync } from "node:fs";\n'
        "const given = JSON.parse(readFileSync(0, 'utf8'));\n"
        "const answer = await receiver.receive(given.headers, Buffer.from(given.body), given.now);\n"
        "console.log(JSON.stringify([answer.status, JSON.parse(answer.body)]));\n"
    )
    given: dict[str, Any] = {"headers": dict(signed(BODY)), "body": BODY.decode(), "now": NOW}

    assert run_node(str(tmp_path / "receiver.mjs"), given=given, environment=ENVIRONMENT) == [200, received(1, 2)]

    written = [json.loads(line) for line in (tmp_path / "notices.ndjson").read_text().splitlines()]
    assert written == [{"epoch": 1, "sequence": sequence, "raw": notice(sequence)} for sequence in (1, 2)]


def test_both_files_have_the_codes_that_our_own_code_has() -> None:
    codes = {error.code for error in signing.NotVerified.__subclasses__()}

    for name in ("removal_kit.py", "removal_kit.mjs"):
        text = (KIT / name).read_text()
        assert {code for code in codes if f'"{code}"' not in text} == set()
