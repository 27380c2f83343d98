"""Scenarios: a YAML file that says how a twin is broken, and what the harness must find.

The vocabulary is documented in docs/scenarios.md. Each kind of fault is one class here,
recognised by the one key that only it has; an unknown word is an error that names the
file, the line and the word. `Scenario.break_fabric` applies what concerns silicon; what
concerns hosts and processes is read by twin/cluster.py and by the engine's plugin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pd_validate.errors import SpecError
from pd_validate.findings import Where
from pd_validate.spec.source import Node, read
from twin import fabric
from twin.fabric import Device, Endpoint, FabricState, LinkStat, NetHealth, Optical, Tls, Vnic

T = TypeVar("T")


class Fault(BaseModel):
    """Base of all faults: unknown words are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def break_fabric(self, state: FabricState) -> None:
        """Change the silicon. Faults of hosts and processes leave it as it is."""


class DeviceFault(Fault):
    """One NPU in another state. `conf` changes its lines in /etc/hccn.conf, not the device.

    A value of null removes: an address, a neighbour, a line of hccn.conf.
    """

    host: str
    device: int
    link: Literal["up", "down"] | None = None
    condition: fabric.Condition | None = None
    net_health: NetHealth | None = None
    address: str | None = ""
    mask: str | None = None
    gateway: str | None = ""
    netdetect: str | None = ""
    mtu: int | None = None
    speed: int | None = None
    duplex: Literal["full", "half", "unknown"] | None = None
    lldp: str | None = ""
    tls: Tls | None = None
    vnic: Vnic | None = None
    sdid: int | None = None
    link_stat: LinkStat | None = None
    optical: Optical | None = None
    health: Literal["ok", "warning", "alarm", "critical", "unknown"] | None = None
    errors: dict[str, str] | None = None
    hbm_used: int | None = None
    processes: tuple[fabric.Process, ...] | None = None
    busy_until: float | None = None
    seconds: float | None = None
    answers: dict[str, int | str] | None = None
    conf: dict[str, str | None] | None = None

    def break_fabric(self, state: FabricState) -> None:
        device = state.device(self.host, self.device)
        stated = self.model_fields_set - {"host", "device", "conf"}
        for name in stated & {"health", "errors", "hbm_used", "processes"}:
            setattr(device.npu, name, getattr(self, name))
        for name in stated & (Device.model_fields.keys() | {"address"}):
            setattr(device, "ip" if name == "address" else name, getattr(self, name))
        host = state.hosts[self.host]
        for key, value in (self.conf or {}).items():
            host.hccn_conf = _with_line(host.hccn_conf or "", f"{key}_{self.device}", value)


class ConfFault(Fault):
    """/etc/hccn.conf of a whole host: `missing`, or other text."""

    host: str
    hccn_conf: str

    def break_fabric(self, state: FabricState) -> None:
        missing = self.hccn_conf == "missing"
        state.hosts[self.host].hccn_conf = None if missing else self.hccn_conf


class PathFault(Fault):
    """A disturbed path between NPUs, in the direction given (`both: true` for both)."""

    source: Endpoint = Field(alias="from")
    target: Endpoint = Field(alias="to")
    both: bool = False
    loss: float = 0.0
    unreachable: bool = False
    seconds: float = 0.0
    max_bytes: int | None = None

    def break_fabric(self, state: FabricState) -> None:
        ends = [(self.source, self.target)]
        if self.both:
            ends.append((self.target, self.source))
        for source, target in ends:
            state.paths.append(
                fabric.PathRule(
                    source=source,
                    target=target,
                    loss=self.loss,
                    unreachable=self.unreachable,
                    seconds=self.seconds,
                    max_bytes=self.max_bytes,
                )
            )


class ToolFault(Fault):
    """A command of a host that answers exactly this, after `seconds`."""

    host: str
    tool: str
    stdout: str = ""
    stderr: str = ""
    exit: int = 0
    seconds: float = 0.0

    def break_fabric(self, state: FabricState) -> None:
        state.hosts[self.host].tools.append(
            fabric.ToolOverride(
                command=self.tool,
                stdout=self.stdout,
                stderr=self.stderr,
                exit=self.exit,
                seconds=self.seconds,
            )
        )


class DriverFault(Fault):
    """The driver of a host: not loaded, held by another container, or of another version."""

    host: str
    driver: fabric.Driver

    def break_fabric(self, state: FabricState) -> None:
        state.hosts[self.host].driver = self.driver


class SuperpodFault(Fault):
    """A3: the super pod that a host believes to be in; null for none."""

    host: str
    superpod: fabric.Superpod | None

    def break_fabric(self, state: FabricState) -> None:
        state.hosts[self.host].superpod = self.superpod


class SlowToolsFault(Fault):
    """Every tool call of a host (or of all hosts, `host: "*"`) takes this long, in seconds."""

    host: str
    tool_seconds: float

    def break_fabric(self, state: FabricState) -> None:
        for name, host in state.hosts.items():
            if self.host in ("*", name):
                host.seconds = self.tool_seconds


class EnvFault(Fault):
    """Variables in the login environment of a host."""

    host: str
    env: dict[str, str]


class ListenFault(Fault):
    """A foreign process listens on a port of the host."""

    host: str
    listen: int


class SshFault(Fault):
    """The SSH server of a host: down, refuses our key, shows another host key, or never answers."""

    host: str
    ssh: Literal["down", "refuse-key", "other-host-key", "hang"]


class FileFault(Fault):
    """A file on the host with this content (`~` is the host's home directory)."""

    host: str
    file: str
    text: str


class InstanceFault(Fault):
    """Kill or pause an instance, or one rank of it, when it reaches a phase.

    `starting`: as soon as its process runs; `pulling`: in the n-th pull; `decoding` and
    `prefilling`: when the n-th completion request arrives.
    """

    instance: str
    at: Literal["starting", "prefilling", "pulling", "decoding"]
    do: Literal["kill", "pause"]
    rank: int | None = None
    request: Annotated[int, Field(ge=1)] = 1


class HttpAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    status: int = 500
    after_chunks: int | None = None  # None: instead of the answer; else the stream is cut there
    request: int | None = None  # only the n-th completion request; None: every one


class HttpFault(Fault):
    """The instance answers completion requests with an error, or cuts its streams."""

    instance: str
    http: HttpAnswer


class KvEffect(BaseModel):
    """A KV fault, in the words of llm_datadist (twin/site/llm_datadist/faults.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    to: str | None = None
    rank: int | None = None
    request: int | None = None
    layer: int | None = None
    tensor: Literal["k", "v"] | None = None
    block: int | Literal["first", "last"] | None = None
    do: Literal["corrupt", "drop", "zero", "swap", "delay", "stall", "reset"]
    seconds: float | None = None


class KvFault(Fault):
    """What happens to KV on its way."""

    kv: KvEffect

    def break_fabric(self, state: FabricState) -> None:
        state.kv_faults.append(self.kv.model_dump(exclude_none=True, by_alias=True))


# The key that only faults of this kind have.
_KINDS: Mapping[str, type[Fault]] = {
    "kv": KvFault,
    "http": HttpFault,
    "do": InstanceFault,
    "tool": ToolFault,
    "from": PathFault,
    "env": EnvFault,
    "listen": ListenFault,
    "ssh": SshFault,
    "file": FileFault,
    "driver": DriverFault,
    "superpod": SuperpodFault,
    "tool_seconds": SlowToolsFault,
    "hccn_conf": ConfFault,
    "device": DeviceFault,
}


def _as_fault(value: Any) -> Any:
    if isinstance(value, Fault) or not isinstance(value, dict):
        return value
    for key, kind in _KINDS.items():
        if key in value:
            return kind.model_validate(value)
    raise ValueError(
        f"no kind of fault has the keys {', '.join(value) or '(none)'}: one of "
        f"{', '.join(_KINDS)} is needed; see docs/scenarios.md"
    )


class Expected(BaseModel):
    """A finding that the run must have. `where` states only what must be equal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    where: Where = Where()


class Expectation(BaseModel):
    """What a run against the scenario must end with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    findings: tuple[Expected, ...] = ()
    clean: bool = True  # no other failing finding, and nothing left behind


def _as_expectation(value: Any) -> Any:
    """`expect` is a list of findings, with `clean` as one more item among them if stated."""
    if not isinstance(value, list):
        return value
    findings = [item for item in value if not (isinstance(item, dict) and "clean" in item)]
    merged: dict[str, Any] = {"findings": findings}
    for item in value:
        if isinstance(item, dict) and "clean" in item:
            merged["clean"] = item["clean"]
    return merged


class Scenario(BaseModel):
    """A scenario file. `marks`: what to run (`-m`), None for everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str = "twin-1p2d.yaml"
    about: str = ""  # one line for people; source of the failure
    marks: str | None = None
    faults: tuple[Annotated[Fault, BeforeValidator(_as_fault)], ...] = ()
    expect: Annotated[Expectation, BeforeValidator(_as_expectation)] = Expectation()

    def break_fabric(self, state: FabricState) -> None:
        for fault in self.faults:
            fault.break_fabric(state)

    def of(self, kind: type[T]) -> Iterator[T]:
        """The faults of one kind."""
        return (fault for fault in self.faults if isinstance(fault, kind))

    def env_of(self, host: str) -> dict[str, str]:
        return {
            name: value
            for fault in self.of(EnvFault)
            if fault.host == host
            for name, value in fault.env.items()
        }


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises SpecError with file, line and what to write instead."""
    root = read(path, os.environ)
    for fault in _items(root, "faults"):
        _check_fault(fault)
    try:
        return Scenario.model_validate(root.data())
    except ValidationError as error:
        raise _placed(error, root, "a scenario") from error


def _items(root: Node, key: str) -> tuple[Node, ...]:
    child = root.child(key)
    return child.content if child is not None and isinstance(child.content, tuple) else ()


def _check_fault(node: Node) -> None:
    """Validate one fault by itself, for an error at its own line."""
    try:
        fault = _as_fault(node.data())
    except ValidationError as error:
        raise _placed(error, node, "a fault") from error
    except ValueError as error:
        raise node.place.error(str(error)) from error
    if not isinstance(fault, Fault):
        raise node.place.error("a fault is a mapping; see docs/scenarios.md")


def _placed(error: ValidationError, node: Node, what: str) -> SpecError:
    """The first mistake, at its own line."""
    first = error.errors(include_url=False)[0]
    word = ".".join(str(part) for part in first["loc"])
    place = node.at(first["loc"]).key_place
    if first["type"] == "extra_forbidden":
        return place.error(f"unknown word {word!r} in {what}; see docs/scenarios.md")
    return place.error(f"{word}: {first['msg']}")


def check_names(scenario: Scenario, state: FabricState, instances: Mapping[str, Any]) -> None:
    """Every host, device and instance that the faults name must exist. Raises SpecError."""
    for fault in scenario.faults:
        host = getattr(fault, "host", None)
        if host is not None and host != "*" and host not in state.hosts:
            raise SpecError(f"the scenario names host {host!r}; hosts are {', '.join(state.hosts)}")
        if isinstance(fault, DeviceFault) and fault.device not in state.hosts[fault.host].devices:
            raise SpecError(f"the scenario names device {fault.device}, which {host} has not")
        instance = getattr(fault, "instance", None)
        if instance is not None and instance not in instances:
            raise SpecError(
                f"the scenario names instance {instance!r}; instances are {', '.join(instances)}"
            )


def _with_line(conf: str, key: str, value: str | None) -> str:
    """hccn.conf with the line `key=value` set, or removed for None."""
    lines = [line for line in conf.splitlines() if line.partition("=")[0] != key]
    if value is not None:
        lines.append(f"{key}={value}")
    return "".join(f"{line}\n" for line in lines)
