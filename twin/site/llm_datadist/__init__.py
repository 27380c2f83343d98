"""LLM-DataDist of CANN for machines without an NPU: the same API, over TCP.

A stand-in of our own, written from CANN's documentation and behaviour: names, defaults, errors,
order of checks, timing and limits are those of CANN's cache-manager mode, so that a KV connector
cannot tell the difference. What moves the bytes is different: processes of this machine read
each other's registered memory over TCP, served by background threads of the owner. The
transport obeys the twin's fabric state (native/fabric.py) and a scenario's faults in the KV
(native/faults.py).

Not here: the mode of version 1 (KvCacheManager, KvCache, Tensor, TensorDesc; `init` without
llm.EnableCacheManager=1 is LLM_PARAM_INVALID), memory pools (allocate_*), pushes to raw addresses
(TransferConfig), remap_registered_memory. Limits that CANN documents and does not check are not
checked (240 addresses, 50 GB); those that differ by version are those of 8.5. A link is tried
until its time is up, whatever llm.LinkRetryCount says. Other than hardware: a paused owner
(SIGSTOP) does not serve, memory needs no alignment, a peer that died or unlinked is noticed at
once (LLM_FAILED) where RDMA may take until the time limit.
"""

from __future__ import annotations

import os

from llm_datadist.configs import LLMClusterInfo, LlmConfig, LLMRole
from llm_datadist.data_type import DataType
from llm_datadist.status import LLMException, LLMStatusCode, Status
from llm_datadist.v2.llm_datadist import LLMDataDist
from llm_datadist.v2.llm_types import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    LayerSynchronizer,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    TransferWithCacheKeyConfig,
)

LLMConfig = LlmConfig

__all__ = [
    "BlocksCacheKey",
    "Cache",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "CacheTask",
    "DataType",
    "LLMClusterInfo",
    "LLMConfig",
    "LLMDataDist",
    "LLMException",
    "LLMRole",
    "LLMStatusCode",
    "LayerSynchronizer",
    "LlmConfig",
    "MemInfo",
    "Memtype",
    "Placement",
    "RegisterMemStatus",
    "Status",
    "TransferWithCacheKeyConfig",
]

# CANN's module does so on import.
os.environ.setdefault("AUTO_USE_UC_MEMORY", "0")
