"""When an instance is taken out, and when it is tried again. Pure: time is passed in.

Only what says "this instance cannot serve" counts: refused connections, resets, 5xx.
An answer 4xx is the client's, a slow answer is load, a cancelled request is nobody's
fault: none of them is ever counted (a breaker that trips on long generations turns
load into an outage).
"""

from __future__ import annotations

from enum import StrEnum

FIRST_PAUSE = 1.0  # seconds out before the first trial
LONGEST_PAUSE = 15.0


class State(StrEnum):
    UP = "up"
    OUT = "out"  # gets no request
    TRIAL = "trial"  # gets one request at a time; its outcome decides


class Breaker:
    """Health of one instance as its requests and probes show it. Times in seconds."""

    __slots__ = ("_failures", "_pause", "_threshold", "_until", "reason", "state")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._until = 0.0
        self.state = State.UP
        self.reason = ""

    def succeeded(self) -> None:
        """A request was answered, with whatever status below 500."""
        self._failures = 0
        if self.state is not State.UP:
            self._pause = FIRST_PAUSE
            self.state = State.UP
            self.reason = ""

    def failed(self, now: float, reason: str, *, refused: bool = False) -> None:
        """A request failed. `refused`: nobody listens there, which needs no second proof."""
        self._failures += 1
        if self.state is State.UP and not refused and self._failures < self._threshold:
            return
        if self.state is State.OUT:
            return
        self._take_out(now, reason)

    def probe_failed(self, now: float, reason: str) -> None:
        """The health probe failed often enough in a row."""
        if self.state is State.OUT:
            self._until = max(self._until, now)
            return
        self._take_out(now, reason)

    def probed(self, now: float) -> None:
        """The health probe was answered: after its pause the instance is on trial."""
        if self.state is State.OUT and now >= self._until:
            self.state = State.TRIAL
            self._failures = self._threshold - 1  # one more failure takes it out again

    def _take_out(self, now: float, reason: str) -> None:
        if self.state is State.TRIAL:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self.state = State.OUT
        self.reason = reason
        self._until = now + self._pause
