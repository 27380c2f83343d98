"""A pytest run on a cluster: the session, what tests found, the exit code, the reports.

pytest's hooks (plugin.py) call this; it knows pytest's reports but registers nothing. There
is one `Run`, in the controller; with `-n` its workers share it (sharing.py).
"""

from __future__ import annotations

import datetime as dt
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from pd_validate import recording
from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.checks.explain import explained
from pd_validate.checks.result import Report
from pd_validate.errors import Blocked
from pd_validate.findings import Finding, Severity, Verdict, root_findings, verdict_of
from pd_validate.interrupts import Interrupts
from pd_validate.options import Options
from pd_validate.quarantine import load_quarantine
from pd_validate.report.allure import Story
from pd_validate.report.allure_files import attach_run, generate, write_results_files
from pd_validate.report.logs import write_logs
from pd_validate.report.places import Places
from pd_validate.report.record import Outcome, RequestTiming, RunRecord, Span, TestResult
from pd_validate.report.redact import Redactor
from pd_validate.report.terminal import HostProgress, console_for, print_summary
from pd_validate.report.write import write_reports
from pd_validate.session import Known, PreflightFailed, Session, kept_run
from pd_validate.sharing import Desk, Handle
from pd_validate.spec.models import Cluster
from pd_validate.topology.service import Service
from pd_validate.topology.topology import BringUpFailed, Topology
from pd_validate.traffic.client import RequestFailed

T = TypeVar("T")

NOT_FIT, LEFT_BEHIND, BOTH = 10, 11, 12
_BLOCKED = ("blocked by ", "explained by ")  # how skips begin that something below has caused
# What a question of a worker that is under way may still take when the run is ended.
_LAST_ANSWER_SECONDS = 10.0


class RunView(Protocol):
    """A run as tests see it, in whichever process they run. `test` is the id of who asks.

    Raises Blocked where something has failed before, and the failure itself for the test
    that met it first, as often as that test asks (it may be run again).
    """

    @property
    def session(self) -> Session: ...
    @property
    def story(self) -> Story: ...

    def network(self, test: str) -> Report:
        """The network validation's verdicts; reads all hosts once."""
        ...

    def staged(self, test: str) -> Topology:
        """Code and rank table lie on the hosts, nothing is started."""
        ...

    def topology(self, test: str) -> Topology:
        """The running topology; brought up once."""
        ...

    def running_service(self) -> Service | None:
        """The service if it is up and nothing of it is known to be sick; starts nothing."""
        ...

    def found(self, test: str, findings: Sequence[Finding]) -> None:
        """Take a test's findings into the record."""
        ...

    def tell_steps(self) -> None:
        """Tell in the report of the running test what has been done since the last call."""
        ...

    def hand_in(self) -> None:
        """Give the owner what a test has measured beside its verdict. Never raises."""
        ...

    def diagnosed(self, error: RequestFailed, test: str) -> list[Finding]:
        """What is wrong below a request that never ended."""
        ...

    def looked_below(self, findings: Sequence[Finding], test: str) -> list[Finding]:
        """The findings with what lies under them; a sick engine blocks later tests."""
        ...


class Run:
    """Owns the session (and, for the twin, the simulated hosts) until `close`."""

    def __init__(
        self,
        options: Options,
        cluster: Cluster,
        config: pytest.Config,
        interrupts: Interrupts,
        undo: ExitStack,
    ) -> None:
        self.interrupts = interrupts
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
            lock_wait=options.lock_wait,
        )
        self.session.record.command = shlex.join(["pytest", *config.invocation_params.args])
        self._redactor = Redactor(_secrets(cluster))
        self.story = Story(self._redactor)
        self._tests: dict[str, TestResult] = {}
        self._found: dict[str, list[Finding]] = {}
        self._reruns: dict[str, int] = {}
        self._report_lines: list[str] = []
        self._one_at_a_time = threading.RLock()  # several workers may ask at once
        self._bring_up_failed: _Failure | None = None  # tests without the service go on
        self._broken: _Failure | None = None  # why the lab or the harness cannot go on at all
        self._finished = False
        self._desk: Desk | None = None
        self.alone_from = 0  # index of the first test that must be alone (schedule.py)

    # --- during the run ---------------------------------------------------------------

    def network(self, test: str) -> Report:
        """Reads and judges with progress in sight; later calls answer from memory."""
        report = self._once(test, lambda: self.session.network)
        self.session.add(report.findings)
        return report

    def staged(self, test: str) -> Topology:
        return self._once(test, self.session.staged)

    def running_service(self) -> Service | None:
        return None if self._broken is not None else self.session.running_service()

    def topology(self, test: str) -> Topology:
        with self._one_at_a_time:
            if self._bring_up_failed is not None:
                self._bring_up_failed.meet(test)
            try:
                return self._once(test, self.session.topology)
            except BringUpFailed as failure:
                self.session.add(failure.findings)
                self._bring_up_failed = _Failure(failure, named(failure.findings), test)
                raise

    def _once(self, test: str, step: Callable[[], T]) -> T:
        """Run a step in sight of the person who waits. What breaks it stays broken."""
        with self._one_at_a_time:
            if self._finished:
                raise Blocked("the end of the run")
            if self._broken is not None:
                self._broken.meet(test)
            try:
                with self._visible():
                    return step()
            except PreflightFailed as failure:
                raise Blocked(named(failure.findings)) from failure
            except BringUpFailed:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                self._broken = _Failure(error, why, test)
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

    def diagnosed(self, error: RequestFailed, test: str) -> list[Finding]:
        """What is wrong below a request that never ended. A sick engine blocks later tests."""
        with self._one_at_a_time:
            return self._blocking(self.session.diagnose(error), test)

    def looked_below(self, findings: Sequence[Finding], test: str) -> list[Finding]:
        with self._one_at_a_time:
            return self._blocking(self.session.look_below(findings), test)

    def _blocking(self, findings: list[Finding], test: str) -> list[Finding]:
        sick = [finding for finding in findings if finding.id.startswith("engine.")]
        if sick and self._broken is None:
            self._broken = _Failure(AssertionError(str(sick[0])), named(sick), test)
        return findings

    def found(self, test: str, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.story.finding(finding)
        self.record(test, findings)

    def tell_steps(self) -> None:
        self.story.tell(self.fresh_steps())

    def fresh_steps(self) -> list[Span]:
        """Steps that began since the last call, all of them over or given up."""
        with self._one_at_a_time:
            return recording.spans(self.session.timeline.fresh())

    def hand_in(self) -> None:
        """Nothing to do: the session has it."""

    def record(self, test: str, findings: Sequence[Finding]) -> None:
        with self._one_at_a_time:
            self.session.add(findings)
            self._found.setdefault(test, []).extend(findings)

    # --- shared with workers ------------------------------------------------------------

    def handle(self) -> Handle:
        """What a worker needs to share this run."""
        if self._desk is None:
            self._desk = Desk(_Answers(self))
            self._undo.callback(self._desk.close)
        cluster, session = self.session.cluster, self.session
        return Handle(
            address=self._desk.address,
            key=self._desk.key,
            cluster=cluster,
            run_id=session.run_id,
            audit=self.options.audit,
            quarantine=session.quarantine,
            secrets=_secrets(cluster),
        )

    def tested(self, report: pytest.TestReport, layer: Layer | None) -> None:
        """Take one phase of a test into the record: its worst phase counts, of its last try."""
        if str(report.outcome) == "rerun":  # pytest-rerunfailures: there is another try
            self._tests.pop(report.nodeid, None)
            self._reruns[report.nodeid] = self._reruns.get(report.nodeid, 0) + 1
            return
        outcome = _outcome(report)
        before = self._tests.get(report.nodeid)
        if before is not None and outcome is Outcome.PASSED:
            outcome = before.outcome
        self._tests[report.nodeid] = TestResult(
            id=report.nodeid,
            outcome=outcome,
            seconds=report.duration + (before.seconds if before else 0),
            findings=_blocking(report)
            or (before.findings if before and before.outcome is Outcome.BLOCKED else ())
            or tuple(finding.id for finding in self._found.get(report.nodeid, [])),
            reason=_reason(report) or (before.reason if before else self._tries(report.nodeid)),
            layer=layer,
        )

    def _tries(self, test: str) -> str:
        reruns = self._reruns.get(test, 0)
        return f"at try {reruns + 1}; what earlier tries found still counts" if reruns else ""

    # --- the end ----------------------------------------------------------------------

    def interrupted(self) -> None:
        """Ctrl-C: pytest will end, and workers that wait for the service need not any longer."""
        self.interrupts.ignore()
        self.session.give_up()

    def finish(self, exit_code: int) -> int:
        """Tear down, write the reports, and say with which code the run ends. Once."""
        if self._finished:
            return exit_code
        self._finished = True
        found: Sequence[Finding] = ()
        try:
            self.interrupts.patience = 1
            if self.interrupts.count > 1:  # while pytest told of the first
                raise KeyboardInterrupt
            self._end_questions()
            with self._visible():
                found = self.session.close(keep=self.options.keep_up)
        except KeyboardInterrupt:
            self.interrupts.ignore()
            self.session.hang_up()
            exit_code = int(pytest.ExitCode.INTERRUPTED)
            self._report_lines.append(
                "interrupted again: not waited for the hosts, which end everything by themselves "
                "(`pd-validate status` looks)"
            )
        self.interrupts.ignore()
        return self._reported(exit_code, found)

    def _reported(self, exit_code: int, found: Sequence[Finding]) -> int:
        """Write everything down; returns the run's exit code. `found`: what was left behind."""
        left = [finding for finding in found if finding.layer is Layer.LEFTOVER]
        leftovers = root_findings(self.session.quarantine.mark_all(left))
        # Only now everything is known that may explain what an earlier test met.
        self.session.findings = explained(self.session.findings)
        code = self._exit_code(exit_code, leftovers)
        record = self.session.record
        record.finished = dt.datetime.now(dt.UTC)
        record.timeline = recording.spans(self.session.timeline.steps)
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

    def _end_questions(self) -> None:
        """A worker's question under way (a bring-up, maybe) must not cross the teardown."""
        self.session.give_up()
        if self._one_at_a_time.acquire(timeout=_LAST_ANSWER_SECONDS):
            self._one_at_a_time.release()

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
        """The processes' and the systems' logs and the KV trace, beside the report."""
        logs = {f"{name}.log": data for name, data in self.session.logs.items()}
        texts = {name: data.decode(errors="replace") for name, data in logs.items()}
        for host, files in self.session.system_logs.items():
            texts |= {f"{host}/{n}": data.decode(errors="replace") for n, data in files.items()}
        if self.session.trace_text:
            texts["kv-trace.jsonl"] = self.session.trace_text
        places = Places(self.options.report)
        self.session.record.attachments += write_logs(texts, places, self._redactor)

    def _write_allure(self, record: RunRecord) -> None:
        """Allure's own files and its HTML; without Node a line that says how to make it."""
        directory = getattr(self._config.option, "allure_report_dir", None)
        if not directory or not Path(directory).is_dir():
            return  # Allure's plugin is off, or not installed
        results = Path(directory)
        write_results_files(record, results, os.environ)
        attach_run(self.story, record)
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
            self.interrupts.ignore()
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


@dataclass(frozen=True)
class _Failure:
    """What failed once and for all, told in full to the test that met it first."""

    error: Exception
    name: str  # in a few words
    test: str

    def meet(self, test: str) -> None:
        """Raises the failure itself for its own test, Blocked for any other."""
        raise self.error if test == self.test else Blocked(self.name)


class _Answers:
    """What workers ask (sharing.py), answered with what crosses to another process."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def known(self, test: str) -> Known:
        report = self._run.network(test)
        session = self._run.session
        return Known(session.facts, session.pings, report)

    def stage(self, test: str) -> None:
        self._run.staged(test)

    def bring_up(self, test: str) -> None:
        self._run.topology(test)

    def found(self, test: str, findings: Sequence[Finding]) -> None:
        self._run.record(test, findings)

    def diagnosed(self, error: RequestFailed, test: str) -> list[Finding]:
        return self._run.diagnosed(error, test)

    def looked_below(self, findings: Sequence[Finding], test: str) -> list[Finding]:
        return self._run.looked_below(findings, test)

    def fresh_steps(self) -> list[Span]:
        return self._run.fresh_steps()

    def measured(self, latencies: Sequence[RequestTiming]) -> None:
        self._run.session.record.requests += latencies

    def collected(self, alone_from: int) -> None:
        self._run.alone_from = alone_from


def named(findings: Sequence[Finding]) -> str:
    """What blocks, in a few words."""
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


def told(failure: BringUpFailed) -> str:
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
    # A bare `assert` is told without the name of its error.
    product = crash is not None and crash.message.startswith(("AssertionError", "assert "))
    product = product and report.when == "call"
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
