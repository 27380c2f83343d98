"""Where a tool's output goes, and its clock: the process's own, or a test's."""

from __future__ import annotations

import os
import time


class Console:
    """The process's streams, buffered as C does: stdout into a pipe only comes out at the end,
    so that in ``2>&1`` every stderr line stands before it; on a terminal all is in order.
    """

    def __init__(self, *, wait_scale: float = 1.0) -> None:
        self._wait_scale = wait_scale  # of the waits that are built into the tools
        self._line_buffered = os.isatty(1)
        self._pending: list[str] = []

    def out(self, text: str) -> None:
        self._pending.append(text)
        if self._line_buffered:
            self.flush()

    def err(self, text: str) -> None:
        _write_all(2, text)

    def flush(self) -> None:
        _write_all(1, "".join(self._pending))
        self._pending.clear()

    def sleep(self, seconds: float) -> None:
        """A wait that the vendor's tool has too."""
        time.sleep(seconds * self._wait_scale)

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()


def _write_all(descriptor: int, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(descriptor, data) :]
