"""Typed facts of hosts and their NPUs: what to ask, and what came back.

`read_cluster` asks all hosts at once, each with one script in one round trip
(`collector.py`). A host that cannot be read gives a typed failure; the others' facts stay.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from ipaddress import ip_interface, ip_network
from itertools import pairwise
from typing import Any, TypeVar

from pd_validate.errors import (
    CommandTimeout,
    HostAuthError,
    HostKeyChanged,
    HostSilent,
    HostUnreachable,
    LabError,
)
from pd_validate.facts import hccn, npu_smi
from pd_validate.facts.hccn_conf import HccnConf, parse_conf
from pd_validate.facts.reading import Output, Reading, Reason, failed, measured, not_read, refusal
from pd_validate.hosts.api import Commands
from pd_validate.hosts.fleet import in_parallel
from pd_validate.spec.models import Cluster, HostRuntime
from pd_validate.spec.plan import RPC_IP, RPC_PORT, InstanceLaunch, LaunchPlan, Process
from pd_validate.spec.ports import HCCL_BASE_PORT, side_channel_base, side_channel_block
from pd_validate.spec.profiles import devices_of, profile_of

T = TypeVar("T")
# Entered around the work on a host, by its name: for whoever tells or times it.
Watch = Callable[[str], AbstractContextManager[object]]

HCCN_CONF = "/etc/hccn.conf"
PACKAGES = ("torch", "torch_npu", "vllm", "vllm_ascend")
MODULES = ("llm_datadist",)
HCCL_DEVICE_PORT = 16666  # where HCCL listens for other ranks
SECONDS_PER_COMMAND = 2.0  # of a host's budget
BUSY_RETRIES = 5  # with pauses of 0.5, 1, 2, 4, 8 s
BUSY_PATIENCE = 35.0  # seconds a host's busy devices may cost: two that stay busy, and some more

_ENVIRONMENT = (
    *("ASCEND_", "GLOO_", "HCCL_", "LCCL_", "OMP_", "VLLM_", "PYTORCH_NPU_"),
    *("TP_SOCKET_IFNAME", "DISAGGREGATED_", "CLOSE_MATMUL_K_SHIFT", "TASK_QUEUE_ENABLE"),
    *("LD_PRELOAD", "HOST_IP"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
# The device does not exist or its system is not up: its other queries would only cost time.
_STOP_TEXTS = (
    "Get device health status failed!",
    "Get invalid device id.",
    "The device is not exist!",
)


# --- facts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceFacts:
    """One NPU die, by physical id. What its product does not have is Reason.NOT_READ."""

    device: int
    link: Reading[bool]
    link_stat: Reading[hccn.LinkHistory]
    lldp: Reading[hccn.Neighbour]
    optical: Reading[hccn.Optics]
    speed: Reading[int | str]
    duplex: Reading[str]
    net_health: Reading[hccn.NetHealth]
    netdetect: Reading[hccn.Netdetect]
    gateway: Reading[hccn.Gateway]
    ip: Reading[hccn.Addresses]
    mtu: Reading[int]
    tls: Reading[hccn.Tls]
    vnic: Reading[hccn.Vnic]  # A3
    health: Reading[npu_smi.Health]
    spod: Reading[npu_smi.SuperPod]  # A3

    @property
    def hccn_readings(self) -> tuple[Reading[Any], ...]:
        """Everything that hccn_tool was asked, in the order it was asked."""
        return (
            *(self.link, self.ip, self.net_health, self.netdetect, self.gateway, self.lldp),
            *(self.link_stat, self.optical, self.speed, self.duplex, self.mtu, self.tls, self.vnic),
        )

    @property
    def readings(self) -> tuple[Reading[Any], ...]:
        """Everything that was read of this device."""
        return self.health, self.spod, *self.hccn_readings

    @property
    def outside_super_pod(self) -> bool:
        """An A3 die without a place in a super pod; vNIC addresses are 192.168.x.x there."""
        spod, vnic = self.spod.value, self.vnic.value
        if spod is not None and not spod.inside:
            return True
        return vnic is not None and vnic.address.ip in _VNICS_ALONE

    @property
    def asked(self) -> tuple[Reading[Any], ...]:
        """Those that were not left out on purpose."""
        return tuple(r for r in self.hccn_readings if r.reason is not Reason.NOT_READ)


@dataclass(frozen=True)
class Card:
    """A network card of the host, as the kernel has it. `up`: switched on and with a carrier."""

    name: str
    up: bool
    loopback: bool
    addresses: tuple[hccn.Address, ...]

    def has(self, address: str) -> bool:
        """A loopback card has every address of its network, as the kernel does."""
        wanted = ip_interface(address).ip
        return any(
            own.ip == wanted or (self.loopback and wanted in own.network) for own in self.addresses
        )


@dataclass(frozen=True)
class PortState:
    """Whether a server could listen there. `free` None: it could not be tried."""

    address: str
    port: int
    free: bool | None
    holder: str = ""  # process that listens, if we may see it
    error: str = ""


@dataclass(frozen=True)
class Software:
    """Versions on one host. A package or file that is not there is None."""

    versions: Mapping[str, str | None]  # by name of a field of `Expect`
    modules: Mapping[str, str | None]  # module -> where Python finds it
    python: str = ""


@dataclass(frozen=True)
class ModelFiles:
    """The model directory: (size in bytes, digest) by relative path. Large files are sampled."""

    path: str
    files: Mapping[str, tuple[int, str]]
    error: str = ""


@dataclass(frozen=True)
class Clock:
    """How far the host's clock is ahead of the controller's: between `low` and `high` seconds."""

    low: float
    high: float


@dataclass(frozen=True)
class HostFacts:
    """Everything read of one host in one round trip, which took `seconds` as seen from here."""

    host: str
    product: str  # "A2" or "A3", of the cluster's hardware profile
    devices: Mapping[int, DeviceFacts]
    present: Reading[tuple[int, ...]]  # ids of /dev/davinci<N>
    mapping: Reading[tuple[npu_smi.Chip, ...]]
    table: Reading[npu_smi.Table]
    hccn_conf: Reading[HccnConf]
    cards: Mapping[str, Card]
    own_address: str  # what vLLM's get_ip() takes without VLLM_HOST_IP
    environment: Mapping[str, str]  # of a login; only variables that matter here
    ports: tuple[PortState, ...]
    software: Reading[Software]
    model: ModelFiles | None
    clock: Reading[Clock]
    tuning: Mapping[str, str]  # kernel, governor, hugepages, virtual: blank if not readable
    seconds: float = 0.0


@dataclass(frozen=True)
class HostFailure:
    """A host that could not be read: the finding's id, and the error's own words."""

    host: str
    id: str
    message: str


@dataclass(frozen=True)
class ClusterFacts:
    """What was read, by host, in the cluster file's order."""

    hosts: Mapping[str, HostFacts]
    failures: Mapping[str, HostFailure] = field(default_factory=dict)
    seconds: float = 0.0

    def device(self, host: str, device: int) -> DeviceFacts | None:
        facts = self.hosts.get(host)
        return None if facts is None else facts.devices.get(device)


# --- what to ask --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadRequest:
    """What to ask of one host; `document` goes to the collector as it is."""

    host: str
    product: str
    devices: tuple[int, ...]
    document: Mapping[str, Any]
    budget: float  # seconds that all commands together may take


def requests_of(cluster: Cluster, plan: LaunchPlan) -> dict[str, ReadRequest]:
    """One request per host, for everything that `check_network` looks at."""
    return {host: _request_of(cluster, plan, host) for host in cluster.hosts}


def _request_of(cluster: Cluster, plan: LaunchPlan, host: str) -> ReadRequest:
    profile = profile_of(cluster)
    devices = devices_of(cluster, host)
    commands = _commands(
        devices,
        profile.card_and_chip,
        super_pod=profile.super_pod,
        tool=cluster.timeouts.tool,
    )
    # Several times what a healthy host needs; a sick one must not cost every query's time limit.
    budget = max(60.0, SECONDS_PER_COMMAND * len(commands))
    document: dict[str, Any] = {
        "tools": tool_options(cluster, host, budget),
        "clock": True,
        "files": _files(devices),
        "commands": commands,
        "network": {},
        "environment": list(_ENVIRONMENT),
        "ports": [list(pair) for pair in _ports(cluster, plan.on(host))],
    }
    if cluster.checks.software:
        document["software"] = _probe(cluster, plan, host)
        document["model"] = str(cluster.model.path)
    return ReadRequest(host, profile.product, devices, document, budget)


def tool_options(cluster: Cluster, host: str, budget: float) -> dict[str, Any]:
    """How the collector runs commands on `host`; `budget` in seconds for all of them."""
    on_the_host = isinstance(cluster.runtime_of(host), HostRuntime)
    return {
        "timeout": cluster.timeouts.tool,
        "budget": budget,
        "retries": BUSY_RETRIES,
        "patience": BUSY_PATIENCE,
        "stop_texts": list(_STOP_TEXTS),
        # Inside a container we are who its image says.
        "prefix": ["sudo", "-n"] if cluster.ssh_of(host).sudo and on_the_host else [],
    }


def _commands(
    devices: Sequence[int],
    card_and_chip: Callable[[int], tuple[int, int]],
    *,
    super_pod: bool,
    tool: float,
) -> list[dict[str, Any]]:
    """All queries of a host; `tool` is the time limit of one in seconds.

    npu-smi first: a broken driver then shows before any device is asked.

    The order within a device is that of `DeviceFacts.hccn_readings`.
    """
    commands: list[dict[str, Any]] = [
        {"argv": ["cat", HCCN_CONF], "keep": "settings"},
        {"argv": ["npu-smi", "info", "-m"], "keep": "chips"},
        {"argv": ["npu-smi", "info"], "timeout": 3 * tool},  # 5 s for 8 cards were seen
        {"argv": ["npu-smi", "info", "-t", "board", "-i", str(card_and_chip(devices[0])[0])]},
    ]
    for device in devices:
        smi = {"device": device, "card_and_chip": card_and_chip(device)}
        chip = ["-i", "{card}", "-c", "{chip}"]
        commands.append({**smi, "argv": ["npu-smi", "info", "-t", "health", *chip]})
        if super_pod:
            commands.append({**smi, "argv": ["npu-smi", "info", "-t", "spod-info", *chip]})
        queries = _HCCN_QUERIES if super_pod else _HCCN_QUERIES[:-1]
        first = len(commands)
        commands += [_hccn_command(device, query) for query in queries]
        # Detection that is just starting is no fault yet; without an address it never starts.
        commands[first + queries.index("net_health")] |= {
            "settle_texts": ["status: Init", "status: Detect ip set"],
            "settle_unless": first + queries.index("netdetect"),
        }
        for index, query in enumerate(queries):
            if "-inet6" in query:
                commands[first + index]["only_if"] = [first + queries.index("ip"), [_NO_IPV4]]
    return commands


_HCCN_QUERIES = (
    *("link", "ip", "net_health", "netdetect", "gateway", "lldp"),
    *("link_stat", "optical", "speed", "duplex", "mtu", "tls"),
    *("ip -inet6", "netdetect -inet6", "gateway -inet6", "vnic"),
)
_VNICS_ALONE = ip_network("192.168.0.0/16")
_NO_IPV4 = "no ip was preset"
# These do not say that the device is busy: they only fail then. -link, asked first, does say it,
# so a device that fails there is no busy one.
_BUSY_MEANS_FAILED = ("ip", "net_health", "vnic")


def _hccn_command(device: int, query: str) -> dict[str, Any]:
    command: dict[str, Any] = {
        "argv": ["hccn_tool", "-i", str(device), *f"-{query}".split(), "-g"],
        "device": device,
        "retry_texts": list(hccn.BUSY_TEXTS),
    }
    if query in _BUSY_MEANS_FAILED:
        command["maybe_busy_texts"] = list(hccn.FAILED_TEXTS)
    if query == "link":
        command["refusal_texts"] = [*hccn.FAILED_TEXTS, hccn.PERMISSION_TEXT]
    if query == "tls":
        command["needs_key"] = f"tls_enable_{device}"
    return command


_DRIVER = "/usr/local/Ascend/driver/version.info"
_FIRMWARE = "/usr/local/Ascend/firmware/version.info"
_CANN = (
    "/usr/local/Ascend/ascend-toolkit/latest/{arch}-linux/ascend_toolkit_install.info",
    "/usr/local/Ascend/cann/{arch}-linux/ascend_toolkit_install.info",  # CANN 8.5 and later
)
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


def _files(devices: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Small reads by ordinary commands, by name."""
    cann = [path.format(arch=arch) for path in _CANN for arch in ("aarch64", "x86_64")]
    return [
        # One name per device: a pattern would be the shell's work, and there is no shell.
        ("davinci", ["ls", *(f"/dev/davinci{device}" for device in devices)]),
        ("driver", ["cat", _DRIVER]),
        ("firmware", ["cat", _FIRMWARE]),
        ("cann", ["cat", *cann]),
        ("kernel", ["uname", "-r"]),
        ("governor", ["cat", _GOVERNOR]),
        ("hugepages", ["cat", _THP]),
        ("virtual", ["systemd-detect-virt"]),
    ]


# Run by the Python that will run the engines, after the same scripts. Nothing heavy is
# imported: a version comes from a package's metadata, whether a module is there from the
# import system's search, CANN's version from where its set_env.sh points.
_PROBE = """
import glob, importlib.metadata, importlib.util, json, os, sys
packages, modules = json.loads(sys.argv[1])
versions, found = {}, {}
for name in packages:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = None
for name in modules:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    found[name] = None if spec is None else (spec.origin or str(spec.submodule_search_locations))
cann = ""
for home in (os.environ.get("ASCEND_HOME_PATH"), os.environ.get("ASCEND_TOOLKIT_HOME")):
    for path in glob.glob(f"{home}/*-linux/ascend_toolkit_install.info") if home else ():
        cann = cann or open(path).read()
print("\\n" + json.dumps({"python": sys.version.split()[0], "packages": versions,
    "modules": found, "cann": cann}))
"""


def _probe(cluster: Cluster, plan: LaunchPlan, host: str) -> dict[str, Any]:
    """The command that tells versions, in the environment of the host's first instance."""
    names = json.dumps([PACKAGES, MODULES])
    argv = (cluster.python, "-c", _PROBE, names)
    launch = next((p for p in plan.instances.values() if p.host == host), None)
    command = argv if launch is None else replace(launch, argv=argv).command
    return {
        "argv": list(command),
        "env": {} if launch is None else dict(launch.env),
        "shown": f"{cluster.python} -c '<versions of {', '.join((*PACKAGES, *MODULES))}>'",
        "timeout": 60,
    }


def _ports(cluster: Cluster, processes: Iterable[Process]) -> list[tuple[str, int]]:
    """(address, port) that the processes of a host will listen on, or may, by their versions."""
    ports = []
    for process in processes:
        address = _option(process.argv, "--host") or "0.0.0.0"
        port = getattr(process, "port", 0)
        if port:
            ports.append((address, port))
        if isinstance(process, InstanceLaunch):
            side = process.env.get(RPC_IP, "0.0.0.0")
            engine = cluster.engine_of(process.name)
            block = side_channel_block(
                _stated_port(process, RPC_PORT) or side_channel_base(cluster, process.name),
                tensor_parallel=engine.tensor_parallel,
                data_parallel=engine.data_parallel,
            )
            ports += [(side, number) for number in block if number < 65536]
            # HCCL fails late if somebody has its ports: EJ0003, EI0019, "port[60000]". On the
            # host a rank takes the base port + the physical id of its device (HCCL's source).
            base = _stated_port(process, "HCCL_IF_BASE_PORT") or HCCL_BASE_PORT
            ports.append((process.address, HCCL_DEVICE_PORT))
            hccl = [base + device for device in (0, *process.devices)]
            ports += [(process.address, number) for number in hccl if number < 65536]
    return list(dict.fromkeys(ports))


def _stated_port(process: Process, name: str) -> int | None:
    """A port from a variable of the process; what is none is another check's (env.range)."""
    stated = process.env.get(name, "")
    return int(stated) if stated.isdigit() and 0 < int(stated) < 65536 else None


def _option(argv: Sequence[str], name: str) -> str | None:
    """The last value of an option, as argparse takes it."""
    values = [after for before, after in pairwise(argv) if before == name]
    values += [word.partition("=")[2] for word in argv if word.startswith(f"{name}=")]
    return values[-1] if values else None


# --- reading ------------------------------------------------------------------------------------


def read_cluster(
    commands: Mapping[str, Commands],
    requests: Mapping[str, ReadRequest],
    *,
    watch: Watch = nullcontext,
) -> ClusterFacts:
    """Read all hosts at once. Takes as long as the slowest host."""
    started = time.monotonic()

    def one(host: str) -> HostFacts:
        with watch(host):
            return read_host(commands[host], requests[host])

    results = each_host(requests, one)
    return ClusterFacts(
        {host: facts for host, facts in results.items() if isinstance(facts, HostFacts)},
        {host: error for host, error in results.items() if isinstance(error, HostFailure)},
        time.monotonic() - started,
    )


def each_host(names: Iterable[str], work: Callable[[str], T]) -> dict[str, T | HostFailure]:
    """Run `work` for every host in parallel; a lab error of one host becomes its failure."""
    results = in_parallel({host: partial(work, host) for host in names})
    return {
        host: HostFailure(host, failure_id(result), str(result))
        if isinstance(result, LabError)
        else result
        for host, result in results.items()
    }


def failure_id(error: LabError) -> str:
    """Finding id of a host that could not be asked."""
    for kind, name in (
        (HostKeyChanged, "host.key-changed"),
        (HostAuthError, "host.auth"),
        (CommandTimeout, "host.hang"),
        (HostSilent, "host.hang"),
        (HostUnreachable, "host.unreachable"),
    ):
        if isinstance(error, kind):
            return name
    return "host.unusable"


def read_host(commands: Commands, request: ReadRequest) -> HostFacts:
    """Run the collector on one host and type its answer.

    Raises HostUnreachable, HostAuthError, HostKeyChanged, CommandTimeout; LabError if
    the script did not run to its end.
    """
    before = time.time()
    started = time.monotonic()
    document = run_collector(commands, request.document, timeout=request.budget + 60)
    seconds = time.monotonic() - started
    return host_facts(request, document, before, seconds)


def run_collector(
    commands: Commands, request: Mapping[str, Any], *, timeout: float
) -> dict[str, Any]:
    """The collector's document. `timeout` in seconds, of the whole round trip."""
    # The request travels inside the script: a ping list may be longer than an argument may be.
    script = f"{_collector_source()}\n\nmain(json.loads({json.dumps(request)!r}))\n"
    result = commands.python(script, timeout=timeout)
    start = result.stdout.find('{"collected"')  # after what a login script may print
    try:
        document = json.loads(result.stdout[start:]) if start >= 0 else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        said = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no output"]
        raise LabError(
            f"{commands.name}: the reader script ended with exit code {result.exit_code} and no "
            f"result: {said[0]}. It needs Python 3.8 on the host; try `python3 --version` there."
        )
    return document


@cache
def _collector_source() -> str:
    return resources.files("pd_validate.facts").joinpath("collector.py").read_text("utf-8")


def host_facts(
    request: ReadRequest, document: Mapping[str, Any], before: float, seconds: float
) -> HostFacts:
    """Type the collector's answer to `request`.

    `before` is when the round trip began (seconds since the epoch, controller's clock),
    `seconds` how long it took.
    """
    files = {name: Output.from_json(data) for name, data in document["files"].items()}
    outputs = [Output.from_json(data) for data in document["commands"]]
    fixed, rest = outputs[:4], outputs[4:]
    per_device = len(rest) // len(request.devices) if request.devices else 0
    devices = {
        device: _device_facts(
            device, request.product, rest[index * per_device : (index + 1) * per_device]
        )
        for index, device in enumerate(request.devices)
    }
    table = npu_smi.parse_info(fixed[2])
    network = document["network"]
    return HostFacts(
        host=request.host,
        product=request.product,
        devices=devices,
        present=_present(files["davinci"]),
        mapping=npu_smi.parse_mapping(fixed[1]),
        table=table,
        hccn_conf=parse_conf(fixed[0]),
        cards={card.name: card for card in map(_card, network["cards"])},
        own_address=network["own_address"],
        environment=document["environment"],
        ports=tuple(PortState(**port) for port in document["ports"]),
        software=_software(document.get("software"), files, table, fixed[3]),
        model=_model(document.get("model")),
        clock=_clock(Output.from_json(document["clock"]), document["clock_age"], before, seconds),
        tuning={
            "kernel": files["kernel"].stdout.strip(),
            "governor": files["governor"].stdout.strip(),
            "hugepages": _chosen(files["hugepages"].stdout),
            "virtual": files["virtual"].stdout.strip(),
        },
        seconds=seconds,
    )


def _device_facts(device: int, product: str, outputs: Sequence[Output]) -> DeviceFacts:
    queue = list(outputs)
    health = npu_smi.parse_health(queue.pop(0))
    if product == "A3":
        spod = npu_smi.parse_spod(queue.pop(0))
    else:
        spod = not_read("npu-smi info -t spod-info", f"{product} has no super pod")
        queue.append(Output(f"hccn_tool -i {device} -vnic -g", skipped=f"not used on {product}"))
    by_query = dict(zip(_HCCN_QUERIES, queue, strict=True))
    ip = hccn.parse_ip(by_query["ip"])
    netdetect = hccn.parse_netdetect(by_query["netdetect"])
    gateway = hccn.parse_gateway(by_query["gateway"])
    ip6 = hccn.parse_ip(by_query["ip -inet6"])
    if ip6.value is not None and ip6.value.first is not None:
        # A fabric of IPv6: what is said of IPv4 does not matter then.
        ip = ip6
        netdetect = hccn.parse_netdetect(by_query["netdetect -inet6"])
        gateway = hccn.parse_gateway(by_query["gateway -inet6"])
    return DeviceFacts(
        device=device,
        link=hccn.parse_link(by_query["link"]),
        link_stat=hccn.parse_link_stat(by_query["link_stat"]),
        lldp=hccn.parse_lldp(by_query["lldp"]),
        optical=hccn.parse_optical(by_query["optical"]),
        speed=hccn.parse_speed(by_query["speed"]),
        duplex=hccn.parse_duplex(by_query["duplex"]),
        net_health=hccn.parse_net_health(by_query["net_health"]),
        netdetect=netdetect,
        gateway=gateway,
        ip=ip,
        mtu=hccn.parse_mtu(by_query["mtu"]),
        tls=hccn.parse_tls(by_query["tls"]),
        vnic=hccn.parse_vnic(by_query["vnic"]),
        health=health,
        spod=spod,
    )


def _present(output: Output) -> Reading[tuple[int, ...]]:
    """`ls /dev/davinci0 …`: names that exist stand on stdout, the others in an error line."""
    found = [
        int(name.removeprefix("/dev/davinci"))
        for name in output.stdout.split()
        if name.removeprefix("/dev/davinci").isdigit()
    ]
    if output.timed_out or "command not found" in output.stderr:
        return failed(Reason.TIMEOUT if output.timed_out else Reason.MISSING, output)
    return measured(tuple(found), output)


def _card(data: Mapping[str, Any]) -> Card:
    flags = data.get("flags", ())
    addresses = [
        ip_interface(f"{entry['local']}/{entry['prefixlen']}")
        for entry in data.get("addr_info", ())
        if "local" in entry
    ]
    up = "UP" in flags and "NO-CARRIER" not in flags
    return Card(data["ifname"], up, "LOOPBACK" in flags, tuple(addresses))


def _software(
    data: Mapping[str, Any] | None,
    files: Mapping[str, Output],
    table: Reading[npu_smi.Table],
    board: Output,
) -> Reading[Software]:
    if data is None:
        return not_read("versions", "checks.software is false in the cluster file")
    output = Output.from_json(data)
    try:
        # Scripts may talk before, and complain of what they do not need.
        found = json.loads(output.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return refusal(output, ()) or failed(Reason.UNPARSABLE, output)
    driver = _version(files["driver"].stdout) or (table.value.driver if table.value else None)
    versions: dict[str, str | None] = {
        "driver": driver,
        "firmware": _version(files["firmware"].stdout) or npu_smi.firmware_version(board),
        "cann": _version(found["cann"]) or _version(files["cann"].stdout),
        **found["packages"],
    }
    return measured(Software(versions, found["modules"], found["python"]), output)


def _version(text: str) -> str | None:
    """`Version=25.5.1` or `version=8.2.RC1` in one of Ascend's install files."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip().lower() == "version":
            return value.strip()
    return None


def _model(data: Mapping[str, Any] | None) -> ModelFiles | None:
    if data is None:
        return None
    files = {name: (size, digest) for name, (size, digest) in data.get("files", {}).items()}
    return ModelFiles(data["path"], files, data.get("error", ""))


def _clock(output: Output, age: float, before: float, seconds: float) -> Reading[Clock]:
    """`date` ran at some moment between `before` and `age` seconds ahead of the answer."""
    try:
        shown = float(output.stdout)
    except ValueError:
        return failed(Reason.UNPARSABLE, output)
    return measured(Clock(shown - (before + seconds - age), shown - before), output)


def _chosen(text: str) -> str:
    """The word in brackets: `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0]
