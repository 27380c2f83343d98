"""Many requests at once: ramps, storms of clients that leave, traffic while something breaks.

Gives what each request got, in order; judges nothing. Threads, because a request's client
is blocking and a few dozen are enough to fill an engine.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pd_validate.traffic.client import Answer, RequestFailed


class Leaver(Protocol):
    """A client that can begin a request and leave it (traffic/client.py)."""

    def abandon(self, prompt: list[int], *, max_tokens: int, after_events: int) -> None: ...
    def hang_up_after(self, prompt: list[int], *, max_tokens: int, seconds: float) -> None: ...


@dataclass(frozen=True)
class Sent:
    """One request and what became of it. `error` is set where no complete answer came.

    `at` is time.monotonic() when it was sent, `seconds` until its end.
    """

    at: float
    seconds: float
    answer: Answer | None = None
    error: RequestFailed | None = None

    @property
    def ok(self) -> bool:
        return self.answer is not None and self.answer.ok and self.answer.done


def send(ask: Callable[[], Answer]) -> Sent:
    """Send one request; a connection that breaks is a result, too."""
    started = time.monotonic()
    try:
        answer = ask()
    except RequestFailed as error:
        return Sent(started, time.monotonic() - started, error=error)
    return Sent(started, time.monotonic() - started, answer=answer)


def at_once(
    asks: Sequence[Callable[[], Answer]], *, beside: Callable[[], None] | None = None
) -> list[Sent]:
    """All of them at once, results in their order; `beside` is done at the same time."""
    with ThreadPoolExecutor(len(asks) + 1) as pool:
        other = pool.submit(beside) if beside is not None else None
        sent = list(pool.map(send, asks))
        if other is not None:
            other.result()
        return sent


def storm(
    client: Leaver, prompts: Sequence[list[int]], *, seed: int = 0, longest: float = 0.4
) -> None:
    """Clients that leave, all at once: some in the middle of a stream, some at any moment.

    `longest`: seconds after which the most patient of the latter hangs up. Raises
    RequestFailed if a request that was to be left in mid-stream broke by itself before.
    """
    chance = random.Random(seed)
    leave: list[Callable[[], None]] = []
    for number, prompt in enumerate(prompts):
        events, seconds = chance.randrange(4), chance.uniform(0.005, longest)
        if number % 2:
            leave.append(partial(client.abandon, prompt, max_tokens=200, after_events=events))
        else:
            leave.append(partial(client.hang_up_after, prompt, max_tokens=200, seconds=seconds))
    with ThreadPoolExecutor(max(1, len(leave))) as pool:
        for ended in [pool.submit(one) for one in leave]:
            ended.result()


@dataclass
class Traffic:
    """Requests one after the other in some threads, until `stop`. A context manager.

    `ask` is called with the number of the request, from 0.
    """

    ask: Callable[[int], Answer]
    width: int = 2
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._count = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.width)]

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                number, self._count = self._count, self._count + 1
            result = send(partial(self.ask, number))
            with self._lock:
                self.sent.append(result)
            if not result.ok:
                self._ended.wait(0.05)  # a service that refuses at once is not to be hammered

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self, *, seconds: float) -> bool:
        """Let what is under way end; False if something has not ended after `seconds`."""
        self._ended.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
