"""One scenario tried: a broken twin, the harness on it, and what it found against what it must.

    trial = try_scenario(Path("tests/scenarios/network/link-down.yaml"))
    assert trial.caught and not trial.false_findings, trial

Scenarios of `marks: network` run here, in this process: a twin of their own, and the same
`Session` that pytest drives. All others, and with `as_user` those too, run as a user would
run them: `pytest --scenario FILE` in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pd_validate.findings import Finding, Severity, root_findings
from pd_validate.session import Session
from twin.cluster import NETWORK_VARIABLE, PROJECT, TwinCluster, cluster_file
from twin.scenario import Expected, Scenario, load_scenario

NETWORK = "network"  # the mark of scenarios that need no engine
DEADLINE = 600.0  # seconds that one pytest run may take
_FINDING_KEYS = ("id", "severity", "where", "expected", "got", "hint", "evidence", "because")
_LEFT_BEHIND = (11, 12)  # pytest's exit codes (pd_validate/run.py)


class TrialFailed(Exception):
    """A scenario could not be tried at all; the message says why."""


@dataclass(frozen=True)
class Trial:
    """What a run against a scenario found. `findings` are those that no other explains."""

    file: Path
    scenario: Scenario
    findings: Sequence[Finding]
    seconds: float
    notes: Sequence[str] = field(default=())  # what else is not as it must be

    @property
    def expected(self) -> Sequence[Expected]:
        return self.scenario.expect.findings

    @property
    def missed(self) -> list[Expected]:
        """Expected findings that are not there, each needing one of its own."""
        return [wanted for wanted, found in self._pairs() if found is None]

    @property
    def false_findings(self) -> list[Finding]:
        """Findings that nobody expected and that make a run red; warnings do not."""
        if not self.scenario.must_be_clean:
            return []
        meant = [found for _, found in self._pairs()]
        return [f for f in self.findings if f not in meant and f.severity is not Severity.WARN]

    @property
    def caught(self) -> bool:
        """Everything expected was found, nothing else failed, and nothing was left behind."""
        return not self.missed and not self.false_findings and not self.notes

    def _pairs(self) -> Iterator[tuple[Expected, Finding | None]]:
        free = list(self.findings)
        for wanted in self.expected:
            found = next((finding for finding in free if _fits(finding, wanted)), None)
            if found is not None:
                free.remove(found)
            yield wanted, found

    def __str__(self) -> str:
        lines = [f"{self.file}: {'caught' if self.caught else 'NOT caught'}"]
        lines += [f"  expected {_told(wanted)}" for wanted in self.missed]
        lines += [f"  false    {finding}" for finding in self.false_findings]
        lines += [f"  found    {f.severity.value} {f.id} at {f.where}" for f in self.findings]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def _fits(finding: Finding, wanted: Expected) -> bool:
    return (
        finding.id == wanted.id
        and finding.where.matches(wanted.where)
        and wanted.severity in (None, finding.severity)
    )


def _told(wanted: Expected) -> str:
    return f"{wanted.severity.value + ' ' if wanted.severity else ''}{wanted.id} at {wanted.where}"


def try_scenario(file: Path, *, as_user: bool = False) -> Trial:
    """Break a twin as `file` says, run the harness on it, compare.

    The twin gets a loopback network of this process, so several may run at once.
    Raises SpecError for a wrong file, TrialFailed if the run itself broke.
    """
    with own_network():
        scenario = load_scenario(file)
        if scenario.marks == NETWORK and not as_user:
            return _in_process(file, scenario)
        return _as_user(file, scenario)


@contextmanager
def own_network() -> Iterator[None]:
    """Addresses that no other living process uses, unless the caller has chosen some."""
    if NETWORK_VARIABLE in os.environ:
        yield
        return
    high, low = divmod(os.getpid(), 250)
    os.environ[NETWORK_VARIABLE] = f"127.{2 + high % 250}.{low}"
    try:
        yield
    finally:
        del os.environ[NETWORK_VARIABLE]


# --- in this process ------------------------------------------------------------------------------


class _Silent:
    """No progress: a table is drawn instead."""

    def start(self, host: str, what: str) -> None: ...

    def done(self, host: str, what: str = "") -> None: ...

    def fail(self, host: str, what: str) -> None: ...


def _in_process(file: Path, scenario: Scenario) -> Trial:
    started = time.monotonic()
    with TwinCluster.start(cluster_file(scenario.cluster), scenario) as twin:
        session = Session(twin.cluster, audit="off", progress=_Silent())
        try:
            findings = session.network.findings
        finally:
            leftovers = session.close()
    roots = root_findings([*findings, *leftovers])
    return Trial(file, scenario, roots, time.monotonic() - started)


# --- as a user would ------------------------------------------------------------------------------


def _as_user(file: Path, scenario: Scenario) -> Trial:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pd-trial-") as directory:
        arguments = ["--scenario", str(file.resolve())]
        return trial_of(file, scenario, arguments, Path(directory), started)


def trial_of(
    file: Path, scenario: Scenario, arguments: Sequence[str], directory: Path, started: float
) -> Trial:
    """Run pytest with `arguments` on the part that the scenario names; compare.

    `directory` gets the report. `started`: time.monotonic() at the beginning of it all.
    Raises TrialFailed.
    """
    result = directory / "findings.json"
    result.unlink(missing_ok=True)
    command = [*arguments, "--report", f"{directory}/report", "--findings", str(result)]
    command += ["--baselines", f"{directory}/baselines"]
    if scenario.marks:
        command += ["-m", scenario.marks]
    code, output = run_pytest(command)
    if not result.is_file():
        raise TrialFailed(f"{file}: pytest ended with {code} and no findings:\n{output[-2000:]}")
    document = json.loads(result.read_text(encoding="utf-8"))
    findings = [_finding(data) for data in document["findings"]]
    notes = [f"pytest ended with {code}: something was left behind"] * (code in _LEFT_BEHIND)
    roots = root_findings(findings)
    if code != 0 and not roots:
        notes.append(f"pytest ended with {code} and no finding says why:\n{output[-2000:]}")
    return Trial(file, scenario, roots, time.monotonic() - started, notes)


def run_pytest(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of pytest in a process of its own.

    At the deadline it gets the time to tear down (SIGTERM).
    """
    process = subprocess.Popen(
        # Nobody looks at Allure's page of a trial; Node takes longer for it than many a trial.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:allure_pytest", *arguments],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    except BaseException as error:
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise TrialFailed(f"no end within {DEADLINE:.0f} s:\n{output[-2000:]}") from None
    return process.returncode, output


def _finding(data: dict[str, Any]) -> Finding:
    """A finding of findings.json; what is derived there (its layer) is derived again."""
    return Finding.model_validate({key: data[key] for key in _FINDING_KEYS if key in data})
