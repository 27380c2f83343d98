"""What devices answered about their addresses, in the form that a rank table is made of."""

from __future__ import annotations

from pd_validate.facts.hosts import ClusterFacts, DeviceFacts
from pd_validate.ranktable import DeviceAddress
from pd_validate.spec.models import Cluster
from pd_validate.spec.profiles import profile_of


def device_addresses(cluster: Cluster, facts: ClusterFacts) -> list[DeviceAddress]:
    """Every device whose address could be read: `-ip` on A2, `-vnic` and spod-info on A3."""
    super_pod = profile_of(cluster).super_pod
    addresses = []
    for name, host in facts.hosts.items():
        for device in host.devices.values():
            address = _address(device, super_pod=super_pod)
            spod = device.spod.value
            if address is None:
                continue
            addresses.append(
                DeviceAddress(
                    host=name,
                    server_id=cluster.hosts[name].address,
                    device_id=device.device,
                    device_ip=address,
                    super_pod_id=None if spod is None else str(spod.pod),
                    super_device_id=None if spod is None else str(spod.sdid),
                )
            )
    return addresses


def _address(device: DeviceFacts, *, super_pod: bool) -> str | None:
    if super_pod:
        return None if device.vnic.value is None else str(device.vnic.value.address.ip)
    first = None if device.ip.value is None else device.ip.value.first
    return None if first is None else str(first.ip)
