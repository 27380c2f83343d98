"""Causes with their consequences: which findings stand first, which are folded under them.

A report that lists forty symptoms of one dead link names no culprit. Here findings become
families: one root (nothing in this record explains it), and everything it explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pd_validate.findings import Cause, Finding, Severity


@dataclass(frozen=True)
class Family:
    """A root finding and its consequences, lowest layer first."""

    root: Finding
    consequences: tuple[Finding, ...] = ()


_SEVERITY_ORDER = {Severity.FAIL: 0, Severity.UNKNOWN: 1, Severity.WARN: 2}


def _order(finding: Finding) -> tuple[bool, int, int, str, str]:
    """What counts, first; what is quarantined, last."""
    severity = _SEVERITY_ORDER[finding.severity]
    return (finding.quarantined, severity, finding.layer, finding.id, str(finding.where))


def families(findings: Iterable[Finding]) -> list[Family]:
    """Group findings under their root, failures first and then by layer, in a stable order.
    What is quarantined comes last.

    A finding with several causes goes to the first root in that order. One whose causes are
    not in this record, or that only explain each other, is a root: nothing may vanish.
    """
    ordered = sorted(findings, key=_order)
    by_cause: dict[Cause, Finding] = {finding.as_cause(): finding for finding in ordered}
    roots = [f for f in ordered if not any(cause in by_cause for cause in f.because)]
    members: dict[Cause, list[Finding]] = {root.as_cause(): [] for root in roots}
    loose: list[Finding] = []
    for finding in ordered:
        if finding in roots:
            continue
        reached = _roots_of(finding, by_cause, members)
        home = next((root.as_cause() for root in roots if root.as_cause() in reached), None)
        if home is None:
            loose.append(finding)
        else:
            members[home].append(finding)
    result = [_family(root, members[root.as_cause()]) for root in roots]
    return sorted([*result, *map(Family, loose)], key=lambda family: _order(family.root))


def _family(root: Finding, consequences: Sequence[Finding]) -> Family:
    return Family(root, tuple(sorted(consequences, key=lambda f: (f.layer, f.id, str(f.where)))))


def _roots_of(
    finding: Finding, by_cause: dict[Cause, Finding], roots: dict[Cause, list[Finding]]
) -> set[Cause]:
    """All roots that `finding` leads to; safe when findings explain each other in a circle."""
    found: set[Cause] = set()
    seen: set[Cause] = set()
    todo = list(finding.because)
    while todo:
        cause = todo.pop()
        if cause in seen or cause not in by_cause:
            continue
        seen.add(cause)
        if cause in roots:
            found.add(cause)
        else:
            todo.extend(by_cause[cause].because)
    return found
