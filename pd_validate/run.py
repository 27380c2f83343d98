"""A pytest run on a cluster: the session, what tests found, the exit code, the reports.

pytest's hooks (plugin.py) call this; it knows pytest's reports but registers nothing.
"""

from __future__ import annotations

import datetime as dt
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from pd_validate import recording
from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.checks.explain import explained
from pd_validate.checks.result import Report
from pd_validate.findings import Finding, Severity, Verdict, root_findings, verdict_of
from pd_validate.options import Options
from pd_validate.quarantine import load_quarantine
from pd_validate.report.allure import Story
from pd_validate.report.allure_files import generate, write_results_files
from pd_validate.report.places import Places
from pd_validate.report.record import Attachment, Outcome, RunRecord, TestResult
from pd_validate.report.redact import Redactor
from pd_validate.report.terminal import HostProgress, console_for, print_summary
from pd_validate.report.write import write_reports
from pd_validate.session import PreflightFailed, Session, kept_run
from pd_validate.spec.models import Cluster
from pd_validate.topology.topology import BringUpFailed, Topology
from pd_validate.traffic.client import RequestFailed

T = TypeVar("T")

NOT_FIT, LEFT_BEHIND, BOTH = 10, 11, 12
_BLOCKED = ("blocked by ", "explained by ")  # how skips begin that something below has caused


class Run:
    """Owns the session (and, for the twin, the simulated hosts) until `close`."""

    def __init__(
        self, options: Options, cluster: Cluster, config: pytest.Config, undo: ExitStack
    ) -> None:
        self.options = options
        self._config = config
        self._undo = undo
        self._console = console_for(sys.stdout)
        progress = HostProgress(self._console, list(cluster.hosts))
        kept = kept_run(cluster) if options.reuse else None
        self.session = Session(
            cluster,
            audit=options.audit,
            progress=progress,
            kept=kept,
            quarantine=load_quarantine(options.quarantine),
        )
        self.session.record.command = shlex.join(["pytest", *config.invocation_params.args])
        self._redactor = Redactor(_secrets(cluster))
        self.story = Story(self._redactor)
        self._tests: dict[str, TestResult] = {}
        self._found: dict[str, list[Finding]] = {}
        self._bring_up_told = False
        self._report_lines: list[str] = []
        self._broken = ""  # why the lab or the harness itself cannot go on
        self._finished = False

    # --- during the run ---------------------------------------------------------------

    def topology(self) -> Topology:
        """The running topology, or the right kind of end for the test that asked for it.

        An unfit cluster blocks: skip. A failed bring-up is one failure, then skips.
        """
        return self._or_end(self.session.topology)

    def staged(self) -> Topology:
        """As `topology`, with nothing started yet."""
        return self._or_end(self.session.staged)

    def _or_end(self, step: Callable[[], Topology]) -> Topology:
        __tracebackhide__ = True  # the findings say it all
        try:
            return self._once(step)
        except PreflightFailed as failure:
            pytest.skip(f"blocked by {_named(failure.findings)}")
        except BringUpFailed as failure:
            self.session.add(failure.findings)
            if self._bring_up_told:
                pytest.skip(f"blocked by {_named(failure.findings)}")
            self._bring_up_told = True
            xfail_if_quarantined(self.session.quarantine.mark_all(failure.findings))
            raise AssertionError(f"the service did not come up:\n{_told(failure)}") from None

    def _once(self, step: Callable[[], T]) -> T:
        """Run a step in sight of the person who waits. What breaks it breaks one test only."""
        if self._broken:
            pytest.skip(f"blocked by {self._broken}")
        try:
            with self._visible():
                return step()
        except (PreflightFailed, BringUpFailed):
            raise
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}".splitlines()[0]
            raise

    @contextmanager
    def _visible(self) -> Iterator[None]:
        """Progress is for the person who waits: past pytest's capturing."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if capture is None or reporter is None:
            yield
            return
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            yield

    def network(self) -> Report:
        """Read and judge the cluster, with progress in sight (later calls: from memory)."""
        report = self._once(lambda: self.session.network)
        self.session.add(report.findings)
        return report

    def diagnosed(self, error: RequestFailed) -> list[Finding]:
        """What is wrong below a request that never ended. A sick engine blocks later tests."""
        return self._blocking(self.session.diagnose(error))

    def _blocking(self, findings: list[Finding]) -> list[Finding]:
        sick = [finding for finding in findings if finding.id.startswith("engine.")]
        if sick and not self._broken:
            self._broken = f"{sick[0].id} at {sick[0].where}"
        return findings

    def found(self, nodeid: str, findings: Sequence[Finding]) -> None:
        self.session.add(findings)
        for finding in findings:
            self.story.finding(finding)
        self._found.setdefault(nodeid, []).extend(findings)

    def looked_below(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings with what lies under them; a sick engine blocks later tests."""
        return self._blocking(self.session.look_below(findings))

    def tested(self, report: pytest.TestReport, layer: Layer | None) -> None:
        """Take one phase of a test into the record: its worst phase counts."""
        outcome = _outcome(report)
        before = self._tests.get(report.nodeid)
        if before is not None and outcome is Outcome.PASSED:
            outcome = before.outcome
        self._tests[report.nodeid] = TestResult(
            id=report.nodeid,
            outcome=outcome,
            seconds=report.duration + (before.seconds if before else 0),
            findings=_blocking(report)
            or tuple(finding.id for finding in self._found.get(report.nodeid, []))
            or (before.findings if before else ()),
            reason=_reason(report) or (before.reason if before else ""),
            layer=layer,
        )

    # --- the end ----------------------------------------------------------------------

    def finish(self, exit_code: int) -> int:
        """Tear down, write the reports, and say with which code the run ends. Once."""
        if self._finished:
            return exit_code
        self._finished = True
        with self._visible():
            found = self.session.close(keep=self.options.keep_up)
        leftovers = root_findings(self.session.quarantine.mark_all(found))
        # Only now everything is known that may explain what an earlier test met.
        self.session.findings = explained(self.session.findings)
        code = self._exit_code(exit_code, leftovers)
        record = self.session.record
        record.finished = dt.datetime.now(dt.UTC)
        record.tests = list(self._tests.values())
        record.findings = self.session.findings
        record.quarantine = recording.quarantine(self.session.quarantine, self.session.findings)
        record.verdict = self._verdict(code)
        record.exit_code = code
        self._write_logs()
        write_reports(record, self.options.report, secrets=_secrets(self.session.cluster))
        self._write_allure(self._redactor.record(record))
        if self.options.findings is not None:
            self.options.findings.parent.mkdir(parents=True, exist_ok=True)
            self.options.findings.write_bytes((self.options.report / "findings.json").read_bytes())
        return code

    def _exit_code(self, pytests: int, leftovers: Sequence[Finding]) -> int:
        if self.session.preflight_failed:
            return BOTH if leftovers else NOT_FIT
        if leftovers:
            return LEFT_BEHIND
        failing = [f for f in root_findings(self.session.findings) if f.severity is Severity.FAIL]
        return 1 if pytests == 0 and failing else pytests

    def _verdict(self, code: int) -> Verdict:
        verdict = verdict_of(root_findings(self.session.findings))
        if verdict is Verdict.PASS and code != 0:
            return Verdict.FAIL if code == 1 else Verdict.UNKNOWN
        return verdict

    def _write_logs(self) -> None:
        """The processes' logs and the KV trace, redacted, beside the report."""
        directory = self.options.report / "logs"
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier run
        directory.mkdir(parents=True)
        texts = {
            f"{name}.log": data.decode(errors="replace") for name, data in self.session.logs.items()
        }
        if self.session.trace_text:
            texts["kv-trace.jsonl"] = self.session.trace_text
        for name, text in texts.items():
            path = directory / name
            path.write_text(self._redactor.text(text), encoding="utf-8")
            self.session.record.attachments.append(
                Attachment(name=name, path=f"logs/{name}", bytes=path.stat().st_size)
            )

    def _write_allure(self, record: RunRecord) -> None:
        """Allure's own files and its HTML; without Node a line that says how to make it."""
        directory = getattr(self._config.option, "allure_report_dir", None)
        if not directory or not Path(directory).is_dir():
            return  # Allure's plugin is off, or not installed
        results = Path(directory)
        write_results_files(record, results, os.environ)
        places = Places(self.options.report)
        made = generate(record, results, places.allure_report, places.allure_history)
        self._report_lines.append(made.message)

    def close(self) -> None:
        """End what `finish` could not, and the twin. Never leaves the hosts' processes."""
        try:
            if not self._finished:
                self._finished = True
                self.session.close(keep=self.options.keep_up)
        finally:
            self._undo.close()

    def print_summary(self) -> None:
        print_summary(self._console, self.session.record, Places(self.options.report).summary)
        for line in self._report_lines:
            self._console.print(line, soft_wrap=True)

    def header(self) -> list[str]:
        cluster = self.session.cluster
        lines = [
            f"cluster: {cluster.name}, {len(cluster.hosts)} hosts, "
            f"{len(cluster.instances)} instances, run {self.session.run_id}",
        ]
        if self.options.scenario is not None:
            lines.append(f"scenario: {self.options.scenario}")
        return lines


def _secrets(cluster: Cluster) -> list[str]:
    """Values that must show nowhere: the passwords that the cluster file names by variable."""
    names = [cluster.ssh_of(host).password_env for host in cluster.hosts]
    return [os.environ[name] for name in names if name and name in os.environ]


def _named(findings: Sequence[Finding]) -> str:
    roots = root_findings(findings)
    more = f" and {len(roots) - 1} more" if len(roots) > 1 else ""
    return f"{roots[0].id} at {roots[0].where}{more}" if roots else "an earlier failure"


def xfail_if_quarantined(findings: Sequence[Finding]) -> None:
    """End the test as expected to fail, if nothing but quarantined findings makes it red."""
    __tracebackhide__ = True
    known = [f for f in findings if f.quarantined and f.severity is not Severity.WARN]
    if known and verdict_of(root_findings(findings)) is Verdict.PASS:
        # Not pytest.xfail(): with --runxfail that lets the test pass.
        raise pytest.xfail.Exception("; ".join(f"{f.id} at {f.where}: {f.known}" for f in known))


def _told(failure: BringUpFailed) -> str:
    """Each finding, and under it the log lines that it points to."""
    lines = []
    for finding in failure.findings:
        lines += [str(finding), *(f"    {line}" for line in finding.evidence)]
    return "\n".join(lines)


def _outcome(report: pytest.TestReport) -> Outcome:
    if report.skipped:
        if hasattr(report, "wasxfail"):
            return Outcome.QUARANTINED
        return Outcome.BLOCKED if _reason(report).startswith(_BLOCKED) else Outcome.SKIPPED
    if report.passed:
        return Outcome.PASSED
    crash = getattr(report.longrepr, "reprcrash", None)
    product = report.when == "call" and crash is not None and "AssertionError" in crash.message
    return Outcome.FAILED if product else Outcome.BROKEN


def _blocking(report: pytest.TestReport) -> tuple[str, ...]:
    """The finding that a skipped test names as what keeps it from running."""
    reason = _reason(report)
    words = reason.split() if report.skipped and reason.startswith(_BLOCKED) else []
    return tuple(dict.fromkeys(word for word in words if word in CATALOGUE))[:1]


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return crash.message.splitlines()[0] if crash is not None else str(report.longrepr)[:300]
    return ""
