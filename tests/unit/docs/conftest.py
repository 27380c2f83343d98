"""A directory that looks like a clone of the project with its environment."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
from pathlib import Path

import pytest
from pages import ROOT

from pd_validate.report import write_reports
from pd_validate.report.record import RunRecord


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory like a clone with its environment, in which commands may write."""
    for name in ("clusters", "examples", "tests", "node_modules", "package.json"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    # What an earlier run has left, for commands about a report.
    earlier = RunRecord(cluster="earlier", started=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    write_reports(earlier, tmp_path / "pd-report")
    return tmp_path
