"""What a finding does to the test that meets it, as a suite's author uses `judge`."""

from __future__ import annotations

import pytest

pytest_plugins = ("pytester",)

# A run without a cluster: it only remembers what tests found.
CONFTEST = """
import types
import pytest
from pd_validate.quarantine import load_quarantine

class Run:
    session = types.SimpleNamespace(quarantine=load_quarantine(None))
    def __init__(self):
        self.findings = []
    def looked_below(self, findings, test):
        return findings
    def found(self, nodeid, findings):
        self.findings += findings

@pytest.fixture(scope="session")
def run():
    return Run()
"""
HEAD = """
from pd_validate.findings import Cause, Finding, Severity, Where

DOWN = Finding(id="link.down", where=Where(host="d1", device=6), expected="UP", got="DOWN")
UNREACHABLE = Finding(id="ping.unreachable", where=Where(host="d1"), because=(DOWN.as_cause(),))
BUSY = Finding(id="tool.busy", severity=Severity.UNKNOWN, where=Where(host="d2"))
NO_NEIGHBOUR = Finding(id="link.no-neighbour", severity=Severity.WARN, where=Where(host="p1"))
"""


@pytest.fixture
def outcome(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.RunResult:
    """The result of one test that judges the findings named by the test's parameter."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(f"{HEAD}\ndef test_it(judge):\n    judge([{request.param}])\n")
    return pytester.runpytest_inprocess("-rA", "-p", "no:allure_pytest", "-p", "no:cacheprovider")


def judges(findings: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("outcome", [findings], indirect=True)


@judges("")
def test_nothing_found_passes(outcome: pytest.RunResult) -> None:
    outcome.assert_outcomes(passed=1)


@judges("DOWN")
def test_a_failing_finding_fails(outcome: pytest.RunResult) -> None:
    """In one line: what, where, expected, got, what to do. None of our own lines around it."""
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(
        ["E * AssertionError: link.down at d1 npu6: expected UP, got DOWN. Check cable, *"]
    )
    outcome.stdout.no_fnmatch_line("*plugin.py*")


@judges("BUSY")
def test_what_could_not_be_measured_breaks(outcome: pytest.RunResult) -> None:
    """Neither OK nor a fault of the product: Allure shows it as broken."""
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["E *LabError: could not measure: tool.busy at d2*"])


@judges("BUSY, DOWN, UNREACHABLE")
def test_a_fault_counts_more_than_what_was_not_measured(outcome: pytest.RunResult) -> None:
    outcome.stdout.fnmatch_lines(["E * AssertionError: link.down at d1 npu6*"])
    outcome.stdout.no_fnmatch_line("*ping.unreachable*")


@judges("UNREACHABLE")
def test_a_consequence_is_skipped_by_the_name_of_its_cause(outcome: pytest.RunResult) -> None:
    outcome.assert_outcomes(skipped=1)
    outcome.stdout.fnmatch_lines(["*explained by link.down at d1 npu6: ping.unreachable*"])


@judges("NO_NEIGHBOUR")
def test_a_warning_is_noted_and_passes(outcome: pytest.RunResult) -> None:
    outcome.assert_outcomes(passed=1)
    outcome.stdout.fnmatch_lines(["*warning: link.no-neighbour at p1*"])


def test_findings_are_remembered_for_the_report(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        f"{HEAD}\n"
        "def test_it(judge, run):\n"
        "    try:\n"
        "        judge(iter([DOWN, NO_NEIGHBOUR]))\n"
        "    except AssertionError:\n"
        "        pass\n"
        "    assert run.findings == [DOWN, NO_NEIGHBOUR]\n"
    )
    pytester.runpytest_inprocess("-p", "no:allure_pytest").assert_outcomes(passed=1)


def test_without_a_cluster_tests_that_need_one_are_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(judge): judge([])")
    result = pytester.runpytest_inprocess("-rs", "-p", "no:allure_pytest")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs a cluster: give --cluster FILE or --cluster twin*"])


def test_faults_on_purpose_need_a_word(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.fault\ndef test_it(): pass")
    arguments = ("-rs", "-p", "no:allure_pytest")
    refused = pytester.runpytest_inprocess(*arguments)
    refused.assert_outcomes(skipped=1)
    refused.stdout.fnmatch_lines(["*give --allow-faults*"])
    pytester.runpytest_inprocess(*arguments, "--allow-faults").assert_outcomes(passed=1)
