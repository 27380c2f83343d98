"""Which ranks exchange what: every pair of TP sizes either fits in all its parts or is refused."""

from __future__ import annotations

import itertools

import pytest

from connector.errors import TransferError
from connector.tp import head_range, informants, ranks_to_inform, source_rank

SIZES = (1, 2, 4, 8, 16)
PAIRS = list(itertools.product(SIZES, SIZES))


@pytest.mark.parametrize(("p_tp", "d_tp"), PAIRS)
@pytest.mark.parametrize(("kv_heads", "mla"), [(1, True), (1, False), (4, False), (8, False)])
def test_a_rank_pulls_its_own_heads_or_nothing(
    p_tp: int, d_tp: int, kv_heads: int, mla: bool
) -> None:
    fits = p_tp == d_tp or mla or min(p_tp, d_tp) >= kv_heads
    for rank in range(d_tp):
        if not fits:
            with pytest.raises(TransferError, match="Use equal TP sizes") as refusal:
                source_rank(rank, d_tp, p_tp, kv_heads, mla)
            assert refusal.value.cause == "mismatch"
            continue
        source = source_rank(rank, d_tp, p_tp, kv_heads, mla)
        assert head_range(source, p_tp, kv_heads, mla) == head_range(rank, d_tp, kv_heads, mla)


@pytest.mark.parametrize(("p_tp", "d_tp"), PAIRS)
def test_every_prefiller_rank_hears_from_those_it_waits_for(p_tp: int, d_tp: int) -> None:
    """Both sides compute who tells whom; v0.10.1rc1 told rank 0 alone."""
    waits_for = {p: informants(p, p_tp, d_tp, 1, mla=True) for p in range(p_tp)}
    told_by: dict[int, set[int]] = {p: set() for p in range(p_tp)}
    for d in range(d_tp):
        for p in ranks_to_inform(d, d_tp, p_tp, 1, mla=True):
            told_by[p].add(d)
    assert told_by == waits_for
    assert all(waits_for.values()), "nobody waits for nobody"
    for d in range(d_tp):
        assert d in waits_for[source_rank(d, d_tp, p_tp, 1, mla=True)]
