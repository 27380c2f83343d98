"""What the NPUs answered, in the form that a rank table needs."""

from __future__ import annotations

from collections.abc import Iterator

from pd_validate.facts.hosts import ClusterFacts, DeviceFacts
from pd_validate.ranktable import DeviceAddress
from pd_validate.spec.models import Cluster
from pd_validate.spec.profiles import profile_of


def device_addresses(cluster: Cluster, facts: ClusterFacts) -> list[DeviceAddress]:
    """Addresses of the NPUs that instances use; one that could not be read is left out."""
    return list(_addresses(cluster, facts))


def _addresses(cluster: Cluster, facts: ClusterFacts) -> Iterator[DeviceAddress]:
    super_pod = profile_of(cluster).super_pod
    for host in facts.hosts:
        for device in sorted(cluster.devices_used(host)):
            read = facts.device(host, device)
            ip = None if read is None else _ip(read, super_pod=super_pod)
            if read is None or ip is None:
                continue
            pod = read.spod.value if super_pod else None
            yield DeviceAddress(
                host=host,
                server_id=cluster.hosts[host].address,
                device_id=device,
                device_ip=ip,
                super_pod_id=None if pod is None else str(pod.pod),
                super_device_id=None if pod is None else str(pod.sdid),
            )


def _ip(device: DeviceFacts, *, super_pod: bool) -> str | None:
    """The vNIC's address inside a super pod, else the RoCE port's."""
    if super_pod:
        vnic = device.vnic.value
        return None if vnic is None else str(vnic.address.ip)
    addresses = device.ip.value
    first = None if addresses is None else addresses.first
    return None if first is None else str(first.ip)
