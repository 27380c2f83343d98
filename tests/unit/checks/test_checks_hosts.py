"""Hosts: reachable, clock, network card, own address, proxies, ports."""

from __future__ import annotations

from typing import Any

import pytest
from lab import NOW, Lab, card

from pd_validate.checks.explain import explained
from pd_validate.facts.hosts import requests_of
from pd_validate.findings import Finding, Where, root_findings


@pytest.mark.parametrize(
    "identifier",
    ["host.unreachable", "host.auth", "host.key-changed", "host.hang", "host.unusable"],
)
def test_a_host_that_cannot_be_read_blocks_its_own_tests_only(identifier: str) -> None:
    lab = Lab()
    lab.unreachable("d1", identifier)
    assert lab.lines() == [f"fail {identifier} at d1"]
    report = lab.report()
    assert [f.id for f in report.problems("link", "d1")] == [identifier]
    assert report.problems("link", "d2") == []
    assert {r.verdict.value for r in report.results if r.where.host == "d2"} == {"pass"}


@pytest.mark.parametrize(
    ("ahead", "lines"),
    [
        (0.5, []),
        (10.0, ["warn host.clock-skew at d1"]),
        (-10.0, ["warn host.clock-skew at d1"]),
        (3600.0, ["fail host.clock-skew at d1"]),
    ],
)
def test_clock_against_the_controllers(ahead: float, lines: list[str]) -> None:
    lab = Lab()
    lab.answer("d1", "date +%s.%N", f"{NOW + ahead}\n")
    assert lab.lines() == lines


def test_clock_that_cannot_be_read_is_unknown() -> None:
    lab = Lab()
    lab.answer("d1", "date +%s.%N", "", "date: command not found\n", 127)
    assert lab.lines() == ["unknown host.clock-skew at d1"]


def network(*cards: dict[str, Any], own: str = "192.0.0.2") -> dict[str, Any]:
    return {"cards": [card("lo", "127.0.0.1", 8, "LOOPBACK", "UP"), *cards], "own_address": own}


def test_missing_card_explains_what_follows() -> None:
    lab = Lab()
    lab.change("d1", network=network(card("eth1", "192.0.0.2", 24, "UP")))
    assert lab.lines() == [
        "fail env.mismatch at d1 decode-1 < host.nic-missing",
        "fail host.nic-missing at d1",
    ]


@pytest.mark.parametrize("flags", [(), ("UP", "NO-CARRIER")], ids=["off", "no-carrier"])
def test_card_that_is_down(flags: tuple[str, ...]) -> None:
    lab = Lab()
    lab.change("d1", network=network(card("eth0", "192.0.0.2", 24, *flags)))
    assert lab.lines() == [
        "fail env.mismatch at d1 decode-1 < host.nic-down",
        "fail host.nic-down at d1",
    ]


def test_address_on_another_card() -> None:
    lab = Lab()
    lab.change(
        "d1",
        network=network(card("eth0", "10.1.1.1", 24, "UP"), card("eth1", "192.0.0.2", 24, "UP")),
    )
    assert lab.lines() == ["fail host.address-mismatch at d1"]
    assert "192.0.0.2 is on eth1" in lab.report().findings[0].got


def test_a_loopback_card_has_every_address_of_its_network() -> None:
    lab = Lab(nic="lo")
    hosts = {
        name: host.model_copy(update={"address": f"127.0.0.{number}"})
        for number, (name, host) in enumerate(lab.cluster.hosts.items(), start=1)
    }
    lab.cluster = lab.cluster.model_copy(update={"hosts": hosts})
    assert lab.lines() == []


def test_vllm_that_would_take_another_address() -> None:
    lab = Lab()
    instances = dict(lab.cluster.instances)
    engine = instances["decode-1"].engine.model_copy(update={"env": {"VLLM_HOST_IP": ""}})
    instances["decode-1"] = instances["decode-1"].model_copy(update={"engine": engine})
    lab.cluster = lab.cluster.model_copy(update={"instances": instances})
    lab.change("d1", network=network(card("eth0", "192.0.0.2", 24, "UP"), own="172.17.0.5"))
    assert lab.lines() == ["fail host.address-mismatch at d1 decode-1"]


def test_http_proxy_between_the_servers() -> None:
    lab = Lab()
    lab.change("d1", environment={"http_proxy": "http://proxy:3128"})
    assert lab.lines() == ["fail host.proxy-env at d1"]


@pytest.mark.parametrize(
    "no_proxy", ["*", "192.0.0.1,192.0.0.2,192.0.0.3", "192.0.0.0/24", "localhost, 192.0.0.0/8"]
)
def test_http_proxy_with_the_servers_in_no_proxy(no_proxy: str) -> None:
    lab = Lab()
    lab.change("d1", environment={"http_proxy": "http://proxy:3128", "NO_PROXY": no_proxy})
    assert lab.lines() == []


def test_port_of_somebody_else() -> None:
    lab = Lab()
    taken = {"address": "0.0.0.0", "port": 13700, "free": False, "holder": "pid 7: python x.py"}
    lab.change("d1", ports=[taken])
    assert lab.lines() == ["fail host.port-taken at d1 port 13700"]
    assert "pid 7: python x.py" in lab.report().findings[0].got
    assert lab.lines(idle=False) == []


def _ports_asked(lab: Lab) -> set[int]:
    return {port for _, port in requests_of(lab.cluster, lab.plan)["d1"].document["ports"]}


def test_any_port_of_the_side_channel_s_block() -> None:
    """Which half the ranks take depends on the connector's version; neither may be another's."""
    lab = Lab()
    asked = _ports_asked(lab)
    assert {5557, 5558, 5559, 5560} <= asked
    lab.change("d1", ports=[{"address": "0.0.0.0", "port": 5557, "free": False}])
    assert lab.lines() == ["fail host.port-taken at d1 port 5557"]


def test_hccl_s_host_port_of_each_device_is_tried() -> None:
    asked = _ports_asked(Lab())
    assert {16666, 60000, 60006, 60007} <= asked


def test_port_that_cannot_be_tried_is_unknown() -> None:
    lab = Lab()
    lab.change("d1", ports=[{"address": "0.0.0.0", "port": 80, "free": None, "error": "denied"}])
    assert lab.lines() == ["unknown host.port-taken at d1 port 80"]


def test_a_lost_host_explains_what_ran_there() -> None:
    lost = Finding(id="host.unreachable", where=Where(host="d1"))
    there = Where(host="d1", instance="decode-1")
    symptoms = [
        Finding(id="service.error", where=there),
        Finding(id="kvlink.timeout", where=Where(host="p1", instance="prefill-1", peer_host="d1")),
        Finding(id="drain.leak", where=Where(host="p1", instance="prefill-1")),
    ]
    elsewhere = Finding(id="service.error", where=Where(host="d2", instance="decode-2"))
    assert root_findings(explained([lost, *symptoms, elsewhere])) == [lost, elsewhere]
