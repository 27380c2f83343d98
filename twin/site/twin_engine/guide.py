"""What vLLM 0.10.1.1, the guide's, needs on a small CPU machine to work as on an NPU.

Its CPU backend differs from vllm-ascend's in two points that a KV connector meets: K and V of
a layer are the halves of one tensor that begins anywhere (vllm-ascend aligns each to 2 MiB,
as HCCS demands), and only rank 0 reports what its connector has finished, while vLLM waits
for all ranks.
"""

from __future__ import annotations

import functools
from typing import Any

ALIGNMENT = 2 * 1024 * 1024  # bytes


def register() -> None:
    """Patch vLLM 0.10 in this process. Idempotent."""
    _nap_when_spinning()
    _align_caches()
    _report_on_every_rank()


def _nap_when_spinning() -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    from . import nap

    shm_broadcast.sched_yield = nap


def _align_caches() -> None:
    """Begin every KV cache at a multiple of 2 MiB.

    With the twin's number of blocks (engine.py) K and V are whole multiples of that, too.
    """
    import torch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._allocate_kv_cache_tensors
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def allocate(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        aligned: dict[int, Any] = {}
        tensors = original(self, *args, **kwargs)
        for tensor in tensors.values():  # layers may share one
            if tensor.data_ptr() not in aligned:
                room = torch.zeros(tensor.numel() + ALIGNMENT, dtype=tensor.dtype)
                start = -room.data_ptr() % ALIGNMENT
                aligned[tensor.data_ptr()] = room[start : start + tensor.numel()]
        return {layer: aligned[tensor.data_ptr()] for layer, tensor in tensors.items()}

    GPUModelRunner._allocate_kv_cache_tensors = allocate


def _report_on_every_rank() -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker

    original = CPUWorker.execute_model
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        driver, self.is_driver_worker = self.is_driver_worker, True
        try:
            return original(self, *args, **kwargs)
        finally:
            self.is_driver_worker = driver

    CPUWorker.execute_model = execute_model
