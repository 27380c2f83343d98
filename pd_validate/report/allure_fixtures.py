"""Fixtures in an Allure report: only those that have something to tell.

allure-pytest writes a file for every fixture and parameter of every test, and lists them above
each test as its set-up: with 32 hosts four thousand files that say "judge: passed".
"""

from __future__ import annotations

import allure_commons
from allure_commons.logger import AllureFileLogger
from allure_commons.model2 import (
    ExecutableItem,
    Status,
    TestResult,
    TestResultContainer,
)

_LONG = 100  # milliseconds


class _TellingFixtures(AllureFileLogger):  # type: ignore[misc]  # allure is not typed
    def _report_item(self, item: TestResult | TestResultContainer) -> None:
        if isinstance(item, TestResultContainer) and not any(map(_tells, _parts(item))):
            return
        super()._report_item(item)


def leave_out_silent_fixtures() -> None:
    """From now on; in each process that writes results, once Allure's plugin is at work."""
    for logger in allure_commons.plugin_manager.get_plugins():
        if isinstance(logger, AllureFileLogger):
            # It stays the registered object: allure-pytest unregisters it at the end.
            logger.__class__ = _TellingFixtures


def _parts(container: TestResultContainer) -> list[ExecutableItem]:
    return [*container.befores, *container.afters]


def _tells(fixture: ExecutableItem) -> bool:
    """It failed, took its time, or has steps or attachments."""
    took = (fixture.stop or fixture.start) - fixture.start
    # A clean-up that is only now at its end has no status yet.
    failed = fixture.status not in (Status.PASSED, None)
    return failed or took >= _LONG or bool(fixture.steps or fixture.attachments)
