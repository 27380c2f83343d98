"""The one place that waits by polling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def poll(
    ready: Callable[[], bool],
    deadline: float,
    *,
    stop: threading.Event,
    first: float = 0.01,
    longest: float = 0.5,
) -> bool:
    """Ask `ready` again and again, ever more slowly, until it is true.

    `deadline` is a time.monotonic() value; `first` and `longest` are seconds between two
    questions. Returns False when the deadline has passed or `stop` is set.
    """
    pause = first
    while not ready():
        left = deadline - time.monotonic()
        if left <= 0 or stop.wait(min(pause, left)):
            return False
        pause = min(pause * 2, longest)
    return True
