"""How a test logs in to an SSH server, whichever it is."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import Survey
from pd_validate.spec.models import Ssh, Timeouts
from pd_validate.waiting import wait_for
from twin.hosts import TwinHosts

QUICK = Timeouts(connect=5, command=10)
OPENSSH = Path("/usr/sbin/sshd")


@dataclass(frozen=True)
class Server:
    """An SSH server and how to log in to it."""

    address: str
    ssh: Ssh

    def host(self, name: str = "d1", **changes: object) -> RemoteHost:
        """A host that logs in there, with some of its `ssh:` settings changed."""
        ssh = self.ssh.model_copy(update=changes)
        return RemoteHost(name, self.address, ssh, timeouts=QUICK)


def server_of(twin: TwinHosts, name: str) -> Server:
    host = twin[name]
    return Server(
        host.address,
        Ssh(user=host.user, port=host.port, key=host.key, known_hosts=host.known_hosts),
    )


def skip_without_openssh() -> None:
    if not OPENSSH.exists():
        pytest.skip(f"{OPENSSH} is not installed (Debian, Ubuntu: apt-get install openssh-server)")
    if os.getuid() == 0 and not Path("/run/sshd").is_dir():
        pytest.skip("started by root, sshd needs the directory /run/sshd (mkdir /run/sshd)")


@contextmanager
def openssh_server(
    directory: Path, address: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, int]]:
    """OpenSSH's sshd on a loopback address, as the user who runs the tests, and its process id.

    `env`: variables of every command, over those of the login.
    """
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
        subprocess.run(command, check=True)
    port = _free_port(address)
    variables = {"SHLVL": "1", **(env or {})}  # SHLVL keeps bash from reading this user's ~/.bashrc
    (directory / "sshd_config").write_text(
        f"ListenAddress {address}:{port}\n"
        f"HostKey {directory}/host\n"
        f"AuthorizedKeysFile {directory}/user.pub\n"
        "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}\n"
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
        user = pwd.getpwuid(os.getuid()).pw_name
        key, known_hosts = directory / "user", directory / "known_hosts"
        ssh = Ssh(user=user, port=port, key=key, known_hosts=known_hosts)
        yield Server(address, ssh), process.pid
    finally:
        process.terminate()
        process.wait(10)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


def _accepts(address: str, port: int) -> bool | None:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return None
    return True


def is_empty(seen: Survey) -> bool:
    """Whether nothing of any run is on the host; shows what there is in a failing assertion."""
    assert seen.processes == ()
    assert seen.runs == ()
    assert seen.lock is None
    return True


def lives(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
