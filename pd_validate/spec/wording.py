"""Pieces of messages about a file: suggestions, lists of names, names of places in it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pd_validate.spec.source import KeyPath


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean `this`?``, or nothing if no known word is close."""
    close = closest(word, known)
    return "" if close is None else f"; did you mean `{close}`?"


def one_of(choices: Iterable[str]) -> str:
    return " or ".join(f"`{choice}`" for choice in choices)


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def dotted(path: KeyPath) -> str:
    """``instances.decode-1.devices[0]``"""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
