"""The same work on many hosts: in parallel, each with its own result."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_servers import Server, server_of

from pd_validate.errors import CommandTimeout, HostUnreachable, LabError
from pd_validate.hosts.fleet import Fleet, in_parallel
from pd_validate.spec.models import Cluster
from twin.hosts import TwinHosts


@pytest.fixture
def fleet(twin: TwinHosts) -> Iterator[Fleet]:
    hosts = {name: server_of(twin, name).host(name) for name in ("p1", "d1")}
    with Fleet(hosts) as fleet:
        yield fleet


@pytest.fixture
def broken(d1: Server) -> Iterator[Fleet]:
    """Two hosts that work and one where nothing listens."""
    hosts = {
        "p1": d1.host("p1"),
        "d1": d1.host("d1", port=1),
        "d2": d1.host("d2"),
    }
    with Fleet(hosts) as fleet:
        yield fleet


def test_hosts_work_at_the_same_time(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.connect() == {}
    both_there = f"test -e {tmp_path}/p1 && test -e {tmp_path}/d1"
    meet = f"touch {tmp_path}/$TWIN_HOST; until {both_there}; do sleep 0.05; done; echo $TWIN_HOST"
    results = fleet.map(lambda host: host.run(meet, timeout=10).stdout)
    assert results == {"p1": "p1\n", "d1": "d1\n"}


def test_a_host_that_cannot_be_reached_costs_the_others_nothing(broken: Fleet) -> None:
    failed = broken.connect()
    assert list(failed) == ["d1"]
    assert isinstance(failed["d1"], HostUnreachable)
    results = broken.map(lambda host: host.run("echo fine", timeout=5).stdout)
    assert results["p1"] == results["d2"] == "fine\n"
    assert isinstance(results["d1"], HostUnreachable)


def test_a_host_that_hangs_costs_the_others_nothing(fleet: Fleet) -> None:
    def work(host: object) -> str:
        seconds = 30 if host is fleet["p1"] else 0
        return fleet["p1" if seconds else "d1"].run(f"sleep {seconds}; echo x", timeout=60).stdout

    started = time.monotonic()
    results = fleet.map(work, timeout=1.5)
    assert time.monotonic() - started < 20
    assert results["d1"] == "x\n"
    assert isinstance(results["p1"], CommandTimeout)
    assert "p1: not finished within 1.5 s" in str(results["p1"])
    assert fleet["p1"].run("echo usable", timeout=5).stdout == "usable\n"


def test_a_fault_of_the_program_is_not_hidden(fleet: Fleet) -> None:
    def work(host: object) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        fleet.map(work)


def test_hosts_come_from_the_cluster_in_its_order(guide: Cluster) -> None:
    with Fleet.of_cluster(guide) as fleet:
        assert list(fleet) == list(guide.hosts)
        assert fleet["d1"].where == "root@10.0.0.2:2222"


def test_work_that_never_returns_does_not_hold_the_caller() -> None:
    stuck = threading.Event()
    told: list[str] = []
    started = time.monotonic()
    results = in_parallel(
        {"stuck": stuck.wait, "quick": lambda: True}, timeout=0.2, give_up=told.append
    )
    stuck.set()
    assert time.monotonic() - started < 20
    assert results["quick"] is True
    assert isinstance(results["stuck"], LabError)
    assert told == ["stuck"]


@pytest.fixture
def guide() -> Cluster:
    return Cluster.model_validate(
        {
            "hosts": {
                "p1": {"address": "10.0.0.1"},
                "d1": {"address": "10.1.0.2", "ssh_address": "10.0.0.2", "ssh": {"port": 2222}},
            },
            "model": {"path": "/model"},
            "instances": {"prefill-1": {"role": "prefill", "host": "p1", "devices": [0, 1]}},
            "proxy": {"host": "p1"},
        }
    )
