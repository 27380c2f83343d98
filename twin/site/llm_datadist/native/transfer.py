"""What a pull or a push moves: blocks merged to runs, limits, deadlines, faults."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import sub

from llm_datadist.native import wire
from llm_datadist.native.errors import NativeError, refuse_if
from llm_datadist.native.fabric import Fabric
from llm_datadist.native.faults import Arrival, Script
from llm_datadist.native.links import LOOK_EVERY, Entity
from llm_datadist.native.place import Place
from llm_datadist.native.waiting import pause, poll
from llm_datadist.native.wire import Operation, Spans
from llm_datadist.status import LLMStatusCode, log

# A request holds one 16-byte item for each tensor and two for each run, in a buffer of 112 KiB
# (CANN 8.5) with a header of some 128 bytes.
REQUEST_ITEMS = 7160

_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Runs:
    """Consecutive blocks that are consecutive on both sides; ids of the first, and how many.

    Column by column: there may be thousands, and the peer waits for them.
    """

    remote: Sequence[int]
    local: Sequence[int]
    count: Sequence[int]

    def __len__(self) -> int:
        return len(self.count)

    def sorted_by_local(self) -> Runs:
        order = sorted(range(len(self)), key=self.local.__getitem__)
        columns = (self.remote, self.local, self.count)
        return Runs(*(tuple(map(column.__getitem__, order)) for column in columns))


def merge(remote: Sequence[int], local: Sequence[int]) -> Runs:
    """Runs of the pairs (remote id, local id), in order."""
    neighbours = zip(remote, remote[1:], local, local[1:], strict=False)
    breaks = [
        place
        for place, (before, here, own_before, own_here) in enumerate(neighbours, 1)
        if here != before + 1 or own_here != own_before + 1
    ]
    starts = [0, *breaks] if remote else []
    ends = [*breaks, len(remote)]
    return Runs(
        remote=tuple(map(remote.__getitem__, starts)),
        local=tuple(map(local.__getitem__, starts)),
        count=tuple(map(sub, ends, starts)),
    )


def check_size(tensors: int, runs: int) -> None:
    """LLM_PARAM_INVALID if a request for so many tensors and runs does not fit its buffer."""
    refuse_if(
        tensors + 2 * runs > REQUEST_ITEMS,
        f"{tensors} tensors and {runs} runs do not fit into one request of {REQUEST_ITEMS} items",
    )


@dataclass(frozen=True)
class Plan:
    """What moves between local and remote memory: the same spans of each pair of tensors."""

    local: tuple[memoryview, ...]  # tensors
    remote: tuple[int, ...]  # addresses of tensors
    local_offsets: Sequence[int]  # bytes, one per run
    remote_offsets: Sequence[int]
    lengths: Sequence[int]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.local) * sum(self.lengths)

    def request(self) -> bytes:
        return Spans(self.remote, self.remote_offsets, self.lengths).pack()

    def batches(self) -> Iterator[list[memoryview]]:
        """The local memory, in the order in which it moves."""
        return wire.batches(self.local, self.local_offsets, self.lengths)


class Transfers:
    """Carries plans out over links. One at a time per entity: callers hold its lock."""

    def __init__(self, place: Place, fabric: Fabric, timeout: float) -> None:
        """`timeout`: seconds a pull or push may take."""
        self.place = place
        self._fabric = fabric
        self._timeout = timeout
        self._script = Script()

    def deadline(self) -> float:
        return time.monotonic() + self._timeout

    def table(self, entity: Entity, deadline: float) -> bytes:
        """The peer's table of caches."""
        with _Mishaps(entity):
            self._pass(entity, 0, deadline)
            return wire.ask(entity.connected(deadline), Operation.TABLE)[1]

    def pull(self, entity: Entity, plan: Plan, arrival: Arrival, deadline: float) -> None:
        """Read remote memory into local memory. LLM_TIMEOUT, LLM_FAILED; then the link is dead
        and what the destination holds is undefined. `arrival` is the same destination as the
        caller sees it: faults are told in its blocks.
        """
        faults = self._script.next_pull(
            self._fabric.kv_faults(), entity.peer.place, self.place, len(arrival.blocks)
        )
        faults.before(arrival)
        with _Mishaps(entity):
            if faults.stalls:
                pause(self._timeout, deadline)
                raise TimeoutError("the peer does not answer")
            if faults.delay and not pause(faults.delay, deadline):
                raise TimeoutError("delayed beyond the time limit")
            self._pass(entity, plan.size, deadline)
            connection = entity.connected(deadline)
            wire.send_frame(connection, Operation.READ, plan.request())
            for batch in self._while_it_stands(entity, plan, deadline):
                wire.set_deadline(connection, deadline)
                if faults.resets:
                    wire.receive_pieces(connection, batch[: len(batch) // 2])
                    _reset(connection)
                wire.receive_pieces(connection, batch)
        faults.after(arrival)

    def push(self, entity: Entity, plan: Plan, deadline: float) -> None:
        """Write local memory into remote memory; errors as `pull`."""
        with _Mishaps(entity):
            self._pass(entity, plan.size, deadline)
            connection = entity.connected(deadline)
            wire.send_frame(connection, Operation.WRITE, plan.request())
            for batch in self._while_it_stands(entity, plan, deadline):
                wire.set_deadline(connection, deadline)
                wire.send_pieces(connection, batch)
            wire.set_deadline(connection, deadline)
            wire.receive_frame(connection)

    def _while_it_stands(
        self, entity: Entity, plan: Plan, deadline: float
    ) -> Iterator[list[memoryview]]:
        """The plan's batches; looks again and again whether the path still stands."""
        unseen = 0
        for batch in plan.batches():
            if unseen >= wire.BATCH:
                self._pass(entity, 0, deadline)
                unseen = 0
            yield batch
            unseen += sum(map(len, batch))

    def _pass(self, entity: Entity, size: int, deadline: float) -> None:
        """Go through the fabric to the peer, waiting while it lets nothing through."""
        reason = ""

        def attempt() -> float | None:
            nonlocal reason
            passage = self._fabric.path(
                self.place, entity.peer.place, size, over_roce=entity.over_roce
            )
            reason = passage.reason
            return None if reason else passage.seconds

        seconds = poll(attempt, deadline, every=LOOK_EVERY)
        if seconds is None:
            raise TimeoutError(reason)
        if seconds and not pause(seconds, deadline):
            raise TimeoutError(f"the path takes {seconds:g} s")


class _Mishaps:
    """Turns what goes wrong with a transfer into CANN's codes; the link is dead afterwards."""

    def __init__(self, entity: Entity) -> None:
        self._entity = entity

    def __enter__(self) -> None:
        if self._entity.broken:
            raise NativeError(
                LLMStatusCode.LLM_FAILED,
                f"the link to {self._entity.peer.place} broke before ({self._entity.broken}): "
                "only a new link helps",
            )

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, NativeError):
            return
        reason = f"{self._entity.peer.place}: {error}"
        self._entity.break_off(reason)
        if isinstance(error, TimeoutError):
            raise NativeError(LLMStatusCode.LLM_TIMEOUT, reason) from error
        if isinstance(error, OSError):
            raise NativeError(LLMStatusCode.LLM_FAILED, reason) from error
        log.error("transfer with %s: %r", self._entity.peer.place, error)


def _reset(connection: socket.socket) -> None:
    """Break a connection as a failing transport does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    connection.close()
    raise ConnectionResetError("connection reset")
