"""What a cache-manager user handles: descriptions of caches, keys to them, handles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import Any, Protocol

from llm_datadist.data_type import DataType
from llm_datadist.status import LLMException, LLMStatusCode, require
from llm_datadist.utils.utils import (
    check_int32,
    check_int64,
    check_isinstance,
    check_uint32,
    check_uint64,
)

INVALID_ID = 2**64 - 1


class RegisterMemStatus(Enum):
    """State of a link. Names are CANN's: a link is usable once its memory is registered."""

    OK = 0
    PREPARING = 1
    FAILED = 2


class Memtype(Enum):
    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class MemInfo:
    """A piece of memory."""

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        check_isinstance("mem_type", mem_type, Memtype)
        check_isinstance("addr", addr, int)
        check_isinstance("size", size, int)
        self.mem_type = mem_type
        self.addr = addr
        self.size = size

    def __repr__(self) -> str:
        return f"MemInfo(mem_type={self.mem_type}, addr={self.addr}, size={self.size})"


class Placement(IntEnum):
    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class CacheDesc:
    """Shape of a cache: `num_tensors` tensors of one shape and type.

    Dimension 0 counts blocks (or batches), whatever `batch_dim_index` says: that one only
    decides what `batch_size` reads.
    """

    def __init__(
        self,
        num_tensors: int,
        shape: Sequence[int],
        data_type: DataType,
        placement: Placement = Placement.DEVICE,
        batch_dim_index: int = 0,
        seq_len_dim_index: int = -1,
        kv_tensor_format: str | None = None,
    ) -> None:
        check_uint32("num_tensors", num_tensors)
        check_isinstance("shape", shape, [tuple, list], int)
        check_isinstance("data_type", data_type, DataType)
        check_isinstance("placement", placement, Placement)
        check_isinstance("batch_dim_index", batch_dim_index, int)
        check_int32("seq_len_dim_index", seq_len_dim_index)
        check_isinstance("kv_tensor_format", kv_tensor_format, str)
        require(
            0 <= batch_dim_index < len(shape),
            f"batch_dim_index {batch_dim_index} out of range, [0, {len(shape)})",
        )
        require(
            seq_len_dim_index == -1 or 0 <= seq_len_dim_index < len(shape),
            f"seq_len_dim_index {seq_len_dim_index} is invalid, "
            f"should be -1 or in range [0, {len(shape)})",
        )
        for dimension in shape:
            check_int64("shape", dimension)
        self._num_tensors = num_tensors
        self._shape = shape
        self._data_type = data_type
        self._placement = placement
        self._batch_dim = batch_dim_index
        self._batch_size = shape[batch_dim_index]
        self._seq_len_dim_index = seq_len_dim_index
        self._kv_tensor_format = kv_tensor_format

    def __repr__(self) -> str:
        return (
            f"CacheDesc(num_tensors={self.num_tensors}, shape={self.shape}, "
            f"data_type={self.data_type}, placement={self.placement}, "
            f"batch_dim_index={self.batch_dim}, seq_len_dim_index={self.seq_len_dim_index}, "
            f"kv_tensor_format={self.kv_tensor_format})"
        )

    @property
    def num_tensors(self) -> int:
        return self._num_tensors

    @property
    def shape(self) -> Sequence[int]:
        return self._shape

    def update_dim(self, dim_index: int, dim_value: int) -> None:
        """Change one dimension; TypeError if the shape is a tuple."""
        self._shape[dim_index] = dim_value  # type: ignore[index]  # CANN accepts tuples and fails here

    @property
    def data_type(self) -> DataType:
        return self._data_type

    @property
    def batch_dim(self) -> int:
        return self._batch_dim

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def seq_len_dim_index(self) -> int:
        return self._seq_len_dim_index

    @property
    def size(self) -> int:
        """Bytes of one tensor."""
        size = math.prod(self._shape) * self._data_type.size
        if not 0 <= size < 2**63 or min(self._shape) < 0:
            raise LLMException(
                f"Failed to calc tensor size, shape = {self.shape}, data_type = {self.data_type}",
                status_code=LLMStatusCode.LLM_SUCCESS,
            )
        return size

    @property
    def kv_tensor_format(self) -> str | None:
        return self._kv_tensor_format

    @property
    def placement(self) -> Placement:
        return self._placement


class Cache:
    """A registered cache; made by the cache manager (`create_cpu_cache` apart)."""

    def __init__(
        self, cache_id: int, cache_desc: CacheDesc, tensor_addrs: list[int], *, is_blocks: bool
    ) -> None:
        check_int64("cache_id", cache_id)
        self._cache_id = cache_id
        self._cache_desc = cache_desc
        self._tensor_addrs = tensor_addrs
        self._is_blocks_cache = is_blocks

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: list[int]) -> Cache:
        """A cache in host memory that is not registered: the other side of `swap_blocks`."""
        check_isinstance("cache_desc", cache_desc, CacheDesc)
        check_isinstance("addrs", addrs, list, int)
        require(cache_desc.placement == Placement.HOST, "cache_desc placement must be HOST")
        require(
            cache_desc.num_tensors == len(addrs),
            f"cache_desc num_tensors:{cache_desc.num_tensors} not equal addrs num:{len(addrs)}",
        )
        return cls(-1, cache_desc, addrs, is_blocks=True)

    @property
    def cache_id(self) -> int:
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        return self._cache_desc

    @property
    def tensor_addrs(self) -> list[int]:
        return self._tensor_addrs

    def forget_addresses(self) -> None:
        """What deallocating does to the handle."""
        self._tensor_addrs = []

    @property
    def is_blocks_cache(self) -> bool:
        return self._is_blocks_cache

    def __repr__(self) -> str:
        return (
            f"Cache(cache_id = {self._cache_id}, device_tensor_addrs = {len(self._tensor_addrs)}, "
            f"is_blocks_cache = {self._is_blocks_cache})"
        )


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, positional ones first; `prompt_cluster_id` is the old `cluster_id`."""
    require(len(args) + len(kwargs) <= len(names), "Param num is over limit")
    bound = kwargs | dict(zip(names, args, strict=False))
    require(
        "prompt_cluster_id" in bound or "cluster_id" in bound,
        "Param prompt_cluster_id or cluster_id is required",
    )
    for name in bound:
        require(name in (*names, "prompt_cluster_id"), f"Unsupported param:{name}")
    bound.setdefault("cluster_id", bound.get("prompt_cluster_id"))
    return bound


class BlocksCacheKey:
    """Names a blocks cache of a cluster: `BlocksCacheKey(cluster_id, model_id=0)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = _bind(("cluster_id", "model_id"), args, kwargs)
        self._cluster_id: int = bound["cluster_id"]
        self._model_id: int = bound.get("model_id", 0)
        check_isinstance("The first param cluster_id", self._cluster_id, int)
        check_isinstance("The second param model_id", self._model_id, int)

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        return self._cluster_id

    @property
    def model_id(self) -> int:
        return self._model_id

    def __repr__(self) -> str:
        return f"BlocksCacheKey(cluster_id={self.cluster_id}, model_id={self.model_id})"


class CacheKey:
    """Names one batch of a cache by request:
    `CacheKey(cluster_id, req_id, model_id=0, prefix_id=2**64 - 1)`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = _bind(("cluster_id", "req_id", "model_id", "prefix_id"), args, kwargs)
        require("req_id" in bound, "Param req_id is required")
        self._cluster_id: int = bound["cluster_id"]
        self._req_id: int = bound["req_id"]
        self._model_id: int = bound.get("model_id", 0)
        self._prefix_id: int = bound.get("prefix_id", INVALID_ID)
        check_uint64("cluster_id", self._cluster_id)
        check_uint64("req_id", self._req_id)
        check_uint64("model_id", self._model_id)
        check_uint64("prefix_id", self._prefix_id)

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        return self._cluster_id

    @property
    def req_id(self) -> int:
        return self._req_id

    @property
    def prefix_id(self) -> int:
        return self._prefix_id

    @property
    def model_id(self) -> int:
        return self._model_id

    def __repr__(self) -> str:
        return (
            f"CacheKey(cluster_id={self.cluster_id}, req_id={self.req_id}, "
            f"prefix_id={self.prefix_id}, model_id={self.model_id})"
        )


class CacheKeyByIdAndIndex:
    """Names one batch of a cache by the owner's cache id."""

    def __init__(self, cluster_id: int, cache_id: int, batch_index: int = 0) -> None:
        check_uint64("cluster_id", cluster_id)
        check_int64("cache_id", cache_id)
        check_uint32("batch_index", batch_index)
        self._cluster_id = cluster_id
        self._cache_id = cache_id
        self._batch_index = batch_index

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def cache_id(self) -> int:
        return self._cache_id

    @property
    def batch_index(self) -> int:
        return self._batch_index

    def __repr__(self) -> str:
        return (
            f"CacheKeyByIdAndIndex(cluster_id={self.cluster_id}, cache_id={self.cache_id}, "
            f"batch_index={self.batch_index})"
        )


class LayerSynchronizer(ABC):
    """Says when a layer's KV is computed, for `transfer_cache_async`."""

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Wait for the layer (None: without limit); False if that failed."""


def check_layer_range(name: str, layers: range | None, *, allow_none: bool = True) -> None:
    check_isinstance(name, layers, range, allow_none=allow_none)
    if layers is None:
        return
    require(layers.step == 1, f"check {name}.step == 1 failed")
    require(
        0 <= layers.start < layers.stop,
        f"check 0 <= range.start < range.stop failed, {name} = {layers}",
    )


class TransferWithCacheKeyConfig:
    """Where `transfer_cache_async` pushes which layers."""

    def __init__(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_layer_range: range,
        dst_layer_range: range,
        src_batch_index: int = 0,
    ) -> None:
        kinds: list[type] = [BlocksCacheKey, CacheKeyByIdAndIndex]
        check_isinstance("cache_key", cache_key, kinds, allow_none=False)
        check_layer_range("src_layer_range", src_layer_range, allow_none=False)
        check_layer_range("dst_layer_range", dst_layer_range, allow_none=False)
        require(
            len(src_layer_range) == len(dst_layer_range),
            "src_layer_range size should be equal to dst_layer_range size",
        )
        check_uint32("src_batch_index", src_batch_index)
        require(
            not isinstance(cache_key, BlocksCacheKey) or src_batch_index == 0,
            "src_batch_index should be 0 when cache_key is BlocksCacheKey.",
        )
        self.cache_key = cache_key
        self.src_layer_range = src_layer_range
        self.dst_layer_range = dst_layer_range
        self.src_batch_index = src_batch_index

    @property
    def dst_cluster_id(self) -> int:
        return self.cache_key.cluster_id

    def __repr__(self) -> str:
        return (
            f"TransferWithCacheKeyConfig(cache_key={self.cache_key}, "
            f"src_layer_range={self.src_layer_range}, dst_layer_range={self.dst_layer_range}, "
            f"src_batch_index={self.src_batch_index})"
        )


class _Job(Protocol):
    def wait(self, seconds: float | None) -> bool: ...
    def results(self) -> list[LLMStatusCode | None]: ...


class CacheTask:
    """A running `transfer_cache_async`."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Wait for the end: the first failure, or LLM_SUCCESS; LLM_TIMEOUT if it still runs."""
        if not self._wait(timeout_in_millis):
            return LLMStatusCode.LLM_TIMEOUT
        failures = (one for one in self._job.results() if one not in (None, 0))
        return next((one for one in failures if one is not None), LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """One code per transfer config; None: not started. LLM_TIMEOUT each if it still runs."""
        ended = self._wait(timeout_in_millis)
        results = self._job.results()
        return results if ended else [LLMStatusCode.LLM_TIMEOUT for _ in results]

    def _wait(self, timeout_in_millis: int | None) -> bool:
        if timeout_in_millis is None:
            return self._job.wait(None)
        check_uint32("timeout_in_millis", timeout_in_millis)
        return self._job.wait(timeout_in_millis / 1000)
