"""YAML as a tree that remembers where each value stands.

Nothing here knows what a cluster is: cluster and scenario files share it. YAML's
anchors, aliases and merge keys (`<<`) work as usual; on top of them:

- ``${NAME}`` and ``${NAME:-default}`` in values are replaced from the environment
  (``$$`` is a plain ``$``); an unset variable without default is an error.
- ``include: other.yaml`` (or a list) at the top: those files are read first and this
  one is laid over them, mapping by mapping. Paths are relative to the including file.
- Two equal keys in one mapping are an error.
- Plain scalars are read as in YAML 1.2: `on` and `yes` are text, `010` is not octal.

Every error is a SpecError with file, line and column (both count from 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pd_validate.errors import SpecError

KeyPath = tuple[str | int, ...]
"""Where a value stands in the document: ``("instances", "decode-1", "devices", 0)``."""

_INCLUDE = "include"
_STANDARD_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<inside>[^}]*)(?P<end>\}?))")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")
_WORDS: Mapping[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "True": True,
    "false": False,
    "False": False,
}


@dataclass(frozen=True)
class Place:
    """A position in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def error(self, message: str) -> SpecError:
        return SpecError(message, file=self.file, line=self.line, column=self.column)


@dataclass(frozen=True)
class Node:
    """A value, its place, and the place of the key it stands under (its own, without one).

    `source` is a scalar as it was written, before `${…}` was replaced: messages show
    it instead of the value, so that no secret from the environment appears in them.
    """

    content: str | int | float | bool | tuple[Node, ...] | Mapping[str, Node] | None
    place: Place
    key_place: Place
    source: str = ""

    def data(self) -> Any:
        """The value without places: dict, list or scalar."""
        if isinstance(self.content, Mapping):
            return {key: child.data() for key, child in self.content.items()}
        if isinstance(self.content, tuple):
            return [child.data() for child in self.content]
        return self.content

    def child(self, key: str | int) -> Node | None:
        """The value under a key or index, None if there is none."""
        if isinstance(self.content, Mapping):
            return self.content.get(str(key))
        if isinstance(self.content, tuple) and isinstance(key, int) and key < len(self.content):
            return self.content[key]
        return None

    def at(self, path: KeyPath) -> Node:
        """The value at `path`, or the last one on the way to it that exists."""
        node = self
        for key in path:
            child = node.child(key)
            if child is None:
                break
            node = child
        return node


def read(
    path: Path, environ: Mapping[str, str], *, amend: Callable[[str], str] | None = None
) -> Node:
    """Read a YAML file whose top is a mapping, with includes and `environ` applied.

    `amend` may change the file's text before it is parsed; it must keep the lines' numbers.
    Raises SpecError for everything that is wrong with the file as YAML.
    """
    return _read(path, environ, including=(), amend=amend)


def _read(
    path: Path,
    environ: Mapping[str, str],
    *,
    including: tuple[Path, ...],
    amend: Callable[[str], str] | None = None,
) -> Node:
    file = str(path)
    top = Place(file, 1, 1)
    document = _compose(path, amend)
    if document is None:
        raise top.error("the file is empty; see clusters/ for examples")
    root = _Builder(file, environ).build(document)
    if not isinstance(root.content, Mapping):
        raise root.place.error("the file must be a mapping of keys (`hosts:`, `instances:`, …)")
    return _with_includes(root, path, environ, including=(*including, path.resolve()))


def _compose(path: Path, amend: Callable[[str], str] | None) -> yaml.Node | None:
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError("no such file", file=file) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text (byte {error.start})", file=file) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=file) from None
    if amend is not None:
        text = amend(text)
    try:
        # BaseLoader leaves every scalar as text: which type it is, is decided after `${…}`.
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not valid YAML: {error.problem or error.context}"
        if "'\\t'" in message:
            message += "; indent with spaces, not with tabs"
        if mark is None:
            raise SpecError(message, file=file) from None
        raise Place(file, mark.line + 1, mark.column + 1).error(message) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise Place(file, line, column).error(
            f"not valid YAML: the character #x{ord(text[error.position]):04x} is not allowed"
        ) from None
    return node


class _Builder:
    """Turns PyYAML's nodes of one file into ours."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._open: set[int] = set()  # collections we are inside of, to refuse `&a [*a]`

    def build(self, node: yaml.Node) -> Node:
        place = self._place(node)
        if node.tag not in _STANDARD_TAGS:
            raise place.error(f"YAML tags are not used here: remove `{node.tag}`")
        if isinstance(node, yaml.ScalarNode):
            text = self._interpolated(node)
            plain = node.style is None
            value = _resolved(text) if plain else text
            return Node(value, place, place, source=node.value)
        if id(node) in self._open:
            raise place.error("an anchor that contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return Node(tuple(self.build(item) for item in node.value), place, place)
            assert isinstance(node, yaml.MappingNode)
            return Node(self._members(node), place, place)
        finally:
            self._open.discard(id(node))

    def _members(self, node: yaml.MappingNode) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key_place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise key_place.error("a key must be plain text")
            key = key_node.value
            if key == "<<" and key_node.style is None:
                for name, member in self._merge_sources(value_node).items():
                    merged.setdefault(name, member)
                continue
            if key in own:
                first = own[key].key_place.line
                raise key_place.error(f"`{key}` stands twice, first in line {first}; remove one")
            own[key] = replace(self.build(value_node), key_place=key_place)
        return merged | own

    def _merge_sources(self, node: yaml.Node) -> dict[str, Node]:
        """What `<<: *base` or `<<: [*a, *b]` adds; earlier sources win."""
        value = self.build(node)
        members: dict[str, Node] = {}
        for source in value.content if isinstance(value.content, tuple) else (value,):
            if not isinstance(source.content, Mapping):
                raise value.place.error("`<<` takes a mapping, or a list of mappings")
            for name, member in source.content.items():
                members.setdefault(name, member)
        return members

    def _interpolated(self, node: yaml.ScalarNode) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            inside = _INSIDE.fullmatch(match["inside"]) if match["end"] else None
            if inside is None:
                raise self._inside(node, match.start()).error(
                    f"`{match[0]}` is not ${{NAME}} or ${{NAME:-default}} (a plain $ is $$)"
                )
            name, default = inside["name"], inside["default"]
            value = self._environ.get(name)
            if not value and default is not None:  # as in a shell, `:-` also replaces ""
                value = default
            if value is None:
                raise self._inside(node, match.start()).error(
                    f"the environment variable {name} is not set; "
                    f"export it, or give a default: ${{{name}:-…}}"
                )
            return value

        return _VARIABLE.sub(value_of, str(node.value))

    def _inside(self, node: yaml.ScalarNode, offset: int) -> Place:
        """The place of a character of a scalar; exact where the scalar stands in one line."""
        place = self._place(node)
        if node.start_mark.line != node.end_mark.line:
            return place
        quote = 0 if node.style is None else 1
        return replace(place, column=place.column + quote + offset)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1, node.start_mark.column + 1)


def _resolved(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar, by YAML 1.2's core schema (decimal numbers only)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _with_includes(
    root: Node, path: Path, environ: Mapping[str, str], *, including: tuple[Path, ...]
) -> Node:
    assert isinstance(root.content, Mapping)
    include = root.content.get(_INCLUDE)
    own = replace(root, content={k: v for k, v in root.content.items() if k != _INCLUDE})
    if include is None:
        return own
    base: Node | None = None
    for entry in include.content if isinstance(include.content, tuple) else (include,):
        if not isinstance(entry.content, str):
            raise entry.place.error("`include` takes a file name, or a list of file names")
        target = path.parent / entry.content
        if target.resolve() in including:
            raise entry.place.error(f"{entry.source} includes itself")
        if not target.is_file():
            raise entry.place.error(f"the included file {entry.source} does not exist")
        layer = _read(target, environ, including=including)
        base = layer if base is None else _laid_over(base, layer)
    return own if base is None else _laid_over(base, own)


def _laid_over(base: Node, top: Node) -> Node:
    """`top` over `base`: mappings are merged, everything else is replaced."""
    if not isinstance(base.content, Mapping) or not isinstance(top.content, Mapping):
        return top
    merged = dict(base.content)
    for key, child in top.content.items():
        merged[key] = _laid_over(merged[key], child) if key in merged else child
    return replace(top, content=merged)
