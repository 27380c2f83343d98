"""summary.html: the whole run on one page that opens from a mail attachment.

No script, no load from anywhere (a content security policy in the page forbids it). The
first screen answers "what is wrong, where, what next"; everything else is below it, and
parts that the run did not measure are named at the end instead of drawn empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pd_validate.catalogue import CATALOGUE
from pd_validate.findings import Finding, KnownIssue, Severity, Verdict, verdict_of
from pd_validate.report.families import Family, families
from pd_validate.report.markup import Child, Markup, el, join, prose, whole_names
from pd_validate.report.page import html_page
from pd_validate.report.pictures.ladder import ladder
from pd_validate.report.record import Outcome, QuarantineEntry, RunRecord
from pd_validate.report.reference import about
from pd_validate.report.states import States, state_of_finding
from pd_validate.report.summary_sections import sections_of
from pd_validate.report.words import capped, count, duration, percentile

_OPEN_EVIDENCE_LINES = 14  # shorter evidence of the first finding is not folded
_LONGEST_EVIDENCE = 20_000  # characters; whole logs lie beside the page
_FULL_CARDS = 5  # more findings are drawn small, so that the page stays readable


def summary_html(record: RunRecord) -> str:
    """The page, complete. The record must be redacted already."""
    states = States(record)
    sections = sections_of(record, states)
    shown = [section for section in sections if section.body is not None]
    missing = [section.title for section in sections if section.body is None]
    return html_page(
        f"{record.verdict.value.upper()} {record.cluster}: {headline(record)}",
        _header(record),
        _tiles(record),
        el(
            "div",
            el("div", _findings(record, states), id="findings"),
            el("div", ladder(states)),
            cls="first",
        ),
        el("nav", *(el("a", s.title, href=f"#{s.anchor}") for s in shown)),
        *(
            el("section", el("h2", s.title), s.body() if s.body else None, id=s.anchor)
            for s in shown
        ),
        _footer(record, missing),
    )


def headline(record: RunRecord) -> str:
    """The run in one sentence: the culprit, or what was proven."""
    roots = [family.root for family in families(record.findings)]
    if roots and roots[0].severity is not Severity.WARN and not roots[0].quarantined:
        first = roots[0]
        place = first.where.model_copy(update={"request": None, "file": None})
        return f"{place}: {CATALOGUE[first.id].meaning}"
    counts = Counter(test.outcome for test in record.tests)
    if record.verdict is Verdict.PASS and record.tests:
        done, known = counts[Outcome.PASSED], counts[Outcome.QUARANTINED]
        if known:
            failed = "1 fails" if known == 1 else f"{known} fail"
            return f"{done} tests passed; {failed} on what is quarantined."
        return f"All {done} tests passed." if done > 1 else "The test passed."
    red = counts[Outcome.FAILED] + counts[Outcome.BROKEN]
    if red:
        return f"{count(red, 'test')} did not pass, without a finding that explains it."
    if record.verdict is Verdict.PASS:
        return "Nothing wrong was found."
    return f"The run ended without a verdict{_because_of_exit(record)}."


def _because_of_exit(record: RunRecord) -> str:
    return f": {record.exit_meaning}" if record.exit_meaning else ""


def _header(record: RunRecord) -> Markup:
    began = record.started.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    meta: list[Child] = [began]
    if record.seconds is not None:
        meta.append(f" · {duration(record.seconds)}")
    if record.exit_code is not None:
        meta.append(f" · exit {record.exit_code}: {record.exit_meaning}".rstrip(": "))
    if record.command:
        meta += [Markup(" · "), el("code", record.command)]
    return el(
        "header",
        el(
            "div",
            el("span", record.verdict.value.upper(), cls=f"verdict {record.verdict.value}"),
            el("span", record.cluster),
            cls="top",
        ),
        el("h1", whole_names(headline(record))),
        el("p", *meta, cls="meta"),
    )


def _tiles(record: RunRecord) -> Markup | None:
    tiles = []

    def tile(value: str, name: str, bad: bool = False) -> None:
        tiles.append(
            el("div", el("b", value, cls="bad" if bad else None), el("span", name), cls="tile")
        )

    if record.hosts:
        npus = sum(len(host.devices) for host in record.hosts)
        tile(f"{len(record.hosts)} / {npus}", "hosts / NPUs")
    if record.checks:
        passed = sum(check.verdict is Verdict.PASS for check in record.checks)
        known = sum(check.quarantined for check in record.checks)
        bad = passed + known < len(record.checks)
        tile(f"{passed} / {len(record.checks)}", "checks passed", bad)
    if record.tests:
        counts = Counter(test.outcome for test in record.tests)
        done, asked = counts[Outcome.PASSED], len(record.tests) - counts[Outcome.SKIPPED]
        tile(f"{done} / {asked}", "tests passed", done + counts[Outcome.QUARANTINED] < asked)
    if known := sum(family.root.quarantined for family in families(record.findings)):
        tile(str(known), "quarantined")
    if record.pings:
        answered = sum(ping.received == ping.sent for ping in record.pings)
        tile(f"{answered} / {len(record.pings)}", "ping paths", answered < len(record.pings))
    if record.kv_pairs:
        compared = sum(pair.blocks_compared for pair in record.kv_pairs)
        wrong = sum(pair.mismatches for pair in record.kv_pairs)
        tile(f"{wrong} / {compared:,}", "KV digests wrong / compared", wrong > 0)
    if record.requests:
        ttft = percentile(sorted(request.ttft for request in record.requests), 0.5)
        tile(duration(ttft), "time to first token, median of streamed")
    if record.leftovers:
        left = sum(len(items) for items in record.leftovers.values())
        tile(str(left) if left else "nothing", "left behind", left > 0)
    return el("div", *tiles, cls="tiles") if tiles else None


def _findings(record: RunRecord, states: States) -> Markup:
    grouped = families(record.findings)
    if not grouped:
        return join(_sound(record), _unmatched(record))
    cards = [_card(family, number, states) for number, family in enumerate(grouped)]
    if verdict_of(family.root for family in grouped) is Verdict.PASS:
        told = el("div", *cards, style="margin-top:12px")
        return join(_sound(record), told, _unmatched(record))
    return join(*cards, _unmatched(record))


def _unmatched(record: RunRecord) -> Markup | None:
    """Entries of the quarantine file that are out of date or hide nothing any more."""
    idle = [entry for entry in record.quarantine if not entry.matched]
    if not idle:
        return None
    return el(
        "div",
        el("h2", "Quarantine entries that matched nothing in this run"),
        el(
            "ul",
            *(el("li", f"{entry}", _expired(entry), ": ", _issue(entry.url)) for entry in idle),
        ),
        cls="sound",
    )


def _expired(entry: QuarantineEntry) -> str:
    return f", expired on {entry.expires}" if entry.expired else ""


def _issue(url: str) -> Markup:
    return el("a", url, href=url)


def _sound(record: RunRecord) -> Markup:
    """What a run without faults has shown, as far as it went."""
    lines = []
    if record.checks:
        passed = sum(check.verdict is Verdict.PASS for check in record.checks)
        lines.append(f"{count(passed, 'check')} on {count(len(record.hosts), 'host')} passed.")
    if record.pings:
        lines.append(f"{len(record.pings)} paths between NPUs were pinged, one direction each.")
    if record.kv_pairs:
        compared = sum(pair.blocks_compared for pair in record.kv_pairs)
        lines.append(
            f"{compared:,} KV digests of {count(len(record.kv_pairs), 'rank pair')} were "
            "compared on both sides, and all are equal."
        )
    if record.kv_usage:
        lines.append("KV usage was watched until after the last request.")
    if record.leftovers and not any(record.leftovers.values()):
        lines.append("Nothing was left behind on any host.")
    if not lines:
        return el("div", el("p", "Nothing was measured in this run."), cls="sound")
    return el(
        "div",
        el("h2", "What this run has shown"),
        el("ul", *(el("li", text) for text in lines)),
        cls="sound",
    )


def _card(family: Family, number: int, states: States) -> Markup:
    finding = family.root
    minor = finding.severity is Severity.WARN or number >= _FULL_CARDS or finding.quarantined
    facts: list[Markup] = []
    for name, value, cls in (
        ("expected", whole_names(finding.expected), None),
        ("got", whole_names(finding.got), None),
        ("next step", prose(finding.advice), "next"),
    ):
        if value:
            facts += [el("dt", name), el("dd", value, cls=cls)]
    if finding.known is not None:
        facts += [el("dt", "known"), el("dd", _known(finding.known))]
    return el(
        "article",
        el(
            "div",
            el("span", _severity(finding), cls="sev"),
            el("code", finding.id),
            el("span", finding.layer.label),
            cls="id",
        ),
        el("div", whole_names(str(finding.where)), cls="where"),
        el("p", CATALOGUE[finding.id].meaning, cls="meaning"),
        el("dl", *facts),
        _evidence(finding, first=number == 0),
        _consequences(family),
        _about(finding),
        id=states.anchor(finding),
        cls=f"finding {state_of_finding(finding).value}" + (" minor" if minor else ""),
    )


def _about(finding: Finding) -> Markup:
    """What checks.html says; a page that was mailed has no other beside it."""
    told = finding.advice == CATALOGUE[finding.id].fix
    title = el("summary", "About ", el("code", finding.id))
    return el("details", title, about(CATALOGUE[finding.id], fix=not told))


def _severity(finding: Finding) -> str:
    severity = finding.severity.value.upper()
    return f"QUARANTINED {severity}" if finding.quarantined else severity


def _known(known: KnownIssue) -> Markup:
    return join(f"{known.state}: {known.reason}: ", _issue(known.url))


def _evidence(finding: Finding, *, first: bool) -> Markup | None:
    if not finding.evidence:
        return None
    lines = sum(text.count("\n") + 1 for text in finding.evidence)
    return el(
        "details",
        el("summary", "Evidence"),
        _texts(finding.evidence),
        open="" if first and lines <= _OPEN_EVIDENCE_LINES else None,
    )


def _consequences(family: Family) -> Markup | None:
    if not family.consequences:
        return None
    return el(
        "details",
        el("summary", f"Explains {count(len(family.consequences), 'more finding')}"),
        el(
            "ul",
            *(
                el(
                    "li",
                    el("code", finding.id),
                    f" at {finding.where}",
                    f": {finding.got}" if finding.got else None,
                    _texts(finding.evidence),
                )
                for finding in family.consequences
            ),
            cls="consequences",
        ),
    )


def _texts(evidence: Iterable[str]) -> Markup | None:
    """Evidence as one block; answers of several lines stand apart from each other."""
    texts = [capped(text, _LONGEST_EVIDENCE) for text in evidence]
    between = "\n\n" if any("\n" in text for text in texts) else "\n"
    return el("pre", between.join(texts)) if texts else None


def _footer(record: RunRecord, missing: list[str]) -> Markup:
    not_measured = f"Not measured in this run: {', '.join(missing)}. " if missing else ""
    return el("footer", f"{not_measured}Made by {record.harness or 'pd-validate'}.")
