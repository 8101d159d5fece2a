"""The layout is the architecture: who may import whom, and what may lie at the top."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

PURE = (
    "partners/addresses.py",
    "partners/connection.py",
    "partners/identifiers.py",
    "partners/signing.py",
    "partners/webhook.py",
    "removal/deadlines.py",
    "removal/schedule.py",
    "removal/statements.py",
    "removal/wxr.py",
)
TOP_LEVEL = {"LICENSE", "README.md", "docs", "manage.py", "partners", "pyproject.toml", "removal", "tests"} | {
    "requirements.txt"
}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_partners_never_imports_removal() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "partners").rglob("*.py")
        for name in imports(file)
        if name.split(".")[0] == "removal"
    }
    assert found == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_neither_django_nor_settings(module: str) -> None:
    assert [name for name in imports(ROOT / module) if name.split(".")[0] == "django"] == []


def test_steps_know_nothing_of_the_api_or_the_admin() -> None:
    outer = ("removal.api", "removal.admin", "removal.tasks")
    found = {
        f"{file.name}: {name}"
        for folder in ("removal", "removal/invariants")
        for file in (ROOT / folder).glob("*.py")
        if file.name not in {"tasks.py"}
        for name in imports(file)
        if name.startswith(outer)
    }
    assert found == set()


def test_no_file_is_named_after_its_kind() -> None:
    vague = re.compile(r"^(utils?|helpers?|common|misc|services?|managers?)\.py$")
    assert [str(file) for file in ROOT.glob("[rpt]*/**/*.py") if vague.match(file.name)] == []


def test_the_top_level_holds_only_what_belongs_there() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {name for name in (path.split("/")[0] for path in listed) if not name.startswith(".")} == TOP_LEVEL


@pytest.mark.parametrize(("file", "extras"), [("requirements.txt", []), ("tests/requirements.txt", ["tests"])])
def test_the_locks_pin_what_pyproject_asks_for(file: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / file).read_text(), flags=re.MULTILINE))
    for line in wanted:
        requirement = Requirement(line)
        assert requirement.name in pinned
        assert requirement.specifier.contains(pinned[requirement.name]), line
    assert (ROOT / file).read_text().count("--hash=sha256:") > len(pinned)


def test_every_setting_of_ours_is_documented() -> None:
    source = (ROOT / "removal/config/settings.py").read_text()
    names = set(re.findall(r'(?:env|env_list|env_flag|env_number|own_secret)\("([A-Z_]+)"', source))
    readme = (ROOT / "README.md").read_text()
    assert {name for name in names if f"`{name}`" not in readme} == set()
    assert len(names) > 10
