"""Read the offline rank table and describe one P-D link for HCCL.

The file is vllm-ascend's (`gen_ranktable.py`): `prefill_device_list` and
`decode_device_list` of {server_id, device_id, device_ip, cluster_id, super_pod_id?,
super_device_id?}. Nothing here judges the table; the harness does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from connector.errors import ConnectorConfigError

Role = Literal["prefill", "decode"]


class Agent(msgspec.Struct, frozen=True):
    """One NPU of the rank table, as both ends of a link know it."""

    server_id: str
    device_id: str
    device_ip: str
    cluster_id: int
    super_pod_id: str | None = None
    super_device_id: str | None = None


def read_agents(path: str, role: Role) -> list[Agent]:
    """The devices of one role in the table's order.

    Raises ConnectorConfigError when the file is missing or is not a rank table.
    """
    key = f"{role}_device_list"
    try:
        devices = json.loads(Path(path).read_text(encoding="utf-8"))[key]
        return [_agent(device) for device in devices]
    except OSError as error:
        raise ConnectorConfigError(f"rank table {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConnectorConfigError(
            f"rank table {path}: {key} is not readable: {type(error).__name__}: {error}"
        ) from error


def _agent(device: dict[str, Any]) -> Agent:
    return Agent(
        server_id=str(device["server_id"]),
        device_id=str(device["device_id"]),
        device_ip=str(device["device_ip"]),
        cluster_id=int(device["cluster_id"]),
        super_pod_id=device.get("super_pod_id"),
        super_device_id=device.get("super_device_id"),
    )


def local_agent(
    agents: Sequence[Agent], server_id: str, visible_devices: Sequence[str], tp_rank: int
) -> Agent:
    """This worker's entry: the `tp_rank`-th visible device of this server.

    Raises ConnectorConfigError when there is none.
    """
    mine = [
        agent
        for agent in agents
        if agent.server_id == server_id
        and (not visible_devices or agent.device_id in visible_devices)
    ]
    if tp_rank >= len(mine):
        listed = ", ".join(f"{a.server_id} device {a.device_id}" for a in agents) or "nothing"
        visible = ",".join(visible_devices) or "all"
        raise ConnectorConfigError(
            f"the rank table has no device for TP rank {tp_rank} of server {server_id} "
            f"(visible devices: {visible}); for this role it lists {listed}. "
            "Check VLLM_HOST_IP, ASCEND_RT_VISIBLE_DEVICES and the table on this host."
        )
    return mine[tp_rank]


def link_rank_table(prefill: Agent, decode: Agent) -> str:
    """The two-rank table (JSON) that `LLMDataDist.link` takes: prefiller rank 0, decoder rank 1."""
    servers: dict[str, dict[str, Any]] = {}
    for rank, agent in enumerate((prefill, decode)):
        device = {
            "device_id": agent.device_id,
            "device_ip": agent.device_ip,
            "super_device_id": agent.super_device_id,
            "rank_id": str(rank),
        }
        server = servers.setdefault(agent.server_id, {"device": [], "server_id": agent.server_id})
        server["device"].append({k: v for k, v in device.items() if v is not None})
    table: dict[str, Any] = {
        "version": "1.2",
        "server_count": str(len(servers)),
        "status": "completed",
        "server_list": list(servers.values()),
    }
    if prefill.super_pod_id is not None and prefill.super_device_id is not None:
        table["super_pod_list"] = _super_pods(prefill, decode)
    return json.dumps(table)


def _super_pods(prefill: Agent, decode: Agent) -> list[dict[str, Any]]:
    pods: dict[str | None, list[str]] = {}
    for agent in (prefill, decode):
        members = pods.setdefault(agent.super_pod_id, [])
        if agent.server_id not in members:
            members.append(agent.server_id)
    return [
        {"super_pod_id": pod, "server_list": [{"server_id": server} for server in members]}
        for pod, members in pods.items()
    ]
