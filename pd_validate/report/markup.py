"""Elements of HTML and SVG from Python, escaped by construction.

Text is escaped unless it is `Markup`, and only `el` makes `Markup` out of values, so no
log line of a host can become a tag in the report.
"""

from __future__ import annotations

import re
from html import escape


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


Child = str | int | None
Attribute = str | int | float | None

_VOID = frozenset({"meta", "br", "hr", "col"})


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element. Attributes: None leaves it out, `_` becomes `-`, `cls` is `class`."""
    shown = "".join(
        f' {_attribute_name(name)}="{escape(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{shown}>")
    return Markup(f"<{tag}{shown}>{join(*children)}</{tag}>")


def join(*children: Child) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(str(child), quote=False)
            for child in children
            if child is not None
        )
    )


# `prefill-1`, `gpu-a-07`; not paths, options or ranges of addresses, which may need to break.
_NAME = re.compile(r"(?<![\w./-])(\w+(?:-\w+)+)(?![\w/-])")
_LONGEST_NAME = 30  # characters; a longer word must be allowed to break on a narrow screen


def whole_names(text: str) -> Markup:
    """`text` in which no line breaks at the hyphen inside a name."""
    pieces = _NAME.split(text)  # every second one is a name
    return join(
        *(
            el("span", piece, cls="name") if number % 2 and len(piece) <= _LONGEST_NAME else piece
            for number, piece in enumerate(pieces)
        )
    )


def prose(text: str) -> Markup:
    """Our own sentences: what stands between backticks is code."""
    pieces = text.split("`")
    return join(
        *(
            el("code", piece) if number % 2 else whole_names(piece)
            for number, piece in enumerate(pieces)
        )
    )


def _attribute_name(name: str) -> str:
    return "class" if name == "cls" else name.rstrip("_").replace("_", "-")


def _text(value: str | int | float) -> str:
    # Two decimals of a pixel are enough, and keep a page of a thousand cells small.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
