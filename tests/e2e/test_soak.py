"""The same work for a long time: answers stay right, nothing rises. Runs with `-m soak`.

`--soak SECONDS` says how long.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_determinism, check_served
from pd_validate.checks.figures import check_drift
from pd_validate.findings import Finding
from pd_validate.options import Options
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.topology.topology import Topology
from pd_validate.traffic.client import Answer
from pd_validate.traffic.load import Traffic
from pd_validate.waiting import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.alone]

WIDTH = 4
SAMPLES = 30  # of memory and open files, at least; spread over the soak
MEMORY, HANDLES = 64 * 1024 * 1024, 16  # rises below are caches that fill


def test_soak(
    pd: Session, topology: Topology, service: Service, options: Options, judge: Judge
) -> None:
    """Requests of all lengths with canaries; latency, memory and open files do not rise."""
    proxy, where = service.proxy, service.where(service.proxy.name)
    canary = tokens(150, seed=40)
    reference = proxy.complete(canary, max_tokens=8)
    judge(check_served(reference, where))
    canaries: list[Answer] = []

    def ask(number: int) -> Answer:
        if number % 5 == 0:
            canaries.append(answer := proxy.complete(canary, max_tokens=8))
            return answer
        return proxy.complete(tokens(10 + 37 * (number % 12), seed=number), max_tokens=8)

    memory: dict[str, list[float]] = {name: [] for name in topology.status()}
    handles: dict[str, list[float]] = {name: [] for name in memory}
    end = time.monotonic() + options.soak
    found: list[Finding] = []
    with Traffic(ask, width=WIDTH) as traffic:

        def look() -> bool | None:
            for name in memory:
                footprint = topology.footprint(name)
                memory[name].append(footprint.rss)
                handles[name].append(footprint.handles)
            found[:] = topology.check_sick()
            return True if found or time.monotonic() >= end else None

        interval = max(1.0, options.soak / SAMPLES)
        wait_for(look, seconds=options.soak + 60, what="the end of the soak", interval=interval)
        assert traffic.stop(seconds=pd.cluster.timeouts.request + 10), "a request did not end"
    judge(found)
    failed = [one for one in traffic.sent if not one.ok]
    judge.note(f"{len(traffic.sent)} requests, {len(failed)} failed, {len(canaries)} canaries")
    assert not failed, failed[0].error or (failed[0].answer and failed[0].answer.error)
    if pd.tolerance == 0:
        judge(check_determinism([reference, *canaries], where, tolerance=0))
    # In groups: one slow request is no drift.
    times = [one.seconds for one in sorted(traffic.sent, key=lambda one: one.at)]
    size = max(1, len(times) // SAMPLES)
    groups = [median(times[n : n + size]) for n in range(0, len(times), size)]
    drift = check_drift("latency", groups, where, share=0.5, least=0.05, unit="s")
    for name in memory:
        at = service.where(name)
        drift += check_drift("memory", memory[name], at, share=0.05, least=MEMORY, unit="bytes")
        drift += check_drift("files", handles[name], at, share=0.05, least=HANDLES, unit="open")
    judge(drift)
    for instance in service.instances:
        judge(pd.check_idle(instance))


def test_after_a_long_silence(
    topology: Topology, service: Service, options: Options, judge: Judge
) -> None:
    """Nothing for a tenth of the soak, then requests: links and sockets have lasted (A72)."""
    end = time.monotonic() + options.soak / 10

    def silence() -> bool | None:
        judge(topology.check_alive())
        return True if time.monotonic() >= end else None

    wait_for(silence, seconds=options.soak / 10 + 60, what="the end of the silence", interval=1.0)
    for decoder in service.decoders:
        for prefiller in service.prefillers:
            answer = service.disaggregate(prefiller, decoder, tokens(200, seed=41), max_tokens=2)
            judge(check_served(answer, service.where(decoder, prefiller)))
