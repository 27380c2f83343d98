"""Operations on caches: checks of what Python can check, then the native call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llm_datadist.native.caches import Key
from llm_datadist.native.engine import Engine
from llm_datadist.native.errors import NativeError
from llm_datadist.status import LLMException, LLMStatusCode, log, native_failure, require
from llm_datadist.utils.utils import (
    check_dict,
    check_int64,
    check_isinstance,
    check_uint32,
    check_uint64,
)
from llm_datadist.v2.llm_types import (
    INVALID_ID,
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    LayerSynchronizer,
    Placement,
    TransferWithCacheKeyConfig,
    check_layer_range,
)

AnyKey = CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey
Blocks = Sequence[int]


@contextmanager
def native_call(name: str, details: str) -> Iterator[None]:
    """Turns the failure of a native call into the exception its caller sees."""
    try:
        yield
    except NativeError as error:
        log.error("[%s] %s: %s", name, error.code.name, error)
        raise native_failure(name, error.code, details) from error


class CacheManager:
    """Registers caches and moves blocks between them; from `LLMDataDist.cache_manager`."""

    def __init__(self, engine: Engine, options: dict[str, str]) -> None:
        self._engine = engine
        self._linked = False
        self._remote_accessible = options.get("llm.EnableRemoteCacheAccessible") == "1"

    def set_is_call_linked(self) -> None:
        """A `link` succeeded: caches registered from now on are not remote accessible."""
        self._linked = True

    # Registration

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A cache of blocks in memory of the caller's: `addrs` of the tensors, each of
        `cache_desc.size` bytes, block b at b times the bytes of one block. The caller keeps the
        memory alive and in place until the process is finalized.
        """
        check_isinstance("cache_desc", cache_desc, CacheDesc)
        check_isinstance("addrs", addrs, list, int)
        check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        check_isinstance("remote_accessible", remote_accessible, bool)
        self._refuse_late(remote_accessible)
        require(len(addrs) > 0, "addrs can not be empty.")
        keys = [] if blocks_cache_key is None else [blocks_cache_key]
        call = "register_blocks_cache"
        return self._register(call, cache_desc, addrs, keys, remote_accessible, is_blocks=True)

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A cache of batches, the n-th of which goes by the n-th key."""
        check_isinstance("cache_desc", cache_desc, CacheDesc)
        check_isinstance("addrs", addrs, list, int)
        check_isinstance("cache_keys", cache_keys, [tuple, list], CacheKey)
        check_isinstance("remote_accessible", remote_accessible, bool)
        self._refuse_late(remote_accessible)
        require(len(addrs) > 0, "addrs can not be empty.")
        require(
            len(addrs) == cache_desc.num_tensors,
            "addrs length should be equal to num_tensors.",
        )
        require(0 not in addrs, "addr can not be zero.")
        call = "register_cache"
        return self._register(
            call, cache_desc, addrs, cache_keys, remote_accessible, is_blocks=False
        )

    def _refuse_late(self, remote_accessible: bool | None) -> None:
        require(
            not (self._linked and remote_accessible),
            "you can not register remote accessible cache after link.",
        )

    def _register(
        self,
        call: str,
        desc: CacheDesc,
        addrs: list[int],
        keys: Sequence[CacheKey | BlocksCacheKey],
        remote_accessible: bool | None,
        *,
        is_blocks: bool,
    ) -> Cache:
        if remote_accessible is None:
            remote_accessible = desc.placement == Placement.DEVICE and not self._linked
        with native_call(call, f"cache_desc = {desc}"):
            cache_id = self._engine.register(
                addrs,
                desc.num_tensors,
                desc.shape,
                desc.data_type.size,
                [_native_key(key) for key in keys],
                is_blocks=is_blocks,
                on_host=desc.placement == Placement.HOST,
                remote_accessible=remote_accessible,
            )
        return Cache(cache_id, desc, addrs, is_blocks=is_blocks)

    def unregister_cache(self, cache_id: int) -> None:
        """Forget a cache; an unknown id is no error. Unlink first."""
        check_isinstance("cache_id", cache_id, int)
        check_int64("cache_id", cache_id)
        with native_call("unregister_cache", f"cache_id = {cache_id}"):
            self._engine.unregister(cache_id)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Of a cache that was allocated: nothing here, as in CANN for a registered one."""
        check_isinstance("cache_key", cache_key, CacheKey)
        with native_call("remove_cache_key", f"cache_key = {cache_key}"):
            self._engine.leave_as_it_is()

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> Cache:
        """Refused: this module has no memory pool (option llm.MemPoolConfig)."""
        check_isinstance("cache_desc", cache_desc, CacheDesc)
        check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        raise _no_pool()

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Refused: this module has no memory pool (option llm.MemPoolConfig)."""
        check_isinstance("cache_desc", cache_desc, CacheDesc)
        check_isinstance("cache_keys", cache_keys, [list, tuple], CacheKey)
        raise _no_pool()

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """The handle forgets its addresses; a registered cache stays registered."""
        self._deallocate("deallocate_blocks_cache", cache, is_blocks=True)

    def deallocate_cache(self, cache: Cache) -> None:
        """As `deallocate_blocks_cache`, of a cache of batches."""
        self._deallocate("deallocate_cache", cache, is_blocks=False)

    def _deallocate(self, call: str, cache: Cache, *, is_blocks: bool) -> None:
        check_isinstance("cache", cache, Cache)
        kind = "should" if is_blocks else "can not"
        require(
            cache.is_blocks_cache == is_blocks,
            f"param check failed, cache {kind} be blocks cache.",
        )
        with native_call(call, f"cache_id = {cache.cache_id}"):
            self._engine.leave_as_it_is()
        cache.forget_addresses()

    # Pull and push

    def pull_blocks(
        self,
        src_cache_key: AnyKey,
        dst_cache: Cache,
        src_blocks: Blocks = (),
        dst_blocks: Blocks = (),
        **kwargs: Any,
    ) -> None:
        """Read blocks of a remote cache into blocks of ours, all tensors at once.

        Keyword arguments: `src_layer_range`, `dst_layer_range` (ranges of step 1),
        `tensor_num_per_layer` (2). On failure the target blocks are undefined. LLM_TIMEOUT and
        LLM_FAILED leave a link that carries nothing any more: unlink and link anew.
        """
        kinds: list[type] = [CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey]
        check_isinstance("src_cache_key", src_cache_key, kinds, allow_none=False)
        check_isinstance("dst_cache", dst_cache, Cache, allow_none=False)
        check_isinstance("src_blocks", src_blocks, [list, tuple], int)
        check_isinstance("dst_blocks", dst_blocks, [list, tuple], int, allow_none=False)
        require(dst_cache.is_blocks_cache, "param check failed, dst_cache should be blocks cache.")
        require(len(dst_blocks) > 0, "dst_blocks can not be empty.")
        per_layer = _tensors_per_layer("pull_blocks", kwargs, dst_cache)
        if isinstance(src_cache_key, BlocksCacheKey):
            require(len(src_blocks) > 0, "src_blocks can not be empty.")
        else:
            if isinstance(src_cache_key, CacheKey):
                _check_cache_key(src_cache_key)
            require(
                len(src_blocks) == 0,
                "src_blocks should be empty when src_cache_key is not instance of BlocksCacheKey.",
            )
        source, target = _tensor_ranges(kwargs, per_layer)
        _check_block_ids(src_blocks)
        _check_block_ids(dst_blocks)
        with native_call("pull_blocks", f"src_cache_key = {src_cache_key}"):
            self._engine.pull(
                dst_cache.cache_id,
                _native_key(src_cache_key),
                src_blocks,
                dst_blocks,
                source,
                target,
                per_layer,
            )

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        **kwargs: Any,
    ) -> None:
        """Read `size` bytes (-1: all) of each tensor of a remote batch into ours. Keyword
        arguments and failures as `pull_blocks`.
        """
        kinds: list[type] = [CacheKeyByIdAndIndex]
        if not self._remote_accessible:
            kinds.append(CacheKey)
        check_isinstance("cache_key", cache_key, kinds, allow_none=False)
        check_isinstance("cache", cache, Cache, allow_none=False)
        check_uint32("batch_index", batch_index)
        check_int64("size", size)
        require(not cache.is_blocks_cache, "param check failed, cache can not be blocks cache.")
        require(
            size == -1 or size > 0,
            f"[pull_cache] param check failed, size ({size}) is invalid, should be = -1 or > 0",
        )
        per_layer = _tensors_per_layer("pull_cache", kwargs, cache)
        if isinstance(cache_key, CacheKey):
            _check_cache_key(cache_key)
        source, target = _tensor_ranges(kwargs, per_layer)
        with native_call("pull_cache", f"cache_key = {cache_key}"):
            self._engine.pull(
                cache.cache_id,
                _native_key(cache_key),
                (),
                (),
                source,
                target,
                per_layer,
                batch=batch_index,
                size=size,
            )

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Blocks = (),
        dst_blocks: Blocks = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Write blocks of ours into blocks of a remote cache, layer after layer: earlier layers
        stay written if a later one fails.
        """
        require(
            self._remote_accessible,
            "push_blocks is only supported while enable_remote_cache_accessible is True",
        )
        check_isinstance("dst_cache_key", dst_cache_key, BlocksCacheKey, allow_none=False)
        check_isinstance("src_cache", src_cache, Cache, allow_none=False)
        check_isinstance("src_blocks", src_blocks, [list, tuple], int)
        check_isinstance("dst_blocks", dst_blocks, [list, tuple], int, allow_none=False)
        require(src_cache.is_blocks_cache, "param check failed, cache should be blocks cache.")
        require(len(dst_blocks) > 0, "dst_blocks can not be empty.")
        layers = _push_layers(
            "push_blocks", src_cache, src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        _check_block_ids(src_blocks or ())
        _check_block_ids(dst_blocks)
        for source, target in layers:
            with native_call("push_blocks", f"dst_cache_key = {dst_cache_key}"):
                self._engine.push(
                    src_cache.cache_id,
                    _native_key(dst_cache_key),
                    src_blocks or (),
                    dst_blocks,
                    source,
                    target,
                    tensor_num_per_layer,
                )

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Write a batch of ours into a remote one, layer after layer."""
        require(
            self._remote_accessible,
            "push_cache is only supported while enable_remote_cache_accessible is True",
        )
        check_isinstance("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex, allow_none=False)
        check_isinstance("src_cache", src_cache, Cache, allow_none=False)
        check_uint32("src_batch_index", src_batch_index)
        require(not src_cache.is_blocks_cache, "param check failed, cache can not be blocks cache.")
        layers = _push_layers(
            "push_cache", src_cache, src_layer_range, dst_layer_range, tensor_num_per_layer
        )
        check_int64("size", size)
        require(
            size == -1,
            f"[push_cache] param check failed, size ({size}) is invalid, should be = -1.",
        )
        for source, target in layers:
            with native_call("push_cache", f"dst_cache_key = {dst_cache_key}"):
                self._engine.push(
                    src_cache.cache_id,
                    _native_key(dst_cache_key),
                    (),
                    (),
                    source,
                    target,
                    tensor_num_per_layer,
                    batch=src_batch_index,
                )

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferWithCacheKeyConfig],
        src_block_indices: Blocks | None = None,
        dst_block_indices: Blocks | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Push layer after layer in a thread, each as soon as it is computed.

        Only for remote-accessible caches: pushing to raw addresses is not part of this module.
        """
        check_isinstance("src_cache", src_cache, Cache, allow_none=False)
        require(
            src_cache.cache_desc.placement != Placement.HOST,
            "src cache not support placement HOST",
        )
        for name, blocks in (("dst", dst_block_indices), ("src", src_block_indices)):
            check_isinstance(f"{name}_block_indices", blocks, [list, tuple], int)
            for block in blocks or ():
                check_uint64(f"{name}_block_indices", block)
        if dst_block_memory_size is not None:
            check_uint64("dst_block_memory_size", dst_block_memory_size)
        require(
            bool(src_block_indices) == bool(dst_block_indices),
            "transfer between blocks and cache is not supported",
        )
        require(
            len(src_block_indices or ()) == len(dst_block_indices or ()),
            "num_block_indices mismatches, "
            f"src_num = {len(src_block_indices or ())}, dst_num = {len(dst_block_indices or ())}",
        )
        kind = LayerSynchronizer
        check_isinstance("layer_synchronizer", layer_synchronizer, kind, allow_none=False)
        if not self._remote_accessible:
            raise TypeError("transfer_configs only support TransferConfig, which is not here.")
        check_isinstance(
            "transfer_configs",
            transfer_configs,
            [list, tuple],
            TransferWithCacheKeyConfig,
            allow_none=False,
        )
        num_tensors = src_cache.cache_desc.num_tensors
        require(num_tensors % 2 == 0, f"cache_desc.num_tensors ({num_tensors}) is not even")
        for config in transfer_configs:
            require(
                config.src_layer_range.stop <= num_tensors // 2,
                f"src_layer_range: {config.src_layer_range} out of range, "
                f"src_layer_num = {num_tensors // 2}",
            )

        def push_layer(config: TransferWithCacheKeyConfig, source: int, target: int) -> None:
            self._engine.push(
                src_cache.cache_id,
                _native_key(config.cache_key),
                src_block_indices or (),
                dst_block_indices or (),
                source,
                target,
                2,
                batch=config.src_batch_index,
            )

        job = _LayerPushes(num_tensors // 2, transfer_configs, layer_synchronizer, push_layer)
        job.start()
        return CacheTask(job)

    # Local copies

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """Copy blocks within a cache: from each key to each of its values, in all tensors."""
        check_isinstance("cache", cache, Cache, allow_none=False)
        check_isinstance("copy_block_info", copy_block_info, dict, allow_none=False)
        check_dict("copy_block_info", copy_block_info, int, list, int)
        require(cache.is_blocks_cache, "param check failed, cache should be blocks cache.")
        pairs = [
            (source, target) for source, targets in copy_block_info.items() for target in targets
        ]
        for pair in pairs:
            _check_block_ids(pair)
        with native_call("copy_blocks", f"cache id is:{cache.cache_id}"):
            self._engine.copy_blocks(cache.cache_id, pairs)

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copy `size` bytes (-1: to the end) from `offset` of one batch to another's."""
        check_isinstance("dst", dst, Cache, allow_none=False)
        check_isinstance("src", src, Cache, allow_none=False)
        check_uint32("dst_batch_index", dst_batch_index)
        check_uint32("src_batch_index", src_batch_index)
        check_uint64("offset", offset)
        check_int64("size", size)
        require(not src.is_blocks_cache, "param check failed, src cache can not be blocks cache.")
        require(not dst.is_blocks_cache, "param check failed, dst cache can not be blocks cache.")
        require(
            size == -1 or size > 0,
            f"[copy_cache] param check failed, size ({size}) is invalid, should be = -1 or > 0",
        )
        if req_id is not None:
            check_uint64("req_id", req_id)
        with native_call("copy_cache", f"dst = {dst}, src = {src}"):
            self._engine.copy_cache(
                dst.cache_id, src.cache_id, dst_batch_index, src_batch_index, offset, size
            )

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """Copy blocks between device and host memory, from each key to its value."""
        check_isinstance("src", src_cache, Cache, allow_none=False)
        check_isinstance("dst", dst_cache, Cache, allow_none=False)
        for side, cache in (("src", src_cache), ("dst", dst_cache)):
            require(
                cache.is_blocks_cache, f"param check failed, {side} cache should be blocks cache."
            )
        check_isinstance("src_to_dst", src_to_dst, dict, int, allow_none=False)
        source, target = src_cache.cache_desc, dst_cache.cache_desc
        sizes = source.size // source.batch_size, target.size // target.batch_size
        require(
            sizes[0] == sizes[1],
            f"src block size:{sizes[0]} and dst block size:{sizes[1]} must be equal",
        )
        require(
            source.num_tensors == target.num_tensors,
            f"src num_tensors:{source.num_tensors} and dst num_tensors:{target.num_tensors} "
            "must be equal",
        )
        for a, b in src_to_dst.items():
            require(
                0 <= a < source.batch_size,
                f"src_block_index:{a} must be in [0, {source.batch_size})",
            )
            require(
                0 <= b < target.batch_size,
                f"dst_block_index:{b} must be in [0, {target.batch_size})",
            )
        require(
            source.placement != target.placement,
            f"swap src placement:{source.placement} to dst placement:{target.placement} "
            "is not support",
        )
        with native_call("swap_blocks", "swap blocks failed"):
            self._engine.swap_blocks(
                src_cache.tensor_addrs, dst_cache.tensor_addrs, sizes[0], src_to_dst
            )


class _LayerPushes:
    """The thread behind a `CacheTask`."""

    def __init__(
        self,
        num_layers: int,
        configs: Sequence[TransferWithCacheKeyConfig],
        synchronizer: LayerSynchronizer,
        push_layer: Callable[[TransferWithCacheKeyConfig, int, int], None],
    ) -> None:
        self._num_layers = num_layers
        self._configs = configs
        self._synchronizer = synchronizer
        self._push_layer = push_layer
        self._results: dict[int, LLMStatusCode] = {}  # by target cluster
        self._thread = threading.Thread(target=self._run, name="llm_datadist-push", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float | None) -> bool:
        """Whether it ended within so many seconds (None: wait for it)."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def results(self) -> list[LLMStatusCode | None]:
        return [self._results.get(config.dst_cluster_id) for config in self._configs]

    def _run(self) -> None:
        for layer in range(self._num_layers):
            wanted = [config for config in self._configs if layer in config.src_layer_range]
            if not wanted:
                continue
            if not self._synchronizer.synchronize_layer(layer, None):
                for config in wanted:
                    self._results[config.dst_cluster_id] = LLMStatusCode.LLM_PARAM_INVALID
                return
            for config in wanted:
                target = config.dst_layer_range[layer - config.src_layer_range.start]
                try:
                    self._push_layer(config, layer, target)
                except NativeError as error:
                    log.error("pushing layer %d to %d: %s", layer, config.dst_cluster_id, error)
                    self._results[config.dst_cluster_id] = error.code
                    return
                if layer == config.src_layer_range.stop - 1:
                    self._results[config.dst_cluster_id] = LLMStatusCode.LLM_SUCCESS


def _native_key(key: AnyKey) -> Key:
    if isinstance(key, BlocksCacheKey):
        return Key(key.cluster_id, model_id=key.model_id, blocks=True)
    if isinstance(key, CacheKeyByIdAndIndex):
        return Key(key.cluster_id, cache_id=key.cache_id, batch_index=key.batch_index)
    return Key(key.cluster_id, req_id=key.req_id, prefix_id=key.prefix_id, model_id=key.model_id)


def _check_cache_key(key: CacheKey) -> None:
    valid = [one for one in (key.req_id, key.prefix_id) if one != INVALID_ID]
    require(
        len(valid) == 1,
        "exactly one of req id and prefix id should contain valid value:[0, 2**64-1), "
        f"req id:{key.req_id}, prefix id:{key.prefix_id}.",
    )


def _check_block_ids(blocks: Blocks) -> None:
    """TypeError for what the native layer's unsigned ids cannot hold."""
    for block in blocks:
        if not 0 <= block < 2**64:
            raise TypeError(f"block id {block} is not a uint64 value.")


def _tensors_per_layer(call: str, kwargs: dict[str, Any], cache: Cache) -> int:
    number = kwargs.get("tensor_num_per_layer", 2)
    check_uint32("tensor_num_per_layer", number)
    require(
        number > 0,
        f"[{call}] param check failed, tensor_num_per_layer ({number}) is invalid, "
        f"should [1, {cache.cache_desc.num_tensors}]",
    )
    return int(number)


def _tensor_ranges(kwargs: dict[str, Any], per_layer: int) -> tuple[range | None, range | None]:
    """Ranges of tensors for the layer ranges, source and target; None and empty mean all."""
    ranges: list[range | None] = []
    for name in ("src_layer_range", "dst_layer_range"):
        layers = kwargs.get(name)
        check_isinstance(name, layers, range)
        if not layers:
            ranges.append(None)
            continue
        require(layers.step == 1, f"param check failed, {name} step must be 1.")
        require(layers.start >= 0, f"{name} is invalid, the start value:{layers.start} is < 0")
        check_uint32(name, layers.stop - 1)
        ranges.append(range(layers.start * per_layer, layers.stop * per_layer))
    return ranges[0], ranges[1]


def _push_layers(
    call: str, cache: Cache, source: range | None, target: range | None, per_layer: int
) -> list[tuple[int, int]]:
    """Pairs of layers to push; default: all of the source."""
    _tensors_per_layer(call, {"tensor_num_per_layer": per_layer}, cache)
    check_layer_range("src_layer_range", source)
    check_layer_range("dst_layer_range", target)
    every = range(cache.cache_desc.num_tensors // per_layer)
    source, target = source or every, target or every
    require(
        len(source) == len(target),
        "src_layer_range size should be equal to size of dst_layer_range size.",
    )
    return list(zip(source, target, strict=True))


def _no_pool() -> LLMException:
    return LLMException(
        "you should config memory pool firstly and then set placement that matches it.",
        status_code=LLMStatusCode.LLM_PARAM_INVALID,
    )
