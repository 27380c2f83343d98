"""Prompts of an exact number of tokens, for any model: token ids rather than text.

Ids stay in the range of plain bytes or common words, which every vocabulary has.
"""

from __future__ import annotations

import random

_LOWEST, _HIGHEST = 33, 126

# Prompt lengths around the edges of a KV block: name -> (whole blocks, tokens beside them).
LENGTHS = {
    "1": (0, 1),
    "2": (0, 2),
    "block-1": (1, -1),
    "block": (1, 0),
    "block+1": (1, 1),
    "2*block": (2, 0),
    "8*block+3": (8, 3),
}


def prompt_of(length: str, block_size: int, *, seed: int = 0) -> list[int]:
    """A prompt of one of LENGTHS, given the engine's tokens per KV block."""
    blocks, rest = LENGTHS[length]
    return tokens(blocks * block_size + rest, seed=seed)


def longest(max_model_len: int, *, answer: int, seed: int = 0) -> list[int]:
    """A prompt that leaves room for `answer` tokens and not one more."""
    return tokens(max_model_len - answer, seed=seed)


def tokens(length: int, *, seed: int = 0) -> list[int]:
    """`length` token ids that no other (length, seed) starts with: no prefix is shared."""
    generator = random.Random(f"{length}/{seed}")
    return [generator.randint(_LOWEST, _HIGHEST) for _ in range(length)]
