"""What a run left behind on a host: pure verdicts on a survey of processes, files, locks, ports."""

from __future__ import annotations

from collections.abc import Iterator

from pd_validate.errors import LabError
from pd_validate.findings import Finding, Severity, Where
from pd_validate.hosts.supervisor import Survey


def check_leftovers(survey: Survey, run_id: str) -> list[Finding]:
    """Findings for everything of `run_id` that is still on the host. Run after its end."""
    return list(_leftovers(survey, run_id))


def unknown_leftovers(host: str, error: LabError) -> Finding:
    """A host that could not be asked after the run: its lease ends everything there by itself."""
    return Finding(
        id="leftover.process",
        severity=Severity.UNKNOWN,
        where=Where(host=host),
        expected="an answer about what is left",
        got=str(error),
    )


def _leftovers(survey: Survey, run_id: str) -> Iterator[Finding]:
    for process in survey.processes:
        if process.run_id == run_id:
            yield Finding(
                id="leftover.process",
                where=Where(host=survey.host, instance=process.name or None),
                expected="no process of this run",
                got=f"pid {process.pid}: {process.command[:120]}",
            )
    for port in survey.ports:
        if port.run_id == run_id:
            yield Finding(
                id="leftover.port",
                where=Where(host=survey.host, port=port.port),
                expected="a free port",
                got=f"pid {port.pid}: {port.command[:120]}",
            )
    for run in survey.runs:
        if run.run_id == run_id:
            yield Finding(
                id="leftover.file",
                where=Where(host=survey.host, file=run.run_dir),
                expected="the run directory removed",
                got="it is still there",
            )
    if survey.lock is not None and survey.lock.run.run_id == run_id:
        yield Finding(
            id="leftover.lock",
            where=Where(host=survey.host, file=survey.lock.path),
            expected="no lock of this run",
            got=str(survey.lock.run),
        )
