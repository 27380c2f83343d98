"""What a person sees in the terminal: live progress per host, and the tables at the end.

On a terminal: colours and one live line per host. Anywhere else (a CI log, a pipe): plain
lines, no control codes. Everything drawn is ASCII, because box drawing characters are two
columns wide in many Chinese terminals; only texts of findings may be anything.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pd_validate.findings import Finding, Severity, Verdict, Where
from pd_validate.report.families import Family, families
from pd_validate.report.record import Outcome, RunRecord, worst
from pd_validate.report.redact import Redactor

# A CI log has no width; this keeps a finding's line readable in all web views.
PLAIN_WIDTH = 100

_VERDICT_STYLE = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.UNKNOWN: "bold magenta",
}
_VERDICT_MARK = {Verdict.PASS: "ok", Verdict.FAIL: "FAIL", Verdict.UNKNOWN: "?"}
_SEVERITY_STYLE = {
    Severity.FAIL: "bold red",
    Severity.UNKNOWN: "bold magenta",
    Severity.WARN: "yellow",
}
_FOLDED_CONSEQUENCES = 3  # more of them are counted, not listed


class _Printable:
    """A stream that replaces what its encoding cannot express, instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        return self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def console_for(stream: TextIO, *, width: int | None = None) -> Console:
    """A console on `stream`: colours only if it is a terminal; `width` None asks the terminal.

    NO_COLOR, COLUMNS and TERM are respected; without a terminal and COLUMNS it is PLAIN_WIDTH.
    """
    if width is None and not stream.isatty() and "COLUMNS" not in os.environ:
        width = PLAIN_WIDTH
    # rich wants IO[str] and uses exactly the methods that _Printable has
    file: Any = _Printable(stream)
    return Console(file=file, highlight=False, width=width, force_terminal=stream.isatty())


class HostProgress:
    """Live progress per host, safe to call from the threads that work on hosts.

    Use as a context manager around a phase. On a terminal one line per host is kept up to
    date; elsewhere every call prints a line, with the seconds since the phase began.
    """

    def __init__(self, console: Console, hosts: Sequence[str]) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._width = max((len(host) for host in hosts), default=0)
        self._lines: dict[str, _Line] = {host: _Line() for host in hosts}
        self._live = (
            Live(
                get_renderable=self._table,
                console=console,
                refresh_per_second=8,
                redirect_stdout=False,  # sys.stdout belongs to pytest
                redirect_stderr=False,
            )
            if console.is_interactive
            else None
        )

    def __enter__(self) -> HostProgress:
        self._began = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, host: str, what: str) -> None:
        """`host` now does `what`, until `done` or `fail` or the next `start`."""
        self._change(host, "run", what)

    def done(self, host: str, note: str = "") -> None:
        """What `host` did has ended well; `note` is shown after it."""
        self._change(host, "ok", note)

    def fail(self, host: str, why: str) -> None:
        """What `host` did has failed; `why` is one line."""
        self._change(host, "FAIL", why)

    def _change(self, host: str, state: str, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            line = self._lines.setdefault(host, _Line())
            line.change(state, text, now)
            if self._live is None:
                # Under the lock, so that lines of two hosts never mix.
                self._print_line(host, line, now)

    def _print_line(self, host: str, line: _Line, now: float) -> None:
        state = "..." if line.state == "run" else line.state
        took = "" if line.state == "run" else f" ({now - line.since:.1f} s)"
        text = f"{now - self._began:7.1f}s  {host:<{self._width}}  {state:<4} {line.text}{took}"
        self._console.print(Text(text), soft_wrap=True)

    def _table(self) -> Table:
        with self._lock:
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, style="bold")
            table.add_column(no_wrap=True, width=5)
            table.add_column(no_wrap=True, justify="right", style="dim")
            table.add_column(no_wrap=True, overflow="ellipsis")
            now = time.monotonic()
            for host, line in self._lines.items():
                table.add_row(host, _state_text(line.state), line.took(now), Text(line.text))
            return table


class _Line:
    """State of one host in a phase."""

    def __init__(self) -> None:
        self.state = ""
        self.text = ""
        self.since = 0.0
        self.until: float | None = None

    def change(self, state: str, text: str, now: float) -> None:
        if state == "run":
            self.since, self.until, self.text = now, None, text
        else:
            self.since = self.since or now
            self.until = now
            # "starting prefill-1: ready": what it was about, then how it ended.
            self.text = ": ".join(part for part in (self.text, text) if part)
        self.state = state

    def took(self, now: float) -> str:
        return f"{(self.until or now) - self.since:.1f} s" if self.state else ""


def _state_text(state: str) -> Text:
    styles = {"ok": "green", "FAIL": "bold red", "run": "cyan"}
    return Text("..." if state == "run" else state or "wait", style=styles.get(state, "dim"))


def print_summary(
    console: Console,
    record: RunRecord,
    report: Path | None = None,
    *,
    secrets: Iterable[str] = (),
) -> None:
    """The end of a run: checks matrix, tests that did not pass, findings, verdict, report.

    What is printed is redacted, as in `write_reports`.
    """
    record = Redactor(secrets).record(record)
    if record.checks:
        _print_heading(console, "Checks")
        _print_checks(console, record)
    _print_tests(console, record)
    if record.findings:
        _print_heading(console, "Findings, lowest layer first")
        for number, family in enumerate(families(record.findings), start=1):
            _print_family(console, number, family)
    _print_unmatched(console, record)
    _print_leftovers(console, record)
    _print_verdict(console, record, report)


def checks_text(record: RunRecord) -> str:
    """The checks x hosts table as plain text, for where there is no terminal."""
    console = Console(file=io.StringIO(), width=PLAIN_WIDTH, highlight=False)
    with console.capture() as captured:
        _print_checks(console, record)
    return captured.get()


def _print_heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _print_checks(console: Console, record: RunRecord) -> None:
    """Checks x hosts: the worst verdict, and which NPUs it is about."""
    hosts = [host.name for host in record.hosts]
    hosts += sorted({c.where.host for c in record.checks if c.where.host} - set(hosts))
    per_table = max(1, (console.width - 30) // 16)
    for start in range(0, max(1, len(hosts)), per_table):
        chunk = hosts[start : start + per_table]
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("check", no_wrap=True, overflow="ellipsis")
        for host in chunk:
            table.add_column(host, overflow="fold")
        if any(_host_of(check.where, record) is None for check in record.checks):
            table.add_column("cluster")
        for check_id in _ordered_checks(record):
            cells = [_check_cell(record, check_id, host) for host in chunk]
            if len(table.columns) > len(cells) + 1:
                cells.append(_check_cell(record, check_id, None))
            table.add_row(check_id, *cells)
        console.print(table)


def _ordered_checks(record: RunRecord) -> list[str]:
    """Check ids, lowest layer first, then as they first ran."""
    first: dict[str, int] = {}
    for check in record.checks:
        first.setdefault(check.id, check.layer or 0)
    return sorted(first, key=first.__getitem__)


def _check_cell(record: RunRecord, check_id: str, host: str | None) -> Text:
    results = [c for c in record.checks if c.id == check_id and _host_of(c.where, record) == host]
    if any(result.quarantined for result in results):
        counted = worst(result.verdict for result in results if not result.quarantined)
        if counted in (None, Verdict.PASS):
            return Text("known", style="cyan")
    verdict = worst(result.verdict for result in results)
    if verdict is None:
        return Text("-", style="dim")
    devices = sorted(
        {
            result.where.device
            for result in results
            if result.verdict is verdict and result.where.device is not None
        }
    )
    mark = _VERDICT_MARK[verdict]
    if verdict is not Verdict.PASS and devices:
        mark += " npu" + ",".join(str(device) for device in devices)
    return Text(mark, style=_VERDICT_STYLE[verdict])


def _host_of(where: Where, record: RunRecord) -> str | None:
    if where.host is not None or where.instance is None:
        return where.host
    return next((i.host for i in record.instances if i.name == where.instance), None)


def _print_tests(console: Console, record: RunRecord) -> None:
    red = [t for t in record.tests if t.outcome in (Outcome.FAILED, Outcome.BROKEN)]
    blocked = [t for t in record.tests if t.outcome is Outcome.BLOCKED]
    if not red and not blocked:
        return
    _print_heading(console, "Tests that did not pass")
    for test in red:
        line = Text.assemble((f"{test.outcome.value:<7}", "bold red"), f" {test.id}")
        console.print(line, soft_wrap=True)
        # A finding is told in full below; only a test without one has to speak for itself.
        reason = ", ".join(test.findings) or test.reason
        if reason:
            _print_indented(console, reason)
    if blocked:
        ids = sorted({finding for test in blocked for finding in test.findings})
        by = f" by {', '.join(ids)}" if ids else ""
        console.print(Text(f"blocked {len(blocked)} tests{by}", style="yellow"))


def _print_family(console: Console, number: int, family: Family) -> None:
    finding = family.root
    console.print(
        Text.assemble(
            (f"{number:>2}. {_severity(finding)} ", _style(finding)),
            (finding.id, "bold"),
            f" at {finding.where}",
            (f"  [{finding.layer.label}]", "dim"),
        )
    )
    for name, text in (
        ("expected", finding.expected),
        ("got", finding.got),
        ("next", finding.advice),
        ("known", str(finding.known or "")),
    ):
        if text:
            _print_indented(console, text, name=name)
    shown = family.consequences[:_FOLDED_CONSEQUENCES]
    for consequence in shown:
        _print_indented(console, _one_line(consequence), name="explains")
    if len(family.consequences) > len(shown):
        rest = len(family.consequences) - len(shown)
        _print_indented(console, f"{rest} more findings", name="explains")


def _severity(finding: Finding) -> str:
    severity = finding.severity.value.upper()
    return f"QUARANTINED {severity}" if finding.quarantined else severity


def _style(finding: Finding) -> str:
    return "cyan" if finding.quarantined else _SEVERITY_STYLE[finding.severity]


def _print_unmatched(console: Console, record: RunRecord) -> None:
    idle = [entry for entry in record.quarantine if not entry.matched]
    if not idle:
        return
    _print_heading(console, "Quarantine entries that matched nothing")
    for entry in idle:
        _print_indented(console, f"{entry}: {entry.url}")


def _one_line(finding: Finding) -> str:
    return f"{finding.id} at {finding.where}" + (f": {finding.got}" if finding.got else "")


def _print_indented(console: Console, text: str, *, name: str = "") -> None:
    """A text in its own column, so that its second line does not run under its name."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=3)
    if name:
        grid.add_column(width=8, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("", *((name,) if name else ()), Text(text))
    console.print(grid)


def _print_leftovers(console: Console, record: RunRecord) -> None:
    if not record.leftovers:
        return
    dirty = {host: items for host, items in record.leftovers.items() if items}
    if not dirty:
        count = len(record.leftovers)
        hosts = "1 host" if count == 1 else f"{count} hosts"
        console.print()
        console.print(Text(f"Nothing was left behind ({hosts} looked at)."))
        return
    _print_heading(console, "Left behind")
    for host, items in dirty.items():
        for item in items:
            _print_indented(console, f"{host}: {item}")


def _print_verdict(console: Console, record: RunRecord, report: Path | None) -> None:
    roots = [family.root for family in families(record.findings)]
    counts = [
        f"{number} {severity.value}"
        for severity in Severity
        if (number := sum(r.severity is severity and not r.quarantined for r in roots))
    ]
    if known := sum(root.quarantined for root in roots):
        counts.append(f"{known} quarantined")
    parts = [f"cluster {record.cluster}", ", ".join(counts) or "no findings"]
    if record.seconds is not None:
        parts.append(f"{record.seconds:.1f} s")
    if record.exit_code is not None:
        parts.append(f"exit {record.exit_code}: {record.exit_meaning}".rstrip(": "))
    console.print()
    console.print(
        Text.assemble(
            (record.verdict.value.upper(), _VERDICT_STYLE[record.verdict]), "  " + "; ".join(parts)
        )
    )
    if report is not None:
        # Never wrapped: the path must stay one word to click on or copy.
        console.print(Text(f"Report: {report}"), soft_wrap=True)
