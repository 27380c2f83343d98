"""findings.json keeps to its JSON Schema, and the schema to the models."""

import copy
import json
from pathlib import Path

import pytest
from examples import EXAMPLES, dead_link
from jsonschema import Draft202012Validator

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.findings import Severity, Verdict, Where
from pd_validate.report.findings_json import findings_json

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs" / "findings.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_valid(name):
    document = json.loads(findings_json(EXAMPLES[name]()))
    VALIDATOR.validate(document)


def test_content():
    document = json.loads(findings_json(dead_link()))
    assert (document["cluster"], document["verdict"]) == ("atlas-1p2d", "fail")
    assert document["started"] == "2026-11-20T09:30:00+00:00"
    root = next(f for f in document["findings"] if f["id"] == "link.down")
    assert root["where"] == {"host": "d1", "device": 6}
    assert root["layer"] == "physical link"
    assert root["hint"].startswith("Check cable")
    consequence = next(f for f in document["consequences"] if f["id"] == "health.unreachable")
    assert consequence["because"] == [{"id": "link.down", "where": {"host": "d1", "device": 6}}]
    failed = [check for check in document["checks"] if check["verdict"] == "fail"]
    assert {"link.state", "optics", "net-health"} == {check["id"] for check in failed}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("verdict"),
        lambda d: d.update(verdict="ok"),
        lambda d: d.update(extra=1),
        lambda d: d["findings"][0]["where"].update(hots="d1"),
        lambda d: d["findings"][0].update(id="Link Down"),
        lambda d: d["findings"][0].update(layer="cables"),
        lambda d: d["checks"][0].update(seconds=-1),
    ],
)
def test_schema_refuses_what_is_wrong(damage):
    document = json.loads(findings_json(dead_link()))
    broken = copy.deepcopy(document)
    damage(broken)
    assert VALIDATOR.is_valid(document)
    assert not VALIDATOR.is_valid(broken)


def test_schema_speaks_the_words_of_the_models():
    parts = SCHEMA["$defs"]
    assert set(parts["where"]["properties"]) == set(Where.model_fields)
    assert parts["verdict"]["enum"] == [verdict.value for verdict in Verdict]
    finding = parts["finding"]["properties"]
    assert finding["severity"]["enum"] == [severity.value for severity in Severity]
    assert finding["layer"]["enum"] == [layer.label for layer in Layer]
    known_id = Draft202012Validator(parts["id"])
    assert [known for known in CATALOGUE if not known_id.is_valid(known)] == []
