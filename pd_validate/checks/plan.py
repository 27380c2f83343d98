"""What is wrong with a launch plan, before anything is started: pure checks.

Judged is what counts in the end: options as vLLM's parser takes them (the last of equal
ones wins) and variables after the cluster file's `env:` went over the plan's own. What
makes a cluster file unusable (`spec/rules.py`) is refused earlier; device and port
clashes are checked here again, because `args:` and `env:` can bring them back.

Sources: vllm-ascend v0.10.1rc1 (core/schedule_config.py, envs.py,
distributed/llmdatadist_c_mgr_connector.py); CANN 8 environment variable reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.arguments import integer, json_object, options
from pd_validate.spec.models import Cluster, Role
from pd_validate.spec.plan import (
    RPC_PORT,
    VISIBLE_DEVICES,
    InstanceLaunch,
    LaunchPlan,
)
from pd_validate.spec.ports import (
    HCCL_BASE_PORT,
    HCCL_PORT_COUNT,
    PortUse,
    side_channel_ports,
)
from pd_validate.spec.profiles import profile_of
from pd_validate.spec.rules import PROXY_NAME, shared_devices

EPHEMERAL_PORTS = range(32768, 61000)  # Linux: net.ipv4.ip_local_port_range
MOONCAKE_BASE_PORT = 20000  # its transport listens on random ports, 1000 per NPU, from here

# Options that must have one value on all instances. Other connectors check some of them
# at the handshake, LLM-DataDist none.
_MUST_AGREE = (
    "--max-model-len",  # a decoder that takes less refuses what was prefilled
    "--dtype",
    "--block-size",
    "--kv-cache-dtype",
    "--quantization",
    "--served-model-name",  # the proxy sends the same request to both
    "--revision",
    "--tokenizer",
    "--chat-template",
    "--hf-overrides",
)
_SHOULD_AGREE = ("--seed",)  # matters for sampled answers only

# Variables that change what is computed or how KV travels, and so must agree.
_ENV_MUST_AGREE = ("HCCL_INTRA_ROCE_ENABLE", "HCCL_INTRA_PCIE_ENABLE", "VLLM_USE_V1")
_ENV_SHOULD_AGREE = ("HCCL_DETERMINISTIC", "LCCL_DETERMINISTIC", "CLOSE_MATMUL_K_SHIFT")

# Names that vllm-ascend v0.10.1rc1 no longer reads (commit 73acdcfc3b), though its README
# and test scripts still set them.
_RENAMED = {
    "VLLM_LLMDD_RPC_PORT": RPC_PORT,
    "VLLM_LLMDD_RPC_IP": "VLLM_ASCEND_LLMDD_RPC_IP",
}

# Lowest and highest value that works.
_RANGES = {
    RPC_PORT: (1, 65535),
    "HCCL_IF_BASE_PORT": (1024, 65520),
    "OMP_NUM_THREADS": (1, 1024),
}


@dataclass(frozen=True)
class ModelShape:
    """What decides which TP sizes fit together, from the model's config.json."""

    kv_heads: int
    mla: bool  # multi-head latent attention: every rank holds the same KV

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """From the content of config.json; None if it does not say."""
        heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
        if not isinstance(heads, int):
            return None
        return cls(kv_heads=heads, mla=config.get("kv_lora_rank") is not None)


def check_plan(
    cluster: Cluster, plan: LaunchPlan, model: ModelShape | None = None
) -> list[Finding]:
    """All findings about the plan. Without `model`, unequal TP sizes are `unknown`."""
    return [
        *device_overlap(cluster),
        *port_clash(plan),
        *port_range(cluster, plan),
        *role(plan),
        *tensor_parallel(cluster, plan, model),
        *agreement(plan),
        *engine_ids(cluster, plan),
        *scheduler(plan),
        *renamed_variables(plan),
        *variable_ranges(plan),
        *variable_agreement(cluster, plan),
    ]


def _where(launch: InstanceLaunch, **more: Any) -> Where:
    return Where(host=launch.host, instance=launch.name, **more)


def device_overlap(cluster: Cluster) -> Iterator[Finding]:
    """plan.device-overlap"""
    for host, device, first, second in shared_devices(cluster):
        yield Finding(
            id="plan.device-overlap",
            where=Where(host=host, device=device, instance=second, peer_instance=first),
            expected="one instance on each device",
            got=f"{first} and {second} both on device {device}",
        )


def listeners(plan: LaunchPlan) -> list[PortUse]:
    """Every port that the plan's processes will really listen on."""
    return [use for launch in plan.instances.values() for use in _listeners_of(launch)] + [
        PortUse(plan.proxy.host, plan.proxy.port, plan.proxy.port, PROXY_NAME, "API")
    ]


def _listeners_of(launch: InstanceLaunch) -> Iterator[PortUse]:
    found = options(launch.argv)
    api = integer(found, "--port", launch.port)
    if api is not None:
        yield PortUse(launch.host, api, api, launch.name, "API")
    ports = _side_channel(launch)
    if ports:
        yield PortUse(launch.host, ports[0], ports[-1], launch.name, "side channel")


def _side_channel(launch: InstanceLaunch) -> Sequence[int]:
    """The ports that the variable in the environment gives; the plan's if it is not set."""
    base = launch.env.get(RPC_PORT)
    if base is None:
        return launch.side_channel_ports
    if not base.isdecimal():
        return ()  # env.range says so
    return side_channel_ports(
        int(base),
        tensor_parallel=launch.engine.tensor_parallel,
        data_parallel=launch.engine.data_parallel,
    )


def port_clash(plan: LaunchPlan) -> Iterator[Finding]:
    """plan.port-clash"""
    for first, second in combinations(listeners(plan), 2):
        shared = first.shares(second)
        if shared:
            yield Finding(
                id="plan.port-clash",
                where=Where(
                    host=first.host,
                    port=shared[0],
                    instance=None if second.owner == PROXY_NAME else second.owner,
                    peer_instance=first.owner,
                ),
                expected="each port for one listener",
                got=f"{first} and {second}",
            )


def port_range(cluster: Cluster, plan: LaunchPlan) -> Iterator[Finding]:
    """plan.port-range: out of bounds, or where something else takes ports at random."""
    for use in listeners(plan):
        where = Where(
            host=use.host,
            port=use.first,
            instance=None if use.owner == PROXY_NAME else use.owner,
        )
        hccl = _hccl_ports(plan, use)
        if use.last > 65535:
            yield Finding(
                id="plan.port-range",
                where=where,
                expected="ports up to 65535",
                got=str(use),
            )
        elif hccl is not None:
            yield Finding(
                id="plan.port-range",
                where=where,
                expected=f"no port in {hccl[0]}-{hccl[-1]}, where HCCL listens",
                got=str(use),
            )
        elif use.first in EPHEMERAL_PORTS or use.last in EPHEMERAL_PORTS:
            yield Finding(
                id="plan.port-range",
                severity=Severity.WARN,
                where=where,
                expected=f"no port in {EPHEMERAL_PORTS[0]}-{EPHEMERAL_PORTS[-1]}, which the "
                "kernel gives to outgoing connections",
                got=str(use),
            )
    yield from _mooncake_port(cluster, plan)


def _hccl_ports(plan: LaunchPlan, use: PortUse) -> range | None:
    """HCCL's ports that `use` collides with, of any instance on the same host."""
    for launch in plan.instances.values():
        if launch.host != use.host or "HCCL_HOST_SOCKET_PORT_RANGE" in launch.env:
            continue
        base = launch.env.get("HCCL_IF_BASE_PORT", str(HCCL_BASE_PORT))
        if base.isdecimal():
            ports = range(int(base), int(base) + HCCL_PORT_COUNT)
            if use.first <= ports[-1] and use.last >= ports[0]:
                return ports
    return None


def _mooncake_port(cluster: Cluster, plan: LaunchPlan) -> Iterator[Finding]:
    connector = cluster.connector
    if "mooncake" not in (connector.name or "").lower() or not connector.kv_port.isdecimal():
        return
    first_free = MOONCAKE_BASE_PORT + 1000 * profile_of(cluster).devices
    if MOONCAKE_BASE_PORT <= int(connector.kv_port) < first_free:
        for launch in plan.instances.values():
            yield Finding(
                id="plan.port-range",
                where=_where(launch, port=int(connector.kv_port)),
                expected=f"kv_port from {first_free} on: Mooncake's transport takes random "
                f"ports of {MOONCAKE_BASE_PORT}-{first_free - 1}",
                got=f"kv_port {connector.kv_port}",
            )


def role(plan: LaunchPlan) -> Iterator[Finding]:
    """plan.role"""
    for launch in plan.instances.values():
        config = json_object(options(launch.argv), "--kv-transfer-config")
        kv_role = config.get("kv_role")
        if kv_role != launch.role.kv_role:
            yield Finding(
                id="plan.role",
                where=_where(launch),
                expected=f"kv_role {launch.role.kv_role} for role {launch.role}",
                got=f"kv_role {kv_role}" if config else "no readable --kv-transfer-config",
            )


def tensor_parallel(
    cluster: Cluster, plan: LaunchPlan, model: ModelShape | None
) -> Iterator[Finding]:
    """plan.tp: devices for every rank, and TP sizes that the connector can serve."""
    sizes: dict[str, int] = {}
    for launch in plan.instances.values():
        found = options(launch.argv)
        tp = integer(found, "--tensor-parallel-size", 1)
        dp = integer(found, "--data-parallel-size", 1)
        if tp is None or dp is None or tp * dp != len(launch.devices):
            yield Finding(
                id="plan.tp",
                where=_where(launch),
                expected=f"TP x DP = {len(launch.devices)}, one rank per device",
                got=f"TP {found.get('--tensor-parallel-size')} x DP "
                f"{found.get('--data-parallel-size', '1')}",
            )
        else:
            sizes[launch.name] = tp
    if cluster.connector.kind != "module":
        yield from _unequal_tp(cluster, plan, sizes, model)


def _unequal_tp(
    cluster: Cluster, plan: LaunchPlan, sizes: Mapping[str, int], model: ModelShape | None
) -> Iterator[Finding]:
    for prefill, decode in _pairs(plan):
        p_tp, d_tp = sizes.get(prefill.name), sizes.get(decode.name)
        if p_tp is None or d_tp is None or p_tp == d_tp:
            continue
        fits = _fits(cluster, p_tp, d_tp, model)
        if fits is True:
            continue
        yield Finding(
            id="plan.tp",
            severity=Severity.UNKNOWN if fits is None else Severity.FAIL,
            where=_where(decode, peer_instance=prefill.name, peer_host=prefill.host),
            expected=f"TP {p_tp}, as {prefill.name}: whole KV blocks are copied rank by rank",
            got=f"TP {d_tp}"
            + ("; the model's number of KV heads is not known" if fits is None else ""),
        )


def _fits(cluster: Cluster, p_tp: int, d_tp: int, model: ModelShape | None) -> bool | None:
    """Whether a decoder rank finds its KV heads on a prefiller rank; None if unknown."""
    if model is None:
        return None
    if model.mla:
        return True
    # vllm-ascend's pulls from rank tp_rank % P's TP, which is right for equal sizes only.
    return cluster.connector.kind == "ours" and min(p_tp, d_tp) >= model.kv_heads


def _pairs(plan: LaunchPlan) -> Iterator[tuple[InstanceLaunch, InstanceLaunch]]:
    for prefill in plan.instances.values():
        for decode in plan.instances.values():
            if prefill.role is Role.PREFILL and decode.role is Role.DECODE:
                yield prefill, decode


def agreement(plan: LaunchPlan) -> Iterator[Finding]:
    """plan.pd-mismatch: the instances that differ from the most."""
    for severity, names in ((Severity.FAIL, _MUST_AGREE), (Severity.WARN, _SHOULD_AGREE)):
        for name in names:
            values = {
                launch.name: options(launch.argv).get(name) or "not set"
                for launch in plan.instances.values()
            }
            yield from _deviating(plan, "plan.pd-mismatch", severity, name, values)
    models = {launch.name: launch.argv[2] for launch in plan.instances.values()}
    yield from _deviating(plan, "plan.pd-mismatch", Severity.FAIL, "model", models)


def _deviating(
    plan: LaunchPlan, id_: str, severity: Severity, name: str, values: Mapping[str, str]
) -> Iterator[Finding]:
    usual, _ = Counter(values.values()).most_common(1)[0]  # the first instance's, on a tie
    peer = next(instance for instance, value in values.items() if value == usual)
    for instance, value in values.items():
        if value != usual:
            yield Finding(
                id=id_,
                severity=severity,
                where=_where(plan.instances[instance], peer_instance=peer),
                expected=f"{name} {usual}, as {peer}",
                got=f"{name} {value}",
            )


def engine_ids(cluster: Cluster, plan: LaunchPlan) -> Iterator[Finding]:
    """plan.engine-id. vllm-ascend's connector of v0.10.1rc1 looks up by cluster id, so the
    guide's "0" for all works there and is a warning; others find the wrong peer.
    """
    owner: dict[object, str] = {}
    severity = Severity.WARN if cluster.connector.kind == "vllm-ascend" else Severity.FAIL
    for launch in plan.instances.values():
        config = json_object(options(launch.argv), "--kv-transfer-config")
        identity = config.get("engine_id")
        if identity is None:
            continue  # vLLM makes a random one
        first = owner.setdefault(identity, launch.name)
        if first != launch.name:
            yield Finding(
                id="plan.engine-id",
                severity=severity,
                where=_where(launch, peer_instance=first),
                expected="an engine_id of its own",
                got=f'engine_id "{identity}", as {first}',
            )


def scheduler(plan: LaunchPlan) -> Iterator[Finding]:
    """plan.scheduler: the Ascend scheduler without chunked prefill refuses to start."""
    for launch in plan.instances.values():
        found = options(launch.argv)
        config = json_object(found, "--additional-config").get("ascend_scheduler_config")
        if not isinstance(config, dict) or not config.get("enabled"):
            continue
        length = integer(found, "--max-model-len", 0)
        batched = integer(found, "--max-num-batched-tokens", 0)
        if config.get("enable_chunked_prefill") or length is None or batched is None:
            continue
        if batched < length:
            yield Finding(
                id="plan.scheduler",
                where=_where(launch),
                expected=f"max_num_batched_tokens of at least max_model_len, {length}",
                got=f"max_num_batched_tokens {batched}, without chunked prefill",
            )


def renamed_variables(plan: LaunchPlan) -> Iterator[Finding]:
    """env.renamed"""
    for launch in plan.instances.values():
        for old, new in _RENAMED.items():
            if old in launch.env:
                yield Finding(
                    id="env.renamed",
                    where=_where(launch),
                    expected=new,
                    got=f"{old}={launch.env[old]}, which nothing reads",
                    hint=f"Rename it to {new} in the cluster file.",
                )


def variable_ranges(plan: LaunchPlan) -> Iterator[Finding]:
    """env.range"""
    for launch in plan.instances.values():
        for name, (low, high) in _RANGES.items():
            value = launch.env.get(name)
            if value is None or (value.isdecimal() and low <= int(value) <= high):
                continue
            yield Finding(
                id="env.range",
                where=_where(launch),
                expected=f"{name} from {low} to {high}",
                got=f"{name}={value!r}",
            )


def variable_agreement(cluster: Cluster, plan: LaunchPlan) -> Iterator[Finding]:
    """env.mismatch: against the plan on one instance, and between instances."""
    for launch in plan.instances.values():
        address = cluster.hosts[launch.host].address
        nic = launch.env.get("HCCL_SOCKET_IFNAME")
        planned = {
            VISIBLE_DEVICES: ",".join(str(device) for device in launch.devices),
            "HCCL_IF_IP": address,
            "VLLM_HOST_IP": address,
            "GLOO_SOCKET_IFNAME": nic,
            "TP_SOCKET_IFNAME": nic,
        }
        for name, expected in planned.items():
            value = launch.env.get(name)
            if value != expected:
                yield Finding(
                    id="env.mismatch",
                    where=_where(launch),
                    expected=f"{name}={expected}",
                    got=f"{name}={value!r}",
                )
    for severity, names in ((Severity.FAIL, _ENV_MUST_AGREE), (Severity.WARN, _ENV_SHOULD_AGREE)):
        for name in names:
            values = {
                launch.name: launch.env.get(name, "not set") for launch in plan.instances.values()
            }
            yield from _deviating(plan, "env.mismatch", severity, name, values)
