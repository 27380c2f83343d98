"""The ping matrix judged: who does not reach whom, said once per fault. Pure.

A dead switch port fails dozens of pings. Failed pings are therefore folded into the
widest place of which every ping failed: all hosts, a host or one of its devices in one or
in both directions, a host or a device towards a host, and only then single pairs. Pings that
a fault of a NPU explains are folded among themselves: what is left has a cause of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pd_validate.checks.explain import explaining
from pd_validate.checks.view import View, listed
from pd_validate.facts.pings import Npu, PingFacts, PingResult
from pd_validate.facts.reading import Reason
from pd_validate.findings import Cause, Finding, Severity, Where

SLOW = 1.0  # milliseconds over RoCE; a healthy fabric takes 0.03 to 0.1 after the first packet
SLOW_HCCS = 0.2  # milliseconds
SLOW_FACTOR = 3.0  # against the median of the matrix
_SHOWN = 3


# How wide a place is; of places that explain as much, the narrower one is told.
_EVERYWHERE, _HOST, _HOST_ONE_WAY, _NPU, _NPU_ONE_WAY, _NPU_AND_HOST, _PAIR = range(7)
_TWO_HOSTS = _NPU_ONE_WAY  # as wide


@dataclass(frozen=True)
class _Group:
    """Pings that share a place. A smaller `rank` is wider."""

    rank: int
    where: Where
    way: str = "towards"  # of what is told of the others: the pings of the place go …


_BOTH, _ALL, _BETWEEN = "to and from", "of", "between hosts, of"


def check_pings(view: View, pings: PingFacts, known: Sequence[Finding] = ()) -> Iterator[Finding]:
    """`known`: what has been found of hosts and NPUs, and may explain a failed ping."""
    for failure in pings.failures.values():
        yield Finding(id=failure.id, where=Where(host=failure.host), got=failure.message)
    small = [result for result in pings.results if result.task.size is None]
    large = [result for result in pings.results if result.task.size is not None]
    yield from _unmeasured(pings.results)
    yield from _folded(view, small, "ping.unreachable", _dead, known)
    yield from _folded(view, small, "ping.loss", _lossy, known)
    passed = {_pair(result) for result in small if _complete(result)}
    sized = [result for result in large if _pair(result) in passed]
    sized += [result for result in small if _too_long(result)]
    yield from _folded(view, sized, "ping.size", _incomplete, known)
    yield from _planes(small)
    yield from _slow(small)


def _pair(result: PingResult) -> tuple[Npu, Npu]:
    return result.task.source, result.task.target


def _complete(result: PingResult) -> bool:
    ping = result.reading.value
    return ping is not None and ping.complete


def _incomplete(result: PingResult) -> bool:
    return not _complete(result)


def _too_long(result: PingResult) -> bool:
    ping = result.reading.value
    return ping is not None and ping.too_long


def _dead(result: PingResult) -> bool:
    """Nothing came back: also when the tool itself never came back. Too long is another fault."""
    ping = result.reading.value
    if ping is None:
        return result.reading.reason in (Reason.TIMEOUT, Reason.LINK_DOWN)
    return ping.received == 0 and not ping.too_long


def _lossy(result: PingResult) -> bool:
    ping = result.reading.value
    return ping is not None and 0 < ping.received < ping.transmitted


def _judged(result: PingResult) -> bool:
    """Whether this ping says anything at all."""
    return result.reading.value is not None or _dead(result)


_UNMEASURED = {Reason.BUSY: "tool.busy", Reason.PERMISSION: "tool.permission"}


def _unmeasured(results: Iterable[PingResult]) -> Iterator[Finding]:
    """Pings that the tool did not run, once per source; once per host if that concerns all."""
    by_host: dict[tuple[str, str], dict[Npu, list[PingResult]]] = {}
    sources: dict[str, set[Npu]] = {}
    for result in results:
        source = result.task.source
        sources.setdefault(source.host, set()).add(source)
        if not _judged(result) and result.reading.reason is not None:
            identifier = _UNMEASURED.get(result.reading.reason, "tool.failed")
            by_source = by_host.setdefault((identifier, source.host), {})
            by_source.setdefault(source, []).append(result)
    for (identifier, host), by_source in by_host.items():
        if len(by_source) == len(sources[host]) > 1:
            everything = [result for group in by_source.values() for result in group]
            yield _unmeasured_finding(identifier, Where(host=host), everything)
            continue
        for source, group in by_source.items():
            where = Where(host=host, device=source.device)
            yield _unmeasured_finding(identifier, where, group)


def _unmeasured_finding(identifier: str, where: Where, group: list[PingResult]) -> Finding:
    return Finding(
        id=identifier,
        severity=Severity.UNKNOWN,
        where=where,
        expected="a ping report",
        got=f"{group[0].reading.detail} ({len(group)} pings)",
        evidence=tuple(result.reading.output.evidence for result in group[:_SHOWN]),
    )


def _folded(
    view: View,
    results: Iterable[PingResult],
    identifier: str,
    failed: Callable[[PingResult], bool],
    known: Sequence[Finding],
) -> Iterator[Finding]:
    """First what nothing explains; then the rest, each with what explains it."""
    results = list(results)
    explained_by = explaining(identifier, known)
    causes: dict[int, list[Cause]] = {}
    for result in results:
        if failed(result):
            pair = _Group(_PAIR, _pair_where(result))
            causes[id(result)] = explained_by(_finding(view, identifier, pair, [result]))
    taken: set[Where] = set()
    for by_others in (False, True):
        some = [each for each in results if bool(causes.get(id(each))) is by_others]
        for group, covered in _places(results, failed, some, taken):
            taken.add(group.where)
            because = dict.fromkeys(cause for each in covered for cause in causes[id(each)])
            finding = _finding(view, identifier, group, covered)
            yield finding.model_copy(update={"because": tuple(because)})


def _places(
    results: Iterable[PingResult],
    failed: Callable[[PingResult], bool],
    some: Iterable[PingResult],
    taken: Collection[Where] = (),
) -> Iterator[tuple[_Group, list[PingResult]]]:
    """The widest places of which every ping failed, with those of their pings that are in `some`.

    A place that is `taken` is not used again.
    """
    judged = [result for result in results if _judged(result)]
    left = {id(result): None for result in some if _judged(result) and failed(result)}
    if not left:
        return
    # A group is a candidate if every ping in it failed.
    members: dict[_Group, list[PingResult]] = {}
    healthy: set[_Group] = set()
    for result in judged:
        for group in _groups(result):
            if failed(result):
                members.setdefault(group, []).append(result)
            else:
                healthy.add(group)
    candidates = {
        group: its
        for group, its in members.items()
        if group not in healthy and group.where not in taken and _wide(group, its)
    }
    while left:
        group, covered = _widest(candidates, left)
        for result in covered:
            del left[id(result)]
        yield group, covered


def _groups(result: PingResult) -> Iterator[_Group]:
    """Every place that this ping belongs to, widest first."""
    source, target = result.task.source, result.task.target
    yield _Group(_EVERYWHERE, Where(), _ALL)
    if source.host != target.host:
        yield _Group(_EVERYWHERE, Where(), _BETWEEN)
    for npu in (source, target):
        yield _Group(_HOST, Where(host=npu.host), _BOTH)
    yield _Group(_HOST_ONE_WAY, Where(host=source.host), "towards")
    yield _Group(_HOST_ONE_WAY, Where(host=target.host), "from")
    for npu in (source, target):
        yield _Group(_NPU, Where(host=npu.host, device=npu.device), _BOTH)
    yield _Group(_NPU_ONE_WAY, Where(host=source.host, device=source.device), "towards")
    yield _Group(_NPU_ONE_WAY, Where(host=target.host, device=target.device), "from")
    hosts = Where(host=source.host, peer_host=target.host)
    yield _Group(_TWO_HOSTS, hosts)
    yield _Group(_NPU_AND_HOST, hosts.model_copy(update={"device": source.device}))
    yield _Group(_NPU_AND_HOST, hosts.model_copy(update={"peer_device": target.device}))
    yield _Group(_PAIR, _pair_where(result))


def _pair_where(result: PingResult) -> Where:
    source, target = _pair(result)
    return Where(
        host=source.host,
        device=source.device,
        peer_host=target.host,
        peer_device=target.device,
    )


def _wide(group: _Group, members: list[PingResult]) -> bool:
    """Whether the pings span what the group's place says; a single pair is only a pair."""
    if group.rank == _PAIR:
        return True
    sources = {result.task.source for result in members}
    targets = {result.task.target for result in members}
    npus = sources | targets
    hosts = {npu.host for npu in npus}
    if group.where == Where():
        return len(hosts) > 2
    if group.rank in (_HOST, _HOST_ONE_WAY):
        # A host: several of its devices, or its only one with several others.
        own = {npu for npu in npus if npu.host == group.where.host}
        return len(own) > 1 and len(npus - own) > 1
    if group.rank == _NPU:
        own_npu = Npu(group.where.host or "", group.where.device or 0)
        peers = npus - {own_npu}
        return len(peers) > 1 and own_npu in sources & targets
    if group.where.peer_host is not None and group.rank == _TWO_HOSTS:
        return len(sources) > 1 and len(targets) > 1
    return len(members) > 1


def _widest(
    candidates: dict[_Group, list[PingResult]], left: dict[int, None]
) -> tuple[_Group, list[PingResult]]:
    """The candidate that explains most of what is left; of equal ones the narrower place."""
    covered = {
        group: [result for result in members if id(result) in left]
        for group, members in candidates.items()
    }
    group = max(covered, key=lambda g: (len(covered[g]), g.rank, str(g.where)))
    return group, covered[group]


def _finding(view: View, identifier: str, group: _Group, results: list[PingResult]) -> Finding:
    first = results[0]
    counted = any(
        all(view.counts(npu.host, npu.device) for npu in _pair(result)) for result in results
    )
    return Finding(
        id=identifier,
        severity=Severity.FAIL if counted else Severity.WARN,
        where=group.where,
        expected="every packet back" if first.task.size is None else "a full frame back",
        got=_story(first, results, group),
        evidence=tuple(result.reading.output.evidence for result in results[:_SHOWN]),
    )


def _story(first: PingResult, results: list[PingResult], group: _Group) -> str:
    ping = first.reading.value
    if ping is None:
        text = first.reading.detail
    elif ping.too_long:
        text = "Message too long"
    elif ping.transmitted == 0:
        text = "the device sent nothing and reported success"
    else:
        text = f"{ping.received} of {ping.transmitted} packets back ({ping.loss:.0%} lost)"
        text += ", no route" if ping.no_route else ""
    if first.task.size is not None:
        text += f" with {first.task.size} bytes of payload"
    if len(results) > 1:
        others = {npu for result in results for npu in _others(result, group)}
        text = f"{len(results)} pings {group.way} {listed(sorted(others), 4)}; the first: {text}"
    return text


def _others(result: PingResult, group: _Group) -> Iterator[Npu]:
    """Whom a story about this place names besides the place itself."""
    source, target = _pair(result)
    if group.way == "towards":
        yield target
    elif group.way == "from":
        yield source
    else:
        yield from (npu for npu in (source, target) if npu.host != group.where.host)


def _planes(results: Iterable[PingResult]) -> Iterator[Finding]:
    """hccs_ping: every packet came back, and not over every L1 plane."""
    for result in results:
        ping = result.reading.value
        if ping is not None and ping.complete and ping.bad_plane:
            yield Finding(
                id="ping.loss",
                severity=Severity.WARN,
                where=_pair_where(result),
                expected="L1 plane check result 0x0",
                got=f"{ping.bad_plane:#x}: at least one plane failed",
                evidence=(result.reading.output.evidence,),
            )


def _slow(results: Iterable[PingResult]) -> Iterator[Finding]:
    """Outliers against the matrix: a path that is slow alone, not a fabric that is slow."""
    timed = [result for result in results if _milliseconds(result) is not None]
    if not timed:
        return
    middle = median(_milliseconds(result) or 0.0 for result in timed)

    def slow(result: PingResult) -> bool:
        limit = max(SLOW_HCCS if result.task.hccs else SLOW, SLOW_FACTOR * middle)
        return (_milliseconds(result) or 0.0) > limit

    for group, covered in _places(timed, slow, timed):
        times = sorted(_milliseconds(result) or 0.0 for result in covered)
        many = f" and up to {times[-1]:.3f} ms, {len(times)} pings" if len(times) > 1 else ""
        yield Finding(
            id="ping.slow",
            severity=Severity.WARN,
            where=group.where,
            expected=f"about {middle:.3f} ms, as between most NPUs",
            got=f"{times[0]:.3f} ms{many}",
            evidence=tuple(result.reading.output.evidence for result in covered[:_SHOWN]),
        )


def _milliseconds(result: PingResult) -> float | None:
    """The time that a ping takes once the path is known; None if it did not come back."""
    ping = result.reading.value
    return None if ping is None else ping.steady_milliseconds
