"""Digests: blind to where a block lies, sensitive to everything that counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from connector.caches import parts
from connector.digest import ZERO, digest_blocks, measure_cpu_packing, planes, valid_tokens

BLOCK_SIZE = 32
BLOCKS = 8
HEADS = 4
DIM = 32

Digests = dict[str, list[list[str]]]


def ascend() -> dict[str, Any]:
    def tensor() -> torch.Tensor:
        return torch.rand(BLOCKS, BLOCK_SIZE, HEADS, DIM)

    return {f"layers.{number}": (tensor(), tensor()) for number in range(2)}


def mla() -> dict[str, Any]:
    return {
        "layers.0": (torch.rand(BLOCKS, BLOCK_SIZE, 1, 64), torch.rand(BLOCKS, BLOCK_SIZE, 1, 16))
    }


def cpu() -> dict[str, Any]:
    return {f"layers.{n}": torch.rand(BLOCKS, HEADS, BLOCK_SIZE, 2 * DIM) for n in range(2)}


def old_cpu() -> dict[str, Any]:
    """vLLM 0.10: K and V apart, heads and tokens of a block in one dimension."""
    return {f"layers.{n}": torch.rand(2, BLOCKS, HEADS * BLOCK_SIZE * DIM) for n in range(2)}


packing = partial(measure_cpu_packing, head_size=DIM)
KERNELS = packing(torch.zeros(HEADS, 2 * BLOCK_SIZE, DIM), BLOCK_SIZE) is not None
OLD_KERNELS = packing(torch.zeros(HEADS * BLOCK_SIZE * DIM), BLOCK_SIZE) is not None
needs_kernels = pytest.mark.skipif(not KERNELS, reason="needs the CPU kernels of vLLM >= 0.11")
needs_old_kernels = pytest.mark.skipif(
    not OLD_KERNELS, reason="needs the CPU kernels of vLLM 0.10 (make test-guide-version)"
)


def take(caches: dict[str, Any], blocks: list[int], tokens: int) -> Digests:
    found = planes(parts(caches, BLOCKS), BLOCK_SIZE, packing)
    valid = valid_tokens(len(blocks), tokens, BLOCK_SIZE)
    return digest_blocks(found, blocks, valid, BLOCK_SIZE)


def tensors(caches: dict[str, Any]) -> list[torch.Tensor]:
    """Those whose dimension 0 is the block."""
    return [part.tensor for part in parts(caches, BLOCKS)]


def copy_block(caches: dict[str, Any], source: int, target: int) -> None:
    for tensor in tensors(caches):
        tensor[target] = tensor[source]


@pytest.fixture(
    params=[
        pytest.param(ascend, id="ascend"),
        pytest.param(mla, id="mla"),
        pytest.param(cpu, id="cpu", marks=needs_kernels),
        pytest.param(old_cpu, id="cpu-0.10", marks=needs_old_kernels),
    ]
)
def caches(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(1)
    made: dict[str, Any] = request.param()
    return made


def test_one_row_per_block_with_keys_and_values(caches: dict[str, Any]) -> None:
    digests = take(caches, [1, 2, 3], 3 * BLOCK_SIZE)
    assert list(digests) == list(caches)
    for rows in digests.values():
        assert [len(row) for row in rows] == [2, 2, 2]
        assert len({digest for row in rows for digest in row}) == 6


def test_placement_does_not_count(caches: dict[str, Any]) -> None:
    copy_block(caches, 1, 5)
    copy_block(caches, 2, 7)
    assert take(caches, [1, 2], 50) == take(caches, [5, 7], 50)


def test_swapped_blocks_are_seen(caches: dict[str, Any]) -> None:
    assert take(caches, [1, 2], 64) != take(caches, [2, 1], 64)


def test_zeroed_block_is_seen(caches: dict[str, Any]) -> None:
    before = take(caches, [1, 2], 64)
    for tensor in tensors(caches):
        tensor[2] = 0
    after = take(caches, [1, 2], 64)
    for layer, rows in before.items():
        assert after[layer][0] == rows[0]
        assert after[layer][1] == [ZERO, ZERO]


def test_one_flipped_bit_is_seen_where_it_is(caches: dict[str, Any]) -> None:
    before = take(caches, [1, 2], 64)
    last = tensors(caches)[-1]
    last[2].view(torch.int32).view(-1)[-1] ^= 1  # the last value of the last layer's V
    after = take(caches, [1, 2], 64)
    *unhurt, hurt = list(before)
    assert [after[layer] for layer in unhurt] == [before[layer] for layer in unhurt]
    assert after[hurt][0] == before[hurt][0]
    assert after[hurt][1][0] == before[hurt][1][0]
    assert after[hurt][1][1] != before[hurt][1][1]


@pytest.mark.parametrize(("make", "head"), [(ascend, 2), (cpu, 1)], ids=["ascend", "cpu"])
def test_swapped_heads_are_seen(make: Any, head: int) -> None:
    caches = make()
    before = take(caches, [1], BLOCK_SIZE)
    for tensor in tensors(caches):
        tensor.copy_(tensor.roll(1, dims=head))
    assert all(a != b for a, b in zip(before.values(), take(caches, [1], 32).values(), strict=True))


def test_swapped_layers_are_seen() -> None:
    caches = ascend()
    before = take(caches, [1], BLOCK_SIZE)
    first, second = caches
    swapped = {first: caches[second], second: caches[first]}
    assert take(swapped, [1], BLOCK_SIZE) != before


def test_keys_and_values_exchanged_are_seen() -> None:
    caches = ascend()
    swapped = {layer: (v, k) for layer, (k, v) in caches.items()}
    assert take(swapped, [1], BLOCK_SIZE) != take(caches, [1], BLOCK_SIZE)


@pytest.mark.parametrize("make", [ascend, mla], ids=["ascend", "mla"])
@pytest.mark.parametrize("tokens", [1, 31])
def test_only_valid_tokens_of_the_last_block_count(make: Any, tokens: int) -> None:
    caches = make()
    before = take(caches, [1, 2], BLOCK_SIZE + tokens)
    for tensor in tensors(caches):
        tensor[2, tokens:] = 7
    assert take(caches, [1, 2], BLOCK_SIZE + tokens) == before
    for tensor in tensors(caches):
        tensor[2, tokens - 1] = 7
    assert take(caches, [1, 2], BLOCK_SIZE + tokens) != before


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_valid_tokens_count_as_the_cpu_kernel_packs_them(dtype: torch.dtype) -> None:
    """The kernel itself writes tokens: those past the end change nothing, the others do."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    cache = torch.zeros(BLOCKS, HEADS, BLOCK_SIZE, 2 * DIM, dtype=dtype)
    keys, values = cache.view(BLOCKS, HEADS, 2 * BLOCK_SIZE, DIM).chunk(2, dim=2)
    isa = _get_attn_isa(dtype, BLOCK_SIZE, DIM)

    def write(first: int, count: int) -> None:
        new = torch.rand(count, HEADS, DIM).to(dtype)
        slots = torch.arange(first, first + count) + 2 * BLOCK_SIZE  # block 2
        ops.cpu_attn_reshape_and_cache(new, new, keys, values, slots, isa)

    write(0, 5)
    before = take({"layer": cache}, [2], 5)
    write(5, 20)
    assert take({"layer": cache}, [2], 5) == before
    write(4, 1)
    after = take({"layer": cache}, [2], 5)["layer"][0]
    assert all(new != old for new, old in zip(after, before["layer"][0], strict=True))


def test_unknown_layout_has_no_digest_of_a_partly_filled_block() -> None:
    caches = {"layer": torch.rand(2, BLOCKS, 64)}
    rows = take(caches, [1, 2], BLOCK_SIZE + 3)["layer"]
    assert all(rows[0])
    assert rows[1] == ["", ""]


@needs_old_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_valid_tokens_count_as_the_old_cpu_kernel_packs_them(dtype: torch.dtype) -> None:
    from vllm.v1.attention.backends.cpu_attn import _get_paged_attn_impl

    kernels = _get_paged_attn_impl()
    cache = torch.zeros(2, BLOCKS, HEADS * BLOCK_SIZE * DIM, dtype=dtype)
    keys, values = kernels.split_kv_cache(cache, HEADS, DIM)

    def write(first: int, count: int) -> None:
        new = torch.rand(count, HEADS, DIM).to(dtype)
        slots = torch.arange(first, first + count) + 2 * BLOCK_SIZE  # block 2
        one = torch.ones(1)
        kernels.write_to_paged_cache(new, new, keys, values, slots, "auto", one, one)

    write(0, 5)
    before = take({"layer": cache}, [2], 5)
    assert all(before["layer"][0])
    write(5, 20)
    assert take({"layer": cache}, [2], 5) == before
    write(4, 1)
    after = take({"layer": cache}, [2], 5)["layer"][0]
    assert all(new != old for new, old in zip(after, before["layer"][0], strict=True))
