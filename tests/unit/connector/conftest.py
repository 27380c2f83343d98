"""What the connector's tests run on: engines without a model, and ranks without an engine.

`engine` is vLLM's real scheduler with the connector's scheduler half. Workers are played by the
tests: they decide what a step reports. `start` makes ranks: the connector's real worker half in
processes of their own, over the twin's `llm_datadist`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_process import RankProcess, Setup, free_ports
from rank_stand import Start
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

try:
    from vllm.utils.hashing import sha256
except ImportError:  # 0.10.1.1, the guide's version, which these tests run on too
    from vllm.utils import sha256


def accepted(make: Any, **options: Any) -> Any:
    """Call with those options that this vLLM's version of `make` has."""
    known = inspect.signature(make).parameters
    return make(**{name: value for name, value in options.items() if name in known})


BLOCK_SIZE = 16
NUM_BLOCKS = 100
EOS = 1

MODEL = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "eos_token_id": EOS,
    "torch_dtype": "float32",  # without it old vLLM looks for the weights on the net
}


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(MODEL))
    return directory


@pytest.fixture
def rank_table(tmp_path: Path) -> Path:
    def device(server: str, number: int, cluster: int) -> dict[str, Any]:
        return {
            "server_id": server,
            "device_id": str(number),
            "device_ip": f"10.0.{server[-1]}.{number}",
            "cluster_id": cluster,
        }

    table = {
        "prefill_device_list": [device("127.0.0.1", 0, 1), device("127.0.0.1", 1, 2)],
        "decode_device_list": [device("127.0.0.2", 6, 3), device("127.0.0.2", 7, 4)],
    }
    path = tmp_path / "ranktable.json"
    path.write_text(json.dumps(table))
    return path


class Engine:
    """One instance: a real scheduler whose model runner is the test."""

    def __init__(
        self,
        model: Path,
        role: str,
        connector: str = "LLMDataDistConnector",
        module: str = "connector.llmdatadist",
        extra: dict[str, Any] | None = None,
        policy: str = "fail",
        prefix_caching: bool = True,
    ) -> None:
        config = VllmConfig(
            model_config=ModelConfig(
                model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=2048
            ),
            cache_config=CacheConfig(
                block_size=BLOCK_SIZE, cache_dtype="auto", enable_prefix_caching=prefix_caching
            ),
            scheduler_config=accepted(
                SchedulerConfig,
                max_num_seqs=16,
                max_num_batched_tokens=2048,
                max_model_len=2048,
                is_encoder_decoder=False,
            ),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=accepted(
                KVTransferConfig,
                kv_connector=connector,
                kv_connector_module_path=module,
                kv_role=role,
                engine_id=role,
                kv_connector_extra_config=extra or {},
                kv_load_failure_policy=policy,
            ),
        )
        config.cache_config.num_gpu_blocks = NUM_BLOCKS
        spec = accepted(
            FullAttentionSpec,
            use_mla=False,
            sliding_window=None,
            block_size=BLOCK_SIZE,
            num_kv_heads=1,
            head_size=1,
            dtype=torch.float32,
        )
        self.scheduler = accepted(
            Scheduler,
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=NUM_BLOCKS,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=True,
        )
        self.usage: float | None = None
        self.connector: Any = self.scheduler.connector
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, sha256)

    def add(
        self, request_id: str, tokens: list[int], params: dict[str, Any] | None, **sampling: Any
    ) -> Request:
        sampling_params = SamplingParams(**{"max_tokens": 1, **sampling})
        sampling_params.update_from_generation_config({}, EOS)
        sampling_params.extra_args = {"kv_transfer_params": params} if params else None
        request = accepted(
            Request,
            multi_modal_kwargs=None,
            multi_modal_hashes=None,
            multi_modal_placeholders=None,
            eos_token_id=EOS,
            request_id=request_id,
            prompt_token_ids=tokens,
            sampling_params=sampling_params,
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self.scheduler.add_request(request)
        return request

    def step(
        self,
        token: int = 7,
        sent: set[str] = frozenset(),  # type: ignore[assignment]  # never changed
        received: set[str] = frozenset(),  # type: ignore[assignment]
        invalid: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> tuple[Any, list[Any]]:
        """One engine step; every scheduled request gets `token`. Returns metadata and outputs."""
        scheduled = self.scheduler.schedule()
        ids = list(scheduled.num_scheduled_tokens)
        runner = accepted(
            ModelRunnerOutput,
            spec_token_ids=None,
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[[token] for _ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=accepted(
                KVConnectorOutput,
                finished_sending=set(sent) or None,
                finished_recving=set(received) or None,
                invalid_block_ids=set(invalid),
            ),
        )
        outputs = self.scheduler.update_from_output(scheduled, runner)
        for group in outputs.values():
            if group.scheduler_stats is not None:  # what the gauges on /metrics will show
                self.usage = group.scheduler_stats.kv_cache_usage
        return scheduled.kv_connector_metadata, [
            output for group in outputs.values() for output in group.outputs
        ]

    @property
    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def is_empty(self) -> bool:
        """Nothing is kept: no request, and every block free (one is vLLM's null block)."""
        return not self.scheduler.requests and self.free_blocks == NUM_BLOCKS - 1


@pytest.fixture
def engine(model_directory: Path, rank_table: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`engine("kv_producer")` makes an instance."""
    monkeypatch.setenv("DISAGGREGATED_PREFILL_RANK_TABLE_PATH", str(rank_table))
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(role: str, **options: Any) -> Engine:
        return Engine(model_directory, role, **options)

    return make


@pytest.fixture
def port() -> int:
    return free_ports(4)


@pytest.fixture
def start(rank_table: Path, tmp_path: Path, port: int) -> Iterator[Start]:
    """`start("prefill", …)` starts a rank; all are ended after the test."""
    started: list[RankProcess] = []

    def make(role: Any, **options: Any) -> RankProcess:
        rank = options.get("tp_rank", 0)
        options.setdefault("port", port + rank)
        env = {
            "TWIN_STATE": str(tmp_path / "state"),
            "TWIN_HOST": role,
            "PD_INSTANCE": role,
            "ASCEND_RT_VISIBLE_DEVICES": "0,1" if role == "prefill" else "6,7",
        }
        process = RankProcess(Setup(role=role, rank_table=str(rank_table), env=env, **options))
        started.append(process)
        return process

    yield make
    for process in reversed(started):  # decoders first: they would ask a prefiller that is gone
        process.end()


@pytest.fixture
def fault(tmp_path: Path) -> Callable[..., None]:
    """Damage the transferred KV by the twin's rules (see llm_datadist.native.faults)."""

    def write(**words: Any) -> None:
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        layout = {
            "product": "A2",
            "device_defaults": {},
            "hosts": {},
            "paths": [],
            "kv_faults": [words] if words else [],
        }
        beside = state / "fabric.new"
        beside.write_text(json.dumps(layout))
        beside.replace(state / "fabric.json")

    return write
