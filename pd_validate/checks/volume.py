"""How much KV moved, and between whom. Pure verdicts on the joined KV trace.

Digests say that what moved is right; these say that all of it moved, that nothing else did,
and that no pair of ranks was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pd_validate.findings import Finding, Severity, Where
from pd_validate.traffic.trace import TraceRecord, Transfer

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}


@dataclass(frozen=True)
class KvShape:
    """What one block of KV weighs, from the model's config.json and the engine's settings."""

    layers: int
    kv_heads: int
    head_dim: int
    item_bytes: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any], dtype: str | None) -> KvShape | None:
        """None where the model says too little, or holds its KV in another form (MLA)."""
        layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
        kv_heads = config.get("num_key_value_heads") or heads
        stated = dtype if dtype not in (None, "auto") else config.get("torch_dtype")
        item = _BYTES.get(str(stated or config.get("dtype")))
        if config.get("kv_lora_rank") is not None or item is None:
            return None
        if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(kv_heads, int)):
            return None
        hidden = config.get("hidden_size")
        head_dim = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) else None)
        if not isinstance(head_dim, int):
            return None
        return cls(layers, kv_heads, head_dim, item)

    def block_bytes(self, block_size: int, tensor_parallel: int) -> int:
        """Bytes of one block in all layers, K and V, on one TP rank."""
        heads = max(1, self.kv_heads // tensor_parallel)
        return self.layers * 2 * heads * block_size * self.head_dim * self.item_bytes


def check_volume(
    received: Iterable[TraceRecord],
    shape: KvShape,
    hosts: Mapping[str, str],
    *,
    block_size: int,
    tensor_parallel: int,
) -> list[Finding]:
    """Did each rank pull blocks x bytes of a block, for every block of the prompt?"""
    each = shape.block_bytes(block_size, tensor_parallel)
    findings = []
    for record in received:
        needed = -(-record.tokens // block_size) - record.first_block
        expected = needed * each
        if record.bytes == expected and len(record.layers) == shape.layers:
            continue
        findings.append(
            Finding(
                id="kv.missing",
                where=Where(
                    host=hosts.get(record.instance),
                    instance=record.instance,
                    rank=record.rank,
                    request=record.remote_request or record.request,
                ),
                expected=f"{needed} blocks x {each} bytes in {shape.layers} layers = {expected}",
                got=f"{record.bytes} bytes in {len(record.layers)} layers",
            )
        )
    return findings


def check_pairs(
    transfers: Sequence[Transfer],
    ranks: Mapping[tuple[str, str], int],
    hosts: Mapping[str, str],
) -> list[Finding]:
    """Pairs of ranks between which nothing moved in the whole run: not measured.

    `ranks`: of each (prefiller, decoder) the decoder's TP ranks.
    """
    seen = {
        (produced.instance, received.instance, received.rank)
        for produced, received in transfers
        if produced is not None
    }
    return [
        Finding(
            id="kv.missing",
            severity=Severity.UNKNOWN,
            where=Where(
                host=hosts.get(decoder),
                instance=decoder,
                rank=rank,
                peer_host=hosts.get(prefiller),
                peer_instance=prefiller,
            ),
            expected="at least one pull between these ranks",
            got="none in the whole run",
        )
        for (prefiller, decoder), count in ranks.items()
        for rank in range(count)
        if (prefiller, decoder, rank) not in seen
    ]
