"""The port plan: which TCP port each part of the topology listens on, per host.

Sources: vllm-ascend v0.10.1rc1, llmdatadist_c_mgr_connector.py (side channel: one port
per rank, base + offset); CANN's description of HCCL_IF_BASE_PORT (host ports of HCCL).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from pd_validate.spec.models import Cluster, InstanceSpec
from pd_validate.spec.source import KeyPath

HCCL_BASE_PORT = 60000  # HCCL_IF_BASE_PORT, if it is not set
HCCL_PORT_COUNT = 16  # host ports from the base on that HCCL may take


@dataclass(frozen=True)
class PortUse:
    """Ports `first`..`last` of `host` that one part of the plan listens on.

    `path` is where the cluster file sets them, or would: `stated` says which.
    """

    host: str
    first: int
    last: int
    owner: str  # instance name, or "proxy"
    purpose: str
    path: KeyPath = ()
    stated: bool = False

    def __str__(self) -> str:
        ports = f"port {self.first}" if self.first == self.last else f"ports {self.span}"
        return f"{self.owner}'s {self.purpose} ({ports})"

    @property
    def span(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def shares(self, other: PortUse) -> range:
        """The ports that both want; empty if none."""
        if self.host != other.host:
            return range(0)
        return range(max(self.first, other.first), min(self.last, other.last) + 1)


def side_channel_ports(base: int, *, tensor_parallel: int, data_parallel: int) -> range:
    """The ports an instance's ranks listen on for the connector's side channel.

    With data parallelism a rank takes base + dp_rank * TP + tp_rank. Without, vLLM leaves
    the local data-parallel rank unset and the connector takes base + TP + tp_rank.
    """
    if data_parallel > 1:
        return range(base, base + data_parallel * tensor_parallel)
    return range(base + tensor_parallel, base + 2 * tensor_parallel)


def side_channel_block(base: int, *, tensor_parallel: int, data_parallel: int) -> range:
    """All ports that an instance's ranks may take, counted from its base.

    Without data parallelism it depends on the versions which half is taken: a connector that
    knows a local data-parallel rank (0) starts at the base itself. So both must be free.
    """
    return range(base, base + max(2, data_parallel) * tensor_parallel)


def side_channel_base(cluster: Cluster, instance: str) -> int:
    """Base of the instance's side-channel ports (VLLM_ASCEND_LLMDD_RPC_PORT).

    The instance's own, if it states one; else the connector's, moved past what earlier
    instances on the same host take.
    """
    base = cluster.connector.side_channel_port
    for name, spec in cluster.instances_on(cluster.instances[instance].host).items():
        if name == instance:
            return base if spec.side_channel_port is None else spec.side_channel_port
        if spec.side_channel_port is None:
            engine = cluster.engine_of(name)
            base = side_channel_block(
                base,
                tensor_parallel=engine.tensor_parallel,
                data_parallel=engine.data_parallel,
            ).stop
    raise AssertionError(f"{instance} is not on its own host")


def side_channel_of(cluster: Cluster, instance: str) -> range:
    """The side-channel ports of an instance, one per rank."""
    engine = cluster.engine_of(instance)
    return side_channel_ports(
        side_channel_base(cluster, instance),
        tensor_parallel=engine.tensor_parallel,
        data_parallel=engine.data_parallel,
    )


def port_plan(cluster: Cluster) -> list[PortUse]:
    """Every port that instances and proxy listen on, in the order of the file."""
    return list(_port_uses(cluster))


def _port_uses(cluster: Cluster) -> Iterator[PortUse]:
    for name, spec in cluster.instances.items():
        api = range(spec.port, spec.port + 1)
        yield _instance_use(name, spec, api, "API", "port")
        side = side_channel_of(cluster, name)
        yield _instance_use(name, spec, side, "side channel", "side_channel_port")
    proxy = cluster.proxy
    stated = "port" in proxy.model_fields_set
    yield PortUse(proxy.host, proxy.port, proxy.port, "proxy", "API", ("proxy", "port"), stated)


def _instance_use(name: str, spec: InstanceSpec, ports: range, purpose: str, key: str) -> PortUse:
    path = ("instances", name, key)
    stated = key in spec.model_fields_set
    return PortUse(spec.host, ports[0], ports[-1], name, purpose, path, stated)


def port_clashes(cluster: Cluster) -> list[tuple[PortUse, PortUse]]:
    """Pairs of parts that want the same port of the same host, in the order of the file."""
    return [
        (first, second)
        for first, second in combinations(port_plan(cluster), 2)
        if first.shares(second)
    ]
