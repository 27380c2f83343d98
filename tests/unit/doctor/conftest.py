"""A machine on which everything is well, and hosts that can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pd_validate.doctor.machine import KeyFile, Machine, Package, Space
from pd_validate.spec.models import Cluster
from twin.hosts import TwinHosts, TwinHostSpec


@pytest.fixture
def sound() -> Machine:
    """Nothing is missing here; a test changes one thing."""
    return Machine(
        python=(3, 11, 7),
        packages=(Package("pytest<9.2,>=8.4", "9.1.0", True),),
        node="v20.20.2",
        npm="11.0.0",
        allure=True,
        vllm="0.32.0",
        agent_keys=1,
        default_keys=(KeyFile(Path("/home/u/.ssh/id_rsa"), None),),
        spaces=(Space(Path("pd-report"), 50_000_000_000, True),),
        open_files=1024,
        environ={},
    )


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwinHosts]:
    """Two simulated hosts with real SSH servers."""
    root = tmp_path_factory.mktemp("doctor")
    specs = [TwinHostSpec("p1", "127.0.0.7"), TwinHostSpec("d1", "127.0.0.8")]
    with TwinHosts.start(specs, root=root / "hosts", state=root / "state") as started:
        yield started


@pytest.fixture
def cluster(hosts: TwinHosts) -> Cluster:
    """A cluster file's content for these hosts."""
    return Cluster.model_validate(
        {
            "hosts": {
                name: {
                    "address": hosts[name].address,
                    "ssh": {
                        "user": hosts[name].user,
                        "port": hosts[name].port,
                        "key": hosts[name].key,
                        "known_hosts": hosts[name].known_hosts,
                    },
                }
                for name in ("p1", "d1")
            },
            "model": {"path": "/model"},
            "instances": {
                "prefill-1": {"role": "prefill", "host": "p1", "devices": [0, 1]},
                "decode-1": {"role": "decode", "host": "d1", "devices": [6, 7]},
            },
            "proxy": {"host": "p1"},
        }
    )
