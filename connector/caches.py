"""KV caches as the backends give them, described as what `llm_datadist` registers.

Known forms, per layer:
- vllm-ascend: a tuple (k, v) of tensors [num_blocks, block_size, heads, dim], for MLA
  (k_normed, k_pe) with different widths;
- vLLM's CPU backend from 0.11 on: one tensor [num_blocks, heads, block_size, 2 * dim];
- vLLM's CPU backend at 0.10.1.1 and older GPU-style caches: one tensor [2, num_blocks, ...].
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from connector.errors import ConnectorConfigError
from connector.protocol import Layout

KVCache: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"


@dataclass(frozen=True)
class Part:
    """One tensor of a layer whose dimension 0 is the block."""

    layer: str
    name: str
    """`k`, `v`, or `kv` where both lie in one tensor."""
    tensor: torch.Tensor

    @property
    def block_bytes(self) -> int:
        return int(self.tensor[0].numel() * self.tensor.element_size())


def parts(kv_caches: Mapping[str, KVCache], num_blocks: int | None) -> list[Part]:
    """Every layer's tensors, in layer order, K before V.

    `num_blocks` settles which dimension is the block where the engine says it. Raises
    ConnectorConfigError for a cache whose blocks are not contiguous in memory.
    """
    found: list[Part] = []
    for layer, cache in kv_caches.items():
        found += [Part(layer, name, tensor) for name, tensor in _split(cache, num_blocks)]
    for part in found:
        if not part.tensor[0].is_contiguous() or (
            part.tensor.shape[0] > 1
            and part.tensor.stride(0) * part.tensor.element_size() != part.block_bytes
        ):
            raise ConnectorConfigError(
                f"KV cache of {part.layer} ({part.name}, shape {tuple(part.tensor.shape)}, "
                f"stride {part.tensor.stride()}) has no contiguous blocks: cannot be transferred"
            )
    return found


def _split(cache: KVCache, num_blocks: int | None) -> list[tuple[str, torch.Tensor]]:
    if not isinstance(cache, torch.Tensor):
        return list(zip(("k", "v"), cache, strict=True))
    stacked = cache.shape[0] == 2 and (num_blocks is None or cache.shape[1] == num_blocks)
    return [("k", cache[0]), ("v", cache[1])] if stacked else [("kv", cache)]


def groups(all_parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that can be one registered cache: equal shape and type; shared memory only once.

    The order is the same on every host that runs the same model.
    """
    grouped: dict[tuple[Any, ...], list[Part]] = {}
    seen: set[int] = set()
    for part in all_parts:
        if part.tensor.data_ptr() in seen:
            continue
        seen.add(part.tensor.data_ptr())
        grouped.setdefault((*part.tensor.shape, part.tensor.dtype), []).append(part)
    return list(grouped.values())


def layout(all_parts: Sequence[Part], block_size: int, model: str) -> Layout:
    """What a peer must have in common with us."""
    first = all_parts[0].tensor
    return Layout(
        model=model,
        block_size=block_size,
        dtype=str(first.dtype).removeprefix("torch."),
        layers=list(dict.fromkeys(part.layer for part in all_parts)),
        blocks=[(len(group), group[0].block_bytes) for group in groups(all_parts)],
        memory=_memory(first.device.type),
    )


def _memory(device: str) -> str:
    if device != "cpu":
        return device
    # vLLM packs CPU caches by instruction set, so blocks only fit between equal kinds.
    return f"cpu-{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"


def mismatch(ours: Layout, theirs: Layout) -> str | None:
    """In words, the first thing that keeps blocks from being copied; None when nothing does."""
    pairs: list[tuple[str, Any, Any]] = [
        ("model", ours.model, theirs.model),
        ("block size", ours.block_size, theirs.block_size),
        ("KV cache dtype", ours.dtype, theirs.dtype),
        ("number of layers", len(ours.layers), len(theirs.layers)),
        ("layer names", ours.layers, theirs.layers),
        ("tensors and bytes per block", ours.blocks, theirs.blocks),
        ("memory", ours.memory, theirs.memory),
    ]
    for name, mine, other in pairs:
        if mine != other:
            return f"{name} differs: decoder {other}, prefiller {mine}"
    return None


def model_digest(model_config: Any) -> str:
    """A short digest of the model's architecture and sizes, the same wherever it is stored."""
    config = model_config.hf_config.to_dict()
    relevant = {
        k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")
    }
    text = repr(sorted((key, repr(value)) for key, value in relevant.items()))
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    architecture = (config.get("architectures") or ["model"])[0]
    return f"{architecture}-{digest}"
