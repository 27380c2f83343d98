"""Reads our Markdown pages: links, headings, shell commands. For the tests of this directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_HARDWARE = "needs hardware"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Command:
    """One line of a shell block; `hardware` if the page says that it needs a real cluster."""

    page: str
    line: str
    hardware: bool


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks of a language."""
    return [body for name, body in _FENCE.findall(page.read_text("utf-8")) if name == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Targets of all links and pictures that stay inside the repository."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def code_words(page: Path) -> list[str]:
    """Everything between backticks in the text."""
    return _CODE.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def commands(page: Path) -> list[Command]:
    """Every command of the page's `sh` blocks.

    A block is marked by `needs hardware` in its first line, or a line by a comment of its own.
    """
    found = []
    for body in blocks(page, "sh"):
        first, *_ = body.splitlines()
        plain_mark = first.startswith("#") or "python3.11 -m venv" in first
        whole = NEEDS_HARDWARE in first and plain_mark
        for line in body.splitlines():
            text, _, comment = line.partition("#")
            if text.strip():
                marked = whole or NEEDS_HARDWARE in comment
                found.append(Command(page.name, " ".join(text.split()), marked))
    return found
