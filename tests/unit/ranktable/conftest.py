"""The guide's cluster, what its devices answer, and the rank table made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.ranktable import DeviceAddress
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import LaunchPlan, launch_plan, run_dirs

CLUSTERS = Path(__file__).parents[3] / "clusters"


def a2_addresses(cluster: Cluster) -> list[DeviceAddress]:
    """Device d of the h-th host has 29.1.h.(10 + d), as in tests/data/ranktables/."""
    return [
        DeviceAddress(name, host.address, device, f"29.1.{number}.{10 + device}")
        for number, (name, host) in enumerate(cluster.hosts.items(), start=1)
        for device in range(8)
    ]


@pytest.fixture
def guide() -> Cluster:
    return load_cluster(CLUSTERS / "atlas-800t-a2-1p2d.yaml", environ={})


@pytest.fixture
def a3() -> Cluster:
    return load_cluster(CLUSTERS / "a3-1p2d.yaml", environ={})


@pytest.fixture
def plan(guide: Cluster) -> LaunchPlan:
    return launch_plan(guide, run_dirs=run_dirs(guide, "r1"))


@pytest.fixture
def addresses(guide: Cluster) -> list[DeviceAddress]:
    """What the devices of the guide's cluster answer."""
    return a2_addresses(guide)
