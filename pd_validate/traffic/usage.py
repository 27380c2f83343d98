"""KV cache usage of the engines over time, sampled in the background while tests run.

For the report's curves only: verdicts on leaks come from checks/drain.py, which asks itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from pd_validate.traffic.client import RequestFailed

# A reading costs an engine a few milliseconds of CPU; twice a second would be felt on a small
# machine, and a request with thousands of tokens holds its blocks for longer than this.
SECONDS = 1.0

Samples = dict[str, list[tuple[float, float]]]
"""By instance: (seconds since the epoch by our clock, share of KV blocks in use 0..1)."""


class UsageWatch:
    """Asks every instance once in `seconds`. An instance that does not answer has a gap."""

    def __init__(self, readers: Mapping[str, Callable[[], float]], seconds: float = SECONDS):
        """`readers` give an instance's usage, 0..1; they may raise RequestFailed."""
        self._readers = readers
        self._seconds = seconds
        self._samples: Samples = {name: [] for name in readers}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kv-usage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Samples:
        """End the watch; a last look shows whether all has come back to zero."""
        self._over.set()
        self._thread.join()
        self._look()
        return self._samples

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()
            self._over.wait(self._seconds)

    def _look(self) -> None:
        for name, read in self._readers.items():
            try:
                share = read()
            except RequestFailed:
                continue
            self._samples[name].append((time.time(), share))
