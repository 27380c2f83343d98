"""Loads of KV that the connector itself gave up. Pure verdicts on its trace and its log.

The trace (docs/connector.md, phase `failed`) says which request and rank, for any connector
under the audit. Why is in the log of this project's connector; others leave it open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pd_validate.findings import Finding, Where
from pd_validate.traffic.client import LEFT_PREFIX, PREFIX
from pd_validate.traffic.trace import TraceRecord

# `(Worker_TP1 pid=7) ERROR … KV pull of cmpl-pd-1f-0 failed (timeout): what exactly`
_FAILED = re.compile(r"KV pull of (?P<request>\S+) failed \((?P<cause>[a-z]+)\): (?P<why>.*)")
_REMADE = re.compile(r"KV pull of \S+: .*; trying a fresh link")
_RANK = re.compile(r"Worker_(?:\w*_)?TP(\d+)")
# Causes in which no link was there; in the others it was, and what it should carry was lost.
_OF_THE_LINK = frozenset(("unreachable", "refused", "mismatch", "link"))


def check_failed_loads(
    records: Iterable[TraceRecord],
    hosts: Mapping[str, str],
    logs: Mapping[str, Sequence[str]],
    *,
    request: str = PREFIX,
) -> list[Finding]:
    """One finding per decoder rank whose loads failed, at the first of them.

    Only requests of the harness whose id contains `request`, and none that was given up on
    purpose: a load that ends early because its client left is no fault. `hosts` maps
    instances to hosts, `logs` instances to the lines of their logs.
    """
    known = list(records)
    producers = {(r.request, r.rank): r.instance for r in known if r.phase == "produced"}
    failed: dict[tuple[str, int], list[TraceRecord]] = {}
    for record in known:
        ours = request in record.request and LEFT_PREFIX not in record.request
        if record.phase == "failed" and ours:
            failed.setdefault((record.instance, record.rank), []).append(record)
    findings = []
    for (instance, rank), group in failed.items():
        first = group[0]
        producer = producers.get((first.remote_request or first.request, rank))
        cause, lines = _reason(logs.get(instance, ()), first.request, rank)
        more = f", and {len(group) - 1} more" if len(group) > 1 else ""
        findings.append(
            Finding(
                id="kvlink.failed" if cause in _OF_THE_LINK else "kv.missing",
                where=Where(
                    host=hosts.get(instance),
                    instance=instance,
                    rank=rank,
                    request=first.request,
                    peer_instance=producer,
                    peer_host=hosts.get(producer) if producer is not None else None,
                ),
                expected=f"{len(first.blocks)} blocks in each of {len(first.layers)} layers",
                got=f"the connector gave the load up{f' ({cause})' if cause else ''}{more}",
                evidence=tuple(lines),
            )
        )
    return findings


def check_remade_links(
    logs: Mapping[str, Sequence[str]], hosts: Mapping[str, str]
) -> list[Finding]:
    """Pulls whose link broke: the connector made it anew, and the request never knew.

    One finding per decoder rank. Only this project's connector says so in its log.
    """
    broken: dict[tuple[str, int | None], list[str]] = {}
    for instance, lines in logs.items():
        for line in lines:
            if _REMADE.search(line):
                of_rank = _RANK.search(line)
                rank = int(of_rank[1]) if of_rank else None
                broken.setdefault((instance, rank), []).append(line.strip())
    return [
        Finding(
            id="kvlink.failed",
            where=Where(host=hosts.get(instance), instance=instance, rank=rank),
            expected="a link that lasts",
            got=f"it broke in {len(lines)} pull{'s' * (len(lines) > 1)} and was made anew",
            evidence=tuple(lines[:3]),
        )
        for (instance, rank), lines in broken.items()
    ]


def _reason(log: Sequence[str], request: str, rank: int) -> tuple[str, list[str]]:
    """The cause that the decoder's log states for this load, and the line."""
    for line in log:
        match = _FAILED.search(line)
        of_rank = _RANK.search(line)
        if match is None or match["request"] != request:
            continue
        if of_rank is None or int(of_rank[1]) == rank:
            return match["cause"], [line.strip()]
    return "", []
