"""The same work on all hosts at once, each with its own deadline and its own result.

A host that fails or hangs costs the others nothing: their results stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from pd_validate.errors import CommandTimeout, LabError
from pd_validate.hosts.remote import RemoteHost
from pd_validate.spec.models import Cluster

T = TypeVar("T")

# What unwinds after a host's connection was cut at its deadline, before it counts as hung.
_UNWIND = 1.0  # seconds


class _Worker(threading.Thread):
    """One call in a thread of its own; a thread that hangs must not keep the program alive."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        super().__init__(name=f"host-{name}", daemon=True)
        self._work = work
        self.value: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error


def in_parallel(
    work: Mapping[str, Callable[[], T]],
    *,
    timeout: float | None = None,
    give_up: Callable[[str], None] | None = None,
) -> dict[str, T | LabError]:
    """Call everything at once; by name, what each returned or the LabError it raised.

    What has not returned after `timeout` seconds is a CommandTimeout; `give_up(name)` is told
    before, to cut what it waits for. Any other exception is a fault of the program and is
    raised once all have returned.
    """
    workers = {name: _Worker(name, call) for name, call in work.items()}
    for worker in workers.values():
        worker.start()
    deadline = None if timeout is None else time.monotonic() + timeout
    for name, worker in workers.items():
        worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if worker.is_alive() and give_up is not None:
            give_up(name)
    results: dict[str, T | LabError] = {}
    unwound = time.monotonic() + _UNWIND
    for name, worker in workers.items():
        late = worker.is_alive()
        worker.join(max(0.0, unwound - time.monotonic()))
        if late:
            results[name] = CommandTimeout(f"{name}: not finished within {timeout:g} s")
        elif isinstance(worker.error, LabError):
            results[name] = worker.error
        elif worker.error is not None:
            raise worker.error
        else:
            results[name] = worker.value  # type: ignore[assignment]  # what the call returned
    return results


class Fleet(Mapping[str, RemoteHost]):
    """All hosts of a cluster, by name."""

    def __init__(self, hosts: Mapping[str, RemoteHost]) -> None:
        self._hosts = dict(hosts)

    @classmethod
    def of_cluster(cls, cluster: Cluster, *, run_id: str = "") -> Self:
        return cls(
            {name: RemoteHost.of_cluster(cluster, name, run_id=run_id) for name in cluster.hosts}
        )

    def __getitem__(self, name: str) -> RemoteHost:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def connect(self) -> dict[str, LabError]:
        """Log in everywhere at once. Returns the hosts that cannot be used, and why."""
        results = in_parallel({name: host.connect for name, host in self._hosts.items()})
        return {name: error for name, error in results.items() if isinstance(error, LabError)}

    def map(
        self, work: Callable[[RemoteHost], T], *, timeout: float | None = None
    ) -> dict[str, T | LabError]:
        """`work(host)` on all hosts at once. After `timeout` seconds a host's connection is cut."""

        def call(host: RemoteHost) -> Callable[[], T]:
            return lambda: work(host)

        return in_parallel(
            {name: call(host) for name, host in self._hosts.items()},
            timeout=timeout,
            give_up=lambda name: self._hosts[name].drop(),
        )

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
