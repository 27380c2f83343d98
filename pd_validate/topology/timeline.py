"""What was done on which host, and when: told to who waits, and kept for the report.

Safe to use from the threads that work on hosts. Times are seconds since the epoch, by the
controller's clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Who is told what happens on which host."""

    def start(self, host: str, what: str) -> None: ...
    def done(self, host: str, note: str = "") -> None: ...
    def fail(self, host: str, why: str) -> None: ...


@dataclass
class Step:
    """One step on one host. `end` None: it has not ended (yet). `note`: what became of it."""

    host: str
    what: str
    start: float
    end: float | None = None
    ok: bool = True
    note: str = ""

    def fail(self, why: str) -> None:
        """It ends badly, without an exception."""
        self.ok, self.note = False, why


class Timeline:
    """All steps of a run, in the order in which they began."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: list[Step] = []
        self._handed_out = 0
        self._lock = threading.Lock()

    @property
    def steps(self) -> list[Step]:
        return list(self._steps)

    def fresh(self) -> list[Step]:
        """Those that began since the last call."""
        with self._lock:
            fresh = self._steps[self._handed_out :]
            self._handed_out += len(fresh)
        return fresh

    @contextmanager
    def step(self, host: str, what: str, note: str = "") -> Iterator[Step]:
        """What is done inside is `what`, on `host`; its `note` may be said meanwhile, too."""
        step = Step(host, what, time.time(), note=note)
        with self._lock:
            self._steps.append(step)
        self._progress.start(host, what)
        try:
            yield step
        except BaseException as error:
            step.fail(str(error).partition("\n")[0] or "given up")
            raise
        finally:
            step.end = time.time()
            if step.ok:
                self._progress.done(host, step.note)
            else:
                self._progress.fail(host, step.note)
