"""A document against a pydantic model, with mistakes told by their place in the file.

Knows YAML documents and pydantic, and nothing of what a cluster is.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pd_validate.errors import SpecError
from pd_validate.spec.source import KeyPath, Node, Place
from pd_validate.spec.wording import closest, did_you_mean, dotted, listed, one_of

M = TypeVar("M", bound=BaseModel)

# Pydantic's words for a bound, in ours; {…} are the names of its context.
_BOUNDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must be at most {max_length} characters",
    "too_short": "must have at least {min_length} item",
}
_TYPES = {
    "bool": "true or false",
    "dict": "a mapping (`key: value`)",
    "float": "a number",
    "int": "a whole number",
    "model": "a mapping (`key: value`)",
    "path": "a path",
    "string": "text",
    "tuple": "a list (`[a, b]`)",
}


@dataclass(frozen=True)
class Problem:
    """One mistake in a file, at its place."""

    place: Place
    message: str

    def __str__(self) -> str:
        return str(self.place.error(self.message))


def validated(model: type[M], root: Node) -> M:
    """`root` as a `model`. Raises SpecError that names every wrong value with its place."""
    try:
        # As JSON, so that strict types apply (no 1 for true, no "1" for 1) and a list
        # still becomes a tuple and text a path.
        return model.model_validate_json(json.dumps(root.data()), strict=True)
    except ValidationError as error:
        raise all_of(_problems(error, root, model)) from None


def all_of(problems: Iterable[Problem]) -> SpecError:
    """One error for at least one problem: a line for each, in the order of the file."""
    first, *rest = sorted(problems, key=lambda p: (p.place.file, p.place.line, p.place.column))
    return first.place.error("\n".join([first.message, *map(str, rest)]))


def _problems(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    details = error.errors(include_url=False)
    meant = {_meant(detail, root, model) for detail in details}
    return [
        _problem(detail, root, model)
        for detail in details
        # A needed key that is there under a misspelt name is one mistake, not two.
        if not (detail["type"] == "missing" and _path(detail, root) in meant)
    ]


def _meant(detail: ErrorDetails, root: Node, model: type[BaseModel]) -> KeyPath | None:
    """Where an unknown key would stand if it were spelt right."""
    *parent, key = _path(detail, root)
    if detail["type"] != "extra_forbidden":
        return None
    name = closest(str(key), keys_at(model, tuple(parent)))
    return None if name is None else (*parent, name)


def _path(detail: ErrorDetails, root: Node) -> KeyPath:
    """Pydantic's location as a path of the document.

    Pydantic puts the tag of a union into a location (`runtime`, `docker-exec`, `image`)
    and marks a wrong key of a mapping with `[key]`; neither stands in the document.
    """
    path: list[str | int] = []
    node: Node | None = root
    for key in detail["loc"]:
        if key == "[key]" or _is_union_tag(node, key):
            continue
        path.append(key)
        node = None if node is None else node.child(key)
    return tuple(path)


def _is_union_tag(node: Node | None, key: str | int) -> bool:
    if node is None or node.child(key) is not None:
        return False
    kind = node.child("kind")
    return kind is not None and kind.content == key


def _problem(detail: ErrorDetails, root: Node, model: type[BaseModel]) -> Problem:
    path, kind = _path(detail, root), detail["type"]
    node = root.at(path)
    if kind == "missing":
        parent, owner = root.at(path[:-1]), dotted(path[:-1])
        message = f"`{owner}` needs `{path[-1]}:`" if owner else f"`{path[-1]}:` is missing"
        return Problem(parent.key_place, message)
    if kind == "extra_forbidden":
        return Problem(node.key_place, _unknown_key(path, keys_at(model, path[:-1])))
    if detail["loc"][-1] == "[key]":
        return Problem(
            node.key_place,
            f"`{path[-1]}` is not a name: letters, digits, `_`, `.` and `-`, at most 63",
        )
    if kind == "union_tag_invalid":
        path = (*path, "kind")
        node = root.at(path)
    return Problem(node.place, f"`{dotted(path)}` {complaint(detail, node)}")


def _unknown_key(path: KeyPath, known: list[str]) -> str:
    owner = dotted(path[:-1])
    where = f"in `{owner}`" if owner else "here"
    advice = did_you_mean(str(path[-1]), known) or f"; known are {listed(known)}"
    return f"unknown key `{path[-1]}` {where}{advice}"


def complaint(detail: ErrorDetails, node: Node) -> str:
    """What is wrong with a value, to be read after its name."""
    kind, context, got = detail["type"], detail.get("ctx", {}), _shown(node)
    if kind in ("enum", "literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context.get("expected_tags"))
        choices = [choice.strip(" '") for choice in expected.replace(" or ", ",").split(",")]
        return f"must be {one_of(choices)}, not {got}{did_you_mean(node.source, choices)}"
    if kind == "union_tag_not_found":
        return "needs `kind:`, which says what it is"
    if kind == "value_error":
        return f"{context['error']}, not {got}" if node.source else f"{context['error']}"
    if kind == "string_type" and isinstance(node.content, int | float | bool):
        return f'must be text, not {got}: quote it, "{node.source}"'
    stem = kind.removesuffix("_type").removesuffix("_parsing")
    if stem in _TYPES:
        return f"must be {_TYPES[stem]}, not {got}"
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind].format(**context)}, not {got}"
    return f"is refused: {detail['msg']}, not {got}"


def _shown(node: Node) -> str:
    """A value as it was written; what a variable holds is not shown."""
    if isinstance(node.content, Mapping):
        return "a mapping"
    if isinstance(node.content, tuple):
        return "a list" if node.content else "an empty list"
    return "nothing" if node.content is None else f"`{node.source}`"


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that may stand at `path` of a document of type `model`."""
    kinds: list[Any] = [model]
    for key in path:
        kinds = [inner for kind in kinds for inner in _inside(kind, key)]
    return sorted({name for kind in kinds if _is_model(kind) for name in kind.model_fields})


def _inside(kind: Any, key: str | int) -> list[Any]:
    """The models and mappings that `key` of a `kind` may be."""
    if isinstance(key, int):
        return [kind]  # an item of a list of them
    if not _is_model(kind):
        return _parts(typing.get_args(kind)[1])  # a mapping: the type of its values
    field = kind.model_fields.get(str(key))
    return [] if field is None else _parts(field.annotation)


def _parts(annotation: Any) -> list[Any]:
    """The models and mappings among what an annotation allows."""
    if _is_model(annotation) or typing.get_origin(annotation) is dict:
        return [annotation]
    return [inner for part in typing.get_args(annotation) for inner in _parts(part)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
