"""How a test logs in to an SSH server, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import Survey
from pd_validate.spec.models import Ssh, Timeouts
from twin.hosts import TwinHosts

QUICK = Timeouts(connect=5, command=10)


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
