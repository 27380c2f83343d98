"""docs/cluster.md and docs/cluster.schema.json are what the models say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, EngineOverrides, EngineSpec
from pd_validate.spec.reference import files, json_schema
from pd_validate.spec.validate import keys_at

ROOT = Path(__file__).parents[3]
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))


@pytest.mark.parametrize("name", ["cluster.md", "cluster.schema.json"])
def test_the_file_is_current(name: str) -> None:
    current = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert current == files()[name], "run: python -m pd_validate.spec.reference docs"


def test_every_key_has_its_row() -> None:
    page = files()["cluster.md"]
    for section in ("", "ssh", "engine", "connector", "proxy", "timeouts"):
        for key in keys_at(Cluster, (section,) if section else ()):
            assert f"| `{key}` |" in page


def test_every_link_of_the_page_has_its_heading() -> None:
    page = files()["cluster.md"]
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    linked = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert linked
    assert linked <= anchors


def test_the_pages_example_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", files()["cluster.md"], re.DOTALL)
    path = tmp_path / "cluster.yaml"
    path.write_text(example)
    assert list(load_cluster(path, environ={}).instances) == ["prefill-1", "decode-1"]


def errors(data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_the_schema_accepts_the_ready_files(path: Path) -> None:
    # BaseLoader would make text of numbers; these files have nothing that YAML 1.1 reads otherwise.
    assert errors(yaml.safe_load(path.read_text())) == []


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(files()["cluster.schema.json"]) == json_schema()


@pytest.mark.parametrize(
    "data",
    [
        {"nicc": "eth0"},
        {"proxy": {"host": "p1", "port": 80800}},
        {"proxy": {"host": "p1", "port": "http"}},
        {"instances": {"a": {"role": "prefil"}}},
        {"runtime": {"kind": "docker-exec", "image": "x"}},
    ],
)
def test_the_schema_refuses(data: dict[str, Any]) -> None:
    assert errors(data)


def test_the_schema_takes_a_variable_for_any_value() -> None:
    assert errors({"proxy": {"host": "${HOST}", "port": "${PORT:-8080}"}}) == []


def test_an_instance_can_override_every_engine_setting() -> None:
    assert set(EngineOverrides.model_fields) == set(EngineSpec.model_fields)
