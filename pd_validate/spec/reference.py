"""Generates docs/cluster.md and docs/cluster.schema.json from the models.

    python -m pd_validate.spec.reference docs

A test holds both files current.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pd_validate.spec.models import Cluster
from pd_validate.spec.profiles import PROFILES

Schema = dict[str, Any]

_HEAD = """\
# cluster.yaml

What a cluster file may say. Generated from the models
(`python -m pd_validate.spec.reference docs`); do not edit by hand.
Ready files to start from are in `clusters/`; `pd-validate plan FILE` shows what a
file makes of it, without connecting anywhere.

The least that a file needs: `hosts`, `model`, `instances`, `proxy`.

```yaml
{example}```

## How it is read

- YAML, with anchors and merge keys (`<<`). Plain words are read as in YAML 1.2: `on` and
  `no` are text, `010` is not octal.
- `${{NAME}}` in a value is replaced from the environment, `${{NAME:-default}}` has a
  default, `$$` is a dollar sign. A variable that is not set and has no default is an error.
- `include: other.yaml`, or a list of files, at the top: they are read first and this file is
  laid over them, mapping by mapping; lists and values are replaced. Paths are relative to the
  file they stand in.
- Unknown keys, a key twice, wrong types, unknown hosts, devices that do not exist or are
  taken, port clashes: all mistakes are reported at once, one line each, as
  `file:line:column: what is wrong`, and nothing is started (exit code 4).
- Text that looks like a number or true must be quoted: `kv_port: "20001"`.
- Editors that know JSON Schema help while typing. With the YAML language server:
  `# yaml-language-server: $schema=<path to>/docs/cluster.schema.json` as the first line.

## Hardware profiles

| name | product | NPUs | per card | nets no NPU may be in |
|---|---|---|---|---|
{profiles}
"""
_EXAMPLE = """\
hosts:
  p1: {address: 192.0.0.1}
  d1: {address: 192.0.0.2}
model: {path: /model/Qwen3-30B-A3B}
instances:
  prefill-1: {role: prefill, host: p1, devices: [0, 1]}
  decode-1: {role: decode, host: d1, devices: [6, 7]}
proxy: {host: p1}
"""


def json_schema() -> Schema:
    """JSON Schema of the file as people write it: with `include`, and `${…}` for any value.

    Nothing is required, because an included file may bring it.
    """
    schema: Schema = _as_written(Cluster.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "pd-validate cluster file"
    schema["properties"]["include"] = {
        "description": "Files that this one is laid over, relative to it.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return schema


_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{"}


def _as_written(part: Any) -> Any:
    if isinstance(part, list):
        return [_as_written(item) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _as_written(value) for key, value in part.items() if key != "required"}
    if changed.get("type") in ("integer", "number", "boolean"):
        outer = {k: changed.pop(k) for k in ("title", "description", "default") if k in changed}
        return outer | {"anyOf": [changed, _VARIABLE]}
    return changed


def markdown() -> str:
    """The reference page: one table per part of the file."""
    schema = Cluster.model_json_schema()
    profiles = "\n".join(
        f"| `{p.name}` | {p.product} | {p.devices} | {p.chips_per_card} | "
        f"{', '.join(p.reserved_nets)} |"
        for p in PROFILES.values()
    )
    parts = [_HEAD.format(example=_EXAMPLE, profiles=profiles)]
    titles = {id(part): title for title, part in _parts(schema)}
    parts += [_section(title, part, schema, titles) for title, part in _parts(schema)]
    return "\n".join(parts)


def _parts(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """(title, schema) of the file itself and of every part, in the order of first use."""
    definitions = schema["$defs"]
    yield "The file", schema
    seen: dict[str, str] = {}
    queue = [(schema, "")]
    while queue:
        part, prefix = queue.pop(0)
        for key, field in part.get("properties", {}).items():
            for name in _references(field):
                each = ".NAME" if field.get("type") == "object" else ""
                path = f"{prefix}{key}{each}"
                if name not in seen:
                    seen[name] = path
                    queue.append((definitions[name], f"{path}."))
    for name, path in seen.items():
        if "properties" in definitions[name]:
            kind = definitions[name]["properties"].get("kind", {}).get("const")
            title = f"{path}, kind {kind}" if kind else path
            yield title, definitions[name]


def _references(field: Any) -> Iterator[str]:
    if isinstance(field, list):
        for item in field:
            yield from _references(item)
    elif isinstance(field, dict):
        if "$ref" in field:
            yield field["$ref"].rsplit("/", 1)[-1]
        for key, value in field.items():
            if key != "discriminator":
                yield from _references(value)


def _section(title: str, part: Schema, schema: Schema, titles: dict[int, str]) -> str:
    required = part.get("required", [])
    lines = [f"## {title}", "", _one_line(part.get("description", "")), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in part["properties"].items():
        default = "needed" if key in required else _default(field)
        meaning = [_one_line(field.get("description", ""))]
        for name in dict.fromkeys(_references(field)):
            section = titles.get(id(schema["$defs"][name]))
            if section is not None:
                meaning.append(f"See [{section}](#{_anchor(section)}).")
        text = " ".join(filter(None, meaning))
        lines.append(f"| `{key}` | {_kind(field)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    """The anchor that a heading has on the usual Markdown pages."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(field: Schema) -> str:
    value = field.get("default")
    if value in (None, [], {}):
        return ""
    if isinstance(value, dict) and any(_references(field)):
        return ""  # a part with its own table
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


def _kind(field: Schema) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return "`prefill`, `decode`" if name == "Role" else "mapping"
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        kinds = [_kind(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if field.get("type") == "object":
        return "mapping"
    return _scalar(field)


def _scalar(field: Schema) -> str:
    names = {"integer": "whole number", "number": "number", "boolean": "true or false"}
    text = names.get(field.get("type", ""), "text")
    if field.get("format") == "path":
        text = "path"
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f"{text} {low}–{high}"
    if low is not None:
        return f"{text} from {low}"
    if "exclusiveMinimum" in field:
        return f"{text} above 0" + (f", up to {high}" if high is not None else "")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def files() -> dict[str, str]:
    """The generated files by name."""
    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    return {"cluster.md": markdown(), "cluster.schema.json": f"{schema}\n"}


def main(directory: Path) -> None:
    for name, text in files().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
