"""Where each file of a report lies in its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """The files of the report in `directory`; none of them need be there."""

    directory: Path

    @property
    def summary(self) -> Path:
        return self.directory / "summary.html"

    @property
    def record(self) -> Path:
        return self.directory / "record.json"

    @property
    def logs(self) -> Path:
        """The end of every log."""
        return self.directory / "logs"

    @property
    def logs_archive(self) -> Path:
        """All logs, as long as they were."""
        return self.directory / "logs.tar.gz"

    @property
    def allure_results(self) -> Path:
        return self.directory / "allure-results"

    @property
    def allure_report(self) -> Path:
        return self.directory / "allure-report"

    @property
    def allure_history(self) -> Path:
        """One line a run; makes trends."""
        return self.directory / "allure-history.jsonl"
