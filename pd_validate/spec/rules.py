"""Rules of the cluster file that need more than one value of it.

Each contradiction names the value to change by its path in the document; `load.py`
turns that into file, line and column. Rules whose breach still gives a plan that can
be looked at (versions, scheduler, agreement of prefill and decode …) are not here:
they are findings, see `checks/plan.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.placeholders import unknown_placeholders
from pd_validate.spec.ports import port_clashes, port_plan
from pd_validate.spec.profiles import PROFILES, devices_of
from pd_validate.spec.source import KeyPath
from pd_validate.spec.wording import counted, did_you_mean, one_of

PROXY_NAME = "proxy"  # processes are told apart by name, logs are named after them
# Names that a run has for itself: the proxy's, and the agent's and its watch (hosts/agent.py).
OWN_NAMES = (PROXY_NAME, "agent", "watch")


@dataclass(frozen=True)
class Contradiction:
    """Something the file says that cannot be so; `at_key` points at the key, not the value."""

    path: KeyPath
    message: str
    at_key: bool = False


def contradictions(cluster: Cluster) -> Iterator[Contradiction]:
    """All of them. A rule that builds on another is silent where that one already speaks."""
    if cluster.hardware not in PROFILES:
        advice = did_you_mean(cluster.hardware, PROFILES)
        yield Contradiction(
            ("hardware",),
            f"`hardware` must be {one_of(PROFILES)}, not `{cluster.hardware}`{advice}",
        )
        return
    yield from _host_references(cluster)
    yield from _addresses(cluster)
    yield from _roles(cluster)
    yield from _host_devices(cluster)
    yield from _instance_devices(cluster)
    yield from _shared_devices(cluster)
    yield from _ports(cluster)
    yield from _proxy_command(cluster)


def _host_references(cluster: Cluster) -> Iterator[Contradiction]:
    hosts = list(cluster.hosts)
    for name in OWN_NAMES:
        if name in cluster.instances:
            yield Contradiction(
                ("instances", name),
                f"`{name}` is the name of a process of our own; call the instance something else",
                at_key=True,
            )
    for name, spec in cluster.instances.items():
        if spec.host not in cluster.hosts:
            yield Contradiction(
                ("instances", name, "host"),
                f"`{name}` is on host `{spec.host}`, which is not under `hosts:`"
                + (did_you_mean(spec.host, hosts) or f"; hosts are {', '.join(hosts)}"),
            )
    if cluster.proxy.host not in cluster.hosts:
        yield Contradiction(
            ("proxy", "host"),
            f"the proxy is on host `{cluster.proxy.host}`, which is not under `hosts:`"
            + (did_you_mean(cluster.proxy.host, hosts) or f"; hosts are {', '.join(hosts)}"),
        )


def _addresses(cluster: Cluster) -> Iterator[Contradiction]:
    owner: dict[str, str] = {}
    for name, host in cluster.hosts.items():
        first = owner.setdefault(host.address, name)
        if first != name:
            yield Contradiction(
                ("hosts", name, "address"),
                f"`{name}` has the same address as `{first}`, {host.address}; "
                "several instances may share one host",
            )
    loopback = {n: h.address for n, h in cluster.hosts.items() if ip_address(h.address).is_loopback}
    if len(loopback) < len(cluster.hosts):  # all of them: hosts simulated on one machine
        for name, address in loopback.items():
            yield Contradiction(
                ("hosts", name, "address"),
                f"`{name}` has the loopback address {address}, which the other hosts cannot reach",
            )


def _roles(cluster: Cluster) -> Iterator[Contradiction]:
    for role in Role:
        if not cluster.instances_of(role):
            yield Contradiction(
                ("instances",),
                f"no instance has `role: {role}`; a topology needs at least one",
                at_key=True,
            )


def _host_devices(cluster: Cluster) -> Iterator[Contradiction]:
    profile = PROFILES[cluster.hardware]
    for name, host in cluster.hosts.items():
        seen: set[int] = set()
        for index, device in enumerate(host.devices or ()):
            path = ("hosts", name, "devices", index)
            if device >= profile.devices:
                yield Contradiction(
                    path,
                    f"`{name}` cannot have device {device}: {profile.name} has "
                    f"0 to {profile.devices - 1}",
                )
            if device in seen:
                yield Contradiction(path, f"device {device} of `{name}` stands twice")
            seen.add(device)


def _instance_devices(cluster: Cluster) -> Iterator[Contradiction]:
    for name, spec in cluster.instances.items():
        engine = cluster.engine_of(name)
        wanted = engine.tensor_parallel * engine.data_parallel
        if len(spec.devices) != wanted:
            yield Contradiction(
                ("instances", name, "devices"),
                f"`{name}` has {counted(len(spec.devices), 'device')} and needs {wanted}: "
                f"tensor_parallel {engine.tensor_parallel} x data_parallel "
                f"{engine.data_parallel}",
            )
        if spec.host not in cluster.hosts:
            continue
        present = devices_of(cluster, spec.host)
        seen: set[int] = set()
        for index, device in enumerate(spec.devices):
            path = ("instances", name, "devices", index)
            if device not in present:
                yield Contradiction(
                    path,
                    f"host `{spec.host}` has no device {device}; "
                    f"it has {', '.join(map(str, present))}",
                )
            if device in seen:
                yield Contradiction(path, f"device {device} stands twice in `{name}`")
            seen.add(device)


def shared_devices(cluster: Cluster) -> Iterator[tuple[str, int, str, str]]:
    """(host, device, first instance, second instance) for each device that two want."""
    owner: dict[tuple[str, int], str] = {}
    for name, spec in cluster.instances.items():
        for device in spec.devices:
            first = owner.setdefault((spec.host, device), name)
            if first != name:
                yield spec.host, device, first, name


def _shared_devices(cluster: Cluster) -> Iterator[Contradiction]:
    for host, device, first, second in shared_devices(cluster):
        index = cluster.instances[second].devices.index(device)
        yield Contradiction(
            ("instances", second, "devices", index),
            f"device {device} of host `{host}` is already `{first}`'s; give `{second}` another one",
        )


def _ports(cluster: Cluster) -> Iterator[Contradiction]:
    for use in port_plan(cluster):
        if use.last > 65535:
            yield Contradiction(use.path, f"{use} goes beyond 65535; choose a lower base")
    for first, second in port_clashes(cluster):
        shared = first.shares(second)
        culprit = first if first.stated and not second.stated else second
        yield Contradiction(
            culprit.path,
            f"{second} and {first} both want port {shared[0]} of host `{first.host}`; "
            "give one of them another",
        )


def _proxy_command(cluster: Cluster) -> Iterator[Contradiction]:
    for index, argument in enumerate(cluster.proxy.command or ()):
        for problem in unknown_placeholders(argument):
            yield Contradiction(("proxy", "command", index), problem)
