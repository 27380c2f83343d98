"""The cluster file as typed models: the whole vocabulary of cluster.yaml.

Only structure and rules that need nothing but the file itself live here. Reading
YAML with positions: `load.py`. What a hardware profile knows: `profiles.py`.
What is run where: `plan.py`. The text under a field is its entry in docs/cluster.md
and what editors show for it. Units: seconds, bytes, tokens.
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
AtLeastOne = Annotated[int, Field(ge=1)]
Device = Annotated[int, Field(ge=0)]
Command = Annotated[tuple[str, ...], Field(min_length=1)]


class Model(BaseModel):
    """Base of all parts of the file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def kv_role(self) -> str:
        return "kv_producer" if self is Role.PREFILL else "kv_consumer"


class Ssh(Model):
    """How to log in."""

    user: str = "root"
    """Account on the host."""
    port: Port = 22
    key: Path | None = None
    """Private key file, relative to the file this stands in. Not set: the SSH agent and the
    default keys."""
    known_hosts: Path | None = None
    """Not set: `~/.ssh/known_hosts`."""
    check_host_key: bool = True
    """Refuse a host whose key is unknown or has changed."""
    jump: JumpHost | None = None
    """Jump host, `[user@]host[:port]`."""
    password_env: str | None = None
    """Name of the environment variable that holds the password. It cannot stand in the file."""
    sudo: bool = False
    """Run `hccn_tool` and `npu-smi` through `sudo -n`, but not inside a container."""


class HostRuntime(Model):
    """Commands run on the host itself."""

    kind: Literal["host"] = "host"


class DockerExecRuntime(Model):
    """Commands run in a container that is already running."""

    kind: Literal["docker-exec"]
    container: str
    """Its name or id."""
    docker: str = "docker"
    """The docker command, such as `sudo -n docker`."""


class DockerRunRuntime(Model):
    """We start a container with the NPUs and mounts that Ascend needs, and remove it at the end."""

    kind: Literal["docker-run"]
    image: str
    docker: str = "docker"
    """The docker command, such as `sudo -n docker`."""
    args: tuple[str, ...] = ()
    """Further arguments of `docker run`."""
    mounts: tuple[str, ...] = ()
    """Further volumes, `host:container[:ro]`."""


Runtime = Annotated[HostRuntime | DockerExecRuntime | DockerRunRuntime, Field(discriminator="kind")]


class Host(Model):
    """A machine we reach. What is not stated is the cluster's own value."""

    address: Address
    """IPv4 address that peers use; also server_id in the rank table and HCCL_IF_IP."""
    ssh_address: str | None = None
    """Address or name that SSH connects to, if it is another."""
    ssh: Ssh | None = None
    """Keys that differ from the cluster's `ssh`."""
    nic: str | None = None
    """Network card that carries `address`."""
    runtime: Runtime | None = None
    devices: tuple[Device, ...] | None = None
    """Physical ids of its NPUs. Not set: all that the hardware profile has."""
    env: dict[str, str] = {}
    """Variables of every process on this host."""
    workdir: Path | None = None


class ModelSpec(Model):
    """The model to serve."""

    path: Path
    """Its directory, the same on every host."""
    served_name: str = "qwen3-moe"
    """Name in requests."""


class EngineSpec(Model):
    """Settings of every instance. Defaults are the guide's; what is not set is left out."""

    tensor_parallel: AtLeastOne = 2
    """`--tensor-parallel-size`. LLM-DataDist needs the same on prefill and decode, MLA aside."""
    data_parallel: AtLeastOne = 1
    """`--data-parallel-size` inside one instance. It needs TP x DP devices."""
    expert_parallel: bool = True
    """`--enable-expert-parallel`."""
    max_model_len: AtLeastOne = 6144
    """Longest prompt and answer together, tokens."""
    max_num_batched_tokens: AtLeastOne = 6144
    """Tokens per step. Without chunked prefill at least `max_model_len`."""
    seed: int = 1024
    dtype: str | None = None
    """`--dtype`; not set: the model's."""
    block_size: AtLeastOne | None = None
    """Tokens of a KV block; not set: the platform's."""
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    prefix_caching: bool = False
    trust_remote_code: bool = True
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the device's memory that the engine may use."""
    enforce_eager: bool | None = None
    """Not set: as in the guide, on prefillers only."""
    additional_config: dict[str, Any] = {
        "torchair_graph_config": {"enabled": False, "enable_multistream_shared_expert": False},
        "ascend_scheduler_config": {"enabled": True, "enable_chunked_prefill": False},
    }
    """`--additional-config`; empty leaves the option out."""
    args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`, appended as they are."""
    env: dict[str, str] = {}
    """Variables of the engine's process."""


class EngineOverrides(Model):
    """What one instance has otherwise than the cluster's `engine`."""

    tensor_parallel: AtLeastOne | None = None
    data_parallel: AtLeastOne | None = None
    expert_parallel: bool | None = None
    max_model_len: AtLeastOne | None = None
    max_num_batched_tokens: AtLeastOne | None = None
    seed: int | None = None
    dtype: str | None = None
    block_size: AtLeastOne | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    prefix_caching: bool | None = None
    trust_remote_code: bool | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    enforce_eager: bool | None = None
    additional_config: dict[str, Any] | None = None
    args: tuple[str, ...] | None = None
    """Appended to the cluster's."""
    env: dict[str, str] | None = None
    """Merged over the cluster's."""

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
    """Name of a host under `hosts`."""
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]
    """Physical NPU ids in rank order, TP x DP of them."""
    port: Port = 13700
    """Port of the API."""
    side_channel_port: Port | None = None
    """Base of its side-channel ports. Not set: the connector's, moved on where instances share
    a host."""
    engine_id: str | None = None
    """Not set: the instance's name, or "0" with vllm-ascend's connector, as in the guide."""
    engine: EngineOverrides = EngineOverrides()


class ConnectorSpec(Model):
    """Which KV connector the instances load."""

    kind: Literal["ours", "vllm-ascend", "module"] = "ours"
    """`ours`: connector/ of this project. `vllm-ascend`: LLMDataDistCMgrConnector of
    v0.10.1rc1, exactly as in the guide. `module`: any other, given by `name` and `module`."""
    name: str | None = None
    """Class name, of kind `module`."""
    module: str | None = None
    """Python module of the class, of kind `module`."""
    side_channel_port: Port = 5557
    """Base of the side-channel ports, VLLM_ASCEND_LLMDD_RPC_PORT."""
    kv_port: str = "20001"
    extra: dict[str, Any] = {}
    """`kv_connector_extra_config`."""

    @model_validator(mode="after")
    def _module_is_named(self) -> ConnectorSpec:
        if self.kind == "module" and not (self.name and self.module):
            raise ValueError("of kind `module` needs `name` and `module`")
        return self


class ProxySpec(Model):
    """The PD proxy: ours, or a command of yours."""

    host: str
    """Name of a host under `hosts`."""
    port: Port = 8080
    command: Command | None = None
    """Not set: ours. Else arguments with the placeholders {host}, {port}, {model},
    {prefiller_hosts}, {prefiller_ports}, {prefiller_urls} and the same for decoder: a list
    that is a whole argument becomes several, inside one it is joined with commas."""
    args: tuple[str, ...] = ()
    """Further arguments, appended as they are."""
    env: dict[str, str] = {}
    """Variables of the proxy's process."""


class RankTableSpec(Model):
    """Where the rank table lies on each host, and whether we make it or check it."""

    path: Path | None = None
    """Not set: in the run directory."""
    generate: bool = True
    """False: the file at `path` is there already; it is checked and not touched."""

    @model_validator(mode="after")
    def _existing_has_a_path(self) -> RankTableSpec:
        if not self.generate and self.path is None:
            raise ValueError("with `generate: false` needs `path`, the table to check")
        return self


class Expect(Model):
    """Versions that the hosts must have. What is not stated must only be equal on all of them."""

    driver: str | None = None
    firmware: str | None = None
    cann: str | None = None
    torch: str | None = None
    torch_npu: str | None = None
    vllm: str | None = None
    vllm_ascend: str | None = None


class Checks(Model):
    """How far the network validation goes."""

    devices: Literal["used", "all"] = "used"
    """Whose faults fail: those of NPUs that an instance uses, others warn; or of all."""
    ping: Literal["auto", "full", "rail", "ring", "sampled"] = "auto"
    """Which pairs of NPUs ping each other."""
    software: bool = True
    """Compare versions and model files between hosts."""


class Timeouts(Model):
    """Deadlines, seconds."""

    connect: Seconds = 10
    """An SSH session."""
    command: Seconds = 30
    """A command on a host."""
    tool: Seconds = 10
    """One question to hccn_tool or npu-smi."""
    ready: Seconds = 900
    """All instances up, and one completion through the proxy."""
    request: Seconds = 120
    stop: Seconds = 30
    """A process after SIGTERM."""
    drain: Seconds = 30
    """KV usage back to zero."""
    lease: Seconds = 20
    """After this long without the controller, hosts clean up by themselves."""


class Cluster(Model):
    """A cluster file."""

    name: Name = "cluster"
    """Shown in reports."""
    hardware: str = "atlas-800t-a2"
    """Hardware profile of all hosts: `atlas-800t-a2` or `atlas-800t-a3`."""
    nic: str = "eth0"
    """Network card of the hosts' addresses."""
    workdir: Path = Path("/tmp/pd-validate")
    """On the hosts; each run has a directory inside."""
    python: str = "python3"
    """Python 3 on the hosts."""
    setup: tuple[Path, ...] | None = None
    """Scripts to source before an engine starts, where they exist. Not set: CANN's set_env.sh."""
    ssh: Ssh = Ssh()
    runtime: Runtime = HostRuntime()
    """Where commands run: `{kind: host}`, `{kind: docker-exec, container: …}` or
    `{kind: docker-run, image: …}`."""
    hosts: dict[Name, Host]
    """Machines by name."""
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    instances: dict[Name, InstanceSpec]
    """vLLM servers by name. Their order is the order in the rank table."""
    connector: ConnectorSpec = ConnectorSpec()
    proxy: ProxySpec
    ranktable: RankTableSpec = RankTableSpec()
    env: dict[str, str] = {}
    """Variables of every process on every host."""
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
        """The cluster's, with the keys that the host states on top."""
        own = self.hosts[host].ssh
        if own is None:
            return self.ssh
        return self.ssh.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})

    def nic_of(self, host: str) -> str:
        return self.hosts[host].nic or self.nic

    def runtime_of(self, host: str) -> HostRuntime | DockerExecRuntime | DockerRunRuntime:
        return self.hosts[host].runtime or self.runtime

    def workdir_of(self, host: str) -> Path:
        return self.hosts[host].workdir or self.workdir
