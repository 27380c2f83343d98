"""How many requests are served at once, and how many may wait for a turn."""

from __future__ import annotations

import asyncio
from collections import deque

from proxy.errors import ProxyError


class Admission:
    """A bounded number of places and a bounded queue in front of them, first come first served."""

    def __init__(self, places: int, queue: int, seconds: float) -> None:
        self._places = places
        self._queue = queue
        self._seconds = seconds
        self.in_service = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self) -> None:
        """Take a place; every return must be followed by one `leave()`.

        Raises ProxyError: 429 when the queue is full, 503 when no place came free in time.
        """
        if self.in_service < self._places and not self._waiting:
            self.in_service += 1
            return
        if len(self._waiting) >= self._queue:
            raise ProxyError(
                429,
                f"{self.in_service} requests are served and {len(self._waiting)} wait: "
                "the proxy takes no more; send fewer at once",
                retry_after=1,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.cancelled():
                if turn in self._waiting:  # else `leave()` has passed it over already
                    self._waiting.remove(turn)
            else:
                self.leave()  # the turn came in the same moment
            if isinstance(error, TimeoutError):
                message = f"no place came free within {self._seconds:g} s"
                raise ProxyError(503, message, retry_after=5) from None
            raise

    def leave(self) -> None:
        """Give a place back, to the next one who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the place changes hands: in_service stays
                return
        self.in_service -= 1
