"""Numbers in words that a person reads at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds in words a person reads at once: 480 µs, 12 ms, 9.8 s, 6 min 53 s."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes in decimal units: 1.57 MB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:,.3g} TB" if count < 1e6 else f"{count / 1000:,.0f} TB"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of sorted values, `share` 0..1."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 test, 1,024 tests."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def capped(text: str, limit: int) -> str:
    """`text`, or its beginning and its end with a line between that says what is left out.

    The end gets two thirds: a log's last lines tell why it ended.
    """
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    left_out = len(text) - head - tail
    return f"{text[:head]}\n\n[… {left_out} characters left out …]\n\n{text[-tail:]}"
