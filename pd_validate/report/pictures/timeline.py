"""Bring-up as a Gantt chart: what each host did when, side by side."""

from __future__ import annotations

from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.draw import (
    WIDTH,
    line,
    svg,
    text,
    text_width,
    time_axis,
    with_title,
)
from pd_validate.report.record import RunRecord, Span
from pd_validate.report.words import duration

_LABELS = 70
_MARGIN = 160  # behind the last bars, for their names
_LANE = 24
_BAR = 19
_HOST_GAP = 10


def timeline(record: RunRecord) -> Markup:
    """Bars of `record.timeline`; one that never ended reaches to the end and is open there."""
    begin = min(span.start for span in record.timeline)
    end = max(span.end or span.start for span in record.timeline)
    if record.finished and any(span.end is None for span in record.timeline):
        end = max(end, record.finished.timestamp())
    length = max(end - begin, 0.001)
    right = WIDTH - _MARGIN
    scale = (right - _LABELS) / length
    shapes: list[Markup] = []
    y: float = 8
    for host in _hosts(record):
        lanes = _lanes([s for s in record.timeline if s.host == host], scale)
        shapes.append(text(0, y + 14, host, cls="host-name small"))
        for lane in lanes:
            starts = [_LABELS + (span.start - begin) * scale for span in lane]
            free_from: float = _LABELS
            for span, x, free_until in zip(lane, starts, [*starts[1:], WIDTH], strict=True):
                until = span.end if span.end is not None else end
                width = max(3.0, (until - span.start) * scale)
                shapes.append(_bar(span, x, y, width, free_from, free_until))
                # A name behind a bar takes some of the room before the next one.
                free_from = x + width + text_width(f"{span.name}  {_took(span)}") + 14
            y += _LANE
        y += _HOST_GAP
        shapes.append(line(0, y - _HOST_GAP / 2, WIDTH, y - _HOST_GAP / 2, cls="rule"))
    axis = time_axis(_LABELS, right, y, length, 4)
    return svg(WIDTH, y + 22, axis, *shapes, title="Bring-up of all hosts")


def _hosts(record: RunRecord) -> list[str]:
    known = [host.name for host in record.hosts]
    seen = {span.host for span in record.timeline}
    return [host for host in known if host in seen] + sorted(seen - set(known))


def _lanes(spans: list[Span], scale: float) -> list[list[Span]]:
    """Spans of one host in as few lanes as show each bar and its name."""
    lanes: list[list[Span]] = []
    free_from: list[float] = []
    for span in sorted(spans, key=lambda s: s.start):
        end = span.end if span.end is not None else float("inf")
        name_length = (text_width(span.name) + 16) / scale
        shown_end = end if name_length <= end - span.start else end + name_length
        for number, free in enumerate(free_from):
            if free <= span.start:
                lanes[number].append(span)
                free_from[number] = shown_end
                break
        else:
            lanes.append([span])
            free_from.append(shown_end)
    return lanes


def _took(span: Span) -> str:
    return duration(span.end - span.start) if span.end is not None else "did not end"


def _bar(
    span: Span, x: float, y: float, width: float, free_from: float, free_until: float
) -> Markup:
    """A bar from `x`; nothing else is in its lane between `free_from` and `free_until`."""
    took = _took(span)
    cls = f"bar s-{span.verdict.value}" + (" open" if span.end is None else "")
    rect = el("rect", x=x, y=y, width=width, height=_BAR, rx=4, cls=cls)
    name = None
    for label in (f"{span.name}  {took}", span.name):
        needed = text_width(label) + 14
        if needed <= width:
            name = text(x + 7, y + 13.5, label, cls="bar-text")
            break
        if x + width + needed <= free_until:
            name = text(x + width + 5, y + 13.5, label, cls="label")
            break
        if x - needed >= free_from:
            name = text(x - 5, y + 13.5, label, cls="label", anchor="end")
            break
    note = f" ({span.note})" if span.note else ""
    return with_title(f"{span.host}: {span.name}, {took}{note}", join(rect, name))
