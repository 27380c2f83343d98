"""The one place that sleeps: wait for evidence, never longer than a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pd_validate.errors import WaitTimeout

T = TypeVar("T")


def wait_for(
    probe: Callable[[], T | None],
    *,
    seconds: float,
    what: str,
    interval: float = 0.2,
    tail: Callable[[], str] | None = None,
) -> T:
    """Call `probe` every `interval` seconds until it returns something, and return that.

    A probe ends the wait at once by raising. After `seconds` without a result raises
    WaitTimeout with `what` was awaited and what `tail` (say, a log's last lines) gives.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = probe()
        if result is not None:
            return result
        if time.monotonic() >= deadline:
            message = f"{what}: not within {seconds:g} s"
            if tail is not None:
                message += f"\n{tail()}"
            raise WaitTimeout(message)
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))
