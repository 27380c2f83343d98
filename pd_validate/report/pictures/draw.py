"""What all drawings share: text, ticks, units. Lengths are SVG user units (pixels at 100 %)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from rich.cells import cell_len

from pd_validate.report.markup import Markup, el, join

T = TypeVar("T")

WIDTH = 1040  # of the page's column; every drawing scales to it


def svg(width: float, height: float, *shapes: Markup, title: str) -> Markup:
    """A drawing that shrinks with the page and never grows beyond its own size."""
    return el(
        "svg",
        el("title", title),
        *shapes,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        cls="picture",
    )


def text(
    x: float, y: float, content: str, *, cls: str = "label", anchor: str | None = None
) -> Markup:
    return el("text", content, x=x, y=y, cls=cls, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, *, cls: str) -> Markup:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, cls=cls)


def with_title(title: str, *shapes: Markup, href: str | None = None) -> Markup:
    """Shapes with a tooltip, and a link if they lead somewhere."""
    group = el("g", el("title", title), *shapes)
    return el("a", group, href=href) if href else group


def text_width(content: str, size: float = 11) -> float:
    """Estimated width of a text; Chinese characters count double."""
    return cell_len(content) * size * 0.56


def chunks(items: Sequence[T], length: int) -> list[Sequence[T]]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def ticks(upper: float, count: int = 6) -> list[float]:
    """Round numbers from 0 up to at most `upper`, about `count` of them."""
    if upper <= 0:
        return [0.0]
    raw = upper / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    return [index * step for index in range(int(upper / step * 1.0001) + 1)]


def time_axis(left: float, right: float, y: float, seconds: float, top: float) -> Markup:
    """Grid lines and labels for a time axis from 0 to `seconds`."""
    shapes = []
    for tick in ticks(seconds, 8):
        x = left + (right - left) * tick / seconds if seconds else left
        shapes.append(line(x, top, x, y, cls="grid"))
        shapes.append(text(x, y + 15, f"{tick:g} s", cls="axis", anchor="middle"))
    return join(*shapes)
