"""Ctrl-C and a CI system's cancel (SIGTERM), counted over a whole run.

The first one starts the teardown, or lets one that has begun go on. Who asks once more does
not want to wait.
"""

from __future__ import annotations

import math
import signal
from types import FrameType
from typing import Any


class Interrupts:
    """For the main thread. `count`: how many there were; `patience`: how many only count.

    All later ones raise KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.count = 0
        self.patience = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """By default SIGTERM would end pytest without any teardown."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)

    def ignore(self) -> None:
        """From here on they only count: what follows is short and must be whole."""
        self.patience = math.inf

    def stop(self) -> None:
        """As before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > self.patience:
            raise KeyboardInterrupt(f"signal {signal.Signals(number).name}")
