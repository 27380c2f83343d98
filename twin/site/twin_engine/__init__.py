"""What real vLLM needs to run the guide's engine on a small CPU machine. Loaded as a vLLM plugin.

vLLM loads every entry point of the group `vllm.general_plugins` in each of its
processes; the dist-info directory beside this package names `register`. Nothing
here touches scheduling, KV caches or connectors: those are stock.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from .faults import arm
from .forking import keep_start_method

# A reader of vLLM's shared-memory queue spins this long (seconds) before it sleeps on
# a socket. The stock 1 s lets the workers of three engines starve a two-core machine.
_SPIN_SECONDS = 0.02


# Between two looks at the queue a reader sleeps this long (seconds) instead of yielding:
# with more spinning readers than cores a yield comes back at once, and the thread that
# has the work to do waits for seconds.
_NAP_SECONDS = 0.0005
# A reader that slept through a notification looks again after this long (milliseconds).
# Stock is 5 s: with our short spinning readers sleep often, and each lost notification
# then stalls the engine (and, behind a collective, its other rank) for that long.
_RECHECK_MILLISECONDS = 20


def register() -> None:
    """Patch vLLM in this process. Idempotent, since vLLM may load plugins twice."""
    from vllm.distributed.device_communicators import shm_broadcast

    if hasattr(shm_broadcast, "SpinCondition"):
        _limit_spinning()
        _map_experts()
        keep_start_method()
    else:  # before 0.11
        from . import guide

        guide.register()
    arm()


def _limit_spinning() -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = _RECHECK_MILLISECONDS
    shm_broadcast.sched_yield = nap
    original = shm_broadcast.SpinCondition.__init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.busy_loop_s = min(self.busy_loop_s, _SPIN_SECONDS)

    shm_broadcast.SpinCondition.__init__ = init


def nap() -> None:
    """Instead of sched_yield, which keeps the interpreter's lock."""
    time.sleep(_NAP_SECONDS)


def _map_experts() -> None:
    """Make the CPU experts honour `expert_map`, without which expert parallel crashes.

    vLLM 0.32's CPU kernel indexes the local weights by global expert ids. With expert
    parallel each rank holds only some experts: translate the ids, and let an expert of
    another rank contribute nothing (weight 0 of local expert 0).
    """
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    original = cpu_moe.CPUUnquantizedExperts.apply
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def apply(self: Any, *args: Any, **kwargs: Any) -> None:
        names = ("output", "hidden_states", "w1", "w2", "topk_weights", "topk_ids")
        values = dict(zip(names, args, strict=False)) | kwargs
        rest = args[len(names) :]
        expert_map = kwargs.get("expert_map")
        if expert_map is None and len(rest) > 2:
            expert_map = rest[2]  # after activation and global_num_experts
        if expert_map is not None:
            local = expert_map.to(values["topk_ids"].device)[values["topk_ids"].long()]
            absent = local < 0
            values["topk_weights"] = values["topk_weights"].masked_fill(absent, 0)
            values["topk_ids"] = local.masked_fill(absent, 0).to(values["topk_ids"].dtype)
        positional = [values.pop(name) for name in names if name in values]
        original(self, *positional, *rest, **values)

    cpu_moe.CPUUnquantizedExperts.apply = apply
