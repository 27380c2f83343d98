"""Engines' own words on /metrics, of two vLLM versions, and what `drain` makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pd_validate.checks.drain import check_idle, check_path
from pd_validate.findings import Where, root_findings
from pd_validate.traffic.metrics import EngineMetrics, kv_usage, parse_engine_metrics
from pd_validate.traffic.trace import TraceRecord, unclaimed

# Lines of vLLM 0.32's /metrics as a decoder of the twin writes them, shortened.
V0_32 = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9873.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen3-moe"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen3-moe"} 1.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="qwen3-moe",reason="capacity"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="qwen3-moe"} 0.25
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="qwen3-moe"} 3.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="qwen3-moe"} 300.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="qwen3-moe"} 1.7638e+09
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="q",source="local_compute"} 2.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="q",source="local_cache_hit"} 0.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="q",source="external_kv_transfer"} 298.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen3-moe"} 64.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0",num_gpu_blocks="256"} 1.0
"""
# The same of vLLM 0.10.1: both names of the usage, prompt tokens without their source.
V0_10_1 = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen3-moe"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen3-moe"} 0.0
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{engine="0",model_name="qwen3-moe"} 0.5
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="qwen3-moe"} 0.5
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="qwen3-moe"} 12.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen3-moe"} 6.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="None"} 1.0
"""
WHERE = Where(host="p1", instance="prefill-1")
IDLE = EngineMetrics(0, 0, 0.0, 0, 0, 0, 0, 0, 0, block_size=128, blocks=256)


def test_a_version_that_tells_prompt_tokens_by_source() -> None:
    assert parse_engine_metrics(V0_32) == EngineMetrics(
        running=2,
        waiting=1,
        kv_usage=0.25,
        prompt_tokens=300,
        generation_tokens=64,
        computed=2,
        local_hits=0,
        external=298,
        preemptions=3,
        block_size=128,
        blocks=256,
    )


def test_a_version_that_does_not() -> None:
    metrics = parse_engine_metrics(V0_10_1)
    assert metrics.kv_usage == 0.5
    assert (metrics.computed, metrics.local_hits, metrics.external) == (None, None, None)
    assert (metrics.block_size, metrics.blocks) == (16, None)
    assert metrics.prompt_tokens == 12


def test_engine_cores_of_one_instance_add_up_but_not_their_shares() -> None:
    second = V0_32.replace('engine="0"', 'engine="1"')
    lines = [line for line in second.splitlines() if not line.startswith("#")]
    metrics = parse_engine_metrics(V0_32 + "\n".join(lines) + "\n")
    assert (metrics.running, metrics.external) == (4, 596)
    assert metrics.kv_usage == 0.25


def test_an_engine_that_says_nothing_yet_is_idle() -> None:
    assert parse_engine_metrics("").idle
    assert not parse_engine_metrics(V0_32).idle


# --- back to zero ---------------------------------------------------------------------------------


def test_back_to_zero() -> None:
    assert check_idle(IDLE, WHERE, waited=1) == []


def test_blocks_that_stay_held_are_a_leak() -> None:
    (finding,) = check_idle(replace(IDLE, kv_usage=3 / 256), WHERE, waited=30)
    assert finding.id == "drain.leak"
    assert finding.where == WHERE
    assert finding.got == "1.2% (about 3 blocks) after 30 s"
    assert finding.evidence == ()


def test_a_leak_names_the_requests_whose_kv_nobody_received() -> None:
    given_up = record("cmpl-b", "prefill-1", "produced", time=2, blocks=(4, 7))
    records = [
        given_up,
        record("cmpl-a", "prefill-1", "produced", time=1),
        record("cmpl-a-on-the-decoder", "decode-1", "received", remote_request="cmpl-a"),
        record("cmpl-c", "prefill-2", "produced", time=3),
    ]
    left = unclaimed(records, "prefill-1")
    assert left == [given_up]
    (finding,) = check_idle(replace(IDLE, kv_usage=3 / 256), WHERE, waited=30, unclaimed=left)
    assert finding.evidence == ("produced here and never received: cmpl-b, blocks 4 7",)


def record(request: str, instance: str, phase: str, **more: object) -> TraceRecord:
    common = {"rank": 0, "layers": (), "blocks": (1,), "tokens": 1, "digests": {}, "bytes": 0}
    said = common | {"request": request, "instance": instance, "phase": phase} | more
    return TraceRecord.model_validate(said)


@pytest.mark.parametrize("stuck", [{"running": 1}, {"waiting": 2}])
def test_a_request_that_stays_explains_its_blocks(stuck: dict[str, int]) -> None:
    findings = check_idle(replace(IDLE, kv_usage=0.1, **stuck), WHERE, waited=30)
    assert [finding.id for finding in findings] == ["drain.stuck", "drain.leak"]
    assert [finding.id for finding in root_findings(findings)] == ["drain.stuck"]


# --- where prompt tokens came from ----------------------------------------------------------------


def test_a_decoder_computes_the_last_token_only() -> None:
    after = replace(IDLE, computed=1, external=299)
    assert check_path(IDLE, after, WHERE, prompt_tokens=300) == []


def test_a_decoder_that_computes_the_prompt_again() -> None:
    after = replace(IDLE, computed=300, external=0)
    (finding,) = check_path(IDLE, after, WHERE, prompt_tokens=300)
    assert finding.id == "kv.recomputed"
    assert finding.got == "300 computed, 0 received"


def test_an_engine_that_does_not_tell_cannot_be_judged() -> None:
    old = parse_engine_metrics(V0_10_1)
    assert check_path(old, old, WHERE, prompt_tokens=12) == []


@pytest.mark.parametrize(
    ("usage", "idle"),
    [
        pytest.param(1 / 256, True, id="0.10.1.1 counts its null block"),
        pytest.param(1 / 255, False, id="0.32 holds one block"),
        pytest.param(2 / 256, False, id="0.10.1.1 holds one block"),
    ],
)
def test_the_null_block_is_not_held(usage: float, idle: bool) -> None:
    text = V0_32.replace("requests_running{", "requests_running_{").replace("_waiting{", "_wait_{")
    assert parse_engine_metrics(text.replace("} 0.25", f"}} {usage!r}")).idle is idle


@pytest.mark.parametrize(
    "text",
    [V0_32, V0_10_1, V0_32.replace("0.25", "2.5e-02"), V0_32.replace("0.25", f"{1 / 256}"), ""],
)
def test_usage_alone_is_the_same_as_usage_among_all(text: str) -> None:
    assert kv_usage(text) == parse_engine_metrics(text).kv_usage
