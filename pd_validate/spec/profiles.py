"""What is known of a kind of machine before it is asked: hardware profiles as data.

A cluster file names one (`hardware:`). The embedded cluster has none of its own: its
hosts answer like an Atlas 800T A2 or A3, so they are described like one.

Sources: Huawei's notes on NPU addresses for A2 and A3 (reserved nets), vllm-ascend
v0.10.1rc1: examples/disaggregated_prefill_v1/gen_ranktable.py (where device_ip comes
from), docs/source/tutorials/multi_node.md (what a container needs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pd_validate.spec.models import Cluster

_CANN_SCRIPTS = (
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
    "/usr/local/Ascend/nnal/atb/set_env.sh",
)
_MANAGEMENT_NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
_DRIVER_MOUNTS = (
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/tools/hccn_tool",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
    # Without it the KV transport finds no device address: first token right, then garbage.
    "/etc/hccn.conf",
)


@dataclass(frozen=True)
class HardwareProfile:
    """One kind of machine. Devices are NPU dies, numbered by physical id from 0."""

    name: str
    product: Literal["A2", "A3"]
    devices: int  # NPU dies of one machine
    chips_per_card: int
    reserved_nets: tuple[str, ...]  # the driver uses them itself; no NPU address may lie there
    required_software: tuple[str, ...]  # names of `Expect` fields that every host must have
    setup: tuple[str, ...] = _CANN_SCRIPTS  # sourced before an engine starts, where they exist
    device_nodes: tuple[str, ...] = _MANAGEMENT_NODES  # a container needs them, besides davinciN
    mounts: tuple[str, ...] = _DRIVER_MOUNTS  # a container needs them, at the same path

    @property
    def cards(self) -> int:
        return self.devices // self.chips_per_card

    @property
    def super_pod(self) -> bool:
        """True if KV goes over vNIC addresses inside a super pod (A3), else over RoCE (A2)."""
        return self.product == "A3"

    def card_and_chip(self, device: int) -> tuple[int, int]:
        """Card and chip as npu-smi's -i and -c take them, of a physical device id."""
        return divmod(device, self.chips_per_card)


_ENGINE_SOFTWARE = ("driver", "firmware", "cann", "torch", "torch_npu", "vllm", "vllm_ascend")

_ATLAS_800T_A2 = HardwareProfile(
    name="atlas-800t-a2",
    product="A2",
    devices=8,
    chips_per_card=1,
    reserved_nets=("192.168.1.0/24", "192.168.2.0/24"),
    required_software=_ENGINE_SOFTWARE,
)
_ATLAS_800T_A3 = HardwareProfile(
    name="atlas-800t-a3",
    product="A3",
    devices=16,
    chips_per_card=2,
    reserved_nets=("192.168.1.0/24", "192.0.0.0/8"),
    required_software=_ENGINE_SOFTWARE,
)

PROFILES: Mapping[str, HardwareProfile] = MappingProxyType(
    {profile.name: profile for profile in (_ATLAS_800T_A2, _ATLAS_800T_A3)}
)


def profile_of(cluster: Cluster) -> HardwareProfile:
    """The profile that `hardware:` names. KeyError if there is none (`load_cluster` refuses it)."""
    return PROFILES[cluster.hardware]


def devices_of(cluster: Cluster, host: str) -> tuple[int, ...]:
    """Physical ids of all NPUs of `host`: what the file says, else all that the profile has."""
    stated = cluster.hosts[host].devices
    return tuple(range(profile_of(cluster).devices)) if stated is None else stated
