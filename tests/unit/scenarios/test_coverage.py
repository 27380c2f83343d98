"""Every finding that the harness may raise is raised somewhere in a test, and is explained.

By a scenario that expects it, or by a unit test that names it; of both a mutation test
(tests/unit/mutation) shows that they notice.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pd_validate.catalogue import CATALOGUE
from twin.cluster import PROJECT
from twin.scenario import load_scenario
from twin.scenarios import SCENARIOS, scenario_files

UNITS = PROJECT / "tests" / "unit"


def texts(directory: Path, pattern: str) -> str:
    files = (file for file in directory.rglob(pattern) if file != Path(__file__))
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))


@pytest.fixture(scope="module")
def of_scenarios() -> dict[str, set[str]]:
    """Ids that scenarios expect, by scenario."""
    return {
        file.stem: {wanted.id for wanted in load_scenario(file).expect.findings}
        for file in scenario_files([SCENARIOS])
    }


def test_every_finding_fires_in_a_scenario_or_a_unit_test(
    of_scenarios: dict[str, set[str]],
) -> None:
    expected = set().union(*of_scenarios.values())
    named = set(re.findall(r"\b[a-z]+\.[a-z-]+\b", texts(UNITS, "*.py")))
    assert CATALOGUE.keys() - expected - named == set()


def test_every_finding_is_raised_by_the_product() -> None:
    """An id that nothing raises is a promise that nobody keeps."""
    sources = (file for file in (PROJECT / "pd_validate").rglob("*.py"))
    text = "\n".join(file.read_text() for file in sources if file.name != "catalogue.py")
    assert {id_ for id_ in CATALOGUE if f'"{id_}"' not in text} == set()


def test_every_expected_finding_exists(of_scenarios: dict[str, set[str]]) -> None:
    unknown = {name: ids - CATALOGUE.keys() for name, ids in of_scenarios.items()}
    assert {name: ids for name, ids in unknown.items() if ids} == {}


def test_every_finding_has_its_entry_in_the_docs() -> None:
    page = (PROJECT / "docs" / "checks.md").read_text(encoding="utf-8")
    assert [id_ for id_ in CATALOGUE if f"### {id_}" not in page and f"`{id_}`" not in page] == []
