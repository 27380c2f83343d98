"""Logs in to every host of a cluster file, as a run would, and asks for its Python."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import paramiko

from pd_validate.catalogue import CATALOGUE
from pd_validate.doctor.need import Need, State, ok
from pd_validate.errors import HostAuthError, HostKeyChanged, HostSilent, HostUnreachable, LabError
from pd_validate.hosts.fleet import in_parallel
from pd_validate.hosts.remote import RemoteHost
from pd_validate.spec.models import Cluster, DockerRunRuntime

OLDEST_PYTHON = (3, 8)  # of hosts: what pd_validate/hosts/agent.py is written for
_VERSION = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
_IDS = {
    HostAuthError: "host.auth",
    HostKeyChanged: "host.key-changed",
    HostSilent: "host.hang",
    HostUnreachable: "host.unreachable",
}


def reach(cluster: Cluster) -> dict[str, list[Need]]:
    """For each host what was met on the way to a command there: TCP, SSH, Python. In parallel."""
    jobs: dict[str, Callable[[], list[Need]]] = {
        name: partial(_one, cluster, name) for name in cluster.hosts
    }
    # Each step has its own deadline; a host that outlives all of them is told as such.
    steps = 2 * cluster.timeouts.connect + 2 * cluster.timeouts.command
    return {
        name: [Need(State.MISSING, f"{name}: SSH", str(found))]
        if isinstance(found, LabError)
        else found
        for name, found in in_parallel(jobs, timeout=steps).items()
    }


def _one(cluster: Cluster, name: str) -> list[Need]:
    tcp = _tcp(cluster, name)
    what = f"{name}: SSH"
    with RemoteHost.of_cluster(cluster, name) as host:
        began = time.monotonic()
        try:
            host.connect()
        except LabError as error:
            if tcp is not None and tcp.state is State.MISSING:
                return [tcp]  # says it all
            id_ = _IDS.get(type(error), "host.unreachable")
            failed = Need(State.MISSING, what, str(error), CATALOGUE[id_].fix)
            return [failed] if tcp is None else [tcp, failed]
        login = ok(what, f"{host.where}, {time.monotonic() - began:.2f} s")
        # That our container can be started is seen by starting it.
        starts_later = isinstance(cluster.runtime_of(name), DockerRunRuntime)
        place = host.outside() if starts_later else host
        # A way through ~/.ssh/config needs no direct one.
        return [login, _python(place, cluster)]


def _tcp(cluster: Cluster, name: str) -> Need | None:
    """A plain connection to the SSH port; None where the way goes through a jump host."""
    ssh, host = cluster.ssh_of(name), cluster.hosts[name]
    if ssh.jump is not None:
        return None
    address = host.ssh_address or host.address
    what = f"{name}: TCP"
    try:
        with socket.create_connection((address, ssh.port), timeout=cluster.timeouts.connect):
            return ok(what, f"{address}:{ssh.port} accepts")
    except OSError as error:
        why = error.strerror or str(error)
        get = f"is the address right, sshd running, port {ssh.port} open in firewalls on the way?"
        return Need(State.MISSING, what, f"{address}:{ssh.port}: {why}", get)


def _python(host: RemoteHost, cluster: Cluster) -> Need:
    what = f"{host.name}: Python"
    get = "install Python 3.8 or newer there, or name it: `python: /path/to/python3`"
    try:
        done = host.python(_VERSION, timeout=cluster.timeouts.command)
    except LabError as error:
        return Need(State.MISSING, what, str(error), get)
    version = done.stdout.strip()
    parts = tuple(int(part) for part in version.split(".") if part.isdigit())
    if done.exit_code != 0 or len(parts) != 3:
        said = (done.stderr.strip() or version).splitlines()
        return Need(State.MISSING, what, f"{cluster.python}: {said[-1] if said else 'fails'}", get)
    if parts < OLDEST_PYTHON:
        return Need(State.MISSING, what, version, get)
    return ok(what, version)


def knows(cluster: Cluster, name: str) -> bool | None:
    """Whether the host's key is in known_hosts; None if the file cannot be read."""
    ssh, host = cluster.ssh_of(name), cluster.hosts[name]
    address = host.ssh_address or host.address
    entry = address if ssh.port == 22 else f"[{address}]:{ssh.port}"
    own = ssh.known_hosts or Path("~/.ssh/known_hosts").expanduser()
    files = [own] if ssh.known_hosts else [Path("/etc/ssh/ssh_known_hosts"), own]
    keys = paramiko.HostKeys()
    for file in files:
        try:
            keys.load(str(file))
        except FileNotFoundError:
            continue
        except (OSError, paramiko.SSHException):
            return None
    return keys.lookup(entry) is not None
