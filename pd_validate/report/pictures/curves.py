"""Distributions and curves: latencies, KV usage, bandwidth over time."""

from __future__ import annotations

from collections.abc import Sequence

from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.draw import (
    WIDTH,
    line,
    svg,
    text,
    ticks,
    time_axis,
    with_title,
)
from pd_validate.report.record import RunRecord
from pd_validate.report.words import duration, percentile

_HALF = (WIDTH - 40) / 2
_BINS = 36
_PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
_SERIES = 6  # colours in the style sheet; then they repeat


def histogram(values: Sequence[float], title: str) -> Markup:
    """Distribution of `values` (seconds), with median, 90th and 99th percentile marked."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    width = (high - low) / _BINS or max(high, 1e-9) / _BINS
    counts = [0] * _BINS
    for value in ordered:
        counts[min(_BINS - 1, int((value - low) / width))] += 1
    height, top = 120, 34
    step = _HALF / _BINS
    shapes = [text(0, 13, title, cls="chart-title")]
    shapes += [
        with_title(
            f"{duration(low + number * width)} to {duration(low + (number + 1) * width)}: {count}",
            el(
                "rect",
                x=number * step + 0.75,
                y=top + height * (1 - count / max(counts)),
                width=step - 1.5,
                height=height * count / max(counts),
                rx=1.5,
                cls="column",
            ),
        )
        for number, count in enumerate(counts)
        if count
    ]
    base = top + height
    shapes.append(line(0, base, _HALF, base, cls="rule"))
    shapes.append(text(0, base + 15, duration(low), cls="axis"))
    shapes.append(text(_HALF, base + 15, duration(high), cls="axis", anchor="end"))
    for _, share in _PERCENTILES:
        value = percentile(ordered, share)
        x = min(_HALF, (value - low) / (width * _BINS) * _HALF)
        shapes.append(line(x, top - 4, x, base, cls="percentile"))
    summary = " · ".join(
        f"{name} {duration(percentile(ordered, share))}" for name, share in _PERCENTILES
    )
    shapes.append(text(_HALF, 13, summary, cls="label", anchor="end"))
    return svg(_HALF, base + 22, *shapes, title=title)


def usage_curves(record: RunRecord, leaking: frozenset[str]) -> Markup:
    """KV cache usage per instance over time; those in `leaking` did not return to zero."""
    series = [usage for usage in record.kv_usage if usage.samples]
    begin = min(usage.samples[0][0] for usage in series)
    end = max(usage.samples[-1][0] for usage in series)
    length = max(end - begin, 0.001)
    left, right, top, height = 40.0, WIDTH - 150.0, 10.0, 170.0
    base = top + height
    highest = max(share for usage in series for _, share in usage.samples)
    upper = max(ticks(max(highest, 0.01) * 100, 4)[-1], highest * 100, 1) / 100
    shapes = [time_axis(left, right, base, length, top)]
    for tick in ticks(upper * 100, 4):
        y = base - height * tick / (upper * 100)
        shapes.append(line(left, y, right, y, cls="grid"))
        shapes.append(text(left - 6, y + 4, f"{tick:g} %", cls="axis", anchor="end"))
    taken: list[float] = []
    for number, usage in enumerate(series):
        points = " ".join(
            f"{left + (right - left) * (at - begin) / length:.1f},"
            f"{base - height * min(share / upper, 1):.1f}"
            for at, share in usage.samples
        )
        cls = f"series c{number % _SERIES}"
        last = usage.samples[-1][1]
        shapes.append(el("polyline", points=points, cls=cls))
        label_y = _free(base - height * min(last / upper, 1) + 4, taken)
        note = f"{usage.instance} {last:.1%}"
        label_cls = "label leak" if usage.instance in leaking else f"label ink c{number % _SERIES}"
        shapes.append(text(right + 8, label_y, note, cls=label_cls))
    return svg(WIDTH, base + 22, *shapes, title="KV cache usage over time")


def _free(y: float, taken: list[float]) -> float:
    """The place for a label nearest to `y`, upwards, that hides no other."""
    while any(abs(y - other) < 14 for other in taken):
        y -= 14
    taken.append(y)
    return y


def bandwidth_over_time(record: RunRecord) -> Markup:
    """One dot per pull: when, and how fast; a colour per decode rank."""
    pulls = [pull for pull in record.kv_pulls if pull.seconds > 0]
    begin = min(pull.at for pull in pulls)
    length = max(max(pull.at for pull in pulls) - begin, 0.001)
    rates = [pull.bytes / pull.seconds / 1e9 for pull in pulls]
    upper = max(rates) * 1.05
    left, right, top, height = 68.0, WIDTH - 150.0, 10.0, 150.0
    base = top + height
    shapes = [time_axis(left, right, base, length, top)]
    for tick in ticks(upper, 4):
        y = base - height * tick / upper
        shapes.append(line(left, y, right, y, cls="grid"))
        shapes.append(text(left - 6, y + 4, f"{tick:g} GB/s", cls="axis", anchor="end"))
    targets = list(dict.fromkeys(str(pull.target) for pull in pulls))
    for pull, rate in zip(pulls, rates, strict=True):
        shapes.append(
            el(
                "circle",
                cx=left + (right - left) * (pull.at - begin) / length,
                cy=base - height * rate / upper,
                r=2.2,
                cls=f"dot c{targets.index(str(pull.target)) % _SERIES}",
            )
        )
    for number, target in enumerate(targets):
        y = top + 10 + number * 18
        shapes.append(
            join(
                el("circle", cx=right + 14, cy=y - 4, r=4, cls=f"dot c{number % _SERIES}"),
                text(right + 24, y, target, cls="label"),
            )
        )
    return svg(WIDTH, base + 22, *shapes, title="KV pull bandwidth over time")
