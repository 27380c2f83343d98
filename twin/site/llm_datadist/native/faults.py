"""A scenario's faults in the transferred KV, and what they do to one pull.

fabric.json's list `kv_faults` holds objects with

do        what happens:
          corrupt  one bit of the first byte of one block is flipped
          zero     blocks arrive as zeros
          drop     blocks do not arrive: the destination keeps what it had, the pull succeeds
          swap     each block changes places with the next of the pull (the last with the one
                   before it)
          delay    the pull begins `seconds` later; beyond its time limit: LLM_TIMEOUT
          stall    no answer comes: LLM_TIMEOUT after the pull's time limit, the link is dead
          reset    the connection breaks halfway: LLM_FAILED, the link is dead
from, to  owner of the KV and puller of it; each ``NAME`` or ``NAME/N``. NAME is an instance
          (PD_INSTANCE) and N its TP rank, or NAME is a host and N a physical device.
          Absent: any
request   the n-th pull, from 1, counted in each pulling process: calls of pull_blocks or
          pull_cache that passed all checks, whatever their peer. Has it not enough blocks (two
          to swap, or a place named by `block`), the next one that has. Absent: every pull
layer     index of a layer. A layer is `tensor_num_per_layer` tensors, as given to pull_blocks
          (default 2, K before V)
tensor    "k" or "v": the first or the second tensor of the layer; in a layer of one tensor, that
block     place in the list of blocks of the call: an index from 0, "first" or "last"
seconds   of delay

Absent layer, tensor or block mean all of them; `corrupt` then takes the first. All faults act
at the puller, on the bytes that arrive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_datadist.native.place import Place
from llm_datadist.status import log

KEYS = {"do", "from", "to", "request", "layer", "tensor", "block", "seconds"}
DEEDS = {"corrupt", "zero", "drop", "swap", "delay", "stall", "reset"}


def check(fault: Mapping[str, Any]) -> None:
    """ValueError if `fault` is not in the words above."""
    unknown = sorted(set(fault) - KEYS)
    if unknown:
        raise ValueError(f"kv fault {dict(fault)}: unknown {unknown}, expected {sorted(KEYS)}")
    if fault.get("do") not in DEEDS:
        raise ValueError(
            f"kv fault {dict(fault)}: do is {fault.get('do')}, expected one of {sorted(DEEDS)}"
        )
    if (fault["do"] == "delay") != ("seconds" in fault):
        raise ValueError(f"kv fault {dict(fault)}: delay, and only delay, takes seconds")


@dataclass(frozen=True)
class Arrival:
    """Where one pull puts its blocks."""

    tensors: Sequence[memoryview]  # of the destination, in the order of the pull
    first_tensor: int  # index of the first of them in the cache
    tensors_per_layer: int
    blocks: Sequence[int]  # in the order of the call
    block_bytes: int
    start: int = 0  # of block 0 in a tensor, in bytes

    def block(self, index: int) -> slice:
        """Where the block at this place of the call's list lies in a tensor."""
        first = self.start + self.blocks[index] * self.block_bytes
        return slice(first, first + self.block_bytes)


class Script:
    """What a scenario does to the pulls of this process, one after the other."""

    def __init__(self) -> None:
        self._faults: Sequence[Mapping[str, Any]] = ()
        self._pulls = 0
        self._struck: set[int] = set()  # places of faults with a `request` that have struck
        self._counting = threading.Lock()

    def next_pull(
        self, faults: Sequence[Mapping[str, Any]], source: Place, target: Place, blocks: int
    ) -> Faults:
        """What of `faults` strikes the pull of so many blocks that begins now.

        Other faults than last time are another scenario: counted anew. ValueError for faults in
        unknown words.
        """
        with self._counting:
            if faults != self._faults:
                for fault in faults:
                    check(fault)
                self._faults, self._pulls = faults, 0
                self._struck.clear()
            self._pulls += 1
            striking = [
                place
                for place, fault in enumerate(faults)
                if _names(fault.get("from"), source)
                and _names(fault.get("to"), target)
                and self._is_due(place, fault, blocks)
            ]
            self._struck.update(place for place in striking if "request" in faults[place])
            number = self._pulls
        chosen = [faults[place] for place in striking]
        for fault in chosen:
            log.warning("pull %d of %s from %s meets %s", number, target, source, dict(fault))
        return Faults(chosen)

    def _is_due(self, place: int, fault: Mapping[str, Any], blocks: int) -> bool:
        if "request" not in fault:
            return True
        due = place not in self._struck and fault["request"] <= self._pulls
        return due and blocks >= _blocks_needed(fault)


def _blocks_needed(fault: Mapping[str, Any]) -> int:
    block = fault.get("block")
    return max(2 if fault["do"] == "swap" else 1, block + 1 if isinstance(block, int) else 1)


class Faults:
    """The faults that strike one pull."""

    def __init__(self, faults: Sequence[Mapping[str, Any]]) -> None:
        self._faults = faults
        self._kept: list[tuple[memoryview, bytes]] = []

    @property
    def delay(self) -> float:
        """Seconds before the pull begins."""
        return sum(float(fault["seconds"]) for fault in self._of("delay"))

    @property
    def stalls(self) -> bool:
        return any(self._of("stall"))

    @property
    def resets(self) -> bool:
        return any(self._of("reset"))

    def before(self, arrival: Arrival) -> None:
        """Keep what `drop` must not let change."""
        self._kept = [
            (block, bytes(block)) for fault in self._of("drop") for block in _blocks(fault, arrival)
        ]

    def after(self, arrival: Arrival) -> None:
        """Do to the arrived bytes what the faults say."""
        for fault in self._of("corrupt"):
            for block in list(_blocks(fault, arrival))[:1]:
                block[0] ^= 1
        for fault in self._of("zero"):
            for block in _blocks(fault, arrival):
                block[:] = bytes(len(block))
        for fault in self._of("swap"):
            _swap(fault, arrival)
        for block, content in self._kept:
            block[:] = content

    def _of(self, deed: str) -> Iterator[Mapping[str, Any]]:
        return (fault for fault in self._faults if fault["do"] == deed)


def _names(name: str | None, place: Place) -> bool:
    if name is None:
        return True
    base, _, number = name.partition("/")
    if base == place.instance and number in ("", str(place.rank)):
        return True
    return base == place.host and number in ("", str(place.device))


def _tensors(fault: Mapping[str, Any], arrival: Arrival) -> Iterator[memoryview]:
    for index, tensor in enumerate(arrival.tensors, arrival.first_tensor):
        layer, half = divmod(index, arrival.tensors_per_layer)
        alone = arrival.tensors_per_layer == 1
        named = alone or fault.get("tensor") in (None, "kv"[half % 2])
        if fault.get("layer") in (None, layer) and named:
            yield tensor


def _chosen(fault: Mapping[str, Any], arrival: Arrival) -> range:
    """Indexes of the blocks that a fault names."""
    count = len(arrival.blocks)
    block = fault.get("block")
    if block is None:
        return range(count)
    index = {"first": 0, "last": count - 1}.get(block, block)
    return range(index, index + 1) if 0 <= index < count else range(0)


def _blocks(fault: Mapping[str, Any], arrival: Arrival) -> Iterator[memoryview]:
    for tensor in _tensors(fault, arrival):
        for index in _chosen(fault, arrival):
            yield tensor[arrival.block(index)]


def _swap(fault: Mapping[str, Any], arrival: Arrival) -> None:
    pairs = {
        tuple(sorted((index, index + 1 if index + 1 < len(arrival.blocks) else index - 1)))
        for index in _chosen(fault, arrival)
        if len(arrival.blocks) > 1
    }
    for tensor in _tensors(fault, arrival):
        for a, b in sorted(pairs):
            one, other = tensor[arrival.block(a)], tensor[arrival.block(b)]
            one[:], other[:] = bytes(other), bytes(one)
