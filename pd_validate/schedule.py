"""Which worker of `pytest -n 4` runs what: one cluster bears company, but not for every test.

Tests whose verdict depends on what else the service does (a drain to zero, a fault on
purpose, a measurement; marks ALONE of plugin.py) come last, one after the other on one worker,
when all other workers are done. All others are spread over the workers as they get free.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

# A worker starts a test when it knows the one after it (or that there is none): so one waits.
_RUNNING_AND_NEXT = 2


class OneCluster(LoadScheduling):  # type: ignore[misc]  # xdist carries no types
    """See the module's docstring. `pending`: tests, by index, that no worker has yet."""

    def __init__(self, config: pytest.Config, log: Producer, alone_from: Callable[[], int]) -> None:
        """`alone_from`: index of the first test that must be alone; known once collected."""
        super().__init__(config, log)
        self._alone_from = alone_from
        self.pending: list[int] = []
        self.node2pending: dict[WorkerController, list[int]] = {}
        self.collection: list[str] | None = None
        self._alone: list[int] = []  # tests for one worker that no worker has yet
        self._alone_began = False

    @property
    def tests_finished(self) -> bool:
        """Nothing is left to hand out: all workers may end once they have run what they have."""
        if not self.collection_is_completed or self.pending or self._alone:
            return False
        return all(node.shutting_down or not left for node, left in self.node2pending.items())

    @property
    def has_pending(self) -> bool:
        return bool(self.pending or self._alone) or any(self.node2pending.values())

    def schedule(self) -> None:
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = next(iter(self.node2collection.values()))
            first = self._alone_from()
            self.pending[:] = range(first)
            self._alone[:] = range(first, len(self.collection))
            for _ in range(_RUNNING_AND_NEXT):  # one each before anyone gets a second
                for node in self.nodes:
                    self._send_tests(node, 1)
        self._feed()

    def check_schedule(self, node: WorkerController, duration: float = 0) -> None:
        self._feed()

    def mark_test_pending(self, item: str) -> None:
        """Run a test once more (its worker has died, and reruns are asked for)."""
        assert self.collection is not None
        self._put_back([self.collection.index(item)])
        self._feed()

    def remove_node(self, node: WorkerController) -> str | None:
        left = self.node2pending.pop(node)
        if not left or self.collection is None:
            return None
        crashed, *others = left
        self._put_back(others)
        self._feed()
        return self.collection[crashed]

    def _put_back(self, tests: list[int]) -> None:
        """Hand them out again; once tests run alone, these do so, too."""
        apart = [test for test in tests if self._alone_began or test >= self._alone_from()]
        self._alone[:0] = apart
        self.pending[:0] = [test for test in tests if test not in apart]

    def _feed(self) -> None:
        if self.collection is None:
            return
        for node in self._open_nodes():
            self._send_tests(node, max(0, _RUNNING_AND_NEXT - len(self.node2pending[node])))
        if self.pending or not self._open_nodes():
            return
        last, *others = self._open_nodes()
        for node in others:
            node.shutdown()  # it runs what it has, and ends
        busy = any(left for node, left in self.node2pending.items() if node is not last)
        mine = self.node2pending[last]
        if busy:
            # Its last test with company needs to know the next one, which does not start.
            if len(mine) == 1 and mine[0] < self._alone_from() and self._alone:
                self._send_alone(last, 1)
            return
        self._alone_began = True
        self._send_alone(last, len(self._alone))
        last.shutdown()

    def _open_nodes(self) -> list[WorkerController]:
        return [node for node in self.nodes if not node.shutting_down]

    def _send_tests(self, node: WorkerController, num: int) -> None:
        # A worker may have died without xdist knowing yet: its tests are noted as the node's
        # before they are sent, and remove_node hands them out again.
        with suppress(OSError):
            super()._send_tests(node, num)

    def _send_alone(self, node: WorkerController, number: int) -> None:
        tests, self._alone[:number] = self._alone[:number], []
        if tests:
            self.node2pending[node].extend(tests)
            with suppress(OSError):  # as in _send_tests
                node.send_runtest_some(tests)
