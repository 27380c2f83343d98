"""`LLMDataDistConnector`: vLLM's KV connector over Ascend's `llm_datadist`.

    --kv-transfer-config '{"kv_connector": "LLMDataDistConnector",
                           "kv_connector_module_path": "connector.llmdatadist",
                           "kv_role": "kv_producer", …}'

This class only sorts vLLM's calls into the scheduler's and the worker's half.
docs/connector.md describes protocol, states and deadlines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

from connector import backport, compat
from connector.backport import FailureReports
from connector.config import Environment, Settings
from connector.errors import ConnectorConfigError
from connector.scheduler import SchedulerHalf, StepMetadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connector.caches import KVCache
    from connector.worker import Worker

ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}


class LLMDataDistConnector(KVConnectorBase_V1):  # type: ignore[misc]  # vLLM is untyped here
    """Prefiller (`kv_producer`) or decoder (`kv_consumer`) side of a PD deployment."""

    def __init__(
        self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any | None = None
    ) -> None:
        compat.init_base(self, vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        refuse_unsupported(vllm_config)
        settings = Settings.read(transfer.kv_connector_extra_config)
        environment = Environment.read()
        self._scheduler: SchedulerHalf | None = None
        self._worker: Worker | None = None
        self._idle = True
        self._invalid: set[int] = set()
        self._failure_reports: FailureReports | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerHalf(
                vllm_config, ROLES[transfer.kv_role], environment.rpc_port
            )
            if not compat.REPORTS_LOAD_FAILURES:
                backport.step_while(self, self._scheduler.busy)
        else:
            # Only workers need CANN's library; the scheduler's process must not load it.
            from connector.worker import make_worker

            self._worker = worker = make_worker(vllm_config, kv_cache_config, settings, environment)
            if not compat.REPORTS_LOAD_FAILURES:
                self._failure_reports = FailureReports(worker.tp_rank, worker.tp_size)

    # ---- scheduler

    @property
    def scheduler(self) -> SchedulerHalf:
        assert self._scheduler is not None, "called in a worker"
        return self._scheduler

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        return self.scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        return self.scheduler.step(scheduler_output.total_num_scheduled_tokens)

    def update_connector_output(self, connector_output: Any) -> None:
        self.scheduler.output(connector_output)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler.finished(request, block_ids)

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        return (0,)  # without HMA there is one group, and all of it is pulled

    # ---- worker

    @property
    def worker(self) -> Worker:
        assert self._worker is not None, "called in the scheduler"
        return self._worker

    def register_kv_caches(self, kv_caches: Mapping[str, KVCache]) -> None:
        self.worker.register(kv_caches)

    def bind_connector_metadata(self, connector_metadata: StepMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._idle = connector_metadata.idle
        self.worker.begin_step(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self.worker.start_loads(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads end before a request is scheduled."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Decoders pull; nothing is pushed."""

    def wait_for_save(self) -> None:
        """Decoders pull; nothing is pushed."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        results = self.worker.results(self._idle)
        self._invalid |= results.invalid_blocks
        if self._failure_reports is not None:
            marks, results.received = self._failure_reports.results(
                results.received, results.failed
            )
            results.sent |= marks
        return results.sent or None, results.received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        invalid, self._invalid = self._invalid, set()
        return invalid

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse at start what would go wrong later. Raises ConnectorConfigError."""
    role = vllm_config.kv_transfer_config.kv_role
    if role not in ROLES:
        raise ConnectorConfigError(
            f'kv_role must be "kv_producer" (prefill) or "kv_consumer" (decode), got {role!r}'
        )
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ConnectorConfigError(
            "LLMDataDistConnector does not support pipeline parallelism "
            f"(pipeline_parallel_size={parallel.pipeline_parallel_size})"
        )
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise ConnectorConfigError(
            "LLMDataDistConnector does not support decode context parallelism "
            f"(decode_context_parallel_size={parallel.decode_context_parallel_size})"
        )
