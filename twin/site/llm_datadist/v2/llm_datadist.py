"""`LLMDataDist`: one process's end of all its links."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Sequence
from typing import ClassVar

from llm_datadist.configs import LLMClusterInfo, LLMRole
from llm_datadist.native.engine import Clusters, Engine
from llm_datadist.native.errors import NativeError
from llm_datadist.status import LLMStatusCode, log, require
from llm_datadist.utils.utils import (
    check_dict,
    check_int32,
    check_isinstance,
    check_uint32,
    check_uint64,
)
from llm_datadist.v2.cache_manager import CacheManager, native_call
from llm_datadist.v2.llm_types import RegisterMemStatus

_MAX_NAME = 128
_MAX_MEMBERS = 4
_ROLE_NAMES = {LLMRole.PROMPT: "Prompt", LLMRole.DECODER: "Decoder", LLMRole.MIX: "Mix"}


class LLMDataDist:
    """Links this process with others; one initialised object in a process.

    `cluster_id` is unique over everything that will be linked.
    """

    llm_engine_instance: ClassVar[LLMDataDist | None] = None

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        check_isinstance("role", role, LLMRole)
        check_uint64("cluster_id", cluster_id)
        self._role = role
        self._cluster_id = cluster_id
        self._options: dict[str, str] = {}
        self._engine: Engine | None = None
        self._cache_manager: CacheManager | None = None
        self._is_initialized = False

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    def init(self, options: dict[str, str]) -> None:
        """Start, with options as LLMConfig generates them; again on the same object: nothing."""
        if self._is_initialized:
            return
        require(
            LLMDataDist.llm_engine_instance is None,
            "Cannot init multiple LLMDataDists",
            status_code=LLMStatusCode.LLM_FAILED,
        )
        check_isinstance("options", options, dict, allow_none=False)
        self._options = self._completed(options)
        require(
            self._has_cache_manager(),
            "without llm.EnableCacheManager=1 LLM-DataDist runs in the mode of version 1, "
            "which this module does not have.",
        )
        with native_call(
            "LLMDataDist.init", f"Failed to initialize llm datadist, options = {options}"
        ):
            self._engine = Engine(self._cluster_id, self._options, os.environ)
        self._cache_manager = CacheManager(self._engine, self._options)
        LLMDataDist.llm_engine_instance = self
        self._is_initialized = True

    def _completed(self, options: dict[str, str]) -> dict[str, str]:
        completed = options | {"llm.Role": _ROLE_NAMES[self._role]}
        if "llm.LocalCommRes" in options:
            completed.setdefault("llm.EnableCacheManager", "1")
            completed.setdefault("llm.EnableRemoteCacheAccessible", "1")
        if "llm.listenIpInfo" in options:
            _check_listen_ip_info(options["llm.listenIpInfo"])
        return completed

    def finalize(self) -> None:
        """Unlink everything and stop; waits for running calls. Idempotent."""
        if not self._is_initialized:
            return
        if self._engine is not None:
            self._engine.finalize()
        self._is_initialized = False
        LLMDataDist.llm_engine_instance = None

    @property
    def cache_manager(self) -> CacheManager:
        self._running("cache_manager")
        assert self._cache_manager is not None, "init() made it"
        return self._cache_manager

    @property
    def kv_cache_manager(self) -> None:
        self._running("kv_cache_manager")
        self._refuse_version_1("kv_cache_manager")

    def check_link_status(self, remote_cluster_id: int) -> None:
        self._running("check_link_status")
        self._refuse_version_1("check_link_status")

    # Collective links

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Start a link with 1 to 3 others, each of which calls `link` too; its id.

        `cluster_rank_info`: cluster id -> rank, ascending. Register memory before. Returns when
        this side is ready (LLM_LINK_FAILED: this process is not what the rank table says, or
        its device cannot take part); ask `query_register_mem_status` for the rest.
        """
        engine = self._running("link")
        check_isinstance("comm_name", comm_name, str, allow_none=False)
        require(len(comm_name) > 0, "comm_name can not be empty")
        require(len(comm_name) < _MAX_NAME, "comm_name length should be smaller than 128.")
        check_isinstance("cluster_rank_info", cluster_rank_info, dict, allow_none=False)
        check_dict("cluster_rank_info", cluster_rank_info, int, int)
        require(
            len(cluster_rank_info) <= _MAX_MEMBERS,
            "cluster_rank_info size can not be greater than 4.",
        )
        for cluster_id, rank in cluster_rank_info.items():
            check_uint64("cluster_rank_info key", cluster_id)
            check_uint32("cluster_rank_info value", rank)
        check_isinstance("rank_table", rank_table, str, allow_none=False)
        ranks = list(cluster_rank_info.values())
        require(len(ranks) > 1, "cluster num must be bigger than 1.")
        require(ranks == sorted(ranks), "rank in cluster_rank_info must be ordered")
        with native_call("link", f"cluster_rank_info = {cluster_rank_info}"):
            comm_id = engine.link(comm_name, cluster_rank_info, rank_table)
        self.cache_manager.set_is_call_linked()
        return comm_id

    def unlink(self, comm_id: int) -> None:
        """Give a link up on this side; the others must do so too."""
        engine = self._running("unlink")
        check_uint64("comm_id", comm_id)
        with native_call("unlink", f"comm_id = {comm_id}"):
            engine.unlink(comm_id)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """How far a link is: PREPARING, then for good OK or FAILED."""
        engine = self._running("query_register_mem_status")
        check_uint64("comm_id", comm_id)
        with native_call("query_register_mem_status", f"comm_id = {comm_id}"):
            return RegisterMemStatus(engine.link_status(comm_id))

    # One-sided links

    def link_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Link with processes that listen (option llm.listenIpInfo), within `timeout` ms.

        The first failure or LLM_SUCCESS, and one code for each cluster.
        """
        engine = self._running("link_clusters")
        _check_clusters(clusters, timeout)
        if not self._options.get("llm.LocalCommRes"):
            for cluster in clusters:
                require(
                    cluster.local_ip_info_list,
                    "local_ip_info_list is empty. Call append_local_ip_info to add local_ip_info "
                    "when local_comm_res option is unspecified or empty.",
                )
        with native_call("link_clusters", f"timeout = {timeout}"):
            return _summary(engine.link_clusters(_remotes(clusters), timeout))

    def unlink_clusters(
        self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, force: bool = False
    ) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
        """Unlink on both sides; with `force` only on this one. Codes as `link_clusters`."""
        engine = self._running("unlink_clusters")
        _check_clusters(clusters, timeout)
        check_isinstance("force", force, bool)
        with native_call("unlink_clusters", f"timeout = {timeout}"):
            return _summary(engine.unlink_clusters(_remotes(clusters), timeout, force=bool(force)))

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Take another role and listen at another place (llm.listenIpInfo), or nowhere.

        LLM_EXIST_LINK while links exist.
        """
        engine = self._running("switch_role")
        check_isinstance("role", role, LLMRole, allow_none=False)
        check_isinstance("switch_options", switch_options, dict)
        options = switch_options or {}
        listen = options.get("llm.listenIpInfo")
        if listen is not None:
            _check_listen_ip_info(listen)
        with native_call(
            "switch_role", f"Failed to switch role, role = {role}, options = {options}"
        ):
            engine.switch_role(listen)
        self._role = role

    def _has_cache_manager(self) -> bool:
        return self._options.get("llm.EnableCacheManager") == "1"

    def _running(self, call: str) -> Engine:
        if not self._is_initialized or self._engine is None:
            raise RuntimeError("llm datadist is not initialized")
        return self._engine

    def _refuse_version_1(self, call: str) -> None:
        require(False, f"{call} is not supported when llm.EnableCacheManager is configured.")


def _check_listen_ip_info(text: str) -> None:
    check_isinstance("llm.listenIpInfo", text, str, allow_none=False)
    parts = text.split(":")
    require(len(parts) == 2, f'llm.listenIpInfo "{text}" is invalid, format should be "ip:port"')
    int(parts[1])  # ValueError, as in CANN


def _check_clusters(clusters: Sequence[LLMClusterInfo], timeout: int) -> None:
    check_int32("timeout", timeout)
    require(timeout > 0, "Param timeout should be greater than 0.")
    check_isinstance("clusters", clusters, [list, tuple], LLMClusterInfo, allow_none=False)
    for cluster in clusters:
        check_uint64("remote_cluster_id", cluster.remote_cluster_id)


def _remotes(clusters: Sequence[LLMClusterInfo]) -> Clusters:
    return [
        (
            cluster.remote_cluster_id or 0,
            [
                (socket.inet_ntoa(ip.to_bytes(4, "little")), port)
                for ip, port in cluster.remote_ip_info_list
            ],
        )
        for cluster in clusters
    ]


def _summary(codes: list[LLMStatusCode]) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
    success = LLMStatusCode.LLM_SUCCESS
    return next((code for code in codes if code != success), success), codes


def _finalize_at_exit() -> None:
    instance = LLMDataDist.llm_engine_instance
    if instance is not None:
        try:
            instance.finalize()
        except NativeError as error:
            log.warning("finalizing at exit: %s", error)


atexit.register(_finalize_at_exit)
