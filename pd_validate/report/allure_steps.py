"""Steps of an Allure report that are over when they are told, with their own times.

Allure's `step` times what runs inside it, in its own thread. Bring-up works on all hosts at
once, in threads, maybe in another process: its steps are written afterwards, below the
fixture or test that waited for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import allure_commons
from allure_commons.model2 import ExecutableItem, Status, StatusDetails, TestStepResult
from allure_pytest.listener import AllureListener

from pd_validate.findings import Verdict
from pd_validate.report.record import Span

_STATUS = {
    Verdict.PASS: Status.PASSED,
    Verdict.FAIL: Status.FAILED,
    Verdict.UNKNOWN: Status.BROKEN,
}


def add_steps(spans: Sequence[Span]) -> None:
    """Write `spans` (redacted) below what runs now, if Allure's plugin is at work.

    What several hosts or instances did becomes one step, with a step for each of them.
    """
    for plugin in allure_commons.plugin_manager.get_plugins():
        if isinstance(plugin, AllureListener):
            item = plugin.allure_logger.get_last_item(ExecutableItem)
            if item is not None:
                item.steps += _steps(spans)


def _steps(spans: Sequence[Span]) -> Iterator[TestStepResult]:
    groups: dict[str, list[Span]] = {}
    for span in spans:
        groups.setdefault(_phase(span), []).append(span)
    for phase, members in groups.items():
        parts = [_step(span, _part(span)) for span in members]
        if len(parts) == 1:
            yield _step(members[0], f"{phase}: {_part(members[0])}")
            continue
        ends = [part.stop for part in parts if part.stop is not None]
        worst = next((s for s in _WORST_FIRST if any(p.status == s for p in parts)), None)
        yield TestStepResult(
            name=phase,
            start=min(part.start for part in parts),
            stop=max(ends, default=None),
            status=worst,
            steps=parts,
        )


_WORST_FIRST = (Status.FAILED, Status.BROKEN, Status.PASSED)


def _step(span: Span, name: str) -> TestStepResult:
    """Allure counts in milliseconds."""
    bad = span.verdict is not Verdict.PASS
    return TestStepResult(
        name=name,
        start=round(span.start * 1000),
        stop=None if span.end is None else round(span.end * 1000),
        status=_STATUS[span.verdict],
        statusDetails=StatusDetails(message=span.note or "it had not ended") if bad else None,
    )


def _phase(span: Span) -> str:
    """What was done, without the instance that stands in brackets after it."""
    return span.name.partition(" (")[0]


def _part(span: Span) -> str:
    instance = span.name.removeprefix(_phase(span))
    return f"{span.host}{instance}" + (f": {span.note}" if span.note else "")
