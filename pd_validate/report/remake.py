"""Draw a run's reports again from what it saved: record.json and Allure's results.

For a page made by a newer version of this project, or for Allure's HTML where Node came
later. Nothing is measured again, and no verdict changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pd_validate.errors import SpecError
from pd_validate.report.allure_files import Generated, generate
from pd_validate.report.places import Places
from pd_validate.report.record import RunRecord
from pd_validate.report.write import write_reports


@dataclass(frozen=True)
class Remade:
    """What was made: files, and in words what became of Allure's HTML."""

    record: RunRecord
    files: tuple[Path, ...]
    allure: str


def remake(directory: Path) -> Remade:
    """Make summary.html, summary.md, findings.json and Allure's HTML of `directory` again.

    Raises SpecError if it holds no record of a run, OSError if it cannot be written.
    """
    places = Places(directory)
    record = load_record(places.record)
    files = write_reports(record, directory)
    return Remade(record, tuple(files), _allure(record, places).message)


def load_record(path: Path) -> RunRecord:
    """The record that a run saved. Raises SpecError with the file and what is wrong with it."""
    try:
        return RunRecord.load(path)
    except FileNotFoundError:
        message = "no such file; a run's report directory (--report) has one"
        raise SpecError(message, file=str(path)) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"not a record of this version: {f'{place}: ' if place else ''}{first['msg']}"
        raise SpecError(message, file=str(path)) from None


def _allure(record: RunRecord, places: Places) -> Generated:
    if not any(places.allure_results.glob("*-result.json")):
        message = f"Allure makes no HTML: there are no results in {places.allure_results}"
        return Generated(None, message)
    history = places.allure_history
    before = history.read_text(encoding="utf-8") if history.is_file() else None
    if before is not None:
        # Allure adds this run to the trend: it must not stand there twice.
        history.write_text(_of_earlier_runs(before, record), encoding="utf-8")
    made = generate(record, places.allure_results, places.allure_report, history)
    if made.index is None and before is not None:
        history.write_text(before, encoding="utf-8")
    return made


def _of_earlier_runs(history: str, record: RunRecord) -> str:
    """The lines that were there when the run began; `timestamp` is milliseconds."""
    began = record.started.timestamp() * 1000
    lines = history.splitlines(keepends=True)
    return "".join(line for line in lines if json.loads(line)["timestamp"] < began)
