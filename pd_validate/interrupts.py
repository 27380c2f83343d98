"""Ctrl-C and a CI system's cancel while a run is being torn down.

The first interrupt of a run starts the teardown, or lets one that has begun go on; who asks
once more does not want to wait.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handler: a CI system's cancel must tear down as Ctrl-C does; by default it would not."""
    raise KeyboardInterrupt(f"signal {signal.Signals(number).name}")


@contextmanager
def patient(*, allowed: int | None) -> Iterator[None]:
    """While open the first `allowed` interrupts do nothing, later ones raise KeyboardInterrupt.

    `allowed` None: none does anything. For the main thread.
    """
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if allowed is not None and seen > allowed:
            interrupt(number, frame)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
