"""The cluster file as typed models: the whole vocabulary of cluster.yaml.

Only structure and rules that need nothing but the file itself live here. Reading
YAML with positions: `load.py`. What a hardware profile knows: `profiles.py`.
What is run where: `plan.py`. Units: seconds, bytes, tokens.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _ipv4(text: str) -> str:
    """The rank table, HCCL_IF_IP and vLLM's get_ip() compare addresses as text."""
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise ValueError(
            "must be an IPv4 address (rank table and HCCL compare it as text); "
            "a name may stand in `ssh_address`"
        ) from None


def _jump_host(text: str) -> str:
    if re.fullmatch(r"([^@\s]+@)?[^@:\s]+(:[0-9]+)?", text) is None:
        raise ValueError("must be [user@]host[:port]")
    return text


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)]
Address = Annotated[str, AfterValidator(_ipv4)]
JumpHost = Annotated[str, AfterValidator(_jump_host)]
Device = Annotated[int, Field(ge=0)]  # physical NPU id
Command = Annotated[tuple[str, ...], Field(min_length=1)]


class Model(BaseModel):
    """Base of all parts of the file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def kv_role(self) -> str:
        return "kv_producer" if self is Role.PREFILL else "kv_consumer"


class Ssh(Model):
    """How to log in. A password comes only by the environment variable named here."""

    user: str = "root"
    port: Port = 22
    key: Path | None = None  # private key file; None: the SSH agent and the default keys
    known_hosts: Path | None = None  # None: ~/.ssh/known_hosts
    check_host_key: bool = True
    jump: JumpHost | None = None  # [user@]host[:port]
    password_env: str | None = None
    sudo: bool = False  # run hccn_tool and npu-smi through `sudo -n`


class HostRuntime(Model):
    """Commands run on the host itself."""

    kind: Literal["host"] = "host"


class DockerExecRuntime(Model):
    """Commands run in a container that is already running."""

    kind: Literal["docker-exec"]
    container: str
    docker: str = "docker"


class DockerRunRuntime(Model):
    """We start the container, with the NPUs and the mounts that Ascend needs."""

    kind: Literal["docker-run"]
    image: str
    docker: str = "docker"
    args: tuple[str, ...] = ()  # further arguments of `docker run`
    mounts: tuple[str, ...] = ()  # further -v values, host:container[:ro]


Runtime = Annotated[HostRuntime | DockerExecRuntime | DockerRunRuntime, Field(discriminator="kind")]


class Host(Model):
    """A machine we reach. What is None falls back to the cluster's own value."""

    address: Address  # what peers use; also rank table server_id and HCCL_IF_IP
    ssh_address: str | None = None  # where SSH connects to, if elsewhere
    ssh: Ssh | None = None
    nic: str | None = None
    runtime: Runtime | None = None
    devices: tuple[Device, ...] | None = None  # physical NPU ids; None: the profile's
    env: dict[str, str] = {}
    workdir: Path | None = None


class ModelSpec(Model):
    """The model to serve: a directory that is the same on every host."""

    path: Path
    served_name: str = "qwen3-moe"


class EngineSpec(Model):
    """Engine settings. Defaults are the guide's; None leaves the flag out."""

    tensor_parallel: Annotated[int, Field(ge=1)] = 2
    data_parallel: Annotated[int, Field(ge=1)] = 1
    expert_parallel: bool = True
    max_model_len: Annotated[int, Field(ge=1)] = 6144  # tokens
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = 6144  # tokens
    seed: int = 1024
    dtype: str | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None  # tokens
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    prefix_caching: bool = False
    trust_remote_code: bool = True
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    enforce_eager: bool | None = None  # None: as in the guide, on prefillers only
    additional_config: dict[str, Any] = {
        "torchair_graph_config": {"enabled": False, "enable_multistream_shared_expert": False},
        "ascend_scheduler_config": {"enabled": True, "enable_chunked_prefill": False},
    }
    args: tuple[str, ...] = ()  # appended to `vllm serve` as they are
    env: dict[str, str] = {}


class EngineOverrides(Model):
    """Per-instance changes of the cluster's engine settings; what is not stated is inherited."""

    tensor_parallel: Annotated[int, Field(ge=1)] | None = None
    data_parallel: Annotated[int, Field(ge=1)] | None = None
    expert_parallel: bool | None = None
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    dtype: str | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    prefix_caching: bool | None = None
    trust_remote_code: bool | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    enforce_eager: bool | None = None
    additional_config: dict[str, Any] | None = None
    args: tuple[str, ...] | None = None  # appended to the cluster's
    env: dict[str, str] | None = None  # merged over the cluster's

    def applied_to(self, base: EngineSpec) -> EngineSpec:
        stated = self.model_dump(exclude_none=True)
        if self.args is not None:
            stated["args"] = base.args + self.args
        if self.env is not None:
            stated["env"] = base.env | self.env
        return base.model_copy(update=stated)


class InstanceSpec(Model):
    """One vLLM server: its role, place and own settings."""

    role: Role
    host: str
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]  # physical ids, in TP order
    port: Port = 13700
    side_channel_port: Port | None = None  # None: the connector's base port
    engine_id: str | None = None  # None: the connector's rule
    engine: EngineOverrides = EngineOverrides()


class ConnectorSpec(Model):
    """Which KV connector the instances load.

    `ours` is connector/ of this project; `vllm-ascend` is LLMDataDistCMgrConnector of
    v0.10.1rc1, exactly as in the guide; `module` is any other, named by `name` and `module`.
    """

    kind: Literal["ours", "vllm-ascend", "module"] = "ours"
    name: str | None = None
    module: str | None = None
    side_channel_port: Port = 5557  # base of VLLM_ASCEND_LLMDD_RPC_PORT
    kv_port: str = "20001"
    extra: dict[str, Any] = {}  # kv_connector_extra_config

    @model_validator(mode="after")
    def _module_is_named(self) -> ConnectorSpec:
        if self.kind == "module" and not (self.name and self.module):
            raise ValueError("of kind `module` needs `name` and `module`")
        return self


class ProxySpec(Model):
    """The PD proxy: ours, or a command of the user's with {placeholders}."""

    host: str
    port: Port = 8080
    command: Command | None = None  # None: ours, `python -m proxy`
    args: tuple[str, ...] = ()  # appended as they are
    env: dict[str, str] = {}


class RankTableSpec(Model):
    """Where the rank table lies on each host, and whether we make it or check it."""

    path: Path | None = None  # None: in the run directory
    generate: bool = True


class Expect(Model):
    """Versions that the hosts must have; None: only equal on all hosts."""

    driver: str | None = None
    firmware: str | None = None
    cann: str | None = None
    torch: str | None = None
    torch_npu: str | None = None
    vllm: str | None = None
    vllm_ascend: str | None = None


class Checks(Model):
    """How far the network validation goes."""

    devices: Literal["used", "all"] = "used"  # a fault of an unused NPU warns, or fails
    ping: Literal["auto", "full", "rail", "ring", "sampled"] = "auto"
    software: bool = True


class Timeouts(Model):
    """Deadlines, seconds."""

    connect: Seconds = 10
    command: Seconds = 30
    tool: Seconds = 10  # one hccn_tool or npu-smi query
    ready: Seconds = 900  # all instances up and one completion through the proxy
    request: Seconds = 120
    stop: Seconds = 30
    drain: Seconds = 30  # KV usage back to zero
    lease: Seconds = 20  # after this long without the controller, hosts clean up by themselves


class Cluster(Model):
    """The validated content of cluster.yaml."""

    name: Name = "cluster"
    hardware: str = "atlas-800t-a2"  # a profile's name, see profiles.py
    nic: str = "eth0"
    workdir: Path = Path("/tmp/pd-validate")  # on the hosts; one directory per run inside
    python: str = "python3"  # on the hosts
    setup: tuple[Path, ...] | None = None  # scripts to source before an engine; None: the profile's
    ssh: Ssh = Ssh()
    runtime: Runtime = HostRuntime()
    hosts: dict[Name, Host]
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    instances: dict[Name, InstanceSpec]
    connector: ConnectorSpec = ConnectorSpec()
    proxy: ProxySpec
    ranktable: RankTableSpec = RankTableSpec()
    env: dict[str, str] = {}
    expect: Expect = Expect()
    checks: Checks = Checks()
    timeouts: Timeouts = Timeouts()

    def engine_of(self, instance: str) -> EngineSpec:
        """The settings of one instance: the cluster's, with the instance's own on top."""
        return self.instances[instance].engine.applied_to(self.engine)

    def instances_of(self, role: Role) -> dict[str, InstanceSpec]:
        return {name: spec for name, spec in self.instances.items() if spec.role is role}

    def instances_on(self, host: str) -> dict[str, InstanceSpec]:
        return {name: spec for name, spec in self.instances.items() if spec.host == host}

    def devices_used(self, host: str) -> frozenset[int]:
        """Physical ids of the NPUs that instances use on `host`."""
        return frozenset(d for spec in self.instances_on(host).values() for d in spec.devices)

    def ssh_of(self, host: str) -> Ssh:
        return self.hosts[host].ssh or self.ssh

    def nic_of(self, host: str) -> str:
        return self.hosts[host].nic or self.nic

    def runtime_of(self, host: str) -> HostRuntime | DockerExecRuntime | DockerRunRuntime:
        return self.hosts[host].runtime or self.runtime

    def workdir_of(self, host: str) -> Path:
        return self.hosts[host].workdir or self.workdir
