"""KV caches of every backend, taken apart: which tensors, in which order, where in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_process import ALIGNMENT, BLOCK_SIZE, BLOCKS, make_caches

from connector import caches
from connector.caches import Part
from connector.datadist import MAX_ADDRESSES, beyond_limits
from connector.errors import ConnectorConfigError

ALIGNED = "not aligned to 2 MiB"


def parts_of(form: str, heads: int = 2) -> list[Part]:
    return caches.parts(make_caches(form, heads), BLOCKS)


@pytest.mark.parametrize(
    ("form", "names", "groups"),
    [
        ("ascend", "kvkvkv", ["kvkvkv"]),
        ("ascend-aligned", "kvkvkv", ["kvkvkv"]),
        ("mla", "kvkvkv", ["kkk", "vvv"]),  # of different widths
        ("mla-aligned", "kvkvkv", ["kkk", "vvv"]),
        ("stacked", "kvkvkv", ["kvkvkv"]),
        ("cpu", ["kv"] * 3, [["kv"] * 3]),
    ],
)
def test_tensors_are_in_order_of_layers_k_before_v(form: str, names: Any, groups: Any) -> None:
    parts = parts_of(form)
    assert [part.name for part in parts] == list(names)
    assert [part.layer for part in parts] == sorted(part.layer for part in parts)
    assert [[part.name for part in group] for group in caches.groups(parts)] == list(
        map(list, groups)
    )


@pytest.mark.parametrize("form", ["ascend", "mla"])
def test_aligned_tensors_are_blocks_like_any_others(form: str) -> None:
    plain, aligned = parts_of(form), parts_of(f"{form}-aligned")
    layouts = [caches.layout(parts, BLOCK_SIZE, "tiny") for parts in (plain, aligned)]
    assert layouts[0] == layouts[1]
    assert [part.tensor.data_ptr() % ALIGNMENT for part in aligned] == [0] * len(aligned)
    assert all(part.tensor.storage_offset() > 0 for part in aligned), "inside a larger one"


def test_the_layout_has_tensors_and_bytes_of_a_block_for_each_cache() -> None:
    layout = caches.layout(parts_of("mla"), BLOCK_SIZE, "tiny")
    assert layout.blocks == [(3, 16 * 24 * 4), (3, 16 * 8 * 4)]
    assert (layout.dtype, layout.layers) == ("float32", ["layers.0", "layers.1", "layers.2"])


def test_layers_that_share_memory_are_registered_once() -> None:
    shared = make_caches("ascend")
    shared["layers.2"] = shared["layers.0"]
    (group,) = caches.groups(caches.parts(shared, BLOCKS))
    assert [part.layer for part in group] == ["layers.0"] * 2 + ["layers.1"] * 2


def test_a_first_dimension_of_2_that_counts_blocks_is_not_k_and_v() -> None:
    cache = {"layers.0": torch.zeros(2, 4, 16, 8)}
    assert [part.name for part in caches.parts(cache, 2)] == ["kv"]
    assert [part.name for part in caches.parts(cache, 4)] == ["k", "v"]


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(BLOCKS, 2, 16, 8).transpose(2, 3), torch.zeros(BLOCKS, 2, 16, 8)[::2]],
    ids=["within", "between"],
)
def test_blocks_that_are_not_contiguous_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ConnectorConfigError, match=r"layers\.0 \(k, .* no contiguous blocks"):
        caches.parts({"layers.0": (tensor, tensor)}, None)


def at(address: int, device: str = "npu") -> Part:
    """A tensor of a device that is not in this machine."""
    tensor = SimpleNamespace(device=SimpleNamespace(type=device), data_ptr=lambda: address)
    return Part("layers.0", "k", tensor)  # type: ignore[arg-type]  # all of it that is looked at


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([at(ALIGNMENT), at(3 * ALIGNMENT)], False),
        ([at(ALIGNMENT), at(ALIGNMENT + 512)], True),
        ([at(512, "cpu")], False),
    ],
    ids=["aligned", "one is not", "not on an NPU"],
)
def test_npu_tensors_that_are_not_aligned_are_warned_of(parts: list[Part], said: bool) -> None:
    """Registering them succeeds; the link over HCCS fails later."""
    problems = beyond_limits([parts])
    assert [ALIGNED in problem for problem in problems] == [True] * said
    assert beyond_limits([[at(ALIGNMENT)], parts]) == problems, "whatever group they are in"


@pytest.mark.parametrize("more", [0, 1])
def test_more_tensors_than_may_be_registered_are_warned_of(more: int) -> None:
    groups = [[at(ALIGNMENT)] * (MAX_ADDRESSES // 2), [at(ALIGNMENT)] * (MAX_ADDRESSES // 2 + more)]
    assert len(beyond_limits(groups)) == more
    assert all("241 KV tensors exceed" in problem for problem in beyond_limits(groups))
