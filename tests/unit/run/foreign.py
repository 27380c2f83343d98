"""Three hosts as a stranger would describe them: addresses, an SSH port, a key. No more.

They are simulated, but neither their cluster file nor the run on them has a word of that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twin.cluster import TwinCluster
from twin.fabric import FabricState
from twin.scenario import Scenario


@dataclass(frozen=True)
class Foreign:
    """Hosts that run. `directory` holds cluster.yaml and nothing else."""

    directory: Path
    hosts: TwinCluster

    @contextmanager
    def changed(self, scenario: Scenario) -> Iterator[None]:
        """While this is open the hosts' silicon is as the scenario says."""
        before = FabricState.read(self.hosts.state)
        broken = before.model_copy(deep=True)
        scenario.break_fabric(broken)
        broken.write(self.hosts.state)
        try:
            yield
        finally:
            before.write(self.hosts.state)

    def processes(self) -> dict[int, str]:
        """What runs on the hosts now, by pid; their SSH servers are not part of that."""
        return {
            pid: command
            for pid, command, env in _processes()
            if f"TWIN_STATE={self.hosts.state}" in env
        }


@contextmanager
def foreign_hosts(directory: Path) -> Iterator[Foreign]:
    with TwinCluster.start() as twin:
        directory.mkdir()
        (directory / "cluster.yaml").write_text(_cluster_file(twin))
        yield Foreign(directory, twin)


def _cluster_file(twin: TwinCluster) -> str:
    """As the owner of the hosts would write it."""
    cluster = twin.cluster
    hosts = [
        f"  {name}:\n"
        f"    address: {host.address}\n"
        f"    workdir: {host.workdir}\n"
        f"    ssh: {{port: {cluster.ssh_of(name).port}}}\n"
        for name, host in cluster.hosts.items()
    ]
    ssh = cluster.ssh_of("p1")
    return (
        "name: strangers\nnic: lo\n"
        f"ssh: {{user: {ssh.user}, key: {ssh.key}, known_hosts: {ssh.known_hosts}}}\n"
        f"hosts:\n{''.join(hosts)}"
        f"model: {{path: {cluster.model.path}}}\n"
        "instances:\n"
        "  prefill-1: {role: prefill, host: p1, devices: [0, 1]}\n"
        "  decode-1: {role: decode, host: d1, devices: [6, 7]}\n"
        "  decode-2: {role: decode, host: d2, devices: [6, 7]}\n"
        "proxy: {host: p1}\n"
    )


def _processes() -> Iterator[tuple[int, str, frozenset[str]]]:
    """Living processes of this machine: pid, command line, environment."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to another user
        if command:
            words = command.decode(errors="replace").split("\0")
            yield int(entry.name), " ".join(words), frozenset(environ.decode().split("\0"))
