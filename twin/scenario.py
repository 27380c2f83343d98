"""Scenarios: a YAML file that says how a twin is broken, and what the harness must find.

The vocabulary is documented in docs/scenarios.md. Each kind of fault is one class here,
recognised by the one key that only it has; an unknown word, or a value that cannot be, is an
error that names the file, the line and the word. Whether what a scenario names is there in
its cluster is checked by twin/names.py. `Scenario.break_fabric` applies what concerns
silicon; what concerns hosts is applied by `break_host` (twin/faults.py), what concerns
engines by the plugin that vLLM loads (twin/site/twin_engine).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from pd_validate.catalogue import CATALOGUE
from pd_validate.errors import SpecError
from pd_validate.findings import Severity, Where
from pd_validate.plugin import MARKS
from pd_validate.spec.rules import PROXY_NAME
from pd_validate.spec.source import KeyPath, Node, read
from pd_validate.spec.validate import complaint, keys_at
from pd_validate.spec.wording import closest, did_you_mean, dotted, listed
from twin import fabric
from twin.fabric import Device, Endpoint, FabricState, LinkStat, NetHealth, Optical, Tls, Vnic

T = TypeVar("T")

EVERY = "*"  # as the name of a host or the number of a device: all of them


def _as_texts(value: Any) -> Any:
    """Variables are text; YAML reads `5557` as a number."""
    if not isinstance(value, dict):
        return value
    return {
        name: str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one
        for name, one in value.items()
    }


def _as_address(value: str | None) -> str | None:
    """Four numbers; "" stands for "not stated"."""
    try:
        return value if not value else str(IPv4Address(value))
    except AddressValueError:
        raise ValueError("must be an IPv4 address") from None


def _inside_home(path: str) -> str:
    if not path.startswith("~/") or ".." in path.split("/"):
        raise ValueError("must lie in the host's home directory `~/`")
    return path


def _names_a_program(command: str) -> str:
    if not command.split():
        raise ValueError("must be a command as one would type it")
    return command


Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]  # from 1
Index = Annotated[int, Field(ge=0)]  # from 0
Address = Annotated[str | None, AfterValidator(_as_address)]


class Fault(BaseModel):
    """Base of all faults: unknown words are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def break_fabric(self, state: FabricState) -> None:
        """Change the silicon. Faults of hosts and processes leave it as it is."""


class DeviceFault(Fault):
    """One NPU in another state; `host: "*"` and `device: "*"` mean all of them.

    `conf` changes its lines in /etc/hccn.conf, not the device, and all other words change
    the device, not the file. A value of null removes: an address, a neighbour, a line.
    """

    host: str
    device: Index | Literal["*"]
    link: Literal["up", "down"] | None = None
    condition: fabric.Condition | None = None
    net_health: NetHealth | None = None
    address: Address = ""
    mask: Address = None
    gateway: Address = ""
    netdetect: Address = ""
    mtu: Count | None = None
    speed: Index | None = None
    duplex: Literal["full", "half", "unknown"] | None = None
    lldp: str | None = ""
    tls: Tls | None = None
    vnic: Vnic | None = None
    sdid: int | None = None
    link_stat: LinkStat | None = None
    optical: Optical | None = None
    health: Literal["ok", "warning", "alarm", "critical", "unknown"] | None = None
    errors: dict[str, str] | None = None
    hbm_used: Index | None = None
    processes: tuple[fabric.Process, ...] | None = None
    busy_seconds: Seconds | None = None  # busy that long from the twin's start on
    seconds: Seconds | None = None  # what a tool call on it takes
    answers: dict[str, int | str] | None = None
    conf: dict[str, str | int | None] | None = None

    @model_validator(mode="after")
    def _breaks_something(self) -> Self:
        if self.model_fields_set <= {"host", "device"}:
            raise ValueError("nothing is said of the device that would be another state")
        return self

    def break_fabric(self, state: FabricState) -> None:
        for host in _hosts(self.host, state):
            numbers = host.devices if self.device == EVERY else [int(self.device)]
            for number in numbers:
                self._break_device(host, host.devices[number])

    def _break_device(self, host: fabric.Host, device: Device) -> None:
        stated = self.model_fields_set - {"host", "device", "conf", "busy_seconds"}
        for name in stated & {"health", "errors", "hbm_used", "processes"}:
            setattr(device.npu, name, getattr(self, name))
        for name in stated & (Device.model_fields.keys() | {"address"}):
            setattr(device, "ip" if name == "address" else name, getattr(self, name))
        if self.busy_seconds is not None:
            device.busy_until = time.time() + self.busy_seconds
        for key, value in (self.conf or {}).items():
            host.hccn_conf = _with_line(host.hccn_conf or "", f"{key}_{device.id}", value)


class ConfFault(Fault):
    """/etc/hccn.conf of a whole host: `missing`, or other text."""

    host: str
    hccn_conf: str

    def break_fabric(self, state: FabricState) -> None:
        missing = self.hccn_conf == "missing"
        for host in _hosts(self.host, state):
            host.hccn_conf = None if missing else self.hccn_conf


class PathEnd(BaseModel):
    """One side of a path: an NPU, or without `device` (or with `"*"`) all of a host's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str  # `"*"`: every host
    device: Index | Literal["*"] | None = None

    def endpoints(self, state: FabricState) -> list[Endpoint]:
        names = list(state.hosts) if self.host == EVERY else [self.host]
        device = None if self.device == EVERY else self.device
        return [Endpoint(host=name, device=device) for name in names]


class PathFault(Fault):
    """A disturbed path between NPUs, in the direction given (`both: true` for both)."""

    source: PathEnd = Field(alias="from")
    target: PathEnd = Field(alias="to")
    both: bool = False
    loss: Annotated[float, Field(ge=0, le=1)] = 0.0  # a share of the packets
    unreachable: bool = False
    seconds: Seconds = 0.0
    max_bytes: Count | None = None

    @model_validator(mode="after")
    def _breaks_something(self) -> Self:
        if not self.model_fields_set & {"loss", "unreachable", "seconds", "max_bytes"}:
            raise ValueError(
                "nothing disturbs the path: loss, unreachable, seconds or max_bytes is needed"
            )
        return self

    def break_fabric(self, state: FabricState) -> None:
        ends = list(product(self.source.endpoints(state), self.target.endpoints(state)))
        if self.both:
            ends += [(target, source) for source, target in ends]
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
    """A command of a host that answers exactly this, after `seconds`.

    Any command: white space and the program's directory do not count, all arguments do.
    """

    host: str
    tool: Annotated[str, AfterValidator(_names_a_program)]
    stdout: str = ""
    stderr: str = ""
    exit: Annotated[int, Field(ge=0, le=255)] = 0
    seconds: Seconds = 0.0

    def break_fabric(self, state: FabricState) -> None:
        for host in _hosts(self.host, state):
            host.tools.append(
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
        for host in _hosts(self.host, state):
            host.driver = self.driver


class SuperpodFault(Fault):
    """A3: the super pod that a host believes to be in; null for none.

    Outside of one its vNICs have the addresses that A3 has then, the same on every host.
    """

    host: str
    superpod: fabric.Superpod | None

    def break_fabric(self, state: FabricState) -> None:
        for host in _hosts(self.host, state):
            host.superpod = self.superpod
            if self.superpod is None:
                for number, device in host.devices.items():
                    device.sdid = None
                    device.vnic = Vnic(ip=f"192.168.2.{199 - number}")


class SlowToolsFault(Fault):
    """Every tool call of a host takes this long, in seconds."""

    host: str
    tool_seconds: Seconds

    def break_fabric(self, state: FabricState) -> None:
        for host in _hosts(self.host, state):
            host.seconds = self.tool_seconds


class UserFault(Fault):
    """The user that the vendor's tools believe to be run by; 0 is root."""

    host: str
    uid: Index

    def break_fabric(self, state: FabricState) -> None:
        for host in _hosts(self.host, state):
            host.uid = self.uid


class EnvFault(Fault):
    """Variables in the login environment of a host (`~/` is its home directory)."""

    host: str
    env: Annotated[dict[str, str], BeforeValidator(_as_texts)]


class ListenFault(Fault):
    """A foreign process listens on a port of the host."""

    host: str
    listen: Annotated[int, Field(ge=1, le=65535)]


class SshFault(Fault):
    """The SSH server of a host: down, refuses our key, shows another host key, or never answers."""

    host: str
    ssh: Literal["down", "refuse-key", "other-host-key", "hang"]


class FileFault(Fault):
    """A file in the host's home directory `~` with this content; null: it is not there.

    A text that begins with `#!` is made executable: `~/bin` is first on the host's PATH.
    """

    host: str
    file: Annotated[str, AfterValidator(_inside_home)]
    text: str | None


class ClockFault(Fault):
    """The host's clock is `clock` seconds ahead; negative: behind."""

    host: str
    clock: float


class InstanceFault(Fault):
    """Kill or pause an instance, one TP rank of it, or the proxy, when it reaches a phase.

    `starting`: as soon as its processes run; `prefilling`: when the n-th prompt is about to
    be computed; `pulling`: in the n-th pull of KV; `decoding`: when the n-th request whose
    KV was pulled is about to be decoded. Of `instance: proxy` only `starting` and `serving`:
    when the n-th completion comes.
    """

    instance: str
    at: Literal["starting", "prefilling", "pulling", "decoding", "serving"]
    do: Literal["kill", "pause"]
    rank: Index | None = None
    request: Count = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        is_proxy = self.instance == PROXY_NAME
        if self.at != "starting" and is_proxy != (self.at == "serving"):
            raise ValueError("`serving` is a phase of the proxy, and its only one but `starting`")
        if is_proxy and self.rank is not None:
            raise ValueError("the proxy has no ranks")
        return self


class HttpAnswer(BaseModel):
    """What becomes of an answer: another status or body, late, cut, or none at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Annotated[int, Field(ge=200, le=599)] | None = (
        None  # this status instead of the answer; alone it is 500
    )
    body: str | None = None  # with this body, as it is: "" is empty, "{" no JSON
    after_chunks: Index | None = None  # the answer begins, and is cut there
    delay: Annotated[float, Field(gt=0)] | None = None  # seconds before anything is sent
    reset: bool = False  # the connection breaks instead
    request: Count | None = None  # only the n-th completion; None: every one

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        instead = self.status is not None or self.body is not None
        if self.reset and (instead or self.after_chunks is not None):
            raise ValueError("with `reset` no answer comes: it leaves no place for another")
        if self.after_chunks is not None and self.body is not None:
            raise ValueError("`after_chunks` cuts the engine's own answer, `body` replaces it")
        return self

    def in_words_of_the_engine(self) -> dict[str, Any]:
        """For twin/site/twin_engine/http_faults.py: what is to be done, and with what."""
        deed = "delay"
        if self.reset:
            deed = "reset"
        elif self.after_chunks is not None:
            deed = "cut"
        elif self.body is not None or self.status is not None or self.delay is None:
            deed = "answer"
        status = self.status or (500 if self.body is None else 200)
        return self.model_dump(exclude={"reset"}) | {"do": deed, "status": status}


class HttpFault(Fault):
    """The instance answers completion requests wrongly, late, in part, or not at all."""

    instance: str
    http: HttpAnswer


class ProxyFault(Fault):
    """A fault that real proxies had, of the proxy of `cluster: twin-other-proxy.yaml`.

    Ours has none of them: see twin/site/twin_proxy.py.
    """

    proxy: Literal["no-kv", "empty", "cut", "twice", "status", "json"]


class KvEffect(BaseModel):
    """A KV fault, in the words of llm_datadist (twin/site/llm_datadist/native/faults.py).

    `from` and `to` name an instance or a host, `rank` a TP rank of the puller.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    to: str | None = None
    rank: Index | None = None
    request: Count | None = None
    layer: Index | None = None
    tensor: Literal["k", "v"] | None = None
    block: Index | Literal["first", "last"] | None = None
    do: Literal["corrupt", "drop", "zero", "swap", "delay", "stall", "reset"]
    seconds: Seconds | None = None  # of delay

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.do == "delay") != (self.seconds is not None):
            raise ValueError("`seconds` belongs to `do: delay`, and to nothing else")
        if self.rank is not None and (self.to is None or "/" in self.to):
            raise ValueError("`rank` needs `to`, the instance whose rank it is")
        return self

    def in_words_of_llm_datadist(self) -> dict[str, Any]:
        words = self.model_dump(exclude_none=True, by_alias=True, exclude={"rank"})
        return words if self.rank is None else words | {"to": f"{self.to}/{self.rank}"}


class KvFault(Fault):
    """What happens to KV on its way."""

    kv: KvEffect

    def break_fabric(self, state: FabricState) -> None:
        state.kv_faults.append(self.kv.in_words_of_llm_datadist())


# The key that only faults of this kind have.
_KINDS: Mapping[str, type[Fault]] = {
    "kv": KvFault,
    "http": HttpFault,
    "proxy": ProxyFault,
    "do": InstanceFault,
    "tool": ToolFault,
    "from": PathFault,
    "env": EnvFault,
    "listen": ListenFault,
    "ssh": SshFault,
    "file": FileFault,
    "clock": ClockFault,
    "uid": UserFault,
    "driver": DriverFault,
    "superpod": SuperpodFault,
    "tool_seconds": SlowToolsFault,
    "hccn_conf": ConfFault,
    "device": DeviceFault,
}


def _kind_of(value: Mapping[str, Any]) -> tuple[str, type[Fault]]:
    """The key that says what kind of fault this is, and that kind."""
    for key, kind in _KINDS.items():
        if key in value:
            return key, kind
    raise ValueError(
        f"no kind of fault has the keys {', '.join(value) or '(none)'}: one of "
        f"{', '.join(_KINDS)} is needed; see docs/scenarios.md"
    )


def _as_fault(value: Any) -> Any:
    if isinstance(value, Fault) or not isinstance(value, dict):
        return value
    _, kind = _kind_of(value)
    return kind.model_validate(value)


def _as_where(value: Any) -> Any:
    """The place of a path may also be written as its fault is: `{from: {…}, to: {…}}`."""
    if not isinstance(value, dict) or not {"from", "to"} & value.keys():
        return value
    where = {key: part for key, part in value.items() if key not in ("from", "to")}
    for end, prefix in (("from", ""), ("to", "peer_")):
        for key, part in (value.get(end) or {}).items():
            where[f"{prefix}{key}"] = part
    return where


def _in_the_catalogue(name: str) -> str:
    if name not in CATALOGUE:
        near = closest(name, CATALOGUE)
        meant = "" if near is None else f" (`{near}`?)"
        raise ValueError(f"must be a finding of docs/checks.md{meant}")
    return name


def _known_marks(expression: str | None) -> str | None:
    words = re.findall(r"[^\s()]+", expression or "")
    for word in words:
        if word not in MARKS and word not in ("and", "or", "not"):
            raise ValueError(f"must be made of {listed(MARKS)}")
    return expression


class Expected(BaseModel):
    """A finding that the run must have. `where` states only what must be equal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, AfterValidator(_in_the_catalogue)]
    where: Annotated[Where, BeforeValidator(_as_where)] = Where()
    severity: Severity | None = None  # None: any


class Expectation(BaseModel):
    """What a run against the scenario must end with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    findings: tuple[Expected, ...] = ()
    clean: bool = True  # no other failing finding, and nothing left behind


def _as_expectation(value: Any) -> Any:
    """`expect` is a list of findings; `clean` may stand among them, or in the last one."""
    if not isinstance(value, list):
        return value
    findings: list[Any] = []
    clean: dict[str, Any] = {}
    for item in value:
        if isinstance(item, dict) and "clean" in item:
            clean = {"clean": item["clean"]}
            rest = {key: part for key, part in item.items() if key != "clean"}
            findings += [rest] if rest else []
        else:
            findings.append(item)
    return {"findings": findings, **clean}


class Scenario(BaseModel):
    """A scenario file. `marks`: what to run (`-m`), None for everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str = "twin-1p2d.yaml"
    about: str = ""  # one line for people; source of the failure
    marks: Annotated[str | None, AfterValidator(_known_marks)] = None
    faults: tuple[Annotated[Fault, BeforeValidator(_as_fault)], ...] = ()
    expect: Annotated[Expectation, BeforeValidator(_as_expectation)] = Expectation()

    clean: bool | None = None  # may stand here instead of in `expect`

    _root: Node | None = PrivateAttr(default=None)  # the file, if it was read from one

    @property
    def must_be_clean(self) -> bool:
        """Whether any other failing finding, or anything left behind, is a false one."""
        return self.expect.clean if self.clean is None else self.clean

    def path_of_expected(self, number: int) -> KeyPath:
        """Where the n-th expected finding (from 0) stands in the file."""
        return () if self._root is None else _paths_of_expected(self._root)[number]

    def mistake(self, path: KeyPath, message: str) -> SpecError:
        """An error of what stands at `path`, with its place in the file."""
        return (
            SpecError(message) if self._root is None else self._root.at(path).place.error(message)
        )

    def break_fabric(self, state: FabricState) -> None:
        for fault in self.faults:
            fault.break_fabric(state)

    def of(self, kind: type[T], host: str | None = None) -> Iterator[T]:
        """The faults of one kind; with `host` those that concern it."""
        for fault in self.faults:
            if isinstance(fault, kind) and (
                host is None or getattr(fault, "host", None) in (host, EVERY)
            ):
                yield fault


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises SpecError with file, line and what to write instead.

    `cluster` may name a file that lies beside the scenario.
    """
    root = read(path, os.environ, amend=_with_clean_at_the_top)
    for fault in _items(root, "faults"):
        _check_fault(fault)
    for place in _paths_of_expected(root):
        _check_expected(root.at(place))
    try:
        scenario = Scenario.model_validate(root.data())
    except ValidationError as error:
        raise _placed(error, root, "a scenario", Scenario) from error
    beside = path.parent / scenario.cluster
    if beside.is_file():
        scenario = scenario.model_copy(update={"cluster": str(beside)})
    scenario._root = root
    return scenario


_EXPECT = re.compile(r"expect:\s*(#.*)?")
_CLEAN = re.compile(r"\s+(clean:.*)")


def _with_clean_at_the_top(text: str) -> str:
    """`clean:` below the list of `expect`, as people write it, is not YAML: move it left.

        expect:
          - {id: link.down, where: {host: d1, device: 6}}
          clean: true

    No line moves up or down, so that errors still name the right one.
    """
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _EXPECT.fullmatch(line)]
    if not starts:
        return text
    body = range(starts[0] + 1, len(lines))
    end = next((n for n in body if lines[n][:1] not in ("", " ", "-", "#")), len(lines))
    stated = [n for n in body[: end - starts[0] - 1] if lines[n].split("#")[0].strip()]
    if len(stated) > 1 and lines[stated[0]].lstrip().startswith("-"):
        clean = _CLEAN.fullmatch(lines[stated[-1]])
        if clean:
            lines[stated[-1]] = clean[1]
    return "\n".join(lines) + "\n"


def _items(root: Node, key: str) -> tuple[Node, ...]:
    child = root.child(key)
    return child.content if child is not None and isinstance(child.content, tuple) else ()


def _check_fault(node: Node) -> None:
    """Validate one fault by itself, for an error at its own line."""
    value = node.data()
    if not isinstance(value, dict):
        raise node.place.error("a fault is a mapping; see docs/scenarios.md")
    try:
        key, kind = _kind_of(value)
    except ValueError as error:
        raise node.place.error(str(error)) from error
    try:
        kind.model_validate(value)
    except ValidationError as error:
        raise _placed(error, node, f"a fault with `{key}`", kind) from error


def _paths_of_expected(root: Node) -> list[KeyPath]:
    """Where the expected findings stand: `expect` is a list of them, or has `findings`."""
    path: KeyPath = ("expect",)
    if isinstance(root.at(path).content, Mapping):
        path = ("expect", "findings")
    items = root.at(path).content
    if not isinstance(items, tuple):
        return []
    return [(*path, n) for n, item in enumerate(items) if not _is_only_clean(item)]


def _is_only_clean(item: Node) -> bool:
    return isinstance(item.content, Mapping) and list(item.content) == ["clean"]


def _check_expected(node: Node) -> None:
    """Validate one expected finding by itself, for an error at its own line."""
    value = node.data()
    if isinstance(value, dict):
        value.pop("clean", None)
    try:
        Expected.model_validate(value)
    except ValidationError as error:
        raise _placed(error, node, "an expected finding", Expected) from error


def _placed(error: ValidationError, node: Node, what: str, model: type[BaseModel]) -> SpecError:
    """The first mistake, at its own line."""
    first = error.errors(include_url=False)[0]
    path, word = _stated(first["loc"], node), str(first["loc"][-1] if first["loc"] else "")
    place = node.at(path).key_place
    if first["type"] == "extra_forbidden":
        known = did_you_mean(word, keys_at(model, first["loc"][:-1]))
        return place.error(f"unknown word {word!r} in {what}{known or '; see docs/scenarios.md'}")
    if first["type"] == "missing":
        return place.error(f"{what} needs `{word}:`; see docs/scenarios.md")
    told = complaint(first, node.at(path))
    return place.error(f"{dotted(path)}: {told}" if path else told)


def _stated(path: KeyPath, node: Node) -> KeyPath:
    """As much of pydantic's location as stands in the file: unions add words of their own."""
    stated: list[str | int] = []
    for key in path:
        child = node.child(key)
        if child is None:
            break
        stated.append(key)
        node = child
    return tuple(stated)


def _hosts(name: str, state: FabricState) -> list[fabric.Host]:
    """The host of this name, or all of them."""
    return list(state.hosts.values()) if name == EVERY else [state.hosts[name]]


def _with_line(conf: str, key: str, value: str | int | None) -> str:
    """hccn.conf with the line `key=value` set, or removed for None."""
    lines = [line for line in conf.splitlines() if line.partition("=")[0] != key]
    if value is not None:
        lines.append(f"{key}={value}")
    return "".join(f"{line}\n" for line in lines)
