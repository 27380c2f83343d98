"""Real SSH servers for the tests: simulated hosts, and OpenSSH's own sshd if it is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_servers import Server, is_empty, openssh_server, server_of, skip_without_openssh

from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor, survey
from twin.hosts import TwinHosts, TwinHostSpec


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwinHosts]:
    """Two simulated hosts that no test breaks."""
    root = tmp_path_factory.mktemp("twin")
    specs = [TwinHostSpec("p1", "127.0.0.1"), TwinHostSpec("d1", "127.0.0.2", devices=(0, 1))]
    with TwinHosts.start(specs, root=root / "hosts", state=root / "state") as hosts:
        yield hosts


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[TwinHosts]:
    """One simulated host for a test that kills or changes its server."""
    spec = TwinHostSpec("d1", "127.0.0.3")
    with TwinHosts.start([spec], root=tmp_path / "hosts", state=tmp_path / "state") as hosts:
        yield hosts


@pytest.fixture(scope="session")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH's sshd on loopback, as the user who runs the tests."""
    skip_without_openssh()
    with openssh_server(tmp_path_factory.mktemp("openssh"), "127.0.0.4") as (server, _):
        yield server


@pytest.fixture
def d1(twin: TwinHosts) -> Server:
    return server_of(twin, "d1")


@pytest.fixture(params=["twin", "openssh"])
def server(request: pytest.FixtureRequest) -> Server:
    """The same test on a simulated host and on OpenSSH: what holds on one holds on the other."""
    if request.param == "twin":
        return server_of(request.getfixturevalue("twin"), "d1")
    openssh: Server = request.getfixturevalue("openssh")
    return openssh


@pytest.fixture(scope="session")
def connections() -> Iterator[dict[Server, RemoteHost]]:
    """Connections that tests share as long as they do not break them."""
    shared: dict[Server, RemoteHost] = {}
    yield shared
    for host in shared.values():
        host.close()


@pytest.fixture
def machine(server: Server, connections: dict[Server, RemoteHost]) -> RemoteHost:
    """A host of ours (the plugin's own parameter for suites is called `host`)."""
    return connections.setdefault(server, server.host())


@pytest.fixture
def shell(d1: Server, connections: dict[Server, RemoteHost]) -> RemoteHost:
    """The simulated host d1, over the shared connection."""
    return connections.setdefault(d1, d1.host())


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    """The work directory on the host (all hosts of the tests are this machine)."""
    return str(tmp_path / "work")


@pytest.fixture(scope="module")
def run(
    twin: TwinHosts,
    connections: dict[Server, RemoteHost],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RemoteSupervisor]:
    """A run that the tests of a module share, each with a process name of its own."""
    server = server_of(twin, "d1")
    host = connections.setdefault(server, server.host())
    workdir = str(tmp_path_factory.mktemp("shared") / "work")
    with RemoteSupervisor.open(host, workdir=workdir, run_id="shared", lease=30) as run:
        yield run
    assert is_empty(survey(host, workdir))


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """A name for the test's process that no other test uses."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[-60:].strip("-")
