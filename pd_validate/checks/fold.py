"""One finding per fault: what several requests, ranks, layers or NPUs met in one place. Pure.

A decoder that answers 500 does so to every request; a pull that brings zeros does in all
layers and on all ranks; a switch without power takes all NPUs of a host along. Each is told
once, at the most exact place that all of it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from pd_validate.findings import Cause, Finding, Severity, Where

_EVIDENCE = 8  # lines of a folded finding
Place = tuple[str, Where]  # an id, and where
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


def on_whole_hosts(
    findings: Iterable[Finding], devices: Mapping[str, Collection[int]]
) -> dict[Place, Finding]:
    """What all NPUs of a host have alike, as one finding of the host.

    `devices`: those of each host. The answer says into which finding each one went, in their
    order; most go into themselves. Only what is alike in its causes, too, is one fault.
    """
    given = list(findings)
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in given:
        host, number = finding.where.host, finding.where.device
        if host is not None and finding.where == Where(host=host, device=number):
            alike = (finding.id, host, finding.expected, finding.got, bool(finding.because))
            groups.setdefault(alike, []).append(finding)
    into = {(finding.id, finding.where): finding for finding in given}
    for group in groups.values():
        there = devices.get(group[0].where.host or "", ())
        if len(there) > 1 and {finding.where.device for finding in group} == set(there):
            whole = _of_host(group)
            into |= {(finding.id, finding.where): whole for finding in group}
    # A cause that went into another finding is that one now.
    told = {id(finding): _with_causes(finding, into) for finding in into.values()}
    return {place: told[id(finding)] for place, finding in into.items()}


def _of_host(group: Sequence[Finding]) -> Finding:
    worst = min(group, key=lambda finding: _SEVERITIES.index(finding.severity))
    because = dict.fromkeys(cause for finding in group for cause in finding.because)
    return worst.model_copy(
        update={
            "where": Where(host=worst.where.host),
            "got": f"{worst.got} (all {len(group)} NPUs of the host)",
            "because": tuple(because),
        }
    )


def _with_causes(finding: Finding, into: Mapping[Place, Finding]) -> Finding:
    causes = [into.get((cause.id, cause.where)) or cause for cause in finding.because]
    because = dict.fromkeys(Cause(id=cause.id, where=cause.where) for cause in causes)
    return finding.model_copy(update={"because": tuple(because)})
