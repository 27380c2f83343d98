"""Which prefiller rank a decoder rank pulls from, and who must tell whom that it is done.

A rank holds a range of KV heads. Whole blocks are copied, so a decoder rank can only pull
from a prefiller rank with the same range: equal TP sizes; MLA (every rank holds everything);
or both TP sizes at least the number of KV heads (each rank holds one head). Splitting or
joining heads inside a block is refused rather than guessed.

Both sides compute the same pure functions, so no rank has to be told.
"""

from __future__ import annotations

from connector.errors import TransferError


def head_range(tp_rank: int, tp_size: int, kv_heads: int, mla: bool) -> tuple[int, int]:
    """First KV head and number of KV heads on a rank."""
    if mla:
        return 0, 1
    if tp_size >= kv_heads:
        return tp_rank * kv_heads // tp_size, 1
    count = kv_heads // tp_size
    return tp_rank * count, count


def source_rank(d_rank: int, d_tp: int, p_tp: int, kv_heads: int, mla: bool) -> int:
    """The prefiller rank that decoder rank `d_rank` pulls from.

    Raises TransferError("mismatch") when no prefiller rank holds the same heads.
    """
    if d_tp == p_tp:
        return d_rank
    mine = head_range(d_rank, d_tp, kv_heads, mla)
    same = [p for p in range(p_tp) if head_range(p, p_tp, kv_heads, mla) == mine]
    if not same:
        raise TransferError(
            "mismatch",
            f"decoder TP={d_tp} cannot pull from prefiller TP={p_tp}: rank {d_rank} holds KV "
            f"heads {mine[0]}..{mine[0] + mine[1] - 1} of {kv_heads} and no prefiller rank "
            "holds exactly these. Use equal TP sizes (MLA models may differ).",
        )
    return same[d_rank % len(same)]


def informants(p_rank: int, p_tp: int, d_tp: int, kv_heads: int, mla: bool) -> set[int]:
    """Decoder ranks whose Finished a prefiller rank waits for before it lets a request go.

    Those that pull from it; if none does, one rank that only reports.
    """
    pullers = {d for d in range(d_tp) if source_rank(d, d_tp, p_tp, kv_heads, mla) == p_rank}
    return pullers or {p_rank % d_tp}


def ranks_to_inform(d_rank: int, d_tp: int, p_tp: int, kv_heads: int, mla: bool) -> list[int]:
    """Prefiller ranks that a decoder rank must tell that it is done, its source included."""
    return [p for p in range(p_tp) if d_rank in informants(p, p_tp, d_tp, kv_heads, mla)]
