"""The guide's section "verify the communication environment": its seven commands, host by host.

What the guide asks an engineer to read off eight lines per command and host is asserted
here; faults of one NPU are named with host and number.
"""

from __future__ import annotations

import pytest

from pd_validate.checks.result import Report
from pd_validate.plugin import Judge

pytestmark = pytest.mark.network


def test_lldp(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -lldp -g | grep Ifname`: a neighbour on every port."""
    judge(network.problems("lldp", host))


def test_link(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -link -g`: link status UP."""
    judge(network.problems("link", host))


def test_net_health(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -net_health -g`: net health status Success."""
    judge(network.problems("net-health", host))


def test_netdetect(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -netdetect -g`: a detection address is set."""
    judge(network.problems("netdetect", host))


def test_gateway(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -gateway -g`: a gateway inside the NPU's own subnet, where one is needed."""
    judge(network.problems("gateway", host))


def test_hccn_conf(network: Report, host: str, judge: Judge) -> None:
    """`cat /etc/hccn.conf`: says of every NPU what the NPU itself says."""
    judge(network.problems("hccn-conf", host))


def test_ip(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -ip -g`: an address, unique in the cluster, in a usable subnet."""
    judge(network.problems("ip", host))


def test_ping(network: Report, host: str, judge: Judge) -> None:
    """`hccn_tool -i N -ping -g address X`, from every NPU of this host to the others' NPUs."""
    assert network.of("ping", host), f"no ping was run from {host}"
    judge(network.problems("ping", host))
