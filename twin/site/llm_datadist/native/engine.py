"""The native calls, each with CANN's order of checks.

Source of the order: hixl's llm_datadist_v2.cc, data_cache_engine.cc, data_transfer_client.cc,
d2d_data_transfer_job.cc and layer_wise_transfer_job.cc.

Errors are `NativeError`s; nothing is written anywhere before all checks have passed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import add

from llm_datadist.native.caches import CacheEntry, CacheTable, Key, RemoteTable, memory
from llm_datadist.native.errors import NativeError, refuse_if
from llm_datadist.native.fabric import Fabric
from llm_datadist.native.faults import Arrival
from llm_datadist.native.links import Entity, Links, link_timeout
from llm_datadist.native.place import Endpoint, Place, Registry
from llm_datadist.native.server import Server
from llm_datadist.native.transfer import Plan, Runs, Transfers, check_size, merge
from llm_datadist.native.waiting import SharedLock
from llm_datadist.status import LLMStatusCode

DEFAULT_SYNC_MS = 1000  # a pull or push may take so long

Clusters = Sequence[tuple[int, Sequence[tuple[str, int]]]]


class Engine:
    """One process's LLM-DataDist. Thread-safe; `finalize` waits for all running calls."""

    def __init__(self, cluster_id: int, options: Mapping[str, str], env: Mapping[str, str]) -> None:
        """Listens at once. NativeError(LLM_FAILED) for a device or an address that is not there,
        LLM_PARAM_INVALID for an option that cannot be used.
        """
        self.cluster_id = cluster_id
        self._accessible = options.get("llm.EnableRemoteCacheAccessible") == "1"
        try:
            device = int(options.get("ge.exec.deviceId", "0").split(";")[0])
            sync_ms = int(options.get("llm.SyncKvCacheWaitTime", DEFAULT_SYNC_MS))
            timeout = link_timeout(options.get("llm.LinkTotalTime"), env)
        except ValueError as error:
            raise NativeError(LLMStatusCode.LLM_PARAM_INVALID, f"options: {error}") from error
        try:
            place = Place.of_process(cluster_id, device, env)
        except ValueError as error:
            raise NativeError(LLMStatusCode.LLM_FAILED, str(error)) from error
        state = env.get("TWIN_STATE")
        fabric = Fabric(state)
        self._process = os.getpid()
        self._lock = SharedLock()
        self._finalized = False
        self._caches = CacheTable()
        self._transfers = Transfers(place, fabric, sync_ms / 1000)
        self._pushing = threading.Lock()  # pushes are serialised over all peers
        self._links = Links(
            place, fabric, Registry(state), remote_accessible=self._accessible, timeout=timeout
        )
        self._server = Server(self._caches, self._links.handlers())
        self._door: socket.socket | None = None  # where link_clusters comes in
        try:
            listener = self._server.listen(place.address)
            self.open_door(options.get("llm.listenIpInfo"))
            self._links.start(self._server, Endpoint(place, listener.getsockname()[1]))
        except OSError as error:
            self._server.close()
            raise NativeError(LLMStatusCode.LLM_FAILED, f"cannot listen: {error}") from error

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Around every native call: not after, and not during, finalize."""
        with self._lock.shared():
            if self._finalized or os.getpid() != self._process:
                reason = f"llm datadist of cluster {self.cluster_id} is not initialized"
                raise NativeError(LLMStatusCode.LLM_FAILED, reason)
            yield

    def finalize(self) -> None:
        """Unlink everything and stop; waits for running calls. Idempotent."""
        if os.getpid() != self._process:
            return  # a forked child has none of our threads: there is nothing to stop
        with self._lock.alone():
            if self._finalized:
                return
            self._finalized = True
            self._links.close()
            self._server.close()

    def open_door(self, listen_ip_info: str | None) -> None:
        """Listen for link_clusters at "ip:port" instead of where we did; None: nowhere."""
        if self._door is not None:
            self._server.stop_listening(self._door)
            self._door = None
        if listen_ip_info:
            ip, _, port = listen_ip_info.partition(":")
            self._door = self._server.listen(ip, int(port))

    def switch_role(self, listen_ip_info: str | None) -> None:
        with self._call():
            if self._links.exist():
                raise NativeError(LLMStatusCode.LLM_EXIST_LINK, "links exist: unlink first")
            try:
                self.open_door(listen_ip_info)
            except OSError as error:
                raise NativeError(LLMStatusCode.LLM_FAILED, f"cannot listen: {error}") from error

    # Links

    def link(self, name: str, ranks: Mapping[int, int], rank_table: str) -> int:
        with self._call():
            return self._links.link(name, ranks, rank_table)

    def unlink(self, comm_id: int) -> None:
        with self._call():
            self._links.unlink(comm_id)

    def link_status(self, comm_id: int) -> int:
        with self._call():
            return self._links.status(comm_id)

    def link_clusters(self, clusters: Clusters, timeout_ms: int) -> list[LLMStatusCode]:
        with self._call():
            return self._links.link_clusters(clusters, timeout_ms / 1000)

    def unlink_clusters(
        self, clusters: Clusters, timeout_ms: int, *, force: bool
    ) -> list[LLMStatusCode]:
        with self._call():
            return self._links.unlink_clusters(clusters, timeout_ms / 1000, force=force)

    # Caches

    def register(
        self,
        addresses: Sequence[int],
        num_tensors: int,
        shape: Sequence[int],
        element_bytes: int,
        keys: Sequence[Key],
        *,
        is_blocks: bool,
        on_host: bool,
        remote_accessible: bool,
    ) -> int:
        """Id of the new cache."""
        with self._call():
            refuse_if(
                len(addresses) != num_tensors,
                f"{len(addresses)} addresses for {num_tensors} tensors",
            )
            entry = CacheEntry.checked(
                self._caches.next_id(),
                addresses,
                shape,
                element_bytes,
                is_blocks=is_blocks,
                on_host=on_host,
                remote_accessible=remote_accessible,
                keys=tuple(key.name for key in keys),
            )
            self._caches.add(entry)
            return entry.cache_id

    def unregister(self, cache_id: int) -> None:
        with self._call():
            self._caches.remove(cache_id)

    def leave_as_it_is(self) -> None:
        """What CANN does when a registered cache is deallocated, or its key removed."""
        with self._call():
            pass

    def copy_blocks(self, cache_id: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (from, to) within a cache."""
        with self._call():
            entry = self._caches.get(cache_id)
            for block in (block for pair in pairs for block in pair):
                refuse_if(
                    not 0 <= block < entry.num_blocks,
                    f"block {block} is out of range [0, {entry.num_blocks})",
                )
            for tensor in self._tensors(entry):
                for source, target in pairs:
                    _copy(
                        tensor, source * entry.stride, tensor, target * entry.stride, entry.stride
                    )

    def copy_cache(
        self,
        target_id: int,
        source_id: int,
        target_batch: int,
        source_batch: int,
        offset: int,
        size: int,
    ) -> None:
        """Copy `size` bytes (-1: to the end) from `offset` of one batch to another's."""
        with self._call():
            source, target = self._caches.get(source_id), self._caches.get(target_id)
            refuse_if(
                len(source.addresses) != len(target.addresses),
                f"{len(source.addresses)} tensors cannot be copied to {len(target.addresses)}",
            )
            refuse_if(source_batch >= source.batches, f"source batch {source_batch} out of range")
            refuse_if(target_batch >= target.batches, f"target batch {target_batch} out of range")
            limit = min(source.stride, target.stride)
            refuse_if(offset >= limit, f"offset {offset} is out of range [0, {limit})")
            count = source.stride - offset if size < 0 else size
            refuse_if(
                offset + count > limit, f"{count} bytes at {offset} exceed a batch of {limit}"
            )
            for one, other in zip(self._tensors(source), self._tensors(target), strict=True):
                start = source_batch * source.stride + offset
                _copy(one, start, other, target_batch * target.stride + offset, count)

    def swap_blocks(
        self,
        source: Sequence[int],
        target: Sequence[int],
        block_bytes: int,
        pairs: Mapping[int, int],
    ) -> None:
        """Copy blocks (from: to) between tensors given by address. CANN calls that swapping."""
        with self._call():
            for one, other in zip(source, target, strict=True):
                for a, b in pairs.items():
                    from_ = memory(one + a * block_bytes, block_bytes)
                    memory(other + b * block_bytes, block_bytes)[:] = from_

    # Transfers

    def pull(
        self,
        cache_id: int,
        key: Key,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        source_tensors: range | None,
        target_tensors: range | None,
        tensors_per_layer: int,
        *,
        batch: int = 0,
        size: int = -1,
    ) -> None:
        """Read a remote cache: blocks to blocks; batch to blocks (no source blocks); or batch to
        batch (no blocks at all, `size` bytes, -1: all). Tensor ranges None: all.
        """
        with self._call():
            refuse_if(
                key.cluster_id == self.cluster_id,
                f"data can not be pulled from own cluster {self.cluster_id}",
            )
            local = self._caches.get(cache_id)
            _check_pull(
                local, batch, size, target_blocks, source_tensors, target_tensors, tensors_per_layer
            )
            entity = self._links.entity(key.cluster_id)
            with entity.lock:
                _refuse_destroyed(entity)
                deadline = self._transfers.deadline()
                runs, length = self._runs(local, source_blocks, target_blocks, size)
                count = len(target_tensors or local.addresses)
                check_size(count, len(runs))
                # Receiving is the slower side; in order of our own addresses it is faster.
                runs = runs.sorted_by_local()
                remote, remote_batch = self._remote_table(entity, deadline).find(key)
                self._check_accessible(local, remote)
                selected = _remote_tensors(remote, source_tensors, count)
                limit = remote.tensor_bytes if source_blocks else remote.stride
                _check_remote(runs, length, remote, limit)
                base = 0 if local.is_blocks else remote_batch * remote.stride
                own = 0 if local.is_blocks else batch * local.stride
                tensors = target_tensors or range(len(local.addresses))
                plan = Plan(
                    local=tuple(self._tensors(local))[tensors.start : tensors.stop],
                    remote=selected,
                    local_offsets=[own + block * length for block in runs.local],
                    remote_offsets=[base + block * length for block in runs.remote],
                    lengths=[count * length for count in runs.count],
                )
                arrival = Arrival(
                    tensors=plan.local,
                    first_tensor=tensors.start,
                    tensors_per_layer=tensors_per_layer,
                    blocks=target_blocks or (0,),
                    block_bytes=length,
                    start=own,
                )
                self._transfers.pull(entity, plan, arrival, deadline)

    def _runs(
        self,
        local: CacheEntry,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        size: int,
    ) -> tuple[Runs, int]:
        """What to read, and the bytes of one block (or of the batch)."""
        if not target_blocks:
            return Runs((0,), (0,), (1,)), local.stride if size < 0 else size
        if not source_blocks:
            count = len(target_blocks)
            runs = Runs(range(count), target_blocks, (1,) * count)
        else:
            refuse_if(
                len(source_blocks) != len(target_blocks),
                f"{len(source_blocks)} source blocks for {len(target_blocks)} target blocks",
            )
            runs = merge(source_blocks, target_blocks)
        _check_local(runs, local)
        return runs, local.stride

    def _remote_table(self, entity: Entity, deadline: float) -> RemoteTable:
        """The peer's caches: as of the first transfer over this link if remote caches are
        accessible; as of now if the peer's own side looks them up.
        """
        if entity.table is None or not self._accessible:
            entity.table = RemoteTable(self._transfers.table(entity, deadline))
        return entity.table

    def _check_accessible(self, local: CacheEntry, remote: CacheEntry) -> None:
        if self._accessible:
            refuse_if(not local.remote_accessible, "the local cache is not remote accessible")
            refuse_if(not remote.remote_accessible, "the remote cache is not remote accessible")

    def push(
        self,
        cache_id: int,
        key: Key,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        source_layer: int,
        target_layer: int,
        tensors_per_layer: int,
        *,
        batch: int = 0,
    ) -> None:
        """Write one layer into a remote cache: blocks to blocks, or batch to batch."""
        with self._call(), self._pushing:
            local = self._caches.get(cache_id)
            entity = self._links.entity(key.cluster_id)
            with entity.lock:
                _refuse_destroyed(entity)
                deadline = self._transfers.deadline()
                refuse_if(not local.remote_accessible, "the local cache is not remote accessible")
                remote, remote_batch = self._remote_table(entity, deadline).find(key)
                refuse_if(not remote.remote_accessible, "the remote cache is not accessible")
                target_range = _layer(remote, target_layer, tensors_per_layer)
                if target_blocks:
                    refuse_if(
                        max(target_blocks) >= remote.num_blocks,
                        f"target block {max(target_blocks)} is out of range "
                        f"[0, {remote.num_blocks})",
                    )
                refuse_if(remote_batch >= remote.batches, f"batch {remote_batch} out of range")
                source_range = _layer(local, source_layer, tensors_per_layer)
                refuse_if(
                    len(local.addresses) % tensors_per_layer,
                    f"{len(local.addresses)} tensors are no multiple of {tensors_per_layer}",
                )
                if target_blocks:
                    refuse_if(
                        len(source_blocks) != len(target_blocks),
                        f"{len(source_blocks)} source blocks for {len(target_blocks)} targets",
                    )
                    runs = merge(target_blocks, source_blocks)
                    _check_local(runs, local)
                else:
                    refuse_if(batch >= local.batches, f"batch {batch} out of range")
                    runs = Runs((0,), (batch,), (1,))
                base = remote_batch * remote.stride
                plan = Plan(
                    local=tuple(self._tensors(local))[source_range],
                    remote=remote.addresses[target_range],
                    local_offsets=[block * local.stride for block in runs.local],
                    remote_offsets=[base + block * local.stride for block in runs.remote],
                    lengths=[count * local.stride for count in runs.count],
                )
                self._transfers.push(entity, plan, deadline)

    def _tensors(self, entry: CacheEntry) -> list[memoryview]:
        """Local memory of a cache."""
        return [
            self._caches.region(address) or memory(address, entry.tensor_bytes)
            for address in entry.addresses
        ]


def _refuse_destroyed(entity: Entity) -> None:
    if entity.destroyed:
        reason = f"cluster {entity.cluster_id} was unlinked meanwhile"
        raise NativeError(LLMStatusCode.LLM_NOT_YET_LINK, reason)


def _check_pull(
    local: CacheEntry,
    batch: int,
    size: int,
    target_blocks: Sequence[int],
    source_tensors: range | None,
    target_tensors: range | None,
    tensors_per_layer: int,
) -> None:
    """Kind of cache, batch, size, and ranges of tensors."""
    refuse_if(
        batch >= max(local.batches if not local.is_blocks else 1, 1),
        f"batch {batch} is out of range [0, {local.batches})",
    )
    refuse_if(bool(target_blocks) != local.is_blocks, "the target is of the other kind of cache")
    refuse_if(size > local.stride, f"{size} bytes exceed a batch of {local.stride}")
    count = len(local.addresses)
    if source_tensors is not None or target_tensors is not None:
        refuse_if(
            count % tensors_per_layer,
            f"{count} tensors are no multiple of tensor_num_per_layer {tensors_per_layer}",
        )
    if target_tensors is not None:
        refuse_if(
            target_tensors.stop > count, f"target tensors {target_tensors}: the cache has {count}"
        )
    if source_tensors is not None:
        wanted = len(target_tensors) if target_tensors is not None else count
        refuse_if(
            len(source_tensors) != wanted,
            f"{len(source_tensors)} source tensors for {wanted} target tensors",
        )


def _remote_tensors(remote: CacheEntry, wanted: range | None, count: int) -> tuple[int, ...]:
    """Addresses of the remote tensors; as many as local ones, or LLM_PARAM_INVALID."""
    tensors = wanted or range(len(remote.addresses))
    refuse_if(
        len(tensors) != count or tensors.stop > len(remote.addresses),
        f"{count} local tensors cannot take tensors {tensors.start} to {tensors.stop} of the "
        f"{len(remote.addresses)} remote ones",
    )
    return remote.addresses[tensors.start : tensors.stop]


def _check_local(runs: Runs, local: CacheEntry) -> None:
    last = max(map(add, runs.local, runs.count)) - 1
    refuse_if(last >= local.num_blocks, f"own block {last} is out of range [0, {local.num_blocks})")


def _check_remote(runs: Runs, length: int, remote: CacheEntry, limit: int) -> None:
    """As CANN: by the local block size, only where a run starts and how long it is."""
    count = -(-remote.tensor_bytes // length)
    first = max(runs.remote)
    refuse_if(first >= count, f"source block {first} is out of range [0, {count})")
    longest = max(runs.count) * length
    refuse_if(longest > limit, f"{longest} bytes exceed the remote's {limit}")


def _layer(entry: CacheEntry, layer: int, tensors_per_layer: int) -> slice:
    count = len(entry.addresses) // tensors_per_layer
    refuse_if(layer >= count, f"layer {layer} is out of range [0, {count})")
    return slice(layer * tensors_per_layer, (layer + 1) * tensors_per_layer)


def _copy(source: memoryview, start: int, target: memoryview, to: int, size: int) -> None:
    target[to : to + size] = source[start : start + size]
