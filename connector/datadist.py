"""The only module that talks to `llm_datadist`: registration, links, pulls.

Everything it raises is a TransferError with a cause, so that no caller has to know CANN's
status codes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import llm_datadist
import torch

from connector.caches import Part
from connector.errors import TransferError
from connector.ranktable import Agent, link_rank_table
from connector.waiting import poll

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM configures loggers below its own

# Blocks of one pull_blocks call: a request to the engine may name about 7160 tensors and
# runs (112 KiB, CANN 8.5); scattered blocks make one run each, counted twice.
BLOCKS_PER_PULL = 2048
MAX_ADDRESSES = 240  # documented limit of registered addresses in one process
ALIGNMENT = 2 * 1024 * 1024  # HCCS inside a server wants 2 MiB pages

_TYPES = {
    torch.float16: "DT_FLOAT16",
    torch.bfloat16: "DT_BF16",
    torch.float32: "DT_FLOAT",
    torch.int8: "DT_INT8",
    torch.uint8: "DT_UINT8",
    torch.int32: "DT_INT32",
    torch.int64: "DT_INT64",
}


def beyond_limits(groups: Sequence[Sequence[Part]]) -> list[str]:
    """In words, which documented limits caches exceed that registering does not check."""
    tensors = [part.tensor for group in groups for part in group]
    problems = []
    if len(tensors) > MAX_ADDRESSES:
        problems.append(
            f"{len(tensors)} KV tensors exceed the documented limit of {MAX_ADDRESSES} "
            "registered addresses"
        )
    if any(t.device.type == "npu" and t.data_ptr() % ALIGNMENT for t in tensors):
        problems.append("KV tensors are not aligned to 2 MiB: links over HCCS may fail")
    return problems


class DataDist:
    """One process's `LLMDataDist` with its registered caches."""

    def __init__(
        self, role: Literal["prefill", "decode"], me: Agent, device: int, pull_timeout: float
    ) -> None:
        kind = llm_datadist.LLMRole.PROMPT if role == "prefill" else llm_datadist.LLMRole.DECODER
        config = llm_datadist.LLMConfig()
        config.device_id = device
        config.sync_kv_timeout = int(pull_timeout * 1000)
        config.enable_switch_role = True
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = True
        self.role = role
        self.me = me
        self._engine = llm_datadist.LLMDataDist(kind, me.cluster_id)
        self._engine.init(config.generate_options())
        self._caches: list[tuple[Any, dict[str, int]]] = []  # with arguments for pull_blocks
        self._bytes_per_block = 0

    def register(self, groups: Sequence[Sequence[Part]]) -> None:
        """Register each group as one blocks cache; its index is the `model_id` on both sides."""
        for problem in beyond_limits(groups):
            logger.warning(problem)
        for model_id, group in enumerate(groups):
            first = group[0].tensor
            # Whole blocks are copied, so an unknown type may be described as bytes.
            name = _TYPES.get(first.dtype)
            shape = list(first.shape)
            if name is None:
                name = "DT_UINT8"
                shape[-1] *= first.element_size()
            desc = llm_datadist.CacheDesc(len(group), shape, getattr(llm_datadist.DataType, name))
            key = llm_datadist.BlocksCacheKey(self.me.cluster_id, model_id)
            cache = self._engine.cache_manager.register_blocks_cache(
                desc, [part.tensor.data_ptr() for part in group], key
            )
            # Only named where it is not the default of 2: old CANN does not know the argument.
            joint = {"tensor_num_per_layer": 1} if group[0].name == "kv" else {}
            self._caches.append((cache, joint))
            self._bytes_per_block += len(group) * group[0].block_bytes

    def link(self, peer: Agent, session: str, deadline: float, stop: threading.Event) -> int:
        """Establish the link and wait for it; both ends must do so with the same session.

        `deadline` is a time.monotonic() value. Returns the communicator id. Raises
        TransferError("link"); nothing stays behind then.
        """
        prefill, decode = (self.me, peer) if self.role == "prefill" else (peer, self.me)
        # A name of its own for each attempt: HCCL may refuse to use one twice.
        name = f"pd_comm_{prefill.device_ip}_{decode.device_ip}_{session}"
        ranks = {prefill.cluster_id: 0, decode.cluster_id: 1}
        where = f"{peer.server_id} device {peer.device_id} ({peer.device_ip})"
        try:
            comm = self._engine.link(name, ranks, link_rank_table(prefill, decode))
        except llm_datadist.LLMException as error:
            raise TransferError("link", f"link to {where} failed: {error}") from error
        failed = False

        def settled() -> bool:
            nonlocal failed
            status = self._engine.query_register_mem_status(comm)
            failed = status == llm_datadist.RegisterMemStatus.FAILED
            return failed or bool(status == llm_datadist.RegisterMemStatus.OK)

        started = time.monotonic()
        try:
            done = poll(settled, deadline, stop=stop)
        except llm_datadist.LLMException as error:
            self.unlink(comm)
            raise TransferError("link", f"link to {where} was lost: {error}") from error
        if done and not failed:
            return int(comm)
        self.unlink(comm)
        waited = time.monotonic() - started
        outcome = "failed" if failed else "was not established"
        raise TransferError("link", f"link to {where} {outcome} after {waited:.1f} s")

    def unlink(self, comm: int) -> None:
        """Take a link down; one that is gone already is fine."""
        try:
            self._engine.unlink(comm)
        except llm_datadist.LLMException as error:
            logger.warning("unlink: %s", error)

    def pull(
        self, peer: Agent, remote: Sequence[int], local: Sequence[int], deadline: float
    ) -> int:
        """Copy blocks `remote[i]` of the peer to `local[i]`, all tensors; returns bytes.

        No call of the engine begins after `deadline`, a time.monotonic() value; one that runs
        then may still take its time. Raises TransferError; the local blocks are undefined then
        and the link must be dropped before they are used for anything else.
        """
        manager = self._engine.cache_manager
        for model_id, (cache, options) in enumerate(self._caches):
            key = llm_datadist.BlocksCacheKey(peer.cluster_id, model_id)
            for start in range(0, len(remote), BLOCKS_PER_PULL):
                end = start + BLOCKS_PER_PULL
                if time.monotonic() >= deadline:
                    raise TransferError("timeout", "load_timeout passed during the pull")
                try:
                    manager.pull_blocks(
                        key, cache, list(remote[start:end]), list(local[start:end]), **options
                    )
                except llm_datadist.LLMException as error:
                    raise self._failure(peer, error) from error
        return len(remote) * self._bytes_per_block

    @staticmethod
    def _failure(peer: Agent, error: Any) -> TransferError:
        status = error.status_code
        codes = llm_datadist.LLMStatusCode
        cause = "timeout" if status == codes.LLM_TIMEOUT else "pull"
        return TransferError(
            cause,
            f"pull from {peer.server_id} device {peer.device_id} ({peer.device_ip}): {error}",
            # A link that was lost is worth one fresh one; a timeout has used up its time.
            transient=status in (codes.LLM_NOT_YET_LINK, codes.LLM_FAILED),
        )

    def close(self) -> None:
        self._engine.finalize()
