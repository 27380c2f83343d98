"""The one place that waits by polling, and locks that the standard library lacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def poll(
    attempt: Callable[[], T | None],
    deadline: float,
    *,
    every: float,
    cancelled: threading.Event | None = None,
) -> T | None:
    """The first answer of `attempt` that is not None, asked `every` so many seconds.

    None once `deadline` (of time.monotonic) has passed or `cancelled` is set. `attempt` is
    asked at least once unless cancelled.
    """
    stop = cancelled or threading.Event()
    while not stop.is_set():
        answer = attempt()
        left = deadline - time.monotonic()
        if answer is not None:
            return answer
        if left <= 0:
            return None
        stop.wait(min(every, left))
    return None


def pause(seconds: float, deadline: float) -> bool:
    """Wait so long, but not beyond `deadline`; whether the full time was waited."""
    wanted = time.monotonic() + seconds
    poll(lambda: None, min(wanted, deadline), every=max(seconds, 0.001))
    return wanted <= deadline


class SharedLock:
    """Many may hold it shared, or one alone. One who wants it alone goes before newcomers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0
        self._alone_wanted = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._alone_wanted)
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._alone_wanted += 1
            self._changed.wait_for(lambda: not self._alone and not self._holders)
            self._alone_wanted -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
