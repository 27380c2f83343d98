"""The ping matrix as a heat map: sources in rows, targets in columns.

Up to 64 NPUs every path is a cell; above that a cell is a pair of hosts, with the worst of
its paths, so that one dead path still shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.draw import svg, text, with_title
from pd_validate.report.record import Npu, Ping, RunRecord
from pd_validate.report.words import percentile

_MOST_NPUS = 64
_LABELS = 34
_HEAD = 34
_GAP = 8  # between hosts
_SHADES = 5


def ping_map(record: RunRecord) -> Markup:
    """Cells are shaded by round trip time in five steps; loss and silence have own colours."""
    npus = sorted({n for p in record.pings for n in (p.source, p.target)}, key=_order(record))
    if len(npus) <= _MOST_NPUS:
        names = [(npu.host, str(npu.device)) for npu in npus]
        index = {npu: number for number, npu in enumerate(npus)}
        cells = {(index[p.source], index[p.target]): [p] for p in record.pings}
    else:
        hosts = list(dict.fromkeys(npu.host for npu in npus))
        names = [(host, "") for host in hosts]
        by_host = {host: number for number, host in enumerate(hosts)}
        cells = {}
        for ping in record.pings:
            place = (by_host[ping.source.host], by_host[ping.target.host])
            cells.setdefault(place, []).append(ping)
    return _grid(names, cells, _limits(record.pings))


def _order(record: RunRecord) -> Callable[[Npu], tuple[int, str, int]]:
    """Sort key: hosts as in the cluster file, unknown ones after them; then by device."""
    position = {host.name: number for number, host in enumerate(record.hosts)}
    return lambda npu: (position.get(npu.host, len(position)), npu.host, npu.device)


def _limits(pings: Iterable[Ping]) -> list[float]:
    """Upper limits (ms) of the shades but the last: fifths of what is usual here.

    The last shade begins at twice the median, so that it means "slow" and not "slowest".
    """
    times = sorted(ping.ms for ping in pings if ping.ms is not None)
    if not times:
        return []
    low, median = times[0], percentile(times, 0.5)
    step = (2 * median - low) / (_SHADES - 1)
    return [low + step * (number + 1) for number in range(_SHADES - 1)]


def _grid(
    names: Sequence[tuple[str, str]],
    cells: dict[tuple[int, int], list[Ping]],
    limits: Sequence[float],
) -> Markup:
    size = max(9, min(22, 470 / max(1, len(names))))
    offsets: list[float] = []
    at = 0.0
    for number, (host, _) in enumerate(names):
        if number and host != names[number - 1][0]:
            at += _GAP
        offsets.append(at)
        at += size
    shapes = []
    for number, (host, device) in enumerate(names):
        middle = offsets[number] + size / 2
        if number == 0 or host != names[number - 1][0]:
            # Host names beside the first of their NPUs, in both directions.
            shapes.append(text(_LABELS + offsets[number], 13, host, cls="host-name small"))
            shapes.append(text(0, _HEAD + middle + 4, host, cls="host-name small"))
        shapes.append(text(_LABELS + middle, 29, device, cls="axis small", anchor="middle"))
        shapes.append(text(_LABELS - 4, _HEAD + middle + 3, device, cls="axis small", anchor="end"))
    for (row, column), pings in cells.items():
        ping = min(pings, key=lambda p: (p.received / p.sent if p.sent else 0, -(p.ms or 0)))
        shapes.append(
            with_title(
                _title(ping, len(pings)),
                el(
                    "rect",
                    x=_LABELS + offsets[column] + 0.75,
                    y=_HEAD + offsets[row] + 0.75,
                    width=size - 1.5,
                    height=size - 1.5,
                    rx=2,
                    cls=_shade(ping, limits),
                ),
            )
        )
    extent = at + 2
    return svg(_LABELS + extent, _HEAD + extent, *shapes, title="Ping matrix")


def _title(ping: Ping, paths: int) -> str:
    answer = f"{ping.received} of {ping.sent} back"
    time = f", {ping.ms:.3g} ms" if ping.ms is not None else ""
    more = f" (worst of {paths} paths)" if paths > 1 else ""
    return f"{ping.source} to {ping.target}: {answer}{time}{more}"


def _shade(ping: Ping, limits: Sequence[float]) -> str:
    if ping.received == 0:
        return "heat lost"
    if ping.received < ping.sent:
        return "heat loss"
    step = sum(ping.ms is not None and ping.ms > limit for limit in limits)
    return f"heat h{step}"


def ping_legend(record: RunRecord) -> Markup:
    """What the colours of the heat map mean."""
    limits = _limits(record.pings)
    entries = [(f"heat h{number}", f"to {limit:.2g} ms") for number, limit in enumerate(limits)]
    if limits:
        entries.append((f"heat h{len(limits)}", "slower"))
    entries += [("heat loss", "some lost"), ("heat lost", "no answer")]
    return el(
        "p",
        *(
            join(
                el("svg", el("rect", width=11, height=11, rx=2, cls=cls), width=11, height=11),
                f" {name}",
                Markup("&emsp;"),
            )
            for cls, name in entries
        ),
        cls="legend",
    )


def paths_lost(record: RunRecord) -> list[tuple[Npu, int, int]]:
    """The fewest NPUs that stand for all silent paths: (NPU, silent paths, all its paths).

    One dead NPU makes a silent path at every other; so the NPU with most silent paths takes
    them all, then the next takes what is left.
    """
    order = _order(record)
    silent = [(ping.source, ping.target) for ping in record.pings if ping.received == 0]
    total = Counter(npu for ping in record.pings for npu in (ping.source, ping.target))
    result = []
    while silent:
        counts = Counter(npu for path in silent for npu in path)
        npu = min(counts, key=lambda n: (-counts[n], order(n)))
        result.append((npu, counts[npu], total[npu]))
        silent = [path for path in silent if npu not in path]
    return result
