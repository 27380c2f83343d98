"""`pd-validate report DIR`: the same pages again, from nothing but what the run had saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples import EXAMPLES, corrupted_block, dead_link

from pd_validate.cli import main
from pd_validate.report import write_reports
from pd_validate.report.places import Places
from pd_validate.report.record import RunRecord
from pd_validate.report.remake import remake

PAGES = ("summary.html", "summary.md", "checks.html", "findings.json", "record.json")
USAGE_ERROR = 4


def texts(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text("utf-8") for name in PAGES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_page_is_the_same_again(name: str, tmp_path: Path) -> None:
    write_reports(EXAMPLES[name](), tmp_path)
    before = texts(tmp_path)
    for page in PAGES[:3]:
        (tmp_path / page).unlink()
    remake(tmp_path)
    assert texts(tmp_path) == before


def test_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends with 0 also for a red run: making a page is what was asked for, and it was made."""
    write_reports(corrupted_block(), tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "kv.corrupt" in said
    assert f"Report: {tmp_path}/summary.html" in said
    assert "Allure makes no HTML: there are no results in" in said


def test_not_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == USAGE_ERROR
    assert "record.json: no such file" in capsys.readouterr().err


def with_key(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "hostz": []}


def without_cluster(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "cluster"}


@pytest.mark.parametrize(("spoil", "place"), [(with_key, "hostz"), (without_cluster, "cluster")])
def test_a_record_that_cannot_be_read(
    spoil: Any, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(dead_link().to_json())
    (tmp_path / "record.json").write_text(json.dumps(spoil(data)))
    assert main(["report", str(tmp_path)]) == USAGE_ERROR
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"record.json: not a record of this version: {place}: " in said[0]
    assert not (tmp_path / "summary.html").exists()


def results(places: Places, record: RunRecord) -> None:
    """A result as allure-pytest leaves it."""
    places.allure_results.mkdir()
    began = int(record.started.timestamp() * 1000)
    result = {
        "uuid": "a", "historyId": "h", "testCaseId": "t", "name": "test_link", "status": "failed",
        "fullName": "tests.network#test_link", "start": began, "stop": began + 5, "labels": [],
    }  # fmt: skip
    (places.allure_results / "a-result.json").write_text(json.dumps(result))


def test_allure_keeps_one_entry_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again, a run does not stand twice in the trend; earlier runs stay in it.

    By a path of the working directory, as a person types it.
    """
    if not (Path(__file__).parents[3] / "node_modules" / ".bin" / "allure").exists():
        pytest.skip("Allure 3 is not installed; npm ci")
    monkeypatch.chdir(tmp_path)
    record, places = dead_link(), Places(Path("night"))
    write_reports(record, places.directory)
    results(places, record)
    earlier = json.dumps({
        "uuid": "e", "name": "earlier", "knownTestCaseIds": [], "testResults": {}, "metrics": {},
        "timestamp": int(record.started.timestamp() * 1000) - 86_400_000,
    })  # fmt: skip
    places.allure_history.write_text(earlier + "\n")
    for _ in range(2):
        made = remake(places.directory)
        assert made.allure == f"Allure report: {places.allure_report.absolute()}/index.html"
        lines = places.allure_history.read_text().splitlines()
        assert [json.loads(line)["name"] for line in lines][:1] == ["earlier"]
        assert len(lines) == 2


def test_a_failing_allure_loses_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, places = dead_link(), Places(tmp_path)
    write_reports(record, tmp_path)
    results(places, record)
    places.allure_history.write_text('{"timestamp": 99999999999999}\n')
    monkeypatch.setenv("PATH", str(tmp_path))  # no Node here
    assert not remake(tmp_path).allure.startswith("Allure report:")
    assert places.allure_history.read_text() == '{"timestamp": 99999999999999}\n'
