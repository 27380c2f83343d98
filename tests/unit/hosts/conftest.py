"""Real SSH servers for the tests: simulated hosts, and OpenSSH's own sshd if it is installed."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_servers import Server, is_empty, server_of

from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor, survey
from pd_validate.spec.models import Ssh
from pd_validate.waiting import wait_for
from twin.hosts import TwinHosts, TwinHostSpec

OPENSSH = Path("/usr/sbin/sshd")


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
    if not OPENSSH.exists():
        pytest.skip(f"{OPENSSH} is not installed (Debian, Ubuntu: apt-get install openssh-server)")
    if os.getuid() == 0 and not Path("/run/sshd").is_dir():
        pytest.skip("started by root, sshd needs the directory /run/sshd (mkdir /run/sshd)")
    directory = tmp_path_factory.mktemp("openssh")
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
        subprocess.run(command, check=True)
    address, port = "127.0.0.4", _free_port("127.0.0.4")
    (directory / "sshd_config").write_text(
        f"ListenAddress {address}:{port}\n"
        f"HostKey {directory}/host\n"
        f"AuthorizedKeysFile {directory}/user.pub\n"
        "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
        "SetEnv SHLVL=1\n"  # keeps bash from reading this user's ~/.bashrc
    )
    host_key = " ".join((directory / "host.pub").read_text().split()[:2])
    (directory / "known_hosts").write_text(f"[{address}]:{port} {host_key}\n")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(OPENSSH), "-D", "-e", "-f", str(directory / "sshd_config")], stderr=log
        )
    try:
        wait_for(
            lambda: _accepts(address, port),
            seconds=10,
            what="OpenSSH's sshd",
            interval=0.05,
            tail=lambda: (directory / "log").read_text(),
        )
        yield Server(
            address,
            Ssh(
                user=pwd.getpwuid(os.getuid()).pw_name,
                port=port,
                key=directory / "user",
                known_hosts=directory / "known_hosts",
            ),
        )
    finally:
        process.terminate()
        process.wait(10)


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


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


def _accepts(address: str, port: int) -> bool | None:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return None
    return True
