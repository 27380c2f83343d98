"""Roles, cluster addresses and the options that `LLMDataDist.init` takes."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from llm_datadist.status import require
from llm_datadist.utils.utils import (
    check_dict,
    check_int32,
    check_isinstance,
    check_uint16,
    check_uint32,
    check_uint64,
)

_UINT32_MAX = 2**32 - 1


class LLMRole(IntEnum):
    """A label: in cache-manager mode both sides may pull and push."""

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def trans_str_ip(ip: str | int) -> int:
    """An IPv4 address as CANN keeps it: its four bytes read as a little-endian number."""
    if isinstance(ip, int):
        return ip
    try:
        return int.from_bytes(socket.inet_aton(ip), byteorder="little")
    except OSError as error:
        raise RuntimeError(f"Can not parse ip str:{ip}") from error


class LLMClusterInfo:
    """Where a remote cluster listens, for `link_clusters` and `unlink_clusters`."""

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | int | None = None
        self._local_ip_info_list: list[tuple[int, int]] = []
        self._remote_ip_info_list: list[tuple[int, int]] = []

    @property
    def remote_cluster_id(self) -> int | None:
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, remote_cluster_id: int) -> None:
        check_uint64("remote_cluster_id", remote_cluster_id)
        self._remote_cluster_id = remote_cluster_id

    @property
    def remote_role_type(self) -> LLMRole | int | None:
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, remote_role_type: LLMRole | int) -> None:
        check_isinstance("remote_role_type", remote_role_type, [LLMRole, int])
        self._remote_role_type = remote_role_type

    @property
    def local_ip_info_list(self) -> list[tuple[int, int]]:
        return self._local_ip_info_list

    @property
    def remote_ip_info_list(self) -> list[tuple[int, int]]:
        return self._remote_ip_info_list

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        self._local_ip_info_list.append(_ip_info(ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        self._remote_ip_info_list.append(_ip_info(ip, port))


def _ip_info(ip: str | int, port: int) -> tuple[int, int]:
    check_isinstance("ip", ip, [str, int])
    check_uint16("port", port)
    return trans_str_ip(ip), port


class LlmConfig:
    """Settings by name; `generate_options` gives the dict of strings for `LLMDataDist.init`.

    An option whose setting was never made is absent, except `llm.MemoryUtilization`.
    """

    def __init__(self) -> None:
        self._options: dict[str, str] = {}
        self._ge_options: dict[str, str] = {}
        self._device_id: int | Sequence[int] | None = None
        self._sync_kv_timeout: int | str | None = None
        self._enable_switch_role = False
        self._mem_utilization = 0.95
        self._output_max_size: int | None = None
        self._cluster_info = ""
        self._link_total_time: int | None = None
        self._link_retry_count: int | None = None
        self._enable_cache_manager: bool | None = None
        self._enable_remote_cache_accessible: bool | None = None
        self._rdma_traffic_class: int | None = None
        self._rdma_service_level: int | None = None
        self._local_comm_res: str | None = None
        self._transfer_backend: str | None = None
        self._global_resource_config: str | None = None
        self._listen_ip_info = ""
        self._deploy_res_path = ""
        self._buf_pool_cfg = ""
        self._mem_pool_cfg = ""
        self._host_mem_pool_cfg = ""

    def generate_options(self) -> dict[str, str]:
        return self.gen_options()

    def gen_options(self) -> dict[str, str]:
        options = self._options
        options.update(self._ge_options)
        if isinstance(self._device_id, int):
            options["ge.exec.deviceId"] = str(self._device_id)
            options["ge.session_device_id"] = str(self._device_id)
        elif self._device_id is not None:
            options["ge.session_device_id"] = str(self._device_id[0])
            options["ge.exec.deviceId"] = ";".join(str(one) for one in self._device_id)
        flags = {
            "llm.EnableCacheManager": self._enable_cache_manager,
            "llm.EnableRemoteCacheAccessible": self._enable_remote_cache_accessible,
        }
        options.update({k: "1" if v else "0" for k, v in flags.items() if v is not None})
        if self._enable_switch_role:
            options["llm.EnableSwitchRole"] = "1"
        stated: dict[str, object] = {
            "llm.SyncKvCacheWaitTime": self._sync_kv_timeout,
            "llm.LinkTotalTime": self._link_total_time,
            "llm.LinkRetryCount": self._link_retry_count,
            "llm.RdmaTrafficClass": self._rdma_traffic_class,
            "llm.RdmaServiceLevel": self._rdma_service_level,
            "llm.LocalCommRes": self._local_comm_res,
            "llm.TransferBackend": self._transfer_backend,
            "llm.GlobalResourceConfig": self._global_resource_config,
            "llm.OutputMaxSize": self._output_max_size,
            "llm.MemoryUtilization": self._mem_utilization,
        }
        options.update({k: str(v) for k, v in stated.items() if v is not None})
        texts = {
            "llm.listenIpInfo": self._listen_ip_info,
            "llm.deployResPath": self._deploy_res_path,
            "llm.BufPoolCfg": self._buf_pool_cfg,
            "llm.MemPoolConfig": self._mem_pool_cfg,
            "llm.HostMemPoolConfig": self._host_mem_pool_cfg,
            "llm.ClusterInfo": self._cluster_info,
        }
        options.update({k: v for k, v in texts.items() if v})
        return options

    @property
    def options(self) -> dict[str, str]:
        return self._options

    @property
    def ge_options(self) -> dict[str, str]:
        return self._ge_options

    @ge_options.setter
    def ge_options(self, ge_options: dict[str, str]) -> None:
        check_isinstance("ge_options", ge_options, dict)
        check_dict("ge_options", ge_options, str, str)
        self._ge_options = ge_options

    @property
    def device_id(self) -> int | Sequence[int] | None:
        return self._device_id

    @device_id.setter
    def device_id(self, device_id: int | Sequence[int]) -> None:
        check_isinstance("device_id", device_id, [list, tuple, int])
        for one in [device_id] if isinstance(device_id, int) else device_id:
            check_isinstance("device_id", one, int, allow_none=False)
            require(one >= 0, "device_id should be greater than or equal to zero.")
            check_int32("device_id", one)
        self._device_id = device_id

    @property
    def sync_kv_timeout(self) -> int | str | None:
        """Milliseconds a pull or push may take; None: 1000."""
        return self._sync_kv_timeout

    @sync_kv_timeout.setter
    def sync_kv_timeout(self, sync_kv_timeout: int | str) -> None:
        check_isinstance("sync_kv_timeout", sync_kv_timeout, [int, str])
        if isinstance(sync_kv_timeout, str):
            require(sync_kv_timeout.isdigit(), "sync_kv_timeout must be digit.")
        require(int(sync_kv_timeout) > 0, "sync_kv_timeout should be greater than zero.")
        check_int32("sync_kv_timeout", int(sync_kv_timeout))
        self._sync_kv_timeout = sync_kv_timeout

    @property
    def enable_switch_role(self) -> bool:
        return self._enable_switch_role

    @enable_switch_role.setter
    def enable_switch_role(self, enable_switch_role: bool) -> None:
        check_isinstance("enable_switch_role", enable_switch_role, bool)
        self._enable_switch_role = enable_switch_role

    @property
    def enable_cache_manager(self) -> bool:
        return bool(self._enable_cache_manager)

    @enable_cache_manager.setter
    def enable_cache_manager(self, enable_cache_manager: bool) -> None:
        check_isinstance("enable_cache_manager", enable_cache_manager, bool)
        self._enable_cache_manager = enable_cache_manager

    @property
    def enable_remote_cache_accessible(self) -> bool:
        return bool(self._enable_remote_cache_accessible)

    @enable_remote_cache_accessible.setter
    def enable_remote_cache_accessible(self, enable_remote_cache_accessible: bool) -> None:
        check_isinstance("enable_remote_cache_accessible", enable_remote_cache_accessible, bool)
        self._enable_remote_cache_accessible = enable_remote_cache_accessible

    @property
    def link_total_time(self) -> int:
        """Seconds a link may take to come up; 0: HCCL_CONNECT_TIMEOUT, else 120."""
        return self._link_total_time or 0

    @link_total_time.setter
    def link_total_time(self, link_total_time: int) -> None:
        check_isinstance("link_total_time", link_total_time, int)
        require(
            0 <= link_total_time <= _UINT32_MAX,
            "link_total_time should be an integer between [0, 2^32-1], "
            f"given value is {link_total_time}",
        )
        self._link_total_time = link_total_time

    @property
    def link_retry_count(self) -> int:
        return 1 if self._link_retry_count is None else self._link_retry_count

    @link_retry_count.setter
    def link_retry_count(self, link_retry_count: int) -> None:
        check_isinstance("link_retry_count", link_retry_count, int)
        require(
            1 <= link_retry_count <= 100,
            "link_retry_count should be an integer between [1, 100], "
            f"given value is {link_retry_count}",
        )
        self._link_retry_count = link_retry_count

    @property
    def mem_utilization(self) -> float:
        return self._mem_utilization

    @mem_utilization.setter
    def mem_utilization(self, mem_utilization: float) -> None:
        check_isinstance("mem_utilization", mem_utilization, float)
        require(
            0.0 <= mem_utilization <= 1.0,
            f"mem_utilization must be in range [0,1], current:{mem_utilization}",
        )
        self._mem_utilization = mem_utilization

    @property
    def output_max_size(self) -> int | None:
        return self._output_max_size

    @output_max_size.setter
    def output_max_size(self, output_max_size: int) -> None:
        check_isinstance("output_max_size", output_max_size, int)
        self._output_max_size = output_max_size

    @property
    def cluster_info(self) -> str:
        return self._cluster_info

    @cluster_info.setter
    def cluster_info(self, cluster_info: str) -> None:
        check_isinstance("cluster_info", cluster_info, str)
        info: dict[str, Any] = json.loads(cluster_info)
        for ip_info in info.get("listen_ip_info", []):
            ip_info["ip"] = trans_str_ip(ip_info["ip"])
        self._cluster_info = json.dumps(info)

    @property
    def rdma_traffic_class(self) -> int | None:
        return self._rdma_traffic_class

    @rdma_traffic_class.setter
    def rdma_traffic_class(self, rdma_traffic_class: int) -> None:
        check_uint32("rdma_traffic_class", rdma_traffic_class)
        self._rdma_traffic_class = rdma_traffic_class

    @property
    def rdma_service_level(self) -> int | None:
        return self._rdma_service_level

    @rdma_service_level.setter
    def rdma_service_level(self, rdma_service_level: int) -> None:
        check_uint32("rdma_service_level", rdma_service_level)
        self._rdma_service_level = rdma_service_level

    @property
    def local_comm_res(self) -> str:
        return self._local_comm_res or ""

    @local_comm_res.setter
    def local_comm_res(self, local_comm_res: str) -> None:
        check_isinstance("local_comm_res", local_comm_res, str)
        self._local_comm_res = local_comm_res

    @property
    def transfer_backend(self) -> str:
        return self._transfer_backend or ""

    @transfer_backend.setter
    def transfer_backend(self, transfer_backend: str) -> None:
        check_isinstance("transfer_backend", transfer_backend, str)
        self._transfer_backend = transfer_backend

    @property
    def global_resource_config(self) -> str:
        return self._global_resource_config or ""

    @global_resource_config.setter
    def global_resource_config(self, global_resource_config: str) -> None:
        check_isinstance("global_resource_config", global_resource_config, str)
        self._global_resource_config = global_resource_config

    @property
    def listen_ip_info(self) -> str:
        return self._listen_ip_info

    @listen_ip_info.setter
    def listen_ip_info(self, listen_ip_info: str) -> None:
        check_isinstance("listen_ip_info", listen_ip_info, str)
        self._listen_ip_info = listen_ip_info

    @property
    def deploy_res_path(self) -> str:
        return self._deploy_res_path

    @deploy_res_path.setter
    def deploy_res_path(self, deploy_res_path: str) -> None:
        check_isinstance("deploy_res_path", deploy_res_path, str)
        self._deploy_res_path = deploy_res_path

    @property
    def buf_pool_cfg(self) -> str:
        return self._buf_pool_cfg

    @buf_pool_cfg.setter
    def buf_pool_cfg(self, buf_pool_cfg: str) -> None:
        check_isinstance("buf_pool_cfg", buf_pool_cfg, str)
        self._buf_pool_cfg = buf_pool_cfg

    @property
    def mem_pool_cfg(self) -> str:
        return self._mem_pool_cfg

    @mem_pool_cfg.setter
    def mem_pool_cfg(self, mem_pool_cfg: str) -> None:
        check_isinstance("mem_pool_cfg", mem_pool_cfg, str)
        self._mem_pool_cfg = mem_pool_cfg

    @property
    def host_mem_pool_cfg(self) -> str:
        return self._host_mem_pool_cfg

    @host_mem_pool_cfg.setter
    def host_mem_pool_cfg(self, host_mem_pool_cfg: str) -> None:
        check_isinstance("host_mem_pool_cfg", host_mem_pool_cfg, str)
        self._host_mem_pool_cfg = host_mem_pool_cfg
