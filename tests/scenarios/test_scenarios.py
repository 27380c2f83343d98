"""The harness held against broken twins: one test per scenario file.

pytest tests/scenarios -m fast          # one of each kind, part of `make test`
pytest tests/scenarios                  # all that need no engine
pytest tests/scenarios -m engine        # those that bring up the topology
python -m twin.scenarios                # all of them, as a table
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.catalogue import CATALOGUE
from twin.scenario import load_scenario
from twin.scenarios import FAST, SCENARIOS, scenario_files
from twin.trial import try_scenario

FILES = scenario_files([SCENARIOS])


def _parameter(file: Path) -> object:
    kind = file.parent.name
    marks = [pytest.mark.engine] if kind == "engine" else []
    marks += [pytest.mark.fast] if file.stem in FAST else []
    return pytest.param(file, marks=marks, id=f"{kind}/{file.stem}")


@pytest.mark.parametrize("file", [_parameter(file) for file in FILES])
def test_the_harness_names_the_fault_and_nothing_else(file: Path) -> None:
    trial = try_scenario(file)
    assert trial.caught, str(trial)


@pytest.mark.fast
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario_file_is_sound(file: Path) -> None:
    """It says what it is about, and expects only findings that there are."""
    scenario = load_scenario(file)
    assert scenario.about
    assert {wanted.id for wanted in scenario.expect.findings} <= CATALOGUE.keys()
    if not scenario.expect.findings:
        assert scenario.must_be_clean, "expects nothing at all"


@pytest.mark.fast
def test_the_fast_ones_exist() -> None:
    assert set(FAST) <= {file.stem for file in FILES}
