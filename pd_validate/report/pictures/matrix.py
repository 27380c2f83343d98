"""Checks x NPUs: one cell per check and place, in the colour of its verdict.

NPUs stand in columns, grouped by host; a check of a whole host is one wide cell. Clusters
with more NPUs than fit are drawn in several blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pd_validate.findings import Where
from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.draw import svg, text, with_title
from pd_validate.report.record import HostNode, Npu, RunRecord
from pd_validate.report.states import State, States, worst_state

_LABELS = 200  # width of the check names
_HOST_GAP = 14
_HEAD = 44
_MARKS = {State.FAIL: "✕", State.UNKNOWN: "?", State.WARN: "!", State.QUARANTINED: "✕"}


@dataclass(frozen=True)
class _Scale:
    """Sizes of a cell; large clusters get the small one, so that they stay on few screens."""

    step: int  # a column, with its gap
    row: int
    cell: int
    npus_per_block: int


_LARGE = _Scale(step=20, row=20, cell=17, npus_per_block=40)
_SMALL = _Scale(step=12, row=15, cell=10, npus_per_block=64)

# A place a check is about: an NPU, a whole host (device None), or the cluster (both None).
_Place = tuple[str | None, int | None]


def matrix(record: RunRecord, states: States) -> Markup:
    """All check results; several of one check at one place are merged, the worst counts."""
    cells: dict[tuple[str, _Place], State] = {}
    for check in record.checks:
        key = (check.id, _place(check.where, states))
        cells[key] = worst_state([states.check(check), cells.get(key, State.NONE)])
    places = [place for _, place in cells]
    hosts = _hosts(record, places)
    npus = sum(len(host.devices) for host in hosts)
    scale = _LARGE if npus <= _LARGE.npus_per_block else _SMALL
    return join(
        *(
            _Block(record, states, cells, part, scale).draw()
            for part in _blocks(hosts, scale.npus_per_block)
        )
    )


def _place(where: Where, states: States) -> _Place:
    npu = states.npu_of(where)
    return (npu.host, npu.device) if npu else (states.host_of(where), None)


def _hosts(record: RunRecord, places: Iterable[_Place]) -> list[HostNode]:
    """Hosts and NPUs of the record, and those that only a check knows of: none may vanish."""
    devices: dict[str, set[int]] = {host.name: set(host.devices) for host in record.hosts}
    for host, device in places:
        if host is not None:
            devices.setdefault(host, set()).update(() if device is None else (device,))
    return [HostNode(name=name, devices=tuple(sorted(ids))) for name, ids in devices.items()]


def _blocks(hosts: Sequence[HostNode], most: int) -> list[list[HostNode]]:
    """Hosts side by side, as many as fit; at least one."""
    result: list[list[HostNode]] = []
    room = 0
    for host in hosts:
        columns = max(2, len(host.devices))
        if not result or room < columns:
            result.append([])
            room = most
        result[-1].append(host)
        room -= columns
    return result or [[]]


@dataclass(frozen=True)
class _Block:
    record: RunRecord
    states: States
    cells: dict[tuple[str, _Place], State]
    hosts: Sequence[HostNode]
    scale: _Scale

    def draw(self) -> Markup:
        ids = self._check_ids()
        left: list[float] = []
        x: float = _LABELS
        for host in self.hosts:
            left.append(x)
            x += max(2, len(host.devices)) * self.scale.step + _HOST_GAP
        width = max(x - _HOST_GAP, _LABELS + 2 * self.scale.step)
        head = [self._host_head(host, at) for host, at in zip(self.hosts, left, strict=True)]
        rows = [
            self._row(check_id, _HEAD + number * self.scale.row, left, width)
            for number, check_id in enumerate(ids)
        ]
        names = ", ".join(host.name for host in self.hosts)
        return svg(
            width + 2,
            _HEAD + len(ids) * self.scale.row + 4,
            *head,
            *rows,
            title=f"Checks of {names}",
        )

    @property
    def _axis(self) -> str:
        return "axis" if self.scale is _LARGE else "axis small"

    def _check_ids(self) -> list[str]:
        first: dict[str, int] = {}
        for check in self.record.checks:
            first.setdefault(check.id, check.layer or 0)
        return sorted(first, key=first.__getitem__)

    def _host_head(self, host: HostNode, x: float) -> Markup:
        shapes = [text(x, 14, host.name, cls="host-name small")]
        for index, device in enumerate(host.devices):
            npu = Npu(host=host.name, device=device)
            state = self.states.npu(npu)
            number = text(
                x + index * self.scale.step + self.scale.cell / 2,
                35,
                str(device),
                cls=self._axis,
                anchor="middle",
            )
            shapes.append(
                el("g", with_title(f"{npu}: {state.label}", number), cls=f"s-{state.value} ink")
            )
        return join(*shapes)

    def _row(self, check_id: str, y: float, left: Sequence[float], width: float) -> Markup:
        shapes = [text(0, y + self.scale.cell / 2 + 4.5, check_id, cls="check-name")]
        cluster = self.cells.get((check_id, (None, None)))
        if cluster is not None:
            shapes.append(
                self._cell(_LABELS, y, width - _LABELS, cluster, f"{check_id}, cluster", None)
            )
        for host, x in zip(self.hosts, left, strict=True):
            span = max(2, len(host.devices)) * self.scale.step - (self.scale.step - self.scale.cell)
            whole = self.cells.get((check_id, (host.name, None)))
            if whole is not None:
                title = f"{check_id}, {host.name}"
                anchor = self.states.anchor_at_host(host.name)
                shapes.append(self._cell(x, y, span, whole, title, anchor))
            for index, device in enumerate(host.devices):
                state = self.cells.get((check_id, (host.name, device)))
                if state is None:
                    continue
                npu = Npu(host=host.name, device=device)
                shapes.append(
                    self._cell(
                        x + index * self.scale.step,
                        y,
                        self.scale.cell,
                        state,
                        f"{check_id}, {npu}",
                        self.states.anchor_at_npu(npu),
                    )
                )
        return join(*shapes)

    def _cell(
        self, x: float, y: float, width: float, state: State, what: str, anchor: str | None
    ) -> Markup:
        mark = _MARKS.get(state)
        shapes = [el("rect", x=x, y=y, width=width, height=self.scale.cell, rx=3, cls="fill")]
        if mark:
            shapes.append(
                text(x + width / 2, y + self.scale.cell / 2 + 4, mark, cls="mark", anchor="middle")
            )
        href = f"#{anchor}" if anchor and state is not State.PASS else None
        return el(
            "g", with_title(f"{what}: {state.label}", *shapes, href=href), cls=f"s-{state.value}"
        )
