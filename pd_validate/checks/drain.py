"""Back to zero: after all requests ended, no instance runs, waits or holds KV. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pd_validate.findings import Finding, Where
from pd_validate.traffic.metrics import EngineMetrics
from pd_validate.traffic.trace import TraceRecord

_NAMED = 10  # requests; a leak of more is not told better by more names


def check_idle(
    metrics: EngineMetrics, where: Where, *, waited: float, unclaimed: Sequence[TraceRecord] = ()
) -> list[Finding]:
    """`waited`: seconds since the last request ended, for the message.

    `unclaimed`: KV that this instance has produced and nobody received, the oldest first.
    """
    findings = []
    if metrics.running or metrics.waiting:
        findings.append(
            Finding(
                id="drain.stuck",
                where=where,
                expected="no request running or waiting",
                got=f"{metrics.running} running, {metrics.waiting} waiting after {waited:.0f} s",
            )
        )
    if metrics.kv_usage > 0:
        held = ""
        if metrics.blocks:
            held = f" (about {round(metrics.kv_usage * metrics.blocks)} blocks)"
        findings.append(
            Finding(
                id="drain.leak",
                where=where,
                expected="KV usage 0",
                got=f"{metrics.kv_usage:.1%}{held} after {waited:.0f} s",
                evidence=tuple(map(_never_received, unclaimed[-_NAMED:])),
                because=tuple(finding.as_cause() for finding in findings),
            )
        )
    return findings


def _never_received(record: TraceRecord) -> str:
    blocks = " ".join(map(str, record.blocks))
    return f"produced here and never received: {record.request}, blocks {blocks}"


def check_path(
    before: EngineMetrics,
    after: EngineMetrics,
    where: Where,
    *,
    prompt_tokens: int,
    requests: int = 1,
) -> list[Finding]:
    """Did the decoder get the KV of these prompts from elsewhere, instead of computing it?

    The last prompt token is always computed by the decoder itself (it yields the first
    logits), so one computed token per request is right; more means a silent fallback.
    Engines that do not split prompt tokens by source cannot be judged this way.
    """
    if None in (before.computed, after.computed):
        return []
    computed = (after.computed or 0) - (before.computed or 0)
    external = (after.external or 0) - (before.external or 0)
    if computed > requests:
        return [
            Finding(
                id="kv.recomputed",
                where=where,
                expected=f"at most {requests} of {prompt_tokens} prompt tokens computed here",
                got=f"{computed} computed, {external} received",
            )
        ]
    return []
