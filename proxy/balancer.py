"""Which instance gets a request: instances with their load, and the policies.

Load is counted in tokens, because a prompt of 32k tokens is not the work of one of 32.
Accounts are opened and closed by `Lease`, so that nothing can be given back twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from proxy.breaker import Breaker, State
from proxy.upstream import Pool


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def noun(self) -> str:
        return "prefiller" if self is Role.PREFILL else "decoder"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens. `name` stands in headers, metrics and messages."""

    host: str
    port: int
    name: str = ""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Instance:
    """An engine as the balancer sees it."""

    __slots__ = (
        "address",
        "breaker",
        "draining",
        "host_header",
        "in_flight",
        "name",
        "name_bytes",
        "name_header",
        "on_idle",
        "pool",
        "probe_failures",
        "role",
        "served",
        "tokens",
    )

    def __init__(self, role: Role, address: Address, pool: Pool, breaker: Breaker) -> None:
        self.role = role
        self.address = address
        self.name = address.label
        self.name_bytes = self.name.encode()
        leg = b"prefill" if role is Role.PREFILL else b"decode"
        self.name_header = b"x-pd-%b: %b\r\n" % (leg, self.name_bytes)
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.host_header = f"{host}:{address.port}".encode()
        self.pool = pool
        self.breaker = breaker
        self.in_flight = 0  # requests
        self.tokens = 0  # of the requests in flight
        self.served = 0  # requests, ever
        self.draining = False  # takes no new request
        self.probe_failures = 0  # in a row
        self.on_idle: asyncio.Event | None = None  # set when in_flight comes to zero

    @property
    def takes_requests(self) -> bool:
        return not self.draining and self.breaker.state is not State.OUT


class Lease:
    """One request's share of an instance's load."""

    __slots__ = ("_instance", "_tokens")

    def __init__(self, instance: Instance, tokens: int) -> None:
        self._instance: Instance | None = instance
        self._tokens = tokens
        instance.in_flight += 1
        instance.tokens += tokens
        instance.served += 1

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        instance = self._instance
        if instance is None:
            return
        self._instance = None
        instance.in_flight -= 1
        instance.tokens -= self._tokens
        if instance.in_flight == 0 and instance.on_idle is not None:
            instance.on_idle.set()


# A policy chooses among instances that can take the request; `key` is the beginning of
# its prompt, `turn` counts choices and breaks ties (or all sequential traffic would go
# to the first instance).
Policy = Callable[[Sequence[Instance], bytes, int], Instance]


def least_load(candidates: Sequence[Instance], key: bytes, turn: int) -> Instance:
    """The one with the fewest tokens in flight."""
    count = len(candidates)
    best = candidates[turn % count]
    for step in range(1, count):
        other = candidates[(turn + step) % count]
        if other.tokens < best.tokens:
            best = other
    return best


def round_robin(candidates: Sequence[Instance], key: bytes, turn: int) -> Instance:
    """Each in turn."""
    return candidates[turn % len(candidates)]


# An instance may have this much more load than the average before a prompt that would
# find its prefix cached there goes elsewhere.
_SLACK = 1.25
_SLACK_TOKENS = 4096


def prefix_affinity(candidates: Sequence[Instance], key: bytes, turn: int) -> Instance:
    """Equal beginnings go to the same instance, unless that one is overloaded.

    Rendezvous hashing: keeps no table (nothing grows), and when an instance comes or
    goes only its own prompts move.
    """
    limit = _SLACK * sum(i.tokens for i in candidates) / len(candidates) + _SLACK_TOKENS
    ranked = sorted(
        candidates,
        key=lambda i: blake2b(key, key=i.name_bytes[:64], digest_size=8).digest(),
    )
    for instance in ranked:
        if instance.tokens <= limit:
            return instance
    return least_load(candidates, key, turn)


POLICIES: dict[str, Policy] = {
    "least-load": least_load,
    "round-robin": round_robin,
    "prefix-affinity": prefix_affinity,
}


class Group:
    """All instances of one role."""

    def __init__(self, role: Role, policy: Policy) -> None:
        self.role = role
        self.instances: list[Instance] = []
        self._policy = policy
        self._turn = 0
        self._came_up = asyncio.Event()

    def pick(self, key: bytes, exclude: Collection[Instance] = ()) -> Instance | None:
        """An instance for a request, or None when none can take it."""
        up, on_trial = [], []
        for instance in self.instances:
            state = instance.breaker.state
            if state is State.OUT or instance.draining or instance in exclude:
                continue
            if state is State.UP or instance.in_flight == 0:
                up.append(instance)
            else:
                on_trial.append(instance)
        candidates = up or on_trial  # better one whose trial is under way than nobody
        if not candidates:
            return None
        self._turn += 1
        if len(candidates) == 1:
            return candidates[0]
        return self._policy(candidates, key, self._turn)

    def can_serve(self, exclude: Collection[Instance]) -> bool:
        """Whether `pick` would find one."""
        # A generator expression would cost twice as much, for every request.
        for instance in self.instances:
            if instance.takes_requests and instance not in exclude:
                return True
        return False

    @property
    def available(self) -> int:
        """How many instances take requests."""
        return sum(1 for i in self.instances if i.takes_requests)

    def came_up(self) -> None:
        """An instance takes requests again: wakes `wait_up`."""
        self._came_up.set()
        self._came_up = asyncio.Event()

    async def wait_up(self, seconds: float) -> None:
        """Wait until an instance comes up, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._came_up.wait()
        except TimeoutError:
            return
