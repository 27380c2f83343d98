"""The launch plan: environment, arguments and working directory of every process.

Pure: a Cluster in, a LaunchPlan out; nothing is read, connected to or started. With
`connector: {kind: vllm-ascend}` it is the guide's own environment and command line
(vllm-ascend v0.10.1rc1, 1P2D tutorial), in the guide's order, plus what the guide lacks:

- ASCEND_RT_VISIBLE_DEVICES: without it an engine with TP=2 takes NPUs 0 and 1 whatever
  the rank table says.
- VLLM_HOST_IP: the connector looks for vLLM's get_ip() in the rank table, and on a
  host with several networks that is the address of the default route.
- VLLM_ASCEND_LLMDD_RPC_PORT, where instances share a host or the file says so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from pd_validate.spec.models import Cluster, ConnectorSpec, EngineSpec, InstanceSpec, Role
from pd_validate.spec.placeholders import expanded, values_of
from pd_validate.spec.ports import side_channel_base, side_channel_of
from pd_validate.spec.profiles import profile_of
from pd_validate.spec.rules import PROXY_NAME

AuditLevel = Literal["off", "sample", "full"]

RPC_PORT = "VLLM_ASCEND_LLMDD_RPC_PORT"
RPC_IP = "VLLM_ASCEND_LLMDD_RPC_IP"
RANK_TABLE_PATH = "DISAGGREGATED_PREFILL_RANK_TABLE_PATH"
VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"

# Arguments: our code's directory or "", how many scripts, the scripts, the command. bash,
# because CANN's set_env.sh is written for it. The function hides our arguments from the
# scripts: some of them parse "$@".
_LAUNCHER = """
include() { if [ -f "$script" ]; then . "$script"; fi; }
code=$1 count=$2; shift 2
while [ "$count" -gt 0 ]; do script=$1; include; shift; count=$((count - 1)); done
if [ -n "$code" ]; then export PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}"; fi
exec "$@"
"""


@dataclass(frozen=True)
class Process:
    """One process of the topology. `argv` and `env` are what the guide would have one type.

    `command` is what is really executed: `argv`, after CANN's scripts were sourced and
    our code was put in front of the host's own PYTHONPATH.
    """

    name: str
    host: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    setup: tuple[str, ...] = ()  # scripts to source first, where they exist
    code: str | None = None  # directory to put in front of PYTHONPATH

    @property
    def command(self) -> tuple[str, ...]:
        if not self.setup and self.code is None:
            return self.argv
        return (
            *("bash", "-c", _LAUNCHER, "launch"),
            *(self.code or "", str(len(self.setup)), *self.setup),
            *self.argv,
        )


@dataclass(frozen=True)
class InstanceLaunch(Process):
    """An instance's process, and what others need to know of it."""

    role: Role = Role.PREFILL
    devices: tuple[int, ...] = ()  # physical ids, in rank order (DP rank * TP + TP rank)
    address: str = ""  # where its API answers
    port: int = 0
    side_channel_ports: tuple[int, ...] = ()  # one per rank
    ranktable_path: str = ""
    engine: EngineSpec = field(default_factory=EngineSpec)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"


@dataclass(frozen=True)
class ProxyLaunch(Process):
    address: str = ""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"


@dataclass(frozen=True)
class LaunchPlan:
    """What is run where. Instances in the order of the file."""

    instances: Mapping[str, InstanceLaunch]
    proxy: ProxyLaunch
    needs_code: bool  # our connector, audit or proxy must be staged to <run_dir>/code
    audited: bool = False  # every request's KV is traced

    def processes(self) -> Iterator[Process]:
        yield from self.instances.values()
        yield self.proxy

    def on(self, host: str) -> list[Process]:
        """The processes of one host: instances first, then the proxy."""
        return [process for process in self.processes() if process.host == host]

    def hosts_with_code(self) -> list[str]:
        """The hosts to which our code must be staged, in the order of the plan."""
        return list(dict.fromkeys(p.host for p in self.processes() if p.code is not None))


def run_dirs(cluster: Cluster, run_id: str) -> dict[str, str]:
    """The directory of one run on each host."""
    return {host: str(PurePosixPath(cluster.workdir_of(host)) / run_id) for host in cluster.hosts}


def code_dir(run_dir: str) -> str:
    """Where `connector/` and `proxy/` are staged on a host."""
    return f"{run_dir}/code"


def trace_dir(run_dir: str) -> str:
    """Where the audit of every instance on a host writes its KV trace."""
    return f"{run_dir}/trace"


def metrics_dir(run_dir: str) -> str:
    """Where our connector writes its metrics files on a host."""
    return f"{run_dir}/metrics"


def ranktable_path(cluster: Cluster, run_dir: str) -> str:
    """Where the rank table lies on a host whose run directory is `run_dir`."""
    stated = cluster.ranktable.path
    return f"{run_dir}/ranktable.json" if stated is None else str(stated)


def launch_plan(
    cluster: Cluster, *, run_dirs: Mapping[str, str], audit: AuditLevel = "off"
) -> LaunchPlan:
    """The plan for a validated cluster (`load_cluster`).

    `run_dirs` gives each host's run directory. With `audit` other than "off" the audit
    connector is loaded in place of the cluster's, which it wraps.
    """
    instances = {
        name: _instance(cluster, name, spec, run_dirs[spec.host], audit)
        for name, spec in cluster.instances.items()
    }
    proxy = _proxy(cluster, run_dirs[cluster.proxy.host])
    needs_code = any(process.code is not None for process in (*instances.values(), proxy))
    return LaunchPlan(instances, proxy, needs_code, audited=audit == "full")


def _instance(
    cluster: Cluster, name: str, spec: InstanceSpec, run_dir: str, audit: AuditLevel
) -> InstanceLaunch:
    engine = cluster.engine_of(name)
    transfer = kv_transfer_config(cluster, name, audit=audit, run_dir=run_dir)
    needs_code = cluster.connector.kind == "ours" or audit != "off"
    return InstanceLaunch(
        name=name,
        host=spec.host,
        argv=_vllm_serve(cluster, spec, engine, transfer),
        env=_engine_env(cluster, name, run_dir),
        cwd=run_dir,
        setup=_setup(cluster),
        code=code_dir(run_dir) if needs_code else None,
        role=spec.role,
        devices=spec.devices,
        address=cluster.hosts[spec.host].address,
        port=spec.port,
        side_channel_ports=tuple(side_channel_of(cluster, name)),
        ranktable_path=ranktable_path(cluster, run_dir),
        engine=engine,
    )


def _setup(cluster: Cluster) -> tuple[str, ...]:
    if cluster.setup is not None:
        return tuple(str(script) for script in cluster.setup)
    return profile_of(cluster).setup


def _engine_env(cluster: Cluster, instance: str, run_dir: str) -> dict[str, str]:
    """The guide's variables in the guide's order, then ours, then the file's over both."""
    spec = cluster.instances[instance]
    base = side_channel_base(cluster, instance)
    host = cluster.hosts[spec.host]
    nic = cluster.nic_of(spec.host)
    env = {
        "HCCL_IF_IP": host.address,
        "GLOO_SOCKET_IFNAME": nic,
        "TP_SOCKET_IFNAME": nic,
        "HCCL_SOCKET_IFNAME": nic,
        RANK_TABLE_PATH: ranktable_path(cluster, run_dir),
        "OMP_PROC_BIND": "false",
        "OMP_NUM_THREADS": "10",
        "VLLM_USE_V1": "1",
        VISIBLE_DEVICES: ",".join(str(device) for device in spec.devices),
        "VLLM_HOST_IP": host.address,
    }
    if cluster.connector.kind == "ours":
        # The guide's connector listens on every network; ours on the host's address only.
        env[RPC_IP] = host.address
    alone = len(cluster.instances_on(spec.host)) == 1
    if not alone or base != ConnectorSpec().side_channel_port:
        env[RPC_PORT] = str(base)
    return env | cluster.env | host.env | cluster.engine_of(instance).env


def _vllm_serve(
    cluster: Cluster, spec: InstanceSpec, engine: EngineSpec, transfer: Mapping[str, Any]
) -> tuple[str, ...]:
    argv = ["vllm", "serve", str(cluster.model.path)]
    argv += ["--host", "0.0.0.0", "--port", str(spec.port)]
    argv += ["--tensor-parallel-size", str(engine.tensor_parallel)]
    if engine.data_parallel > 1:
        argv += ["--data-parallel-size", str(engine.data_parallel)]
    argv += ["--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching"]
    argv += ["--seed", str(engine.seed)]
    argv += ["--served-model-name", cluster.model.served_name]
    argv += ["--max-model-len", str(engine.max_model_len)]
    argv += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    if engine.trust_remote_code:
        argv += ["--trust-remote-code"]
    argv += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if engine.expert_parallel:
        argv += ["--enable-expert-parallel"]
    for flag, value in (
        ("--dtype", engine.dtype),
        ("--block-size", engine.block_size),
        ("--kv-cache-dtype", engine.kv_cache_dtype),
        ("--quantization", engine.quantization),
    ):
        if value is not None:
            argv += [flag, str(value)]
    argv += ["--kv-transfer-config", _json(transfer)]
    if engine.additional_config:
        argv += ["--additional-config", _json(engine.additional_config)]
    eager = engine.enforce_eager
    if eager or (eager is None and spec.role is Role.PREFILL):
        argv += ["--enforce-eager"]
    return (*argv, *engine.args)


def kv_transfer_config(
    cluster: Cluster, instance: str, *, audit: AuditLevel, run_dir: str
) -> dict[str, Any]:
    """The value of `--kv-transfer-config`: keys in the guide's order."""
    connector, spec = cluster.connector, cluster.instances[instance]
    name, module = _connector_class(connector)
    config: dict[str, Any] = {
        "kv_connector": name,
        "kv_buffer_device": "npu",
        "kv_role": spec.role.kv_role,
    }
    if connector.kind == "vllm-ascend":
        config["kv_parallel_size"] = 1  # of vLLM 0.10; newer ones refuse the key
    config["kv_port"] = connector.kv_port
    config["engine_id"] = engine_id(connector, instance, spec)
    config["kv_connector_module_path"] = module
    extra = _our_settings(cluster, instance, run_dir) if connector.kind == "ours" else {}
    if extra | connector.extra:
        config["kv_connector_extra_config"] = extra | connector.extra
    if audit == "off":
        return config
    inner = {
        key: config[key]
        for key in ("kv_connector", "kv_connector_module_path", "kv_connector_extra_config")
        if key in config
    }
    return config | {
        "kv_connector": "AuditConnector",
        "kv_connector_module_path": "connector.audit",
        "kv_connector_extra_config": {
            "audit": {"level": audit, "directory": trace_dir(run_dir), "instance": instance},
            "inner": inner,
        },
    }


def _our_settings(cluster: Cluster, instance: str, run_dir: str) -> dict[str, Any]:
    """Settings of our connector that only the plan knows; the file's `extra` goes over them."""
    settings: dict[str, Any] = {
        "instance": instance,
        "metrics_directory": metrics_dir(run_dir),
    }
    if cluster.instances[instance].role is Role.DECODE:
        settings["prelink_peers"] = [
            f"{cluster.hosts[spec.host].address}:{side_channel_of(cluster, name)[0]}"
            for name, spec in cluster.instances_of(Role.PREFILL).items()
        ]
    return settings


def _connector_class(connector: ConnectorSpec) -> tuple[str, str]:
    """Class and module of the connector, as vLLM loads it."""
    if connector.kind == "ours":
        return "LLMDataDistConnector", "connector.llmdatadist"
    if connector.kind == "vllm-ascend":
        return (
            "LLMDataDistCMgrConnector",
            "vllm_ascend.distributed.llmdatadist_c_mgr_connector",
        )
    assert connector.name is not None
    assert connector.module is not None
    return connector.name, connector.module


def engine_id(connector: ConnectorSpec, name: str, spec: InstanceSpec) -> str:
    """The instance's own, else "0" for vllm-ascend's connector (as in the guide), else its name."""
    if spec.engine_id is not None:
        return spec.engine_id
    return "0" if connector.kind == "vllm-ascend" else name


def _proxy(cluster: Cluster, run_dir: str) -> ProxyLaunch:
    spec = cluster.proxy
    host = cluster.hosts[spec.host]
    values = values_of(cluster)
    if spec.command is not None:
        argv = expanded(spec.command, cluster)
    else:
        argv = (cluster.python, "-m", "proxy", "--host", host.address, "--port", str(spec.port))
        for noun in ("prefiller", "decoder"):
            argv += (f"--{noun}-hosts", *values[f"{noun}_hosts"])
            argv += (f"--{noun}-ports", *values[f"{noun}_ports"])
    return ProxyLaunch(
        name=PROXY_NAME,
        host=spec.host,
        argv=(*argv, *spec.args),
        env=cluster.env | host.env | spec.env,
        cwd=run_dir,
        code=code_dir(run_dir) if spec.command is None else None,
        address=host.address,
        port=spec.port,
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def render_shell(plan: LaunchPlan, host: str, *, enter: Sequence[Sequence[str]] = ()) -> str:
    """What `plan` runs on `host`, as shell text that can be pasted into a terminal there.

    `enter`: commands that lead into the host's container (`runtime.enter`).
    """
    parts = [shlex.join(command) for command in enter]
    return "\n\n".join([*parts, *(_shell(process) for process in plan.on(host))])


def _shell(process: Process) -> str:
    lines = [f"# {process.name} on {process.host}"]
    lines += [f"cd {shlex.quote(process.cwd)}"]
    lines += [f"[ -f {shlex.quote(s)} ] && source {shlex.quote(s)}" for s in process.setup]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in process.env.items()]
    if process.code is not None:
        lines += [f'export PYTHONPATH={shlex.quote(process.code)}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    lines += [" \\\n  ".join(_command_lines(process.argv))]
    return "\n".join(lines)


def _command_lines(argv: tuple[str, ...]) -> list[str]:
    """`argv` quoted, one line per option with its values."""
    lines: list[str] = []
    for index, argument in enumerate(argv):
        quoted = shlex.quote(argument)
        if index == 0 or (argument.startswith("--") and len(argument) > 2):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return lines
