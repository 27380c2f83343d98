"""When a trial counts as caught: what was expected, at its place, and nothing else."""

from __future__ import annotations

from pathlib import Path

from pd_validate.findings import Finding, Severity, Where
from twin.scenario import Scenario
from twin.trial import Trial

DOWN = Finding(id="link.down", where=Where(host="d1", device=6))
OTHER = Finding(id="link.down", where=Where(host="d2", device=7))
WARNING = Finding(id="link.no-neighbour", severity=Severity.WARN, where=Where(host="d1", device=6))
UNMEASURED = Finding(id="tool.busy", severity=Severity.UNKNOWN, where=Where(host="d1", device=6))


def trial(expect: object, *findings: Finding, notes: tuple[str, ...] = ()) -> Trial:
    scenario = Scenario.model_validate({"expect": expect})
    return Trial(Path("x.yaml"), scenario, findings, 1.0, notes)


EXPECT_DOWN = [{"id": "link.down", "where": {"host": "d1", "device": 6}}]


def test_exactly_what_was_expected() -> None:
    assert trial(EXPECT_DOWN, DOWN).caught


def test_a_place_states_only_what_must_be_equal() -> None:
    assert trial([{"id": "link.down", "where": {"host": "d1"}}], DOWN).caught


def test_another_device_is_missed_and_false() -> None:
    result = trial(EXPECT_DOWN, OTHER)
    assert [wanted.id for wanted in result.missed] == ["link.down"]
    assert result.false_findings == [OTHER]
    assert not result.caught


def test_what_nobody_expected_is_false_unless_it_only_warns() -> None:
    assert trial(EXPECT_DOWN, DOWN, OTHER).false_findings == [OTHER]
    assert trial(EXPECT_DOWN, DOWN, UNMEASURED).false_findings == [UNMEASURED]
    assert trial(EXPECT_DOWN, DOWN, WARNING).caught


def test_a_twin_that_need_not_be_clean_may_have_more() -> None:
    assert trial([*EXPECT_DOWN, {"clean": False}], DOWN, OTHER).caught


def test_each_expected_finding_needs_one_of_its_own() -> None:
    twice = [{"id": "link.down"}, {"id": "link.down"}]
    assert not trial(twice, DOWN).caught
    assert trial(twice, DOWN, OTHER).caught


def test_a_stated_severity_must_be_that() -> None:
    expect = [{"id": "link.no-neighbour", "severity": "fail"}]
    assert not trial(expect, WARNING).caught


def test_a_healthy_twin_has_nothing() -> None:
    assert trial([]).caught
    assert not trial([], DOWN).caught
    assert not trial([], notes=("something was left behind",)).caught


def test_the_story_says_what_was_missed_and_what_was_there() -> None:
    story = str(trial(EXPECT_DOWN, OTHER))
    assert "NOT caught" in story
    assert "expected link.down at d1 npu6" in story
    assert "found    fail link.down at d2 npu7" in story
