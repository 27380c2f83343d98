"""What checks give back: findings, and which check was made where with which verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pd_validate.catalogue import Layer
from pd_validate.findings import Finding, Severity, Verdict, Where, verdict_of


@dataclass(frozen=True)
class CheckResult:
    """One check at one place: a cell of the report's hosts x devices matrix.

    `findings` are those of this place, including what kept the check from measuring.
    `seconds` is how long the host took for the commands it rests on. `note` says why
    nothing was measured, where that is no finding.
    """

    id: str
    where: Where
    verdict: Verdict
    layer: Layer
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that make a test of this cell red: failures, and what was not measured."""
        return tuple(f for f in self.findings if f.severity is not Severity.WARN)


@dataclass(frozen=True)
class Report:
    """Findings with causes filled in, results of all checks, and notes worth saying."""

    findings: tuple[Finding, ...] = ()
    results: tuple[CheckResult, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.findings)

    def of(self, check: str, host: str | None = None) -> list[CheckResult]:
        """Results of one check, of one host or of all."""
        return [
            result
            for result in self.results
            if result.id == check and (host is None or result.where.host == host)
        ]

    def problems(self, check: str, host: str | None = None) -> list[Finding]:
        """What a test of this check must fail on, each finding once, in the report's order."""
        wanted = {id(f) for result in self.of(check, host) for f in result.problems}
        return [finding for finding in self.findings if id(finding) in wanted]


def merged(reports: Iterable[Report]) -> Report:
    """Several reports as one."""
    parts = list(reports)
    return Report(
        tuple(finding for report in parts for finding in report.findings),
        tuple(result for report in parts for result in report.results),
        tuple(dict.fromkeys(note for report in parts for note in report.notes)),
    )
