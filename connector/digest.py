"""Digests of KV blocks, equal on both sides whatever block ids they use.

A block is digested per layer, K and V apart, over the elements of its valid tokens only:
the rest of a partly filled block is undefined. Which element belongs to which token is
known per layout (vLLM's CPU kernels pack keys by instruction set, so there it is measured
once with the kernel itself).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from connector.caches import Part

DIGEST_BYTES = 8
ZERO = "zero"  # of a block that is all zero: no model writes that, it means nothing arrived


@dataclass(frozen=True)
class Plane:
    """K or V of one layer: `tensor` is [num_blocks, …], `token_of` the token of each element.

    `token_of` has the shape of one block (or one that broadcasts to it); None where the
    layout is not known, then a partly filled block has no digest.
    """

    layer: str
    name: str
    tensor: torch.Tensor
    token_of: torch.Tensor | None

    def digest(self, block: int, tokens: int, block_size: int) -> str:
        """Hex digest of the first `tokens` tokens of a block; ZERO; "" if it cannot be taken."""
        data = self.tensor[block].detach().cpu()
        if tokens < block_size:
            if self.token_of is None:
                return ""
            data = data[(self.token_of < tokens).expand(data.shape)]
        raw = data.contiguous().reshape(-1).view(torch.uint8).numpy()
        if not raw.any():
            return ZERO
        return hashlib.blake2b(raw.data, digest_size=DIGEST_BYTES).hexdigest()


PackedTokens = Callable[[torch.Tensor, int], torch.Tensor | None]
"""(one block, block size) -> token of each element of K and of V, stacked; or None.

The block is [heads, 2 * block_size, dim] where K and V lie in one tensor, and flat where each
has its own.
"""


def planes(parts: Sequence[Part], block_size: int, packed: PackedTokens) -> list[Plane]:
    """All layers' planes, in layer order, K before V."""
    found: list[Plane] = []
    for part in parts:
        if part.name == "kv":
            found += _joint(part, block_size, packed)
        else:
            tokens = _token_of(part, block_size, packed)
            found.append(Plane(part.layer, part.name, part.tensor, tokens))
    return found


def _token_of(part: Part, block_size: int, packed: PackedTokens) -> torch.Tensor | None:
    """For [num_blocks, block_size, …] the token is dimension 1; [num_blocks, n] is measured."""
    tensor = part.tensor
    if tensor.dim() == 2:
        both = packed(tensor[0], block_size)
        return None if both is None else both["kv".index(part.name)]
    if tensor.dim() < 3 or tensor.shape[1] != block_size:
        return None
    return torch.arange(block_size).view(-1, *[1] * (tensor.dim() - 2))


def _joint(part: Part, block_size: int, packed: PackedTokens) -> list[Plane]:
    """Split [num_blocks, heads, block_size, 2 * dim]: per head, all keys and then all values."""
    blocks, heads, size, width = part.tensor.shape
    if size != block_size or width % 2:
        return [Plane(part.layer, "kv", part.tensor, None)]
    both = part.tensor.view(blocks, heads, 2 * size, width // 2)
    token_of = packed(both[0], block_size)
    halves = zip(("k", "v"), both.chunk(2, dim=2), strict=True)
    return [
        Plane(part.layer, name, half, None if token_of is None else token_of[i])
        for i, (name, half) in enumerate(halves)
    ]


def measure_cpu_packing(
    block: torch.Tensor, block_size: int, head_size: int
) -> torch.Tensor | None:
    """[2 (K, V), …]: the token of each element of a block, as vLLM's CPU kernel packs.

    Has the kernel write token numbers into a scratch block of the cache's type. None when
    the kernel is not there or the type cannot hold the numbers exactly.
    """
    if block.dtype not in (torch.float32, torch.bfloat16, torch.float16) or block_size > 256:
        return None
    measure = _written_before_0_11 if block.dim() == 1 else _written
    try:
        scratch = measure(block, block_size, head_size)
    except (ImportError, AttributeError, RuntimeError):
        return None  # no such kernel in this build, or not for this size
    return scratch.to(torch.int64) - 1


def _numbers(block: torch.Tensor, block_size: int, heads: int, dim: int) -> torch.Tensor:
    """[block_size, heads, dim]: the number of the token, from 1."""
    numbers = torch.arange(1, block_size + 1).to(block.dtype)
    return numbers.view(-1, 1, 1).expand(block_size, heads, dim).contiguous()


def _written(block: torch.Tensor, block_size: int, head_size: int) -> torch.Tensor:
    """For a block [heads, 2 * block_size, dim]."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    heads, _, dim = block.shape
    scratch = torch.zeros(1, heads, 2 * block_size, dim, dtype=block.dtype)
    keys, values = scratch.chunk(2, dim=2)
    written = _numbers(block, block_size, heads, dim)
    isa = _get_attn_isa(block.dtype, block_size, dim)
    slots = torch.arange(block_size)
    ops.cpu_attn_reshape_and_cache(written, written, keys, values, slots, isa)
    return torch.stack([keys[0], values[0]])


def _written_before_0_11(block: torch.Tensor, block_size: int, head_size: int) -> torch.Tensor:
    """For a flat block of vLLM 0.10, which does not tell its heads."""
    from vllm.v1.attention.backends.cpu_attn import _get_paged_attn_impl

    heads = block.numel() // (block_size * head_size)
    kernels = _get_paged_attn_impl()
    scratch = torch.zeros(2, 1, block.numel(), dtype=block.dtype)
    keys, values = kernels.split_kv_cache(scratch, heads, head_size)
    written = _numbers(block, block_size, heads, head_size)
    slots, one = torch.arange(block_size), torch.ones(1)
    kernels.write_to_paged_cache(written, written, keys, values, slots, "auto", one, one)
    return scratch[:, 0]


Digests = dict[str, list[list[str]]]
"""Per layer, per block in token order: the digests of its planes (K, then V)."""


def valid_tokens(blocks: int, tokens: int, block_size: int) -> list[int]:
    """How many of each block's tokens count, where `tokens` fill `blocks` blocks from the start."""
    return [min(block_size, tokens - index * block_size) for index in range(blocks)]


def digest_blocks(
    all_planes: Sequence[Plane], blocks: Sequence[int], valid: Sequence[int], block_size: int
) -> Digests:
    """Digests of the first `valid` tokens of each block."""
    digests: Digests = {}
    for plane in all_planes:
        rows = digests.setdefault(plane.layer, [[] for _ in blocks])
        for row, block, tokens in zip(rows, blocks, valid, strict=True):
            row.append(plane.digest(block, tokens, block_size))
    return digests


def size_of(all_planes: Sequence[Plane], blocks: int) -> int:
    """Bytes that many blocks take on this rank, all layers."""
    per_block: Any = sum(p.tensor[0].numel() * p.tensor.element_size() for p in all_planes)
    return int(per_block) * blocks
