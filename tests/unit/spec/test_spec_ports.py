"""The port plan, and the connector's own formula for its side channel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pd_validate.spec.models import Cluster
from pd_validate.spec.ports import PortUse, port_clashes, port_plan, side_channel_ports


@pytest.mark.parametrize(
    ("tp", "dp", "ports"),
    [
        # vLLM leaves the local DP rank unset for DP=1: the connector then adds TP.
        (1, 1, [5558]),
        (2, 1, [5559, 5560]),
        (2, 2, [5557, 5558, 5559, 5560]),
        (4, 2, list(range(5557, 5565))),
    ],
)
def test_side_channel_ports(tp: int, dp: int, ports: list[int]) -> None:
    assert list(side_channel_ports(5557, tensor_parallel=tp, data_parallel=dp)) == ports


def test_every_listener_of_the_guides_topology(load: Callable[..., Cluster]) -> None:
    assert [(use.host, use.owner, use.purpose, use.span) for use in port_plan(load())] == [
        ("p1", "prefill-1", "API", "13700"),
        ("p1", "prefill-1", "side channel", "5559-5560"),
        ("d1", "decode-1", "API", "13700"),
        ("d1", "decode-1", "side channel", "5559-5560"),
        ("d2", "decode-2", "API", "13700"),
        ("d2", "decode-2", "side channel", "5559-5560"),
        ("p1", "proxy", "API", "8080"),
    ]
    assert port_clashes(load()) == []


def test_a_clash_needs_the_same_host_and_a_common_port() -> None:
    one = PortUse("p1", 10, 20, "a", "API")
    assert list(one.shares(PortUse("p1", 20, 30, "b", "API"))) == [20]
    assert not one.shares(PortUse("p1", 21, 30, "b", "API"))
    assert not one.shares(PortUse("p2", 10, 20, "b", "API"))
