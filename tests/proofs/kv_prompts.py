"""Prompts that reach every edge of a KV transfer: one token to the model's length, block edges,
and families that share a prefix.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Token ids of plain ASCII or common words, in every vocabulary: bytes that are no text would
# make vLLM's detokenizer answer with the prompt as well.
_LOWEST, _HIGHEST = 33, 90


@dataclass(frozen=True)
class Case:
    """A prompt, and how many tokens are to be generated after it."""

    name: str
    prompt: tuple[int, ...]
    max_tokens: int


def cases(count: int, *, block_size: int, max_model_len: int, answer: int = 12) -> list[Case]:
    """`count` prompts: all edges first, then families of a common prefix, then any length.

    Every answer is `answer` tokens, or what `max_model_len` leaves.
    """
    longest = max_model_len - 1  # one token must fit behind it
    blocks = longest // block_size
    families = count // 4
    chance = random.Random(f"{block_size}/{max_model_len}")
    # Three lengths at each of some block edges, spread from the first to the last.
    edges = max((count - families) // 4, 2)
    chosen = {1 + round(n * (blocks - 1) / (edges - 1)) for n in range(edges)}
    lengths = {1, 2, longest, *(k * block_size + d for k in chosen for d in (-1, 0, 1))}
    made = [
        _case(f"length {n}", _tokens(chance, n), max_model_len, answer)
        for n in sorted(lengths)
        if 1 <= n <= longest
    ]
    prefix: tuple[int, ...] = ()
    for number in range(families):
        if number % 4 == 0:  # four members each: the same whole blocks, and tails of their own
            prefix = _tokens(chance, block_size * chance.randint(1, max(blocks // 2, 1)))
        tail = _tokens(chance, chance.randint(1, 2 * block_size))
        name = f"family {number // 4}, {len(prefix)} + {len(tail)}"
        made.append(_case(name, (*prefix, *tail), max_model_len, answer))
    while len(made) < count:
        length = chance.randint(1, longest)
        made.append(_case(f"length {length}", _tokens(chance, length), max_model_len, answer))
    chance.shuffle(made)
    return made


def _case(name: str, prompt: tuple[int, ...], max_model_len: int, answer: int) -> Case:
    return Case(name, prompt, min(answer, max_model_len - len(prompt)))


def _tokens(chance: random.Random, length: int) -> tuple[int, ...]:
    return tuple(chance.randint(_LOWEST, _HIGHEST) for _ in range(length))
