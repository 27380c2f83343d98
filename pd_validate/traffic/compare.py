"""Where two answers to the same request part: pure comparison, no verdict.

Tokens alone are a weak detector (one flipped bit of KV changed no token but 55 of
56 logprobs, measured with the twin in float32), so logprobs are compared too: bit
by bit where the engine is bitwise repeatable, else within a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

from pd_validate.traffic.client import Answer

# Largest difference of a logprob that numeric noise explains, by the engine's dtype.
# float32: the twin is bitwise repeatable, so nothing is allowed. bfloat16 and float16:
# the order of additions differs with the batch; a wrong KV block changes far more.
LOGPROB_TOLERANCE = {"float32": 0.0, "float16": 0.05, "bfloat16": 0.15}
DEFAULT_DTYPE = "bfloat16"  # of the guide's model, where the cluster file says nothing


@dataclass(frozen=True)
class Divergence:
    """The first place where `got` differs from `want`.

    `position` counts generated tokens from 0. `gap` is the reference's logprob lead
    of its best token over the second best there (None if unknown): a gap near zero
    with equal text before it is a tie that noise may break, a wide gap is not.
    """

    position: int
    want: str
    got: str
    gap: float | None
    logprob_difference: float | None = None

    def __str__(self) -> str:
        gap = "unknown" if self.gap is None else f"{self.gap:.3g}"
        return (
            f"token {self.position}: reference {self.want!r}, got {self.got!r}, "
            f"top-2 gap of the reference {gap}"
        )


def first_divergence(want: Answer, got: Answer, *, tolerance: float) -> Divergence | None:
    """The first token or logprob of `got` that is not the reference's, or None.

    `tolerance` is the allowed absolute difference of a logprob; 0 means bit equality. With a
    tolerance, another token that is as likely as the reference's, where the reference's best
    two are no further apart, is noise, too; what follows it is another text, so the
    comparison ends there.
    """
    for position in range(max(len(want.token_ids), len(got.token_ids))):
        same = want.token_ids[position : position + 1] == got.token_ids[position : position + 1]
        difference = _difference(want, got, position)
        close = difference is None or difference <= tolerance
        if same and close:
            continue
        gap = _gap(want, position)
        if close and tolerance > 0 and gap is not None and gap <= tolerance:
            return None
        return Divergence(
            position=position,
            want=_around(want, position),
            got=_around(got, position),
            gap=gap,
            logprob_difference=difference,
        )
    if want.text != got.text:
        return Divergence(len(want.token_ids), want.text, got.text, None)
    return None


def _difference(want: Answer, got: Answer, position: int) -> float | None:
    if position < min(len(want.logprobs), len(got.logprobs)):
        return abs(want.logprobs[position] - got.logprobs[position])
    return None


def _gap(answer: Answer, position: int) -> float | None:
    if position >= len(answer.top_logprobs):
        return None
    best = sorted(answer.top_logprobs[position].values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else None


def _around(answer: Answer, position: int) -> str:
    """The token and a few after it, with the logprob: what a person compares."""
    tokens = answer.token_ids[position : position + 6]
    logprob = answer.logprobs[position] if position < len(answer.logprobs) else None
    return f"{list(tokens)} logprob {logprob!r}" if tokens else "end of answer"
