"""What every check of hosts and NPUs looks at: the cluster's intent, and the facts.

Also how bad a fault is: of a device that an instance uses it is a failure, of an
unused one a warning, unless the cluster file says that every device must be well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pd_validate.facts.hosts import ClusterFacts, DeviceFacts, HostFacts
from pd_validate.facts.reading import Reading
from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import LaunchPlan
from pd_validate.spec.profiles import HardwareProfile, profile_of

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class View:
    """Intent and facts of one cluster. `plan` gives each instance's environment and ports."""

    cluster: Cluster
    plan: LaunchPlan
    facts: ClusterFacts

    @property
    def profile(self) -> HardwareProfile:
        return profile_of(self.cluster)

    @property
    def hosts(self) -> Iterator[HostFacts]:
        """Facts of the hosts that could be read."""
        yield from self.facts.hosts.values()

    @property
    def devices(self) -> Iterator[tuple[HostFacts, DeviceFacts]]:
        for host in self.hosts:
            for device in host.devices.values():
                yield host, device

    def counts(self, host: str, device: int) -> bool:
        """Whether a fault of this device is a failure: an instance uses it, or all must be well."""
        used = device in self.cluster.devices_used(host)
        return used or self.cluster.checks.devices == "all"

    def severity(self, host: str, device: int) -> Severity:
        return Severity.FAIL if self.counts(host, device) else Severity.WARN

    def roce_severity(self, host: str, device: int) -> Severity:
        """As `severity`; a warning where KV goes over HCCS and RoCE ports may well be unused."""
        return self.severity(host, device) if self.uses_roce else Severity.WARN

    @property
    def uses_roce(self) -> bool:
        """False on A3 inside one super pod: KV goes over vNIC addresses there.

        Unless HCCL was told to take RoCE all the same (vllm-ascend #14506).
        """
        told = any(
            self.environment(name).get("HCCL_INTRA_ROCE_ENABLE") == "1"
            for name in self.plan.instances
        )
        return not self.profile.super_pod or len(self.pods) > 1 or told

    def environment(self, instance: str) -> Mapping[str, str]:
        """What an instance will see: the plan's variables over those of a login on its host."""
        launch = self.plan.instances[instance]
        host = self.facts.hosts.get(launch.host)
        return {**(host.environment if host else {}), **launch.env}

    @property
    def pods(self) -> frozenset[int]:
        """Ids of the super pods that devices in use are in."""
        return frozenset(
            device.spod.value.pod
            for host, device in self.devices
            if self.counts(host.host, device.device) and device.spod.value is not None
        )

    def in_container(self, host: str) -> bool:
        return self.cluster.runtime_of(host).kind != "host"


def device_finding(
    identifier: str,
    host: HostFacts,
    device: DeviceFacts,
    severity: Severity,
    *readings: Reading[Any],
    **texts: Any,
) -> Finding:
    """A finding at one device, with the commands it rests on as evidence."""
    return Finding(
        id=identifier,
        severity=severity,
        where=Where(host=host.host, device=device.device),
        evidence=tuple(reading.output.evidence for reading in readings),
        **texts,
    )


def usual(values: Iterable[K], prefer: Callable[[K], Any] = str) -> K | None:
    """The most common value; of equally common ones that which `prefer` ranks lowest."""
    counted = Counter(values)
    if not counted:
        return None
    return min(counted, key=lambda value: (-counted[value], prefer(value)))


def listed(names: Iterable[Any], limit: int = 8) -> str:
    """`a, b, c and 5 more`."""
    items = [str(name) for name in names]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def grouped(values: Mapping[str, K]) -> str:
    """`UP on p1, d1; DOWN on d2`: who has which."""
    by_value: dict[K, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(value, []).append(name)
    return "; ".join(f"{value} on {listed(names)}" for value, names in by_value.items())
