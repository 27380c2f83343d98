"""Looking back when all other tests are done: every byte of the run, and everything at zero."""

from __future__ import annotations

import pytest

from pd_validate.checks.figures import check_pulls
from pd_validate.checks.kv import check_transfers, compared_blocks
from pd_validate.checks.volume import check_pairs
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.topology.topology import Topology
from pd_validate.traffic.trace import join

pytestmark = [pytest.mark.kv, pytest.mark.afterwards]


@pytest.mark.usefixtures("service")
def test_every_transfer_of_the_run(pd: Session, judge: Judge) -> None:
    """Every KV transfer since the service came up, the very first request included."""
    records = pd.settled_traces()
    transfers = join(records)
    judge(check_transfers(transfers, records, pd.hosts_of_instances()))
    count = compared_blocks(transfers)
    judge.note(f"{len(transfers)} transfers, {count} digests compared")
    assert count > 0, "no block was compared: the audit is off or its trace is empty"


def test_every_pair_of_ranks_was_exercised(pd: Session, service: Service, judge: Judge) -> None:
    """No prefiller-decoder pair, and no rank of one, is green because nothing went over it."""
    ranks = {
        (prefiller, decoder): len(pd.plan.instances[decoder].devices)
        for prefiller in service.prefillers
        for decoder in service.decoders
    }
    judge(check_pairs(join(pd.settled_traces()), ranks, pd.hosts_of_instances()))


@pytest.mark.usefixtures("service")
def test_no_pair_is_slow(pd: Session, judge: Judge) -> None:
    """Pulls of one pair of ranks that take much longer than the others' are a warning."""
    judge(check_pulls(join(pd.settled_traces()), pd.hosts_of_instances()))


def test_instance_returns_to_zero(
    pd: Session, service: Service, instance: str, judge: Judge
) -> None:
    """Nothing runs, nothing waits, no KV block is held."""
    judge(pd.check_idle(instance))


def test_processes_still_live(topology: Topology, judge: Judge) -> None:
    """Nothing that was started has ended by itself."""
    judge(topology.check_alive())
