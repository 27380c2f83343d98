"""Asks every instance for /health now and then: finds dead ones, and brings them back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

from proxy.balancer import Group, Instance
from proxy.breaker import State
from proxy.config import Config
from proxy.upstream import UpstreamError


class Prober:
    """Probes all instances of the groups every `probe_seconds`, each with a deadline."""

    def __init__(self, config: Config, groups: Iterable[Group]) -> None:
        self._config = config
        self._groups = tuple(groups)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._probes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Probe now, and again after `probe_seconds`."""
        for group in self._groups:
            for instance in group.instances:
                task = self._loop.create_task(self._probe(group, instance))
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
        self._timer = self._loop.call_later(self._config.probe_seconds, self.start)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    async def _probe(self, group: Group, instance: Instance) -> None:
        instance.pool.prune()
        breaker = instance.breaker
        before = breaker.state
        problem, refused = await self._ask(instance)
        now = self._loop.time()
        if not problem:
            instance.probe_failures = 0
            breaker.probed(now)
            if before is State.OUT and breaker.state is not State.OUT:
                word = "is back" if breaker.state is State.UP else "is on trial"
                print(f"{group.role.noun} {instance.name} {word}", file=sys.stderr)
                group.came_up()
            return
        instance.probe_failures += 1
        if refused or instance.probe_failures >= self._config.probe_failures:
            breaker.unreachable(now, problem)
            if before is not State.OUT:
                print(f"{group.role.noun} {instance.name} is taken out: {problem}", file=sys.stderr)

    async def _ask(self, instance: Instance) -> tuple[str, bool]:
        """What is wrong ("": nothing), and whether nobody listens."""
        seconds = max(self._config.probe_seconds, 1.0)
        request = b"GET /health HTTP/1.1\r\nhost: %b\r\n\r\n" % instance.host_header
        try:
            connection = await instance.pool.connect()
            try:
                answer = await connection.send(request, limit=seconds)
            finally:
                connection.close()
        except UpstreamError as error:
            return f"/health: {error}", error.refused
        if answer.head.status != 200:
            return f"/health answered {answer.head.status}", False
        return "", False
