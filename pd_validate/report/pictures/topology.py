"""The cluster as a drawing: hosts with their NPUs, instances, KV links, the NPU network.

KV links       arcs from prefill to decode instances
hosts          a card each: instances over the NPUs they use, then the host's name
NPU network    a bar below, one short line per NPU: its RoCE port
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.draw import (
    WIDTH,
    chunks,
    line,
    svg,
    text,
    text_width,
    with_title,
)
from pd_validate.report.record import HostNode, InstanceNode, Npu, RunRecord
from pd_validate.report.states import State, States
from pd_validate.report.words import size
from pd_validate.spec.models import Role

_CARDS_PER_ROW = 4
_GAP = 28  # between cards
_PAD = 14  # inside a card
_ARCS = 104  # room for KV links above the first row
_LANE = 27  # one row of instances
_CELL_HEIGHT = 26
_NAME = 30
_PORTS = 26  # from a card down to the network
_NETWORK = 26
_NARROW = 17  # a cell whose number needs small type
_ALL_LINKS = 12  # of more of them only those at fault are drawn
_LABELLED_LINKS = 6  # more of them and labels would hide each other


def topology(record: RunRecord, states: States) -> Markup:
    """Draws hosts, instances, proxy, KV links and ports, each in the colour of its state."""
    rows = chunks(record.hosts, _CARDS_PER_ROW)
    anchors: dict[str, tuple[float, float]] = {}
    shapes: list[Markup] = []
    y: float = _ARCS if len(record.instances) > 1 else 8
    for row in rows:
        cards = [
            _Card(record, host, x, y, width, _lanes_of(record, row))
            for host, (x, width) in zip(row, _columns(len(row), len(rows)), strict=True)
        ]
        for card in cards:
            shapes.append(card.draw(states))
            anchors |= card.anchors()
        bottom = y + cards[0].height + _PORTS
        shapes.append(_network(cards, bottom))
        y = bottom + _NETWORK + _GAP
    links = _kv_links(record, states, anchors)
    return svg(WIDTH, y - _GAP + 6, *shapes, *links, title="Topology of the cluster")


def _columns(count: int, rows: int) -> list[tuple[float, float]]:
    """(x, width) of each card; with several rows all rows use the same columns."""
    columns = _CARDS_PER_ROW if rows > 1 else count
    width = (WIDTH - _GAP * (columns - 1) - 2) / columns
    return [(1 + index * (width + _GAP), width) for index in range(count)]


def _lanes_of(record: RunRecord, hosts: Iterable[HostNode]) -> int:
    """Rows of instances that the fullest of these hosts needs, so that NPUs line up."""
    return max((len(_lanes(_on(record, host.name))) for host in hosts), default=0)


def _on(record: RunRecord, host: str) -> list[InstanceNode]:
    return [instance for instance in record.instances if instance.host == host]


def _lanes(instances: Iterable[InstanceNode]) -> list[list[InstanceNode]]:
    """Instances whose spans of NPUs overlap go into different lanes."""
    lanes: list[list[InstanceNode]] = []
    for instance in sorted(instances, key=lambda i: min(i.devices, default=0)):
        start = min(instance.devices, default=0)
        for lane in lanes:
            if max(lane[-1].devices, default=-1) < start:
                lane.append(instance)
                break
        else:
            lanes.append([instance])
    return lanes


@dataclass(frozen=True)
class _Card:
    """One host; `lanes` rows are kept free for instances though it may need fewer."""

    record: RunRecord
    host: HostNode
    x: float
    y: float
    width: float
    lanes: int

    @property
    def height(self) -> float:
        return _PAD + self.lanes * _LANE + _CELL_HEIGHT + _NAME + 6

    @property
    def _cells_y(self) -> float:
        return self.y + _PAD + self.lanes * _LANE

    def port_x(self, device: int) -> float:
        """Middle of an NPU's cell."""
        step = self._cell_step
        index = self.host.devices.index(device) if device in self.host.devices else 0
        return self.x + _PAD + step * index + (step - 4) / 2

    @property
    def _cell_step(self) -> float:
        return (self.width - 2 * _PAD + 4) / max(1, len(self.host.devices))

    def _span(self, instance: InstanceNode) -> tuple[float, float]:
        """x and width of an instance's bar: over its NPUs, wide enough for its name."""
        half = (self._cell_step - 4) / 2
        middles = [self.port_x(device) for device in instance.devices] or [self.x + _PAD + half]
        left, right = min(middles) - half, max(middles) + half
        missing = text_width(instance.name) + 18 - (right - left)
        if missing > 0:
            left, right = left - missing / 2, right + missing / 2
        # Push back into the card.
        shift = max(0, self.x + 8 - left) - max(0, right - (self.x + self.width - 8))
        return left + shift, right - left

    def anchors(self) -> dict[str, tuple[float, float]]:
        """Where KV links meet each instance: the middle of its bar's upper edge."""
        result = {}
        for number, lane in enumerate(_lanes(_on(self.record, self.host.name))):
            for instance in lane:
                left, width = self._span(instance)
                result[instance.name] = (left + width / 2, self.y + _PAD - 4 + number * _LANE)
        return result

    def draw(self, states: States) -> Markup:
        host = self.host
        state = states.host(host.name)
        card = el(
            "rect",
            x=self.x,
            y=self.y,
            width=self.width,
            height=self.height,
            rx=8,
            cls=f"card s-{state.value}",
        )
        baseline = self.y + self.height - 13
        name_width = text_width(host.name, 15)
        name = text(self.x + _PAD, baseline, host.name, cls="host-name")
        address = text(self.x + _PAD + name_width + 10, baseline, host.address, cls="label")
        return join(
            with_title(f"host {host.name}: {state.label}", card, name, address),
            self._proxy(states, baseline),
            *(self._npu(device, states) for device in host.devices),
            *self._instances(states),
        )

    def _proxy(self, states: States, baseline: float) -> Markup | None:
        proxy = self.record.proxy
        if proxy is None or proxy.host != self.host.name:
            return None
        state = states.proxy()
        label = "proxy" if proxy.port is None else f"proxy :{proxy.port}"
        width = text_width(label) + 18
        x = self.x + self.width - _PAD - width
        return with_title(
            f"{label}: {state.label}",
            el(
                "rect",
                x=x,
                y=baseline - 15,
                width=width,
                height=21,
                rx=10.5,
                cls=f"proxy s-{state.value}",
            ),
            text(x + width / 2, baseline - 0.5, label, cls="instance-name", anchor="middle"),
        )

    def _npu(self, device: int, states: States) -> Markup:
        npu = Npu(host=self.host.name, device=device)
        state = states.npu(npu)
        used = any(device in i.devices for i in _on(self.record, self.host.name))
        middle, width = self.port_x(device), self._cell_step - 4
        bottom = self.y + self.height
        cell = el(
            "rect",
            x=middle - width / 2,
            y=self._cells_y,
            width=width,
            height=_CELL_HEIGHT,
            rx=4,
            cls="cell" + (" used" if used else ""),
        )
        narrow = " narrow" if width < _NARROW else ""
        number = text(
            middle, self._cells_y + 17.5, str(device), cls="cell-text" + narrow, anchor="middle"
        )
        port_state = states.port(npu)
        port = line(middle, bottom, middle, bottom + _PORTS, cls="port")
        broken = self._cross(middle, bottom + _PORTS / 2) if port_state is State.FAIL else None
        use = "used" if used else "not used"
        return join(
            with_title(
                f"{npu}: {state.label}, {use}",
                el("g", cell, number, cls=f"s-{state.value}"),
                href=_href(states, npu),
            ),
            with_title(
                f"port of {npu}: {port_state.label}",
                el("g", port, broken, cls=f"s-{port_state.value}"),
            ),
        )

    def _cross(self, x: float, y: float) -> Markup:
        return el("path", d=f"M{x - 5:g},{y - 5:g}l10,10M{x + 5:g},{y - 5:g}l-10,10", cls="cross")

    def _instances(self, states: States) -> Iterable[Markup]:
        for number, lane in enumerate(_lanes(_on(self.record, self.host.name))):
            for instance in lane:
                left, width = self._span(instance)
                y = self.y + _PAD - 4 + number * _LANE
                state = states.instance(instance)
                yield with_title(
                    f"{instance.name} ({instance.role}): {state.label}",
                    el(
                        "rect",
                        x=left,
                        y=y,
                        width=width,
                        height=_LANE - 5,
                        rx=5,
                        cls=f"instance {instance.role} s-{state.value}",
                    ),
                    text(
                        left + width / 2,
                        y + 15,
                        instance.name,
                        cls="instance-name",
                        anchor="middle",
                    ),
                )


def _href(states: States, npu: Npu) -> str | None:
    anchor = states.anchor_at_npu(npu)
    return f"#{anchor}" if anchor else None


def _network(cards: list[_Card], y: float) -> Markup:
    left = cards[0].x
    width = cards[-1].x + cards[-1].width - left
    return join(
        el("rect", x=left, y=y, width=width, height=_NETWORK, rx=6, cls="network"),
        text(left + width / 2, y + 17, "NPU network (RoCE)", cls="label", anchor="middle"),
    )


def _kv_links(
    record: RunRecord, states: States, anchors: dict[str, tuple[float, float]]
) -> list[Markup]:
    pairs = [
        (source, target)
        for source in record.instances
        for target in record.instances
        if source.role is Role.PREFILL and target.role is Role.DECODE
        if source.name in anchors and target.name in anchors
    ]
    longest = max((abs(anchors[a.name][0] - anchors[b.name][0]) for a, b in pairs), default=1)
    shapes = []
    for number, (source, target) in enumerate(pairs):
        state = states.kv_link(source, target)
        if len(pairs) > _ALL_LINKS and state not in (State.FAIL, State.UNKNOWN):
            continue
        (x1, y1), (x2, y2) = anchors[source.name], anchors[target.name]
        # Links to the same instance end side by side, not on top of each other.
        x1 += 6 * (number % 3 - 1) if len(pairs) > 1 else 0
        rise = 26 + 92 * abs(x2 - x1) / (longest or 1)
        curve = el(
            "path",
            d=f"M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 - rise:.1f} {x2:.1f},{y2 - rise:.1f} "
            f"{x2:.1f},{y2 - 5:.1f}",
            cls="kv-link",
        )
        head = el("path", d=f"M{x2 - 4.5:.1f},{y2 - 8:.1f}h9l-4.5,8z", cls="kv-head")
        note = _link_note(record, source, target, state)
        label = (
            text(*_on_curve(x1, y1, x2, y2, rise), note, cls="halo", anchor="middle")
            if len(pairs) <= _LABELLED_LINKS
            else None
        )
        title = f"KV {source.name} to {target.name}: {state.label}" + (f", {note}" if note else "")
        shapes.append(el("g", with_title(title, join(curve, head, label)), cls=f"s-{state.value}"))
    return shapes


def _on_curve(x1: float, y1: float, x2: float, y2: float, rise: float) -> tuple[float, float]:
    """A place over the curve, nearer to its target, where curves of one source have parted."""
    t = 0.66
    x = x1 * ((1 - t) ** 3 + 3 * t * (1 - t) ** 2) + x2 * (t**3 + 3 * t * t * (1 - t))
    y = y1 + (y2 - y1) * t - 3 * t * (1 - t) * rise
    return x, y - 10


def _link_note(record: RunRecord, source: InstanceNode, target: InstanceNode, state: State) -> str:
    """The one figure worth reading on a link: blocks that differ, else the bandwidth."""
    pairs = [
        pair
        for pair in record.kv_pairs
        if (pair.source.instance, pair.target.instance) == (source.name, target.name)
    ]
    wrong = sum(pair.mismatches for pair in pairs)
    if wrong:
        return f"{wrong} KV block{'s' if wrong > 1 else ''} wrong"
    seconds = sum(pair.seconds for pair in pairs)
    if seconds > 0:
        rate = sum(pair.bytes for pair in pairs) / seconds
        return f"{size(rate)}/s"
    return "not reached" if state is State.AFFECTED else ""
