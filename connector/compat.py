"""Where vLLM 0.10.1.1 and its successors up to 0.32 differ, and only that."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

try:
    from vllm.utils.network_utils import get_ip
except ImportError:  # before 0.11
    from vllm.utils import get_ip

__all__ = ["REPORTS_LOAD_FAILURES", "get_ip", "init_base", "set_kv_finished", "tp_rank"]

REPORTS_LOAD_FAILURES = hasattr(KVConnectorBase_V1, "get_block_ids_with_load_errors")
"""Without it (0.10.x) vLLM has no way to be told that a load failed: connector.backport adds it."""


def init_base(
    connector: Any, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any | None
) -> None:
    """KVConnectorBase_V1.__init__, which takes the KV cache config from 0.12 on."""
    if kv_cache_config is None:
        KVConnectorBase_V1.__init__(connector, vllm_config, role)
    else:
        KVConnectorBase_V1.__init__(connector, vllm_config, role, kv_cache_config)


def tp_rank() -> int:
    """This worker's rank in its tensor-parallel group."""
    from vllm.distributed.parallel_state import get_tp_group

    return int(get_tp_group().rank_in_group)


def local_rank() -> int:
    """This worker's device index among the devices it sees."""
    from vllm.distributed.parallel_state import get_world_group

    return int(get_world_group().local_rank)


def set_kv_finished(output: Any, *, sending: set[str], recving: set[str]) -> None:
    """Replace the finished ids of a KVConnectorOutput (vLLM wants None for none)."""
    output.finished_sending = sending or None
    output.finished_recving = recving or None
