"""Facts, verdicts and transfers in the form of the report's record. Pure translation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pd_validate import __version__
from pd_validate.catalogue import Layer
from pd_validate.checks.result import Report
from pd_validate.facts.hosts import ClusterFacts, HostFacts
from pd_validate.facts.pings import PingFacts
from pd_validate.findings import Finding, Verdict, Where, verdict_of
from pd_validate.quarantine import Quarantine
from pd_validate.report.record import (
    CheckResult,
    KvPair,
    KvPull,
    KvUsage,
    Npu,
    Ping,
    QuarantineEntry,
    Rank,
    RequestTiming,
    Span,
)
from pd_validate.spec.models import Cluster
from pd_validate.topology.timeline import Step
from pd_validate.topology.topology import LinkProof
from pd_validate.traffic.client import Answer
from pd_validate.traffic.trace import TraceRecord, Transfer
from pd_validate.traffic.usage import Samples


def check_results(report: Report) -> list[CheckResult]:
    known = {finding.as_cause() for finding in report.findings if finding.quarantined}

    def hidden(finding: Finding) -> bool:
        """Quarantined, or the consequence of nothing but what is."""
        return finding.quarantined or (bool(finding.because) and known.issuperset(finding.because))

    return [
        CheckResult(
            id=result.id,
            where=result.where,
            verdict=result.verdict,
            seconds=result.seconds,
            layer=result.layer,
            quarantined=bool(result.problems) and all(map(hidden, result.problems)),
            explained=bool(result.problems) and all(f.because for f in result.problems),
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
            verdict=_verdict(step),
            note=step.note,
        )
        for step in timeline
    ]


def _verdict(step: Step) -> Verdict:
    if step.end is None:
        return Verdict.UNKNOWN
    return Verdict.PASS if step.ok else Verdict.FAIL


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


def link_checks(links: Iterable[LinkProof]) -> list[CheckResult]:
    """The KV links that bring-up made and proved, one check per prefiller and decoder."""
    return [
        CheckResult(
            id="kv-link",
            where=link.where,
            verdict=verdict_of(link.findings),
            seconds=link.seconds,
            layer=Layer.KV_LINK,
        )
        for link in links
    ]


def requests(answers: Iterable[Answer]) -> list[RequestTiming]:
    """Latency of streamed answers; one that never began has none."""
    return [
        RequestTiming(request=answer.request_id, ttft=answer.ttft, tpot=_seconds_per_token(answer))
        for answer in answers
        if answer.ok and answer.ttft is not None
    ]


def _seconds_per_token(answer: Answer) -> float | None:
    """Of the tokens after the first one; None if there is no other."""
    after_first = (answer.completion_tokens or 0) - 1
    if after_first < 1 or answer.ttft is None:
        return None
    return max(0.0, answer.seconds - answer.ttft) / after_first


def kv_usage(samples: Samples) -> list[KvUsage]:
    return [KvUsage(instance=name, samples=tuple(seen)) for name, seen in samples.items()]


def leftovers(found: Mapping[str, Sequence[Finding]]) -> dict[str, list[str]]:
    """By host, in words; an empty list means looked and clean."""
    return {host: [f"{f.id}: {f.got}" for f in findings] for host, findings in found.items()}


def environment(cluster: Cluster, facts: ClusterFacts) -> dict[str, str | dict[str, str]]:
    """What ran where: the same on all hosts as one value, else by host."""
    told: dict[str, str | dict[str, str]] = {
        "hardware": cluster.hardware,
        "model": str(cluster.model.path),
        "connector": cluster.connector.name or cluster.connector.kind,
        "pd-validate": __version__,
    }
    by_name: dict[str, dict[str, str]] = {}
    for host, read in facts.hosts.items():
        for name, value in _of_host(read):
            by_name.setdefault(name, {})[host] = value
    return told | by_name


def _of_host(read: HostFacts) -> Iterator[tuple[str, str]]:
    """Names and values; what is not installed anywhere is told by the checks, not here."""
    software = read.software.value
    if software is not None:
        for name, version in software.versions.items():
            if version is not None:
                yield name, version
        if software.python:
            yield "python", software.python
    if read.model is not None and read.model.files:
        content = json.dumps(sorted(read.model.files.items())).encode()
        yield "model digest", hashlib.sha256(content).hexdigest()[:16]
    if kernel := read.tuning.get("kernel"):
        yield "kernel", kernel


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
