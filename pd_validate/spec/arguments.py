"""Reads a `vllm serve` command line back: which value each option has in the end.

The plan's own arguments come first and the file's `args:` after them, and vLLM's parser
takes the last of equal options; checks must judge what counts, not what was meant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ALIASES = {"-tp": "--tensor-parallel-size", "-dp": "--data-parallel-size", "-q": "--quantization"}


def options(argv: Sequence[str]) -> dict[str, str | None]:
    """Value by option, with dashes (`--max_model_len` counts as `--max-model-len`).

    None for an option without a value; several values are joined with a blank.
    """
    found: dict[str, str | None] = {}
    current: str | None = None
    for argument in argv:
        if argument.startswith("--") or argument in _ALIASES:
            name, equals, value = argument.partition("=")
            current = _ALIASES.get(name, name.replace("_", "-"))
            found[current] = value if equals else None
        elif current is not None:
            earlier = found[current]
            found[current] = argument if earlier is None else f"{earlier} {argument}"
    return found


def integer(found: Mapping[str, str | None], option: str, default: int) -> int | None:
    """An option's whole number, `default` if it is absent, None if it is no number."""
    value = found.get(option, str(default))
    return int(value) if value is not None and value.isdecimal() else None


def json_object(found: Mapping[str, str | None], option: str) -> dict[str, Any]:
    """An option's JSON object; empty if it is absent or none."""
    try:
        value = json.loads(found.get(option) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
