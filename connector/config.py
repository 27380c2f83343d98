"""The connector's settings: what `kv_connector_extra_config` and the environment say.

Deadlines are in seconds. docs/connector.md explains how they fit together.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from connector.errors import ConnectorConfigError

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

RANK_TABLE_PATH = "DISAGGREGATED_PREFILL_RANK_TABLE_PATH"
RPC_PORT = "VLLM_ASCEND_LLMDD_RPC_PORT"
RPC_IP = "VLLM_ASCEND_LLMDD_RPC_IP"
VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
DEFAULT_RPC_PORT = 5557


@dataclass(frozen=True)
class Settings:
    """What may be set in `kv_connector_extra_config`; every value has a default."""

    pull_timeout: float = 20.0
    """One pull_blocks call (LLMConfig.sync_kv_timeout)."""
    load_timeout: float = 60.0
    """From the start of a load to its success or failure; one running pull may outlast it."""
    link_timeout: float = 60.0
    """From link() until both ends report the link's memory as registered."""
    rpc_timeout: float = 5.0
    """One question to a peer's side channel."""
    hold_timeout: float = 120.0
    """A prefiller keeps a finished request's blocks so long for a decoder that never asks."""
    announce_timeout: float = 15.0
    """A prefiller's workers may learn of a finished request so much later than its client."""
    heartbeat: float = 5.0
    """A decoder asks every prefiller rank it is linked with whether it still is the same one."""
    silence_timeout: float = 90.0
    """A prefiller drops the link of a decoder that it has not heard from for so long."""
    prelink: bool = True
    """Establish links in the background at start, not at the first request."""
    prelink_peers: tuple[str, ...] = ()
    """`host:port` of prefiller instances (port of TP rank 0) where the rank table is not enough."""
    metrics_directory: str | None = None
    """Where to write `<instance>-rank<r>.prom`; nowhere when not set."""
    instance: str | None = None
    """Name in metrics; the engine id when not set."""

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> Settings:
        """Settings from the extra config; an unknown key is only logged (it may be another's).

        Raises ConnectorConfigError for a value of the wrong kind.
        """
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in extra.items():
            if key not in known:
                logger.warning("kv_connector_extra_config: unknown key %r is ignored", key)
                continue
            values[key] = _checked(key, value, getattr(cls, key))
        return cls(**values)


def _checked(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        wanted = "a number of seconds above 0"
    elif isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(_is_address(item) for item in value):
            return tuple(value)
        wanted = 'a list of "host:port"'
    else:
        if value is None or isinstance(value, str):
            return value
        wanted = "a string"
    raise ConnectorConfigError(f"kv_connector_extra_config.{key} must be {wanted}, got {value!r}")


def _is_address(item: Any) -> bool:
    if not isinstance(item, str) or re.fullmatch(r".+:\d{1,5}", item) is None:
        return False
    return 0 < int(item.rpartition(":")[2]) < 65536


@dataclass(frozen=True)
class Environment:
    """What the host's environment says; the names are vllm-ascend's."""

    rank_table: str
    rpc_port: int
    rpc_ip: str
    visible_devices: tuple[str, ...]

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> Environment:
        """Raises ConnectorConfigError when the rank table's path or the port is unusable."""
        path = env.get(RANK_TABLE_PATH, "")
        if not path:
            raise ConnectorConfigError(
                f"environment variable {RANK_TABLE_PATH} is not set: "
                "it must name the rank table that both prefiller and decoders use"
            )
        port = env.get(RPC_PORT, str(DEFAULT_RPC_PORT))
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ConnectorConfigError(f"{RPC_PORT} must be a port number, got {port!r}")
        visible = env.get(VISIBLE_DEVICES, "")
        devices = tuple(part.strip() for part in visible.split(",") if part.strip())
        return cls(path, int(port), env.get(RPC_IP, "0.0.0.0"), devices)


def base_port(parallel: Any, rpc_port: int) -> int:
    """Side-channel port of TP rank 0 of this instance; rank r listens on the result + r.

    `parallel` is vLLM's ParallelConfig. The formula is vllm-ascend's (v0.10.1rc1): base plus
    the TP size without data parallelism, base plus local DP rank times TP size with it.
    With an external load balancer every rank has local rank 0, so the global one counts.
    """
    tp = int(parallel.tensor_parallel_size)
    if parallel.data_parallel_size <= 1:
        return rpc_port + tp
    rank = parallel.data_parallel_rank_local
    if rank is None or getattr(parallel, "data_parallel_external_lb", False):
        rank = parallel.data_parallel_rank
    return rpc_port + int(rank) * tp
