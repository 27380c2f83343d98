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
    TRIAL = "trial"  # one request at a time, if others can serve; its outcome decides


class Breaker:
    """Health of one instance as its requests and probes show it. Times in seconds."""

    __slots__ = ("_failures", "_pause", "_threshold", "_unreachable", "_until", "reason", "state")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failures = 0  # in a row
        self._pause = FIRST_PAUSE
        self._until = 0.0
        self._unreachable = False  # out because it could not be reached, not for its answers
        self.state = State.UP
        self.reason = ""

    def succeeded(self) -> None:
        """A request was answered, with whatever status below 500."""
        self._failures = 0
        if self.state is State.TRIAL:
            self._pause = FIRST_PAUSE
            self._take_in()

    def failed(self, now: float, reason: str, *, refused: bool = False) -> None:
        """A request failed. `refused`: nobody listens there, which needs no second proof."""
        self._failures += 1
        if self.state is State.OUT:
            return
        if self.state is State.TRIAL or refused or self._failures >= self._threshold:
            self._take_out(now, reason, unreachable=refused)

    def unreachable(self, now: float, reason: str) -> None:
        """Probes have failed often enough in a row."""
        if self.state is not State.OUT:
            self._take_out(now, reason, unreachable=True)

    def probed(self, now: float) -> None:
        """A probe was answered.

        That proves enough for an instance that could not be reached; one that failed its
        requests answered probes all the while, and after its pause gets a trial.
        """
        if self.state is not State.OUT:
            return
        if self._unreachable:
            self._take_in()
        elif now >= self._until:
            self.state = State.TRIAL

    def _take_in(self) -> None:
        self._failures = 0
        self.state = State.UP
        self.reason = ""

    def _take_out(self, now: float, reason: str, *, unreachable: bool) -> None:
        if self.state is State.TRIAL:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self.state = State.OUT
        self.reason = reason
        self._unreachable = unreachable
        self._until = now + self._pause
