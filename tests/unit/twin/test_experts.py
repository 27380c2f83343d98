"""Expert parallel on CPU: the ranks' parts add up to what one engine computes.

The patch is called as vLLM calls it, with stock vLLM's kernel below it replaced by plain
arithmetic: what is proven is which expert computes what with which weight.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from twin.engine import SITE

cpu_moe = pytest.importorskip(
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe", reason="needs vLLM (make env)"
)

EXPERTS, HIDDEN, WIDE, TOKENS, TOP = 8, 16, 12, 10, 2


def plain(
    output: torch.Tensor,
    hidden: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    """A gated MoE layer, token by token: gate and up in w1, down in w2."""
    output.zero_()
    for token in range(hidden.shape[0]):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (w1[expert] @ hidden[token]).chunk(2)
            output[token] += weight * (w2[expert] @ (torch.nn.functional.silu(gate) * up))


@pytest.fixture
def apply(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The patched method, over plain arithmetic."""

    def kernel(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(*args[:6])

    monkeypatch.setattr(cpu_moe.CPUUnquantizedExperts, "apply", kernel)
    monkeypatch.syspath_prepend(str(SITE))
    import twin_engine  # type: ignore[import-not-found, unused-ignore]  # lies on the hosts' path

    twin_engine._map_experts()
    twin_engine._map_experts()  # vLLM may load a plugin twice
    yield cpu_moe.CPUUnquantizedExperts.apply
    sys.modules.pop("twin_engine", None)


def case() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    weights, ids = torch.rand(TOKENS, EXPERTS).topk(TOP)
    return {
        "hidden": torch.randn(TOKENS, HIDDEN),
        "w1": torch.randn(EXPERTS, 2 * WIDE, HIDDEN),
        "w2": torch.randn(EXPERTS, HIDDEN, WIDE),
        "weights": weights,
        "ids": ids.to(torch.int32),
    }


def reference(given: dict[str, torch.Tensor]) -> torch.Tensor:
    output = torch.empty(TOKENS, HIDDEN)
    plain(output, *given.values())
    return output


def expert_map(rank: int, ranks: int) -> torch.Tensor:
    """vLLM's: global expert id -> index on this rank, -1 where another rank has it."""
    local = EXPERTS // ranks
    mine = torch.full((EXPERTS,), -1, dtype=torch.int32)
    mine[rank * local : (rank + 1) * local] = torch.arange(local, dtype=torch.int32)
    return mine


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("by_name", [True, False])
def test_the_ranks_parts_add_up(apply: Any, ranks: int, by_name: bool) -> None:
    given = case()
    kept = {name: tensor.clone() for name, tensor in given.items()}
    total = torch.zeros(TOKENS, HIDDEN)
    for rank in range(ranks):
        part = slice(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
        output = torch.empty(TOKENS, HIDDEN)
        first = (output, given["hidden"], given["w1"][part], given["w2"][part])
        routed = (given["weights"], given["ids"])
        where = expert_map(rank, ranks)
        if by_name:
            apply(None, *first, *routed, activation="silu", expert_map=where)
        else:
            apply(None, *first, *routed, "silu", EXPERTS, where)
        total += output
    torch.testing.assert_close(total, reference(given))
    for name, tensor in kept.items():
        assert torch.equal(given[name], tensor), f"{name} of the caller was changed"


def test_without_expert_parallel_nothing_changes(apply: Any) -> None:
    given = case()
    output = torch.empty(TOKENS, HIDDEN)
    apply(None, output, *given.values(), "silu", EXPERTS, None)
    assert torch.equal(output, reference(given))


def test_vllms_own_order_of_arguments_is_the_one_we_read() -> None:
    """The patch finds arguments by their place: vLLM must not have moved them."""
    import inspect

    own = inspect.unwrap(cpu_moe.CPUUnquantizedExperts.apply)
    names = list(inspect.signature(own).parameters)
    assert names[1:10] == [
        *("output", "hidden_states", "w1", "w2", "topk_weights", "topk_ids"),
        *("activation", "global_num_experts", "expert_map"),
    ]
