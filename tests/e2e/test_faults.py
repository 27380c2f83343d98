"""Processes die or stand still while requests come: all of those end, and the service recovers.

Needs --allow-faults: it kills and pauses what this run itself has started, nothing else.
Links are not cut here. No command of a host takes a NPU's link down in a way that is
certain to be undone when the controller dies in between; that is tried on the twin
(tests/scenarios/).
"""

from __future__ import annotations

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_served
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.topology import Topology
from pd_validate.traffic.client import Answer
from pd_validate.traffic.load import Traffic
from pd_validate.waiting import wait_for

pytestmark = [pytest.mark.fault, pytest.mark.alone]

BEFORE, AFTER = 6, 6  # requests that end before the fault, and that succeed after recovery
RELEASED = 180.0  # seconds until a prefiller gives up blocks that a dead decoder never took


@pytest.mark.parametrize("role", ["decoder", "prefiller", "proxy"])
def test_killed_and_started_again(pd: Session, topology: Topology, role: str, judge: Judge) -> None:
    """SIGKILL while requests run. Each of them ends; after the restart all succeed."""
    service = topology.service
    names = {"decoder": service.decoders[0], "prefiller": service.prefillers[0]}
    victim = names.get(role, service.proxy.name)
    with Traffic(lambda number: _ask(topology, number)) as traffic:
        _wait_for_good(traffic, BEFORE)
        topology.kill(victim)
        wait_for(
            lambda: True if not topology.status()[victim].alive else None,
            seconds=10,
            what=f"the end of {victim}",
        )
        topology.restart(victim)
        _wait_for_good(traffic, AFTER)
        ended = traffic.stop(seconds=pd.cluster.timeouts.request + 10)
    assert ended, f"a request did not end within {pd.cluster.timeouts.request + 10:g} s"
    judge.note(f"{len(traffic.sent)} requests, {sum(not s.ok for s in traffic.sent)} failed")
    _recovered(pd, topology, judge)


def test_worker_paused_for_a_while(pd: Session, topology: Topology, judge: Judge) -> None:
    """One worker of a decoder stands still for some seconds, then goes on: nobody is harmed."""
    service = topology.service
    victim = service.decoders[0]
    with Traffic(lambda number: _ask(topology, number)) as traffic:
        _wait_for_good(traffic, BEFORE)
        if not topology.pause(victim, match="Worker"):
            pytest.skip(f"{victim} has no process named Worker to pause")
        try:
            assert topology.check_stopped(), "a stopped worker is not seen"
        finally:
            topology.resume(victim)
        assert not topology.check_stopped()
        _wait_for_good(traffic, AFTER)
        assert traffic.stop(seconds=pd.cluster.timeouts.request + 10), "a request did not end"
    failed = [one for one in traffic.sent if not one.ok]
    assert not failed, failed[0].error or (failed[0].answer and failed[0].answer.error)
    _recovered(pd, topology, judge)


def _ask(topology: Topology, number: int) -> Answer:
    return topology.service.proxy.complete(tokens(40 + 30 * (number % 8), seed=50), max_tokens=8)


def _wait_for_good(traffic: Traffic, count: int) -> None:
    """Until so many more requests have succeeded."""
    start = len(traffic.sent)
    wait_for(
        lambda: True if sum(one.ok for one in traffic.sent[start:]) >= count else None,
        seconds=180,
        what=f"{count} good requests",
    )


def _recovered(pd: Session, topology: Topology, judge: Judge) -> None:
    """Every pair carries again, and no instance holds anything for those that are gone."""
    service = topology.service
    judge(topology.check_sick())
    for prefiller in service.prefillers:
        for decoder in service.decoders:
            answer = service.disaggregate(prefiller, decoder, tokens(300, seed=51), max_tokens=2)
            judge(check_served(answer, service.where(decoder, prefiller)))
    for instance in service.instances:
        judge(pd.check_idle(instance, seconds=RELEASED))
