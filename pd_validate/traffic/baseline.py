"""Values that later runs are held against: golden answers and figures, as files that people keep.

A directory (`--baselines`, one per lab) holds

    golden-<key>.json    answers of one model under one set of versions; see `golden_key`
    perf-<cluster>.yaml  figures: name -> min or max, target, tolerance, source

What has no file yet is recorded, and reported as recorded: never as passed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pd_validate.errors import SpecError


class Golden(BaseModel):
    """One recorded answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    token_ids: tuple[int, ...]
    text: str


def golden_key(model: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """A name for what answers depend on: the model's files and settings, and versions.

    16 hexadecimal digits; equal input gives the same name anywhere.
    """
    told = json.dumps({"model": model, "versions": versions}, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def load_goldens(directory: Path, key: str) -> dict[str, Golden]:
    """The recorded answers by prompt, empty if there are none. Raises SpecError."""
    path = golden_file(directory, key)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        answers = [Golden.model_validate(each) for each in data["answers"]]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SpecError(f"is no file of golden answers: {error}", file=str(path)) from error
    return {golden.prompt: golden for golden in answers}


def save_goldens(
    directory: Path, key: str, goldens: Mapping[str, Golden], about: Mapping[str, Any]
) -> Path:
    """Write the answers; `about` says in words of which model and versions. Returns the file."""
    path = golden_file(directory, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"about": about, "answers": [golden.model_dump() for golden in goldens.values()]}
    path.write_text(
        json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    return path


def golden_file(directory: Path, key: str) -> Path:
    return directory / f"golden-{key}.json"


class Limit(BaseModel):
    """What a figure must keep. `min` for what should be large, `max` for what should be small.

    `target` is what one wants; farther from it than `tolerance` (a share) is worth a
    warning, beyond min or max is a failure. `source` says who measured it, when, and how.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = None
    max: float | None = None
    target: float | None = None
    tolerance: float = 0.1
    source: str = ""


@dataclass(frozen=True)
class Figures:
    """The limits of one cluster, and the file they came from (which may not be there yet)."""

    path: Path
    limits: Mapping[str, Limit]


def load_figures(directory: Path, cluster: str) -> Figures:
    """The limits of a cluster's figures, empty if there is no file. Raises SpecError."""
    path = directory / f"perf-{cluster}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        limits = {str(name): Limit.model_validate(value) for name, value in data.items()}
    except FileNotFoundError:
        return Figures(path, {})
    except (yaml.YAMLError, ValidationError, AttributeError, OSError) as error:
        raise SpecError(f"is no file of figures: {error}", file=str(path)) from error
    return Figures(path, limits)


def save_figures(figures: Figures, measured: Mapping[str, float], source: str) -> None:
    """Add what has no limit yet as a target; a person decides about min and max."""
    data = {name: limit.model_dump(exclude_none=True) for name, limit in figures.limits.items()}
    for name, value in measured.items():
        data.setdefault(name, {"target": round(value, 6), "tolerance": 0.5, "source": source})
    figures.path.parent.mkdir(parents=True, exist_ok=True)
    figures.path.write_text(yaml.safe_dump(data, sort_keys=True), encoding="utf-8")
