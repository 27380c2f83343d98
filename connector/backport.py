"""What vLLM 0.10.x lacks for a connector that never loses a request or a block.

Failed loads: later versions take the ids of blocks that did not load; 0.10.x would decode on
whatever the blocks hold. Here a worker reports a failure as the end of a *send* with a name
that marks it, which travels through vLLM unchanged; the scheduler's half takes it out again
before vLLM looks, and the request is scheduled anew and prefilled here.

Steps without requests: an engine of 0.10.x sleeps when no request runs, also while blocks
wait for a decoder or a cancelled load: they would be freed when the next request comes.

Used only where vLLM lacks the feature (connector.compat.REPORTS_LOAD_FAILURES).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.request import RequestStatus

_MARK = "\0load-failed\0"


class FailureReports:
    """The worker's side. vLLM hands an id on when `tp_size` workers have reported it; one
    worker that saw the failure therefore repeats it in as many steps, and only in the last
    of them reports that the load has ended.
    """

    def __init__(self, tp_rank: int, tp_size: int) -> None:
        self._rank = tp_rank
        self._tp_size = tp_size
        self._left: dict[str, int] = {}

    def results(self, ended: set[str], failed: set[str]) -> tuple[set[str], set[str]]:
        """Marks to report as sent, and loads to report as ended, in this step."""
        self._left |= dict.fromkeys(failed, self._tp_size)
        ended = ended - failed
        marks = {f"{request_id}{_MARK}{self._rank}" for request_id in self._left}
        for request_id in list(self._left):
            self._left[request_id] -= 1
            if self._left[request_id] == 0:
                del self._left[request_id]
                ended.add(request_id)
        return marks, ended


def failures(sent: set[str]) -> set[str]:
    """The requests whose loads are marked as failed among ids reported as sent."""
    return {name.partition(_MARK)[0] for name in sent if _MARK in name}


def recompute_failed_loads(take_failed: Callable[[], set[str]]) -> None:
    """Have the engine's scheduler prefill requests whose load failed.

    `take_failed` gives their ids, each once. Changes vLLM's Scheduler class in this process,
    which runs one engine.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    original = Scheduler._update_from_kv_xfer_finished

    def update(self: Any, kv_connector_output: Any) -> None:
        original(self, kv_connector_output)
        for request_id in take_failed():
            request = self.requests.get(request_id)
            if request is None or request.status != RequestStatus.WAITING_FOR_REMOTE_KVS:
                continue
            self.finished_recving_kv_req_ids.discard(request_id)
            self.kv_cache_manager.free(request)
            request.num_computed_tokens = 0
            request.status = RequestStatus.WAITING

    Scheduler._update_from_kv_xfer_finished = update


def step_while(connector: Any, busy: Callable[[], bool]) -> None:
    """Have the engine's scheduler step as long as `busy`, and publish its gauges when that ends.

    0.10.x publishes them with outputs of requests only, so they would show blocks as used that
    were freed in a step without any. Changes vLLM's Scheduler class; `connector` tells which
    scheduler is meant.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreOutputs

    has_requests, update_from_output = Scheduler.has_requests, Scheduler.update_from_output

    def is_busy(scheduler: Any) -> bool:
        used = scheduler.connector
        return connector in (used, getattr(used, "_inner", None)) and busy()

    def has(self: Any) -> bool:
        return bool(has_requests(self)) or is_busy(self)

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = is_busy(self)
        outputs = update_from_output(self, *args, **kwargs)
        if before and not is_busy(self) and not outputs:
            return {0: EngineCoreOutputs(scheduler_stats=self.make_stats())}
        return outputs

    Scheduler.has_requests, Scheduler.update_from_output = has, update
