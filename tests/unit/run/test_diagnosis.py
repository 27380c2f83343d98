"""A request that never ends: the test fails with what lies below it, not with the symptom."""

from __future__ import annotations

import pytest

pytest_plugins = ("pytester",)

# A run on a cluster that is not there: it says what a diagnosis would find.
CONFTEST = """
import pytest
from pd_validate import plugin
from pd_validate.findings import Finding, Where
from pd_validate.quarantine import load_quarantine

HUNG = Finding(id="engine.hung", where=Where(host="d1", instance="decode-1"), got="stands still")

class Session:
    cluster = None
    quarantine = load_quarantine(None)

class Run:
    session = Session()
    def __init__(self):
        self.asked, self.reports = [], []
    def diagnosed(self, error, test):
        self.asked.append(str(error))
        return DIAGNOSIS
    def looked_below(self, findings, test):
        return findings
    def found(self, nodeid, findings):
        pass
    def tell_steps(self):
        pass
    def hand_in(self):
        pass
    def tested(self, report, layer):
        self.reports.append(report.outcome)
    def finish(self, code):
        print("asked:", self.asked)
        return code
    def print_summary(self):
        pass
    def header(self):
        return []
    def close(self):
        pass

def pytest_configure(config):
    config.stash[plugin._RUN] = config.stash[plugin._OWNED] = Run()
"""
TEST = """
from pd_validate.traffic.client import RequestFailed

def test_it():
    raise RequestFailed("http://d1: no answer within 60 s", server="decode-1", timeout=True)
"""
ARGUMENTS = ("-p", "no:allure_pytest", "-p", "no:cacheprovider", "-s")


def result(pytester: pytest.Pytester, diagnosis: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.replace("DIAGNOSIS", diagnosis))
    pytester.makepyfile(TEST)
    return pytester.runpytest_inprocess(*ARGUMENTS)


def test_the_lowest_fault_is_what_fails(pytester: pytest.Pytester) -> None:
    run = result(pytester, "[HUNG]")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["E * AssertionError: engine.hung at d1 decode-1: stands still*"])
    run.stdout.fnmatch_lines(["*asked:*http://d1: no answer within 60 s*"])


def test_a_symptom_with_nothing_below_stays_what_it_is(pytester: pytest.Pytester) -> None:
    run = result(pytester, "[]")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["E *RequestFailed: http://d1: no answer within 60 s"])
