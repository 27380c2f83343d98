"""summary.md: the run on half a page, for a CI job's summary or a chat."""

from __future__ import annotations

import re
from collections import Counter

from pd_validate.findings import Finding, Verdict
from pd_validate.report.families import Family, families
from pd_validate.report.record import Outcome, RunRecord, differing_hosts
from pd_validate.report.summary_html import headline
from pd_validate.report.words import count, duration

_MOST_FINDINGS = 10
_LONGEST = 300  # characters of one text


def summary_md(record: RunRecord) -> str:
    """The text of summary.md (GitHub's Markdown). The record must be redacted already."""
    blocks = [
        f"## {record.verdict.value.upper()}: {_plain(headline(record))}",
        _facts(record),
        *_findings(record),
        _unmatched(record),
        _environment(record),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _facts(record: RunRecord) -> str:
    facts = [f"cluster **{_plain(record.cluster)}**"]
    if record.seconds is not None:
        facts.append(duration(record.seconds))
    outcomes = Counter(test.outcome for test in record.tests)
    facts += [f"{outcomes[o]} {o.value}" for o in Outcome if outcomes[o]]
    if record.checks:
        passed = sum(check.verdict is Verdict.PASS for check in record.checks)
        facts.append(f"{passed} of {count(len(record.checks), 'check')} passed")
    if record.kv_pairs:
        wrong = sum(pair.mismatches for pair in record.kv_pairs)
        compared = sum(pair.blocks_compared for pair in record.kv_pairs)
        facts.append(f"{wrong} of {compared:,} KV digests wrong")
    left = sum(len(items) for items in record.leftovers.values())
    if record.leftovers:
        facts.append(f"{count(left, 'thing')} left behind" if left else "nothing left behind")
    if record.exit_code is not None:
        facts.append(f"exit {record.exit_code}: {record.exit_meaning}".rstrip(": "))
    return " · ".join(facts)


def _findings(record: RunRecord) -> list[str]:
    grouped = families(record.findings)
    blocks = [_finding(family) for family in grouped[:_MOST_FINDINGS]]
    if len(grouped) > len(blocks):
        blocks.append(f"… and {count(len(grouped) - len(blocks), 'more finding')}.")
    return blocks


def _finding(family: Family) -> str:
    finding = family.root
    lines = [
        f"**{_severity(finding)} `{finding.id}`** at **{_plain(str(finding.where))}** "
        f"({finding.layer.label})"
    ]
    for name, text in (("expected", finding.expected), ("got", finding.got)):
        if text:
            lines.append(f"- {name}: {_plain(text)}")
    lines.append(f"- next step: {_plain(finding.advice)}")
    if finding.known is not None:
        lines.append(
            f"- {finding.known.state}: {_plain(finding.known.reason)}: {finding.known.url}"
        )
    if family.consequences:
        ids = Counter(consequence.id for consequence in family.consequences)
        listed = ", ".join(f"`{name}` × {number}" for name, number in ids.items())
        lines.append(f"- explains: {listed}")
    return "\n".join(lines)


def _severity(finding: Finding) -> str:
    severity = finding.severity.value.upper()
    return f"QUARANTINED {severity}" if finding.quarantined else severity


def _unmatched(record: RunRecord) -> str:
    lines = [
        f"- {_plain(str(entry))}: {entry.url}" for entry in record.quarantine if not entry.matched
    ]
    if not lines:
        return ""
    return "\n".join(["Quarantine entries that matched nothing in this run:", *lines])


def _environment(record: RunRecord) -> str:
    lines = []
    for name, values in record.environment.items():
        if isinstance(values, dict) and differing_hosts(values):
            listed = ", ".join(f"{host}: {_plain(value)}" for host, value in values.items())
            lines.append(f"- {_plain(name)} differs: {listed}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", line)
