"""What a prefiller rank keeps for decoders, and until when.

The scheduler announces a finished request; from then on its blocks stay allocated until
every decoder rank concerned has said that it is done, or a release came, or the deadline
passed. A decoder may be done, or a release come, before the workers hear the announcement:
such words are kept for it. Each announced request ends exactly once: a finished id that the
scheduler does not know would end the engine. Thread-safe; the clock is time.monotonic.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from connector.protocol import BeginReply, BeginStatus

REMEMBERED = 8192  # requests, of those that ended (to answer late questions) and of those to come


class End(StrEnum):
    """Why a request's blocks were let go."""

    ACKED = "acked"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass
class Hold:
    """What is known of one finished request: of its blocks here, and of its decoder."""

    blocks: int = 0
    deadline: float = math.inf
    expected: set[int] | None = None
    """Decoder ranks that will report; unknown until the first one speaks."""
    begun: set[int] = field(default_factory=set)
    acked: set[int] = field(default_factory=set)
    released: bool = False

    def end(self, now: float) -> End | None:
        if self.expected is not None and self.acked >= self.expected:
            return End.ACKED
        # A release waits for ranks that are pulling: blocks are never reused under a pull.
        if self.released and self.acked >= self.begun:
            return End.RELEASED
        return End.EXPIRED if now >= self.deadline else None


class Holds:
    """All holds of one prefiller rank.

    `informants(tp_size)` gives the decoder ranks that will report for a decoder of that TP
    size (connector.tp.informants); it may raise TransferError.
    """

    def __init__(
        self,
        timeout: float,
        informants: Callable[[int], set[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = threading.Event()
        self._timeout = timeout
        self._informants = informants
        self._clock = clock
        self._lock = threading.Lock()
        self._run: str | None = None
        self._held: dict[str, Hold] = {}
        self._early: OrderedDict[str, Hold] = OrderedDict()  # spoken of, but not announced yet
        self._ended: OrderedDict[str, End] = OrderedDict()

    def announce(self, run: str, blocks: Mapping[str, int]) -> None:
        """Requests that the scheduler hands over: their blocks (a count each) are kept from now."""
        deadline = self._clock() + self._timeout
        with self._lock:
            self._run = run
            for request_id, count in blocks.items():
                self._ended.pop(request_id, None)
                hold = self._early.pop(request_id, None) or Hold()
                hold.blocks, hold.deadline = count, deadline
                self._held[request_id] = hold

    def begin(
        self, request_id: str, run: str | None, tp_rank: int, tp_size: int, lease: float
    ) -> BeginReply:
        """A decoder rank wants to pull: keep the blocks for at least `lease` more seconds."""
        expected = self._informants(tp_size)
        now = self._clock()
        with self._lock:
            hold = self._held.get(request_id)
            if hold is None:
                return self._absent(request_id, run)
            if hold.released or hold.end(now) is not None:
                return BeginReply(BeginStatus.GONE, "already released")
            hold.expected = expected
            hold.begun.add(tp_rank)
            hold.acked.discard(tp_rank)
            hold.deadline = max(hold.deadline, now + lease)
            return BeginReply(BeginStatus.OK)

    def _absent(self, request_id: str, run: str | None) -> BeginReply:
        if request_id in self._ended:
            return BeginReply(BeginStatus.GONE, f"already {self._ended[request_id]}")
        if request_id in self._early and self._early[request_id].released:
            return BeginReply(BeginStatus.GONE, f"already {End.RELEASED}")
        if run is not None and self._run is not None and run != self._run:
            return BeginReply(BeginStatus.GONE, "the prefiller was restarted since")
        return BeginReply(BeginStatus.UNKNOWN)

    def finished(self, request_id: str, tp_rank: int, tp_size: int) -> None:
        """A decoder rank is done. Late and repeated messages change nothing."""
        expected = self._informants(tp_size)
        with self._lock:
            hold = self._spoken_of(request_id)
            if hold is None:
                return
            hold.expected = expected
            hold.acked.add(tp_rank)
        self.changed.set()

    def release(self, request_id: str) -> None:
        """No decoder will take this request. May come before it is announced."""
        with self._lock:
            hold = self._spoken_of(request_id)
            if hold is not None:
                hold.released = True
        self.changed.set()

    def _spoken_of(self, request_id: str) -> Hold | None:
        """The hold that a message is about, which may be yet to come; None if it has ended."""
        if request_id in self._ended:
            return None
        if request_id in self._held:
            return self._held[request_id]
        hold = self._early.setdefault(request_id, Hold())
        _forget_oldest(self._early)
        return hold

    def collect(self) -> dict[str, End]:
        """Requests that ended since the last call, each once."""
        now = self._clock()
        ended: dict[str, End] = {}
        with self._lock:
            for request_id, hold in self._held.items():
                if (end := hold.end(now)) is not None:
                    ended[request_id] = end
            for request_id in ended:
                del self._held[request_id]
            self._ended |= ended
            _forget_oldest(self._ended)
        return ended

    def totals(self) -> tuple[int, int]:
        """Requests and blocks held now."""
        with self._lock:
            return len(self._held), sum(hold.blocks for hold in self._held.values())


def _forget_oldest(requests: OrderedDict[str, Any]) -> None:
    while len(requests) > REMEMBERED:
        requests.popitem(last=False)
