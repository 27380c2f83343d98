"""One finding per fault: what several requests, ranks or layers met in one place. Pure.

A decoder that answers 500 does so to every request; a pull that brings zeros does in all
layers and on all ranks. Each is told once, at the most exact place that all of it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pd_validate.findings import Finding, Severity, Where

_EVIDENCE = 8  # lines of a folded finding
_SEVERITIES = (Severity.FAIL, Severity.UNKNOWN, Severity.WARN)  # worst first


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings with those of one fault as one, in the order of the first of each.

    Of one id: at one place; of one request in several layers, or on several ranks; of an
    instance, for several requests; and a place that says less than another one of the same.
    """
    found = _merged(findings, lambda f: f.where)
    found = _merged(found, lambda f: _without(f, "layer", "block") if f.where.request else f.where)
    found = _merged(found, lambda f: _without(f, "rank", "block") if f.where.request else f.where)
    found = _merged(
        found, lambda f: _without(f, "request", "block") if f.where.instance else f.where
    )
    return _into_more_exact(found)


def _without(finding: Finding, *parts: str) -> Where:
    """The place for comparison, with parts left out."""
    return finding.where.model_copy(update=dict.fromkeys(parts))


def _merged(findings: Iterable[Finding], place: Callable[[Finding], Where]) -> list[Finding]:
    groups: dict[tuple[str, Where], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.id, place(finding)), []).append(finding)
    return [_one(group) for group in groups.values()]


def _into_more_exact(findings: Sequence[Finding]) -> list[Finding]:
    """A finding of an instance goes into one of the same id whose place says the same and more."""
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=_exactness, reverse=True):
        place = _without(finding, "request", "block")
        home = next(
            (
                group
                for group in groups
                if place.instance is not None
                and group[0].id == finding.id
                and group[0].where.matches(place)
            ),
            None,
        )
        if home is None:
            groups.append([finding])
        else:
            home.append(finding)
    order = {id(finding): number for number, finding in enumerate(findings)}
    groups.sort(key=lambda group: order[id(group[0])])
    return [_one(group) for group in groups]


def _exactness(finding: Finding) -> int:
    """How many parts of its place are known."""
    return len(finding.where.model_dump(exclude_none=True))


def _one(group: Sequence[Finding]) -> Finding:
    """One finding for all: the worst severity's words, the first place, the evidence of each."""
    if len(group) == 1:
        return group[0]
    worst = min(group, key=lambda finding: _SEVERITIES.index(finding.severity))
    places = [finding.where for finding in group]
    ranks = sorted({place.rank for place in places if place.rank is not None})
    layers = sorted({place.layer for place in places if place.layer is not None})
    requests = {place.request for place in places if place.request is not None}
    where = next((p for p in places if layers and p.layer == layers[0]), places[0])
    also = []
    if len(ranks) > 1:
        also.append(f"on ranks {', '.join(map(str, ranks))}")
        where = where.model_copy(update={"rank": None})
    if len(layers) > 1:
        also.append(f"in layers {', '.join(map(str, layers))}")
    if len(requests) > 1:
        also.append(f"in {len(requests)} requests")
    evidence = dict.fromkeys(line for finding in group for line in finding.evidence)
    because = dict.fromkeys(cause for finding in group for cause in finding.because)
    return worst.model_copy(
        update={
            "where": where,
            "got": "; ".join((worst.got, *also)),
            "evidence": tuple(evidence)[:_EVIDENCE],
            "because": tuple(because),
        }
    )
