"""What an engine says of itself on /metrics: load, KV usage, where prompt tokens came from.

Names are vLLM's, 0.10.1 to 0.32 (v1/metrics/loggers.py). Counters carry the suffix
`_total` in the text that prometheus_client writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Labels = dict[str, str]


@dataclass(frozen=True)
class EngineMetrics:
    """One reading. Requests and tokens are counts, `kv_usage` is 0..1.

    `computed`, `local_hits` and `external` split the prompt tokens by source; they are
    None on vLLM versions that do not say (before `prompt_tokens_by_source`).
    """

    running: int
    waiting: int
    kv_usage: float
    prompt_tokens: int
    generation_tokens: int
    computed: int | None
    local_hits: int | None
    external: int | None
    preemptions: int
    block_size: int | None  # tokens per KV block
    blocks: int | None  # KV blocks in all

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits, no KV block is held."""
        return self.running == 0 and self.waiting == 0 and self.kv_usage == 0


def parse_engine_metrics(text: str) -> EngineMetrics:
    """Read the Prometheus text of one engine. Missing gauges count as 0."""
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:")
    ]
    config = _labels(samples, "vllm:cache_config_info")
    blocks = _number(config.get("num_gpu_blocks"))
    usage = _highest(samples, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    return EngineMetrics(
        running=int(_sum(samples, "vllm:num_requests_running")),
        waiting=int(_sum(samples, "vllm:num_requests_waiting")),
        kv_usage=0.0 if _is_null_block(usage, blocks) else usage,
        prompt_tokens=int(_sum(samples, "vllm:prompt_tokens_total")),
        generation_tokens=int(_sum(samples, "vllm:generation_tokens_total")),
        computed=_by_source(samples, "local_compute"),
        local_hits=_by_source(samples, "local_cache_hit"),
        external=_by_source(samples, "external_kv_transfer"),
        preemptions=int(_sum(samples, "vllm:num_preemptions_total")),
        block_size=_number(config.get("block_size")),
        blocks=blocks,
    )


def _is_null_block(usage: float, blocks: int | None) -> bool:
    """Whether nothing is in use but vLLM's null block, which is never free.

    vLLM 0.10.1.1 counts it: an idle engine shows 1 / blocks. Later versions do not, and show
    1 / (blocks - 1) for one block that is held.
    """
    return bool(blocks) and abs(usage * (blocks or 0) - 1) < 0.5 / (blocks or 1)


_USAGE = re.compile(r"^vllm:(?:kv|gpu)_cache_usage_perc(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)
_BLOCKS = re.compile(r'^vllm:cache_config_info\{.*\bnum_gpu_blocks="([0-9]+)"', re.MULTILINE)


def kv_usage(text: str) -> float:
    """`EngineMetrics.kv_usage` alone, without reading the rest; 0 if the gauge is not there."""
    usage = max(map(float, _USAGE.findall(text)), default=0.0)
    blocks = _BLOCKS.search(text)
    return 0.0 if _is_null_block(usage, int(blocks[1]) if blocks else None) else usage


def _sum(samples: Iterable[Sample], name: str) -> float:
    return sum(sample.value for sample in samples if sample.name == name)


def _highest(samples: Iterable[Sample], *names: str) -> float:
    """Of all engine cores of an instance (data parallel): a share is not added up."""
    return max((sample.value for sample in samples if sample.name in names), default=0.0)


def _by_source(samples: Iterable[Sample], source: str) -> int | None:
    values = [
        sample.value
        for sample in samples
        if sample.name == "vllm:prompt_tokens_by_source_total"
        and sample.labels.get("source") == source
    ]
    return int(sum(values)) if values else None


def _labels(samples: Iterable[Sample], name: str) -> Labels:
    return next((sample.labels for sample in samples if sample.name == name), {})


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
