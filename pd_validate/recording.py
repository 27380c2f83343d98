"""Facts, verdicts and transfers in the form of the report's record. Pure translation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pd_validate.catalogue import Layer
from pd_validate.checks.result import Report
from pd_validate.facts.pings import PingFacts
from pd_validate.findings import Finding, Verdict, Where, verdict_of
from pd_validate.quarantine import Quarantine
from pd_validate.report.record import (
    CheckResult,
    KvPair,
    KvPull,
    Npu,
    Ping,
    QuarantineEntry,
    Rank,
    Span,
)
from pd_validate.topology.topology import Step
from pd_validate.traffic.trace import TraceRecord, Transfer


def check_results(report: Report) -> list[CheckResult]:
    return [
        CheckResult(
            id=result.id,
            where=result.where,
            verdict=result.verdict,
            seconds=result.seconds,
            layer=result.layer,
            quarantined=result.verdict is not Verdict.PASS
            and verdict_of(result.findings) is Verdict.PASS
            and any(finding.quarantined for finding in result.findings),
        )
        for result in report.results
    ]


def leftover_check(host: str, findings: Sequence[Finding]) -> CheckResult:
    """The post-flight of one host as a cell of the checks' matrix."""
    return CheckResult(
        id="left-behind",
        where=Where(host=host),
        verdict=verdict_of(findings),
        layer=Layer.LEFTOVER,
    )


def pings(facts: PingFacts) -> list[Ping]:
    """Pings with the default packet size, those that gave an answer."""
    return [
        Ping(
            source=Npu(host=result.task.source.host, device=result.task.source.device),
            target=Npu(host=result.task.target.host, device=result.task.target.device),
            sent=result.reading.value.transmitted,
            received=result.reading.value.received,
            ms=result.reading.value.steady_milliseconds,
        )
        for result in facts.results
        if result.task.size is None and result.reading.value is not None
    ]


def spans(timeline: Iterable[Step]) -> list[Span]:
    return [
        Span(
            host=step.host,
            name=step.what,
            start=step.start,
            end=step.end,
            verdict=Verdict.PASS if step.ok else Verdict.FAIL,
        )
        for step in timeline
    ]


def kv_pulls(transfers: Iterable[Transfer]) -> list[KvPull]:
    return [
        KvPull(
            at=received.time,
            source=_rank(produced),
            target=_rank(received),
            bytes=received.bytes,
            seconds=received.seconds,
        )
        for produced, received in transfers
        if produced is not None
    ]


def kv_pairs(transfers: Iterable[Transfer]) -> list[KvPair]:
    """Totals per pair of ranks."""
    pairs: dict[tuple[Rank, Rank], KvPair] = {}
    for produced, received in transfers:
        if produced is None:
            continue
        source, target = _rank(produced), _rank(received)
        compared, wrong = _compared(produced, received)
        before = pairs.get((source, target)) or KvPair(
            source=source, target=target, pulls=0, bytes=0, seconds=0
        )
        pairs[source, target] = KvPair(
            source=source,
            target=target,
            pulls=before.pulls + 1,
            bytes=before.bytes + received.bytes,
            seconds=before.seconds + received.seconds,
            blocks_compared=before.blocks_compared + compared,
            mismatches=before.mismatches + wrong,
        )
    return list(pairs.values())


def quarantine(entries: Quarantine, findings: Sequence[Finding]) -> list[QuarantineEntry]:
    """Every entry of the quarantine file, and how many findings of the run it matched."""
    return [
        QuarantineEntry(
            id=each.entry.id,
            where=str(each.entry.where),
            url=each.entry.url,
            reason=each.entry.reason,
            expires=each.entry.expires,
            expired=entries.expired(each.entry),
            matched=sum(each.entry.matches(finding) for finding in findings),
            place=each.place,
        )
        for each in entries.entries
    ]


def _rank(record: TraceRecord) -> Rank:
    return Rank(instance=record.instance, rank=record.rank)


def _compared(produced: TraceRecord, received: TraceRecord) -> tuple[int, int]:
    """Blocks (per layer) that have digests on both sides, and how many of them differ."""
    pairs = [
        (produced.digests_of(layer).get(number), got)
        for layer in received.layers
        for number, got in received.digests_of(layer).items()
        if "" not in got
    ]
    return len(pairs), sum(want != got for want, got in pairs)
