"""A scenario's faults of engine processes: killed or paused when they reach a phase.

Read from `engine_faults.json` in TWIN_STATE (written by twin/faults.py) by the plugin that
vLLM loads in each of its processes; PD_INSTANCE says of which instance. Each fault strikes
once in the life of the twin: an instance that is started again lives.

phase       when                                                             in
starting    as soon as a process of the instance runs                        any process
prefilling  the n-th prompt is about to be computed                          workers
pulling     the n-th pull of KV is about to begin                            workers
decoding    the n-th request whose prompt came over KV is about to go on     workers

With a rank only that worker is hit, else the whole process group of the instance: by
SIGKILL (`kill`) or by SIGSTOP (`pause`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "engine_faults.json"
_SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}


@dataclass(frozen=True)
class ProcessFault:
    """One fault of this instance. `request` counts from 1, in each process."""

    number: int  # its place in the file
    at: str
    do: str
    rank: int | None
    request: int

    def strike(self) -> None:
        """Once per twin, whichever process comes first. Does not return if it kills us."""
        try:
            mark = Path(os.environ["TWIN_STATE"]) / f"{FILE}.struck-{self.number}"
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if self.rank is None:
            os.killpg(os.getpgrp(), _SIGNALS[self.do])
        else:
            os.kill(os.getpid(), _SIGNALS[self.do])


class Counter:
    """Counts what happens at one phase in this process, and strikes at the right one."""

    def __init__(self, faults: Sequence[ProcessFault]) -> None:
        self._faults = faults
        self._count = 0

    def happened(self, rank: int, times: int = 1) -> None:
        for _ in range(times):
            self._count += 1
            for fault in self._faults:
                if fault.request == self._count and fault.rank in (None, rank):
                    fault.strike()


def faults_of_this_instance() -> list[ProcessFault]:
    """Empty outside of a twin."""
    state, instance = os.environ.get("TWIN_STATE"), os.environ.get("PD_INSTANCE")
    if state is None or instance is None:
        return []
    told = json.loads((Path(state) / FILE).read_text(encoding="utf-8"))["instance"]
    return [
        ProcessFault(number, fault["at"], fault["do"], fault["rank"], fault["request"])
        for number, fault in enumerate(told)
        if fault["instance"] == instance
    ]


def arm() -> None:
    """Set up this process's faults. Without any nothing is patched."""
    phases: dict[str, list[ProcessFault]] = {}
    for fault in faults_of_this_instance():
        phases.setdefault(fault.at, []).append(fault)
    if "starting" in phases:
        _at_start(phases["starting"])
    if phases.keys() & {"prefilling", "decoding"}:
        _at_steps(Counter(phases.get("prefilling", [])), Counter(phases.get("decoding", [])))
    if "pulling" in phases:
        _at_pulls(Counter(phases["pulling"]))


def _at_start(faults: Sequence[ProcessFault]) -> None:
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    for fault in faults:
        if fault.rank is None:
            fault.strike()

    def before(worker: Any, *args: Any, **kwargs: Any) -> None:
        for fault in faults:
            if fault.rank == worker.rpc_rank:
                fault.strike()

    _call_before(WorkerWrapperBase, "init_device", before)


def _at_steps(prefills: Counter, decodes: Counter) -> None:
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def before(worker: Any, step: Any, *args: Any, **kwargs: Any) -> None:
        # A request whose KV was pulled comes with all but its last token computed.
        new = [request.num_computed_tokens > 0 for request in step.scheduled_new_reqs]
        decodes.happened(worker.rpc_rank, sum(new))
        prefills.happened(worker.rpc_rank, len(new) - sum(new))

    _call_before(WorkerWrapperBase, "execute_model", before)


def _at_pulls(pulls: Counter) -> None:
    from llm_datadist.native.transfer import Transfers

    def before(transfers: Any, *args: Any, **kwargs: Any) -> None:
        pulls.happened(transfers.place.rank)

    _call_before(Transfers, "pull", before)


def _call_before(owner: type, method: str, before: Callable[..., None]) -> None:
    original = getattr(owner, method)
    if hasattr(original, "__wrapped__"):
        return  # vLLM may load a plugin twice

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(owner, method, wrapped)
