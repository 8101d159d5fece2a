"""Both kits make of the same bytes what the table says."""

from typing import Any

import pytest

from tests.conftest import ROOT
from tests.partners.kit.cases import CASES, Case, run_in_python
from tests.partners.kit.node import run_node


@pytest.fixture(scope="module")
def results_of_node() -> dict[str, Any]:
    results = run_node(str(ROOT / "tests/partners/kit/cases.mjs"), given=[case.given for case in CASES])
    return {case.name: result for case, result in zip(CASES, results, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_agrees_with_the_table(case: Case) -> None:
    assert run_in_python(case.given) == case.expected


@pytest.mark.xdist_group("node_cases")  # one run of Node for all
def test_node_agrees_with_the_table(results_of_node: dict[str, Any]) -> None:
    assert results_of_node == {case.name: case.expected for case in CASES}
