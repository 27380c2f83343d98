"""Real SSH servers for the tests: simulated hosts, and OpenSSH's own sshd if it is installed."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ssh_servers import Server, server_of

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
    if server not in connections:
        connections[server] = server.host()
    return connections[server]


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    """The work directory on the host (all hosts of the tests are this machine)."""
    return str(tmp_path / "work")


@pytest.fixture
def open_run(machine: RemoteHost, workdir: str) -> Iterator[Callable[..., RemoteSupervisor]]:
    """Opens runs on `machine` and closes them after the test; nothing may be left behind then."""
    opened: list[RemoteSupervisor] = []

    def open_run(run_id: str = "run-1", **options: object) -> RemoteSupervisor:
        options = {"workdir": workdir, "lease": 5.0, **options}
        opened.append(RemoteSupervisor.open(machine, run_id=run_id, **options))  # type: ignore[arg-type]  # as the test gave them
        return opened[-1]

    yield open_run
    for supervisor in opened:
        supervisor.close()
    if opened:
        seen = survey(machine, workdir)
        assert seen.processes == ()
        assert seen.runs == ()
        assert seen.lock is None


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


def _accepts(address: str, port: int) -> bool | None:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return None
    return True
