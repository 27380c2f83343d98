"""The rank table of vllm-ascend's LLM-DataDist connector: make one, read one, say who picks what.

It is not an HCCL rank table: two lists of devices, one per role. Format and selection
are those of vllm-ascend v0.10.1rc1 (examples/disaggregated_prefill_v1/gen_ranktable.py
and vllm_ascend/distributed/llmdatadist_c_mgr_connector.py, `read_agent_metadata`), the
choice of devices (`--local-device-ids`) that of its commits 51f3228452 and a746f8274f.

Pure: addresses come from the readers in facts/, the file is placed by topology/.
What is wrong with a table: `checks/ranktable.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pd_validate.errors import LabError
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.profiles import profile_of

LIST_OF = {Role.PREFILL: "prefill_device_list", Role.DECODE: "decode_device_list"}
FIELDS = ("server_id", "device_id", "device_ip", "cluster_id")
A3_FIELDS = ("super_pod_id", "super_device_id")


@dataclass(frozen=True)
class DeviceAddress:
    """What a device answers about itself, as the rank table needs it.

    `server_id` is the host's address as vLLM reports it; `device_ip` is `hccn_tool -ip`
    on A2 and `hccn_tool -vnic` on A3; the super pod's ids (A3 only) are `Super Pod ID`
    and `SDID` of `npu-smi info -t spod-info`.
    """

    host: str
    server_id: str
    device_id: int  # physical
    device_ip: str
    super_pod_id: str | None = None
    super_device_id: str | None = None

    def entry(self, cluster_id: int) -> dict[str, str]:
        """The device's entry in a rank table, keys in the generator's order."""
        entry = {
            "server_id": self.server_id,
            "device_id": str(self.device_id),
            "device_ip": self.device_ip,
        }
        if self.super_pod_id is not None and self.super_device_id is not None:
            entry["super_pod_id"] = self.super_pod_id
            entry["super_device_id"] = self.super_device_id
        return entry | {"cluster_id": str(cluster_id)}


@dataclass(frozen=True)
class Seat:
    """The device that the plan gives to one rank, and the address vLLM reports there."""

    instance: str
    role: Role
    rank: int  # DP rank * TP + TP rank
    tp_rank: int
    host: str
    server_id: str
    device: int  # physical
    visible: tuple[int, ...]  # devices its engine sees, in order


def seats(cluster: Cluster) -> list[Seat]:
    """Every rank of every instance: prefillers first, each side in the order of the file."""
    return [
        Seat(
            instance=name,
            role=role,
            rank=rank,
            tp_rank=rank % tp,
            host=spec.host,
            server_id=cluster.hosts[spec.host].address,
            device=device,
            # With data parallelism vLLM shows each engine its own devices only.
            visible=spec.devices[rank - rank % tp :][:tp],
        )
        for role in Role
        for name, spec in cluster.instances_of(role).items()
        for tp in [cluster.engine_of(name).tensor_parallel]
        for rank, device in enumerate(spec.devices)
    ]


def generate(cluster: Cluster, addresses: Iterable[DeviceAddress]) -> dict[str, Any]:
    """The rank table of the cluster, from what its devices answered.

    Devices of prefillers first, then of decoders, in rank order; cluster_id counts from 1
    over all of them; server_count is the number of hosts with an instance.

    Raises LabError naming the first device that has no answer to put into the table.
    """
    known = {(address.host, address.device_id): address for address in addresses}
    lists: dict[Role, list[dict[str, str]]] = {role: [] for role in Role}
    taken = seats(cluster)
    for cluster_id, seat in enumerate(taken, start=1):
        address = known.get((seat.host, seat.device))
        _require(address, seat, super_pod=profile_of(cluster).super_pod)
        assert address is not None
        lists[seat.role].append(address.entry(cluster_id))
    return {
        "version": "1.2",
        "server_count": str(len({seat.host for seat in taken})),
        LIST_OF[Role.PREFILL]: lists[Role.PREFILL],
        LIST_OF[Role.DECODE]: lists[Role.DECODE],
        "status": "completed",
    }


def _require(address: DeviceAddress | None, seat: Seat, *, super_pod: bool) -> None:
    device = f"device {seat.device} of {seat.host} ({seat.instance} rank {seat.rank})"
    if address is None or not address.device_ip:
        command = f"hccn_tool -i {seat.device} {'-vnic' if super_pod else '-ip'} -g"
        raise LabError(
            f"no rank table: {device} has no IP address; see what `{command}` says on {seat.host}"
        )
    if super_pod and not (address.super_pod_id and address.super_device_id):
        raise LabError(
            f"no rank table: {device} says no super pod id or SDID; "
            f"see `npu-smi info -t spod-info` on {seat.host}"
        )


def render(table: Mapping[str, Any]) -> bytes:
    """The table as the generator writes it to a file, byte for byte."""
    return json.dumps(table, indent=4).encode()


def parse(data: bytes) -> dict[str, Any]:
    """A rank table file's JSON object. Raises ValueError, with the place, if it is none."""
    table = json.loads(data.decode("utf-8"))
    if not isinstance(table, dict):
        raise ValueError(f"the top is {type(table).__name__}, not an object")
    return table


@dataclass(frozen=True)
class Pick:
    """The entry that a rank takes from a table."""

    server_id: str
    device_id: str
    device_ip: str
    cluster_id: int


def picks(
    table: Mapping[str, Any],
    role: Role,
    *,
    server_id: str,
    visible_devices: str | None,
    tp_rank: int,
) -> Pick | None:
    """What the connector takes for a rank, None if it finds nothing and the engine dies.

    From the role's list it keeps the entries whose server_id is the address vLLM reports
    and whose device_id is, as text, in ASCEND_RT_VISIBLE_DEVICES split at commas ("6, 7"
    does not contain "7"; unset or empty: all), and takes the tp_rank-th of them.

    The table's entries must have the keys of FIELDS (`checks/ranktable.py` sees to it).
    """
    visible = visible_devices.split(",") if visible_devices else None
    candidates = [
        entry
        for entry in table[LIST_OF[role]]
        if entry["server_id"] == server_id and (visible is None or entry["device_id"] in visible)
    ]
    if tp_rank >= len(candidates):
        return None
    entry = candidates[tp_rank]
    return Pick(
        entry["server_id"], entry["device_id"], entry["device_ip"], int(entry["cluster_id"])
    )


def visible_text(devices: Sequence[int]) -> str:
    """A value of ASCEND_RT_VISIBLE_DEVICES."""
    return ",".join(str(device) for device in devices)


def describe(cluster: Cluster, table: Mapping[str, Any]) -> list[str]:
    """One line per rank: the device it runs on and the entry it picks. For people."""
    lines = []
    for seat in seats(cluster):
        pick = picks(
            table,
            seat.role,
            server_id=seat.server_id,
            visible_devices=visible_text(seat.visible),
            tp_rank=seat.tp_rank,
        )
        picked = (
            "picks nothing"
            if pick is None
            else f"picks device {pick.device_id}, {pick.device_ip}, cluster id {pick.cluster_id}"
        )
        lines.append(f"{seat.instance} rank {seat.rank} on {seat.host} npu{seat.device}: {picked}")
    return lines
