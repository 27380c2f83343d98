"""The silicon of a whole twin cluster as one typed value: what each NPU, link and path is like.

A `FabricState` says in which state every simulated device is. It is stored in the directory
named by the environment variable TWIN_STATE as

    fabric.json              everything below, written atomically; layout: see twin/tools/state.py
    <host>/etc/hccn.conf     that host's hccn.conf (absent if the host has none)
    <host>/ahead/            what the tools say in this state, see twin/tools/ahead.py

so that whoever changes it (the scenario engine) and whoever obeys it (`hccn_tool`, `npu-smi`,
`llm_datadist`) need nothing but the file: a change is seen by the next call. hccn.conf is a real
file because commands on the host read it and `hccn_tool` appends to it, as the vendor's does.

What follows from a state (a link that is down loses its pings, a device in the wrong subnet is
not reached) is not stored here but derived by the readers in twin/tools/state.py, so a fault has
to be said once only.

Values a healthy host shows are those of public captures of an Atlas 800T A2 and of an A3
superpod host; units are in the field comments.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from twin.tools import ahead
from twin.tools.state import FABRIC_FILE, hccn_conf_path

SUPERPOD_SERVERS = 48  # server indexes of one superpod are 0..47
SWITCH = "10.20.0.1"  # of a healthy fabric: everybody's gateway and detection address


class Model(BaseModel):
    """Base of all parts: unknown keys are errors, also when a field is assigned."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, populate_by_name=True)


class Product(StrEnum):
    A2 = "A2"  # Atlas 800T A2: 8 cards 910B3, one die each
    A3 = "A3"  # Atlas 800T A3: 8 cards of two dies each, in a superpod

    @property
    def dies_per_card(self) -> int:
        return 1 if self is Product.A2 else 2

    @property
    def devices(self) -> int:
        """Devices (dies) of one host."""
        return 8 * self.dies_per_card


class NetHealth(StrEnum):
    """What `-net_health -g` can say, in the words it prints."""

    SUCCESS = "Success"
    SOCKET_FAIL = "Socket fail"
    RECEIVE_TIMEOUT = "Receive timeout"
    UNREACHABLE = "Unreachable"
    TIME_EXCEEDED = "Time exceeded"
    FAULT = "Fault"
    INIT = "Init"
    THREAD_ERROR = "Thread error"
    DETECT_IP_SET = "Detect ip set"
    UNKNOWN = "Unknown"


class Vnic(Model):
    link: Literal["up", "down"] = "up"
    ip: str = "192.168.2.199"
    mask: str = "255.255.255.0"


class Certificate(Model):
    """One certificate as `-tls -g` shows it; times like ``Sat Jan  1 00:00:00 2033`` (GMT)."""

    subject: str = "/C=CN/O=Huawei/CN=twin"
    issuer: str = "/C=CN/O=Huawei/CN=Huawei Equipment CA"
    start: str = "Sun Jan  1 00:00:00 2023"
    end: str = "Sat Jan  1 00:00:00 2033"


class Tls(Model):
    """TLS of a device's sockets. `certificates` None: none were ever set, and the query fails."""

    enable: Literal[0, 1] = 0
    alarm_days: int = 60
    certificates: tuple[Certificate, ...] | None = (Certificate(), Certificate())


class LinkChange(Model):
    up: bool
    time: int  # seconds since 1970, device clock


class LinkStat(Model):
    up_count: int = 1
    down_count: int = 0
    now: int | None = None  # device clock, seconds since 1970; None: this machine's clock
    changes: tuple[LinkChange, ...] = ()  # oldest first; the tool prints them newest first


class Optical(Model):
    present: bool = True
    temperature: int = 47  # degrees Celsius
    tx_los: int = 0  # one bit a lane: no light sent
    rx_los: int = 0  # one bit a lane: no light received
    tx_lol: int = 0
    rx_lol: int = 0
    tx_power: float = 1.1035  # mW, each of the four lanes
    rx_power: float = 1.0189  # mW
    vendor: str = "Hisense"
    part: str = "LMQ8611-PC+"
    serial: str = "V8BD6H25033"


class Process(Model):
    """A process that holds memory of the device."""

    pid: int
    memory: int  # MiB
    name: str | None = None  # None: looked up in /proc, empty if it is not there


class Npu(Model):
    """What npu-smi says of a device."""

    health: Literal["ok", "warning", "alarm", "critical", "unknown"] = "ok"
    errors: dict[str, str] = {}  # error code in hex without 0x -> its text
    temperature: int = 45  # degrees Celsius
    power: float = 93.1  # W
    aicore: int = 0  # percent
    hbm_total: int = 65536  # MiB
    hbm_used: int = 3445  # MiB
    processes: tuple[Process, ...] = ()


Condition = Literal[
    "ready",
    "busy",  # serves someone else: retry
    "not-ready",  # the device's system never comes up: a call waits 300 s and fails
    "gone",  # fell off the bus
    "refused",  # the channel to the device refuses us
    "broken",  # the channel to the device fails
]


class Device(Model):
    """One NPU die, named by its physical id. None for an address: not configured."""

    id: int
    condition: Condition = "ready"
    busy_until: float | None = None  # seconds since 1970: busy before that, `condition` after
    link: Literal["up", "down"] = "up"
    net_health: NetHealth | None = None  # None: follows from link, address and netdetect
    ip: str | None = None
    mask: str = "255.255.0.0"
    gateway: str | None = None
    netdetect: str | None = None
    ip6: str | None = None
    prefix6: int = 64
    gateway6: str | None = None
    netdetect6: str | None = None
    mac: str = "00:00:00:00:00:00"
    mtu: int = 8192  # bytes
    speed: int = 200000  # Mb/s; 65535 is shown as Unknown
    duplex: Literal["full", "half", "unknown"] = "full"
    vnic: Vnic = Vnic()
    sdid: int | None = None  # A3: id in the superpod
    lldp: str | None = None  # the neighbour's text; None: no neighbour heard
    tls: Tls = Tls()
    link_stat: LinkStat = LinkStat()
    optical: Optical = Optical()
    pfc: str = "00001000"  # priorities 0..7, 1: enabled
    hccp: bool = True  # the device's hccp process runs
    npu: Npu = Npu()
    seconds: float | None = None  # what a tool call on it takes; None: the host's
    # Raw answers of the device, over all that is derived, in the words of the transcripts
    # (`op.0x0008.result: -16`, `ping.body: …`); see twin/tools/answers.py.
    answers: dict[str, int | str] = {}


class Driver(Model):
    state: Literal["loaded", "not-loaded", "held"] = "loaded"  # held: by another container
    version: str = "25.5.1"
    firmware: str = "7.7.0.6.236"


class Superpod(Model):
    id: int = 0
    size: int = 384  # devices
    server: int = 0  # index of this host in it


class ToolOverride(Model):
    """A command answered verbatim. White space and the program's directory do not count."""

    command: str  # as one would type it: "hccn_tool -i 6 -net_health -g"
    stdout: str = ""
    stderr: str = ""
    exit: int = 0
    seconds: float = 0.0


class Host(Model):
    """A simulated machine: its NPUs and what is true of all of them."""

    address: str  # of the host itself, what peers and SSH use
    devices: dict[int, Device]
    driver: Driver = Driver()
    superpod: Superpod | None = None  # A3 only; None: not in one
    uid: int = 0  # whom the tools believe to be run by
    seconds: float = 0.0  # what each tool call takes
    tools: list[ToolOverride] = []
    containers: tuple[str, ...] = ()  # names of those that run from the start, for `docker exec`
    hccn_conf: str | None = Field(default=None, exclude=True)  # kept in a file of its own


class Endpoint(Model):
    """One side of a path; device None: each device of the host."""

    host: str
    device: int | None = None


class PathRule(Model):
    """A disturbed path between devices, in the given direction; what is not listed is healthy."""

    source: Endpoint = Field(alias="from")
    target: Endpoint = Field(alias="to")
    loss: float = Field(default=0.0, ge=0, le=1)
    unreachable: bool = False  # no answer to ARP
    seconds: float = Field(default=0.0, ge=0)  # added to each round trip
    max_bytes: int | None = None  # larger packets are refused


class FabricState(Model):
    """All of it. `read` and `write` are the only I/O."""

    product: Product = Product.A2
    hosts: dict[str, Host]
    switches: tuple[str, ...] = (SWITCH,)  # addresses of no NPU at which the fabric answers
    # Factor on the waits that the vendor's tools have built in: 1 s at least of a -hccs_ping,
    # 300 s for a device that is not ready.
    wait_scale: float = Field(default=1.0, ge=0)
    paths: list[PathRule] = []
    kv_faults: list[dict[str, Any]] = []  # interpreted by llm_datadist alone

    def device(self, host: str, device: int) -> Device:
        return self.hosts[host].devices[device]

    def write(self, directory: Path) -> None:
        """Store into `directory` (made if missing): fabric.json in one step, and the hccn.conf
        files that differ from what lies there. From then on the tools answer from it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        ahead.forget(directory)
        for name, host in self.hosts.items():
            _write_conf(Path(hccn_conf_path(str(directory), name)), host.hccn_conf)
        _replace(directory / FABRIC_FILE, json.dumps(self.layout(), indent=1))
        ahead.write(directory)

    @classmethod
    def read(cls, directory: Path) -> FabricState:
        """What lies in `directory`; OSError or ValueError if that is no fabric."""
        layout = json.loads((directory / FABRIC_FILE).read_text(encoding="utf-8"))
        defaults = layout.pop("device_defaults")
        for host in layout["hosts"].values():
            host["devices"] = {id_: defaults | d for id_, d in host["devices"].items()}
        state = cls.model_validate(layout)
        for name, host in state.hosts.items():
            conf = Path(hccn_conf_path(str(directory), name))
            host.hccn_conf = conf.read_text(encoding="utf-8") if conf.exists() else None
        return state

    def layout(self) -> dict[str, Any]:
        """The content of fabric.json: devices carry only what differs from `device_defaults`,
        which keeps it small enough to be parsed by every tool call.
        """
        defaults = Device(id=0).model_dump(mode="json", exclude={"id"})
        layout = self.model_dump(
            mode="json", by_alias=True, exclude={"hosts": {"__all__": {"devices"}}}
        )
        for name, host in self.hosts.items():
            layout["hosts"][name]["devices"] = {
                str(number): _differing(device.model_dump(mode="json"), defaults)
                for number, device in host.devices.items()
            }
        return {"device_defaults": defaults} | layout


def healthy_cluster(
    hosts: Mapping[str, str],
    product: Product = Product.A2,
    *,
    seconds: float = 0.0,
    wait_scale: float = 0.05,
) -> FabricState:
    """A cluster in which nothing is wrong.

    `hosts`: name -> the host's own address, in order; `seconds`: what each tool call takes;
    `wait_scale`: see `FabricState` (1 is faithful and slow).
    Device d of the n-th host (from 0) has 10.20.<n + 1>.<10 + d>/16, all in one subnet behind
    the gateway 10.20.0.1. On A3 the hosts fill superpods of 48 in that order.
    """
    return FabricState(
        product=product,
        wait_scale=wait_scale,
        hosts={
            name: _healthy_host(index, address, product, seconds)
            for index, (name, address) in enumerate(hosts.items())
        },
    )


def hccn_conf_of(devices: Mapping[int, Device]) -> str:
    """The hccn.conf that brings up exactly these devices at boot."""
    lines: list[str] = []
    for number, device in sorted(devices.items()):
        if device.ip is None:
            continue
        lines += [f"address_{number}={device.ip}", f"netmask_{number}={device.mask}"]
        if device.netdetect is not None:
            lines.append(f"netdetect_{number}={device.netdetect}")
        if device.gateway is not None:
            lines.append(f"gateway_{number}={device.gateway}")
        lines += [f"send_arp_status_{number}=1", f"tls_enable_{number}={device.tls.enable}"]
    return "".join(f"{line}\n" for line in lines)


def _healthy_host(index: int, address: str, product: Product, seconds: float) -> Host:
    superpod = None
    if product is Product.A3:
        superpod = Superpod(id=index // SUPERPOD_SERVERS, server=index % SUPERPOD_SERVERS)
    devices = {
        number: _healthy_device(index, number, superpod) for number in range(product.devices)
    }
    return Host(
        address=address,
        devices=devices,
        superpod=superpod,
        seconds=seconds,
        hccn_conf=hccn_conf_of(devices),
    )


def _healthy_device(index: int, number: int, superpod: Superpod | None) -> Device:
    card, die = divmod(number, 1 if superpod is None else 2)
    port = f"400GE1/{index + 1}/{number // 2 + 1}:{number % 2 + 1}"
    device = Device(
        id=number,
        ip=f"10.20.{index + 1}.{10 + number}",
        gateway=SWITCH,
        netdetect=SWITCH,
        mac=f"0c:4f:9b:{index // 256:02x}:{index % 256:02x}:{number:02x}",
        vnic=Vnic(ip=f"192.168.2.{199 - number}"),
        lldp=_lldp_text(port),
    )
    if superpod is not None:
        device.sdid = superpod.server << 22 | card << 18 | die << 16 | number
        device.vnic = Vnic(ip=f"192.{superpod.server}.{2 + die}.{199 - number}", mask="255.0.0.0")
        device.npu = Npu(power=180.0)
    return device


def _lldp_text(port: str) -> str:
    return (
        "Chassis ID TLV\n\tMAC: 8c:83:e8:00:00:01\n"
        f"Port ID TLV\n\tIfname: {port}\n"
        "Time to Live TLV\n\t120\n"
        "System Name TLV\n\tswitch-01\n"
        "End of LLDPDU TLV"
    )


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in defaults or defaults[k] != v}


def _write_conf(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, nothing between."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
