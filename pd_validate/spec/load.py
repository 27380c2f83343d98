"""Reads cluster.yaml: `load_cluster` gives a validated Cluster or one readable SpecError.

All mistakes that can be found are reported in one go, one line each, in the order of
the file; the SpecError's own place is the first one's. Rules that need more than one
value (does this host exist, is this device free) are in `rules.py`.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pd_validate.spec.models import Cluster, Ssh
from pd_validate.spec.rules import contradictions
from pd_validate.spec.source import KeyPath, Node, Place, read

M = TypeVar("M", bound=BaseModel)

# Pydantic's words for a bound, in ours; {…} are the names of its context.
_BOUNDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must be at most {max_length} characters",
    "too_short": "must have at least {min_length} item",
}
_KINDS = {
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
        return f"{self.place.file}:{self.place.line}:{self.place.column}: {self.message}"


def load_cluster(path: Path, *, environ: Mapping[str, str] | None = None) -> Cluster:
    """Read and validate a cluster file; `environ` (default: the process's) fills `${NAME}`.

    File names of SSH keys and known_hosts files are taken relative to the file in which
    they stand, `~` is the user's home. Nothing is connected to.

    Raises SpecError: what is wrong, with file, line and column, one line per mistake.
    """
    root = read(path, os.environ if environ is None else environ)
    cluster = validated(Cluster, root)
    problems = [
        Problem(_place(root, found.path, at_key=found.at_key), found.message)
        for found in contradictions(cluster)
    ]
    _raise_if_any(problems, path)
    return _with_local_paths(cluster, root)


def validated(model: type[M], root: Node) -> M:
    """`root` as a `model`. Raises SpecError that names every wrong value with its place."""
    try:
        # As JSON, so that strict types apply (no 1 for true, no "1" for 1) and a list
        # still becomes a tuple and text a path.
        return model.model_validate_json(json.dumps(root.data()), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        misspelt = _misspelt(details, model)
        problems = [
            _problem(detail, root, model)
            for detail in details
            if not (detail["type"] == "missing" and detail["loc"] in misspelt)
        ]
        _raise_if_any(problems, Path(root.place.file))
        raise AssertionError("a ValidationError without details") from error


def _raise_if_any(problems: Iterable[Problem], path: Path) -> None:
    def order(problem: Problem) -> tuple[bool, str, int, int]:
        place = problem.place
        return place.file != str(path), place.file, place.line, place.column

    ordered = sorted(problems, key=order)
    if ordered:
        first, rest = ordered[0], ordered[1:]
        raise first.place.error("\n".join([first.message, *map(str, rest)]))


def _place(root: Node, path: KeyPath, *, at_key: bool = False) -> Place:
    node = root.at(path)
    return node.key_place if at_key else node.place


def _problem(detail: ErrorDetails, root: Node, model: type[BaseModel]) -> Problem:
    path, on_key = _path_in_document(detail["loc"], root)
    kind = detail["type"]
    if kind == "missing":
        # The place of what lacks it: of its key, if it has one.
        parent = root.at(path[:-1])
        name, owner = path[-1], _dotted(path[:-1])
        article = f"`{owner}` needs `{name}:`" if owner else f"`{name}:` is missing"
        return Problem(parent.key_place, article)
    node = root.at(path)
    if kind == "extra_forbidden":
        known = keys_at(model, path[:-1])
        return Problem(node.key_place, _unknown_key(path, known))
    if on_key:
        return Problem(
            node.key_place,
            f"`{path[-1]}` is not a name: letters, digits, `_`, `.` and `-`, at most 63",
        )
    if kind == "union_tag_invalid":
        path = (*path, "kind")
        node = root.at(path)
    return Problem(node.place, f"`{_dotted(path)}` {_complaint(detail, node)}")


def _misspelt(details: list[ErrorDetails], model: type[BaseModel]) -> set[tuple[int | str, ...]]:
    """Locations of keys that are there under a misspelt name: one mistake, not two."""
    meant = set()
    for detail in details:
        *parent, key = detail["loc"]
        if detail["type"] == "extra_forbidden":
            for name in get_close_matches(str(key), keys_at(model, tuple(parent)), n=1):
                meant.add((*parent, name))
    return meant


def _complaint(detail: ErrorDetails, node: Node) -> str:
    """What is wrong with a value, to be read after its name."""
    kind, context, got = detail["type"], detail.get("ctx", {}), _shown(node)
    if kind in ("enum", "literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context.get("expected_tags"))
        choices = [choice.strip(" '") for choice in expected.replace(" or ", ",").split(",")]
        return f"must be {_one_of(choices)}, not {got}{_did_you_mean(node.source, choices)}"
    if kind == "union_tag_not_found":
        return "needs `kind:` (host, docker-exec or docker-run)"
    if kind == "value_error":
        return f"{context['error']}, not {got}" if node.source else f"{context['error']}"
    if kind == "string_type" and isinstance(node.content, int | float | bool):
        return f'must be text, not {got}: quote it, "{node.source}"'
    stem = kind.removesuffix("_type")
    if stem in _KINDS:
        return f"must be {_KINDS[stem]}, not {got}"
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind].format(**context)}, not {got}"
    return f"is refused: {detail['msg']}, not {got}"


def _shown(node: Node) -> str:
    if isinstance(node.content, Mapping):
        return "a mapping"
    if isinstance(node.content, tuple):
        return "a list" if node.content else "an empty list"
    return "nothing" if node.content is None else f"`{node.source}`"


def _path_in_document(loc: tuple[int | str, ...], root: Node) -> tuple[KeyPath, bool]:
    """Pydantic's location as a path of the document, and whether its key is meant.

    Pydantic puts the tag of a union into a location (`runtime`, `docker-exec`, `image`)
    and marks a wrong key of a mapping with `[key]`; neither stands in the document.
    """
    path: list[str | int] = []
    node: Node | None = root
    for index, key in enumerate(loc):
        if key == "[key]":
            return tuple(path), True
        last = index == len(loc) - 1
        child = node.child(key) if node is not None else None
        if child is None and not last:
            continue
        if child is None and node is not None and node.child("kind") is not None:
            kind = node.child("kind")
            if kind is not None and kind.content == key:
                continue
        path.append(key)
        node = child
    return tuple(path), False


def _unknown_key(path: KeyPath, known: list[str]) -> str:
    owner = _dotted(path[:-1])
    where = f"in `{owner}`" if owner else "here"
    suggestion = _did_you_mean(str(path[-1]), known)
    return f"unknown key `{path[-1]}` {where}{suggestion or f'; known are {_listed(known)}'}"


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that may stand at `path` of a document of type `model`."""
    types: list[Any] = [model]
    for key in path:
        types = [inner for outer in types for inner in _inside(outer, key)]
    return sorted({name for kind in types if _is_model(kind) for name in kind.model_fields})


def _inside(kind: Any, key: str | int) -> list[Any]:
    if not _is_model(kind):
        return [inner for _, inner in [typing.get_args(kind)]] if _is_mapping(kind) else []
    field = kind.model_fields.get(str(key))
    return [] if field is None else _alternatives(field.annotation)


def _alternatives(annotation: Any) -> list[Any]:
    """The models and mappings among what an annotation allows."""
    if _is_model(annotation) or _is_mapping(annotation):
        return [annotation]
    return [inner for part in typing.get_args(annotation) for inner in _alternatives(part)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_mapping(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def _one_of(choices: list[str]) -> str:
    return " or ".join(f"`{choice}`" for choice in choices)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _dotted(path: KeyPath) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _with_local_paths(cluster: Cluster, root: Node) -> Cluster:
    """`cluster` with the controller's own files (SSH) made absolute."""

    def local(path: Path, *keys: str) -> Path:
        return Path(root.at(keys).place.file).parent.absolute() / path.expanduser()

    def with_local(ssh: Ssh, *keys: str) -> Ssh:
        files = {"key": ssh.key, "known_hosts": ssh.known_hosts}
        # Only what is stated: a host's other keys are the cluster's.
        stated = {k: local(path, *keys, k) for k, path in files.items() if path is not None}
        return ssh.model_copy(update=stated)

    hosts = {
        name: host.model_copy(update={"ssh": with_local(host.ssh, "hosts", name, "ssh")})
        if host.ssh is not None
        else host
        for name, host in cluster.hosts.items()
    }
    ssh = with_local(cluster.ssh, "ssh")
    return cluster.model_copy(update={"ssh": ssh, "hosts": hosts})
