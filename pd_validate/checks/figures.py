"""Measured figures against their limits, pairs against one another, and drift. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from pd_validate.findings import Finding, Severity, Where
from pd_validate.traffic.baseline import Limit
from pd_validate.traffic.trace import Transfer

_SLOW = 5.0  # times the median of all pairs: an outlier
_FEW = 3  # pulls of a pair below which its median says nothing
_FLOOR = 0.01  # seconds: differences below are the machine's, not the link's


def check_figures(
    measured: Mapping[str, float], limits: Mapping[str, Limit], where: Where
) -> list[Finding]:
    """Every figure that has a limit. Beyond min or max it fails, far from the target it warns."""
    findings = []
    for name, value in measured.items():
        limit = limits.get(name)
        if limit is None:
            continue
        told = f" (from {limit.source})" if limit.source else ""
        if limit.min is not None and value < limit.min:
            expected, severity = f"{name} of at least {limit.min:g}", Severity.FAIL
        elif limit.max is not None and value > limit.max:
            expected, severity = f"{name} of at most {limit.max:g}", Severity.FAIL
        elif limit.target is not None and _worse(value, limit):
            expected = f"{name} of {limit.target:g} within {limit.tolerance:.0%}"
            severity = Severity.WARN
        else:
            continue
        findings.append(
            Finding(
                id="perf.outside",
                severity=severity,
                where=where,
                expected=expected + told,
                got=f"{value:.4g}",
            )
        )
    return findings


def _worse(value: float, limit: Limit) -> bool:
    """Farther from the target than the tolerance, in the direction that is worse.

    With a `min` large is good, with a `max` small is; without either any distance counts.
    """
    assert limit.target is not None
    room = abs(limit.target) * limit.tolerance
    below, above = value < limit.target - room, value > limit.target + room
    return (below and limit.max is None) or (above and limit.min is None)


def check_pulls(transfers: Sequence[Transfer], hosts: Mapping[str, str]) -> list[Finding]:
    """A warning for each pair of ranks whose pulls take much longer than the other pairs'.

    Compared by the median of seconds per pull; pairs with few pulls are left out.
    """
    pairs: dict[tuple[str, str, int], list[float]] = {}
    for produced, received in transfers:
        if produced is not None:
            key = produced.instance, received.instance, received.rank
            pairs.setdefault(key, []).append(received.seconds)
    medians = {key: median(times) for key, times in pairs.items() if len(times) >= _FEW}
    if len(medians) < 2:
        return []
    findings = []
    for (source, target, rank), seconds in medians.items():
        others = median(m for key, m in medians.items() if key != (source, target, rank))
        if seconds > _SLOW * others and seconds - others > _FLOOR:
            findings.append(
                Finding(
                    id="kv.slow",
                    severity=Severity.WARN,
                    where=Where(
                        host=hosts.get(target),
                        instance=target,
                        rank=rank,
                        peer_host=hosts.get(source),
                        peer_instance=source,
                    ),
                    expected=f"about {others * 1000:.1f} ms a pull, as the other pairs",
                    got=f"{seconds * 1000:.1f} ms (medians)",
                )
            )
    return findings


def check_drift(
    name: str, samples: Sequence[float], where: Where, *, share: float, least: float, unit: str
) -> list[Finding]:
    """Did a value rise from the first third of the samples to the last, in their medians?

    A rise counts when it is more than `share` of the beginning and more than `least`. Fewer
    than nine samples say nothing.
    """
    third = len(samples) // 3
    if third < 3:
        return []
    first, last = median(samples[:third]), median(samples[-third:])
    if last - first <= max(share * first, least):
        return []
    return [
        Finding(
            id="drift.rising",
            where=where,
            expected=f"{name} at {first:.4g} {unit}, as in the first third of the soak",
            got=f"{last:.4g} {unit} in the last third",
        )
    ]
