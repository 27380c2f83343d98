"""Registered caches, and the table of them that a peer reads once per link."""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from llm_datadist.native.errors import NativeError, refuse_if
from llm_datadist.status import LLMStatusCode

TABLE_LIMIT = 1024 * 1024  # bytes, serialised
NO_ID = 2**64 - 1
_NO_KEY = (NO_ID, NO_ID, NO_ID)


@dataclass(frozen=True)
class Key:
    """What a pull or push names a remote cache by; ids that do not apply are NO_ID or -1."""

    cluster_id: int
    cache_id: int = -1
    batch_index: int = 0
    req_id: int = NO_ID
    prefix_id: int = NO_ID
    model_id: int = 0
    blocks: bool = False

    @property
    def name(self) -> tuple[int, int, int]:
        """What tables list it by: a batch without any id has a place, and is never found."""
        if not self.blocks and self.req_id == self.prefix_id == NO_ID:
            return _NO_KEY
        return self.req_id, self.prefix_id, self.model_id


@dataclass(frozen=True)
class CacheEntry:
    """One cache: tensors of equal size, each cut along its first dimension."""

    cache_id: int
    addresses: tuple[int, ...]  # of the tensors, in order
    tensor_bytes: int
    stride: int  # bytes of one block or batch
    batches: int  # blocks or batches in a tensor
    is_blocks: bool
    on_host: bool
    remote_accessible: bool
    keys: tuple[tuple[int, int, int], ...] = ()  # `Key.name`; n-th names batch n

    @property
    def num_blocks(self) -> int:
        return self.batches if self.is_blocks else 0

    def without(self, keys: Collection[tuple[int, int, int]]) -> CacheEntry:
        """Without these keys; their places stay, so that the others keep their batches."""
        kept = tuple(_NO_KEY if key in keys else key for key in self.keys)
        return replace(self, keys=kept)

    @classmethod
    def checked(
        cls,
        cache_id: int,
        addresses: Sequence[int],
        shape: Sequence[int],
        element: int,
        *,
        is_blocks: bool,
        on_host: bool,
        remote_accessible: bool,
        keys: tuple[tuple[int, int, int], ...],
    ) -> CacheEntry:
        """Tensors of `shape` with elements of `element` bytes; NativeError for a bad shape."""
        refuse_if(not 1 <= len(shape) <= 31, f"{len(shape)} dimensions: expected 1 to 31")
        refuse_if(min(shape) <= 0, f"shape {list(shape)}: expected all dimensions above 0")
        refuse_if(0 in addresses, "a tensor's address is 0")
        size = math.prod(shape) * element
        return cls(
            cache_id,
            tuple(addresses),
            tensor_bytes=size,
            stride=size // shape[0],
            batches=shape[0],
            is_blocks=is_blocks,
            on_host=on_host,
            remote_accessible=remote_accessible,
            keys=keys,
        )


class CacheTable:
    """This process's caches. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._entries: dict[int, CacheEntry] = {}
        self._regions: dict[int, memoryview] = {}  # by the tensor's address

    def next_id(self) -> int:
        return next(self._ids)

    def add(self, entry: CacheEntry) -> None:
        """Nobody refuses a key that is in use: a blocks cache takes it over for good, of batches
        the one that had it first keeps it.
        """
        with self._lock:
            entries = dict(self._entries)
            if entry.is_blocks:
                entries = {i: old.without(entry.keys) for i, old in entries.items()}
            else:
                entry = entry.without([key for old in entries.values() for key in old.keys])
            entries[entry.cache_id] = entry
            if entry.remote_accessible:
                size = len(_serialised(entries.values()))
                refuse_if(size > TABLE_LIMIT, f"cache table of {size} bytes: limit {TABLE_LIMIT}")
            self._entries = entries
            for address in entry.addresses:
                known = self._regions.get(address)
                if known is None or len(known) < entry.tensor_bytes:
                    self._regions[address] = memory(address, entry.tensor_bytes)

    def remove(self, cache_id: int) -> None:
        """Forget a cache; one that is unknown is no error."""
        with self._lock:
            if self._entries.pop(cache_id, None) is None:
                return
            sizes: dict[int, int] = {}
            for entry in self._entries.values():
                for address in entry.addresses:
                    sizes[address] = max(entry.tensor_bytes, sizes.get(address, 0))
            self._regions = {address: memory(address, size) for address, size in sizes.items()}

    def get(self, cache_id: int) -> CacheEntry:
        entry = self._entries.get(cache_id)
        if entry is None:
            raise NativeError(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"no cache {cache_id} is registered here"
            )
        return entry

    def region(self, address: int) -> memoryview | None:
        """The registered memory that starts at `address`; None if there is none."""
        return self._regions.get(address)

    def serialised(self) -> bytes:
        with self._lock:
            return _serialised(self._entries.values())


def memory(address: int, size: int) -> memoryview:
    """`size` bytes of this process at `address`, writable. Nothing keeps them alive: that is
    the registrar's job, as it is in CANN.
    """
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _serialised(entries: Iterable[CacheEntry]) -> bytes:
    return json.dumps([asdict(entry) for entry in entries]).encode()


class RemoteTable:
    """A peer's caches as they were when its table was read."""

    def __init__(self, serialised: bytes) -> None:
        self._by_id: dict[int, CacheEntry] = {}
        self._by_name: dict[tuple[int, int, int], tuple[CacheEntry, int]] = {}
        for fields in json.loads(serialised):
            keys = tuple(tuple(key) for key in fields.pop("keys"))
            addresses = tuple(fields.pop("addresses"))
            entry = CacheEntry(addresses=addresses, keys=keys, **fields)
            self._by_id[entry.cache_id] = entry
            named = {key: (entry, batch) for batch, key in enumerate(entry.keys)}
            self._by_name |= {key: place for key, place in named.items() if key != _NO_KEY}

    def find(self, key: Key) -> tuple[CacheEntry, int]:
        """The cache that `key` names and the batch in it; LLM_KV_CACHE_NOT_EXIST if none."""
        if key.cache_id >= 0:
            entry = self._by_id.get(key.cache_id)
            found = (entry, key.batch_index) if entry else None
        else:
            found = self._by_name.get(key.name)
        if found is None:
            raise NativeError(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                f"cluster {key.cluster_id} had no cache {key} when its table was read",
            )
        return found
