"""The parts of summary.html below its first screen, in reading order.

Each part is a function from the record to its HTML; `sections_of` says which of them this
run has measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pd_validate.findings import Verdict
from pd_validate.report.markup import Markup, el, join
from pd_validate.report.pictures.curves import bandwidth_over_time, histogram, usage_curves
from pd_validate.report.pictures.matrix import matrix
from pd_validate.report.pictures.pings import paths_lost, ping_legend, ping_map
from pd_validate.report.pictures.timeline import timeline
from pd_validate.report.pictures.topology import topology
from pd_validate.report.record import Outcome, RunRecord, TestResult, differing_hosts
from pd_validate.report.states import States
from pd_validate.report.words import count, duration, percentile, size


@dataclass(frozen=True)
class Section:
    """A part of the page; `body` None: the run did not measure it."""

    anchor: str
    title: str
    body: Callable[[], Markup] | None


def sections_of(record: RunRecord, states: States) -> list[Section]:
    """All parts of the page in reading order, measured or not."""

    def part(anchor: str, title: str, there: object, body: Callable[[], Markup]) -> Section:
        return Section(anchor, title, body if there else None)

    return [
        part("topology", "Topology", record.hosts, lambda: _topology(record, states)),
        part("checks", "Checks", record.checks, lambda: _checks(record, states)),
        part("pings", "Ping between NPUs", record.pings, lambda: _pings(record, states)),
        part("timeline", "Timeline", record.timeline, lambda: _timeline(record)),
        part("kv", "KV transfer", record.kv_pairs or record.kv_pulls, lambda: _kv(record)),
        part("latency", "Latency", record.requests, lambda: _latency(record)),
        part(
            "kv-usage",
            "KV cache usage",
            any(usage.samples for usage in record.kv_usage),
            lambda: _usage(record),
        ),
        part("tests", "Tests", record.tests, lambda: _tests(record, states)),
        part("environment", "Environment", record.environment, lambda: _environment(record)),
        part("left-behind", "Left behind", record.leftovers, lambda: _leftovers(record)),
        part("files", "Files", record.attachments, lambda: _attachments(record)),
    ]


def _lead(text: str) -> Markup:
    return el("p", text, cls="lead")


def _wide(drawing: Markup) -> Markup:
    return el("div", el("div", drawing, cls="wide"), cls="scroll")


def _topology(record: RunRecord, states: States) -> Markup:
    return join(
        _lead(
            "Each cell is an NPU, strong if an instance uses it; the line below it is its RoCE "
            "port. Red is a culprit, pale red suffers from it, blue is quarantined, grey was not "
            "checked. In a large cluster only KV links at fault are drawn."
        ),
        _wide(topology(record, states)),
    )


def _checks(record: RunRecord, states: States) -> Markup:
    counts = Counter(check.verdict for check in record.checks)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
    seconds = sum(check.seconds for check in record.checks)
    return join(
        _lead(f"{', '.join(parts)}; lowest layer first; {duration(seconds)} of checking in all."),
        _wide(matrix(record, states)),
    )


def _pings(record: RunRecord, states: States) -> Markup:
    times = sorted(ping.ms for ping in record.pings if ping.ms is not None)
    facts = []
    if times:
        slowest = max(
            (ping for ping in record.pings if ping.ms is not None), key=lambda ping: ping.ms or 0
        )
        facts = [
            ("median", f"{percentile(times, 0.5):.3g} ms"),
            ("99th percentile", f"{percentile(times, 0.99):.3g} ms"),
            ("slowest", f"{slowest.ms:.3g} ms, {slowest.source} to {slowest.target}"),
        ]
    lost = paths_lost(record)
    rows = [el("tr", el("td", name, cls="muted"), el("td", value)) for name, value in facts]
    worst = [
        el(
            "tr",
            el("td", _linked(str(npu), states.anchor_at_npu(npu))),
            el("td", f"{count} of {total}", cls="n"),
        )
        for npu, count, total in lost[:8]
    ]
    silent = (
        el(
            "table",
            el("tr", el("th", "NPU"), el("th", "paths without answer", cls="n")),
            *worst,
            style="margin-top:18px",
        )
        if lost
        else None
    )
    return join(
        _lead("From the NPU of the row to the NPU of the column. Empty: not tried."),
        el(
            "div",
            el("div", ping_map(record), ping_legend(record)),
            el("div", el("table", *rows) if rows else None, silent),
            cls="beside",
        ),
    )


def _timeline(record: RunRecord) -> Markup:
    return join(
        _lead("What each host did, from the first connection. A dashed bar had not ended."),
        _wide(timeline(record)),
    )


def _kv(record: RunRecord) -> Markup:
    best = max((pair.bytes_per_second for pair in record.kv_pairs), default=0) or 1
    rows = [
        el(
            "tr",
            el("td", f"{pair.source} → {pair.target}"),
            el("td", f"{pair.pulls:,}", cls="n"),
            el("td", size(pair.bytes), cls="n"),
            el("td", f"{size(pair.bytes_per_second)}/s", cls="n"),
            el(
                "td",
                el(
                    "span",
                    cls="meter bad" if pair.mismatches else "meter",
                    style=f"width:{pair.bytes_per_second / best:.0%}",
                ),
                cls="meter-cell",
            ),
            el("td", f"{pair.blocks_compared:,}" if pair.blocks_compared else "none", cls="n"),
            el(
                "td",
                el("span", f"{pair.mismatches:,}", cls="outcome failed")
                if pair.mismatches
                else "0",
                cls="n",
            ),
        )
        for pair in record.kv_pairs
    ]
    head = el(
        "tr",
        el("th", "from → to"),
        el("th", "pulls", cls="n"),
        el("th", "moved", cls="n"),
        el("th", "bandwidth", cls="n"),
        el("th"),
        el("th", "digests compared", cls="n"),
        el("th", "wrong", cls="n"),
    )
    timed = any(pull.seconds > 0 for pull in record.kv_pulls)
    return join(
        _lead(
            "A digest stands for K or V of one block in one layer, taken where it was produced "
            "and where it arrived."
        ),
        el("div", el("table", head, *rows), cls="scroll") if rows else None,
        el("div", _wide(bandwidth_over_time(record)), cls="chart") if timed else None,
    )


def _latency(record: RunRecord) -> Markup:
    ttft = [request.ttft for request in record.requests]
    tpot = [request.tpot for request in record.requests if request.tpot is not None]
    return join(
        _lead(
            f"{count(len(ttft), 'streamed request')}, seen by the client; an answer that comes in "
            "one piece has no first token to see. TTFT: time to first token; TPOT: time per output "
            "token after it."
        ),
        el(
            "div",
            histogram(ttft, "TTFT"),
            histogram(tpot, "TPOT") if tpot else None,
            cls="pair",
        ),
    )


def _usage(record: RunRecord) -> Markup:
    leaking = frozenset(
        finding.where.instance
        for finding in record.findings
        if finding.id.startswith("drain.") and finding.where.instance
    )
    return join(
        _lead("Every curve must come back to zero when no request is left."),
        _wide(usage_curves(record, leaking)),
    )


_OUTCOME_ORDER = (
    Outcome.FAILED,
    Outcome.BROKEN,
    Outcome.QUARANTINED,
    Outcome.BLOCKED,
    Outcome.SKIPPED,
    Outcome.PASSED,
)
_SHOWN = (Outcome.FAILED, Outcome.BROKEN, Outcome.QUARANTINED)  # the others are folded


def _tests(record: RunRecord, states: States) -> Markup:
    counts = Counter(test.outcome for test in record.tests)
    parts = [f"{counts[outcome]} {outcome.value}" for outcome in _OUTCOME_ORDER if counts[outcome]]
    longest = max((test.seconds for test in record.tests), default=0) or 1
    red = sorted(
        (test for test in record.tests if test.outcome in _SHOWN),
        key=lambda test: _OUTCOME_ORDER.index(test.outcome),
    )

    def table(rows: list[TestResult]) -> Markup:
        return el("div", el("table", *(_test(row, longest, states) for row in rows)), cls="scroll")

    def folded(outcome: Outcome) -> Markup | None:
        rows = [test for test in record.tests if test.outcome is outcome]
        if not rows:
            return None
        ids = sorted({finding for test in rows for finding in test.findings})
        by = f" by {', '.join(ids)}" if ids and outcome is Outcome.BLOCKED else ""
        return el("details", el("summary", f"{len(rows)} {outcome.value}{by}"), table(rows))

    return join(
        _lead(", ".join(parts) + "."),
        table(red) if red else None,
        *(folded(outcome) for outcome in _OUTCOME_ORDER if outcome not in _SHOWN),
    )


def _test(test: TestResult, longest: float, states: States) -> Markup:
    bad = test.outcome in (Outcome.FAILED, Outcome.BROKEN)
    # A finding is told in full above; only a test without one has to speak for itself.
    links = [
        join(Markup(" "), _linked(finding, states.anchor_of_id(finding)))
        for finding in test.findings
    ]
    reason = join(*links) if links else test.reason
    return el(
        "tr",
        el("td", el("span", test.outcome.value, cls=f"outcome {test.outcome.value}")),
        el(
            "td",
            el("span", test.id, cls="mono"),
            el("span", reason, cls="reason") if reason else None,
        ),
        el("td", duration(test.seconds) if test.seconds else "", cls="n"),
        el(
            "td",
            el(
                "span",
                cls="meter bad" if bad else "meter",
                style=f"width:{test.seconds / longest:.1%}",
            )
            if test.seconds
            else None,
            cls="meter-cell",
        ),
    )


def _linked(text: str, anchor: str | None) -> Markup:
    return el("a", text, href=f"#{anchor}") if anchor else join(text)


def _environment(record: RunRecord) -> Markup:
    hosts = _environment_hosts(record)
    rows = []
    differing = 0
    for name, value in record.environment.items():
        if isinstance(value, str):
            cells = [el("td", value, colspan=max(1, len(hosts)))]
        elif len(set(value.values())) == 1 and len(value) == len(hosts):
            cells = [el("td", next(iter(value.values())), colspan=len(hosts))]
        else:
            marked = differing_hosts(value)
            differing += bool(marked)
            cells = [
                el("td", value.get(host, "-"), cls="differs" if host in marked else None)
                for host in hosts
            ]
        rows.append(el("tr", el("td", name, cls="muted"), *cells))
    lead = (
        f"{count(differing, 'entry', 'entries')} not the same on all hosts (marked)."
        if differing
        else "The same on all hosts."
    )
    head = el("tr", el("th"), *(el("th", host) for host in hosts)) if hosts else None
    notes = el("ul", *(el("li", note) for note in record.notes)) if record.notes else None
    return join(_lead(lead), el("div", el("table", head, *rows), cls="scroll"), notes)


def _environment_hosts(record: RunRecord) -> list[str]:
    known = [host.name for host in record.hosts]
    asked = {h for value in record.environment.values() if isinstance(value, dict) for h in value}
    return [host for host in known if host in asked] + sorted(asked - set(known))


def _leftovers(record: RunRecord) -> Markup:
    rows = [
        el(
            "tr",
            el("td", host, cls="muted"),
            el("td", *(el("div", item) for item in items) if items else ["nothing"]),
        )
        for host, items in record.leftovers.items()
    ]
    return join(_lead("Looked for after everything was stopped."), el("table", *rows))


def _attachments(record: RunRecord) -> Markup:
    rows = [
        el(
            "tr",
            el("td", el("a", attachment.name, href=attachment.path)),
            el("td", size(attachment.bytes), cls="n"),
        )
        for attachment in record.attachments
    ]
    return join(_lead("Beside this page, not inside it."), el("table", *rows))
