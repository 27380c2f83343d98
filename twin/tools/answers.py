"""What a device answers when a tool asks it, as flat words; derived from the fabric.

A flat vocabulary stands between the tools and the fabric, the one of the recordings of the real
tools (tests/data/transcripts/README.md), because a device can answer in more ways than a model
of healthy and broken parts has words for:

    link, net_health, netdetect, gateway, ip.addr, ip.mask, vnic.*, lldp, tls.*, ls.* (link_stat),
    opt.* (optical), mtu, speed, duplex, mac, pfc, ping.body, hccs.*     the values themselves
    op.0xNNNN.result, op.all.result       what the device answers to an opcode, 0: success
    op.0xNNNN.ret, op.all.ret             failure of the channel to the device
    ip.ret, net_health.ret, health.*      failures of what is not asked over that channel
    mainboard_id                          of the product

A `Device.answers` entry in the fabric overrides any of these.
"""

from __future__ import annotations

from twin.tools.state import Owner, hccs_path, path_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from twin.tools.state import Layout, PathState

MAINBOARD = {"A2": 0x03, "A3": 0x18}
NET_HEALTH = (
    "Success",
    "Socket fail",
    "Receive timeout",
    "Unreachable",
    "Time exceeded",
    "Fault",
    "Init",
    "Thread error",
    "Detect ip set",
    "Unknown",
)
IP_AND_ICMP_HEADERS = 28  # bytes
PING_PACKETS = 3


class Answers:
    """Recorded answers: each word has a value or is left to the tool's default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @property
    def values(self) -> Mapping[str, Any]:
        return self._values

    def number(self, key: str, default: int = 0) -> int:
        """The value of `key`; numbers may be written as text ("0x18")."""
        value = self.values.get(key)
        if value is None:
            return default
        return int(value, 0) if isinstance(value, str) else int(value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return None if value is None else str(value)

    def ping(self, target: str, size: int) -> str:
        """The device's text for three packets of `size` bytes to `target`."""
        return self.text("ping.body") or ""

    def hccs(self, sdid: int, size: int) -> Answers:
        """The answers (hccs.*) for packets of `size` bytes to the device `sdid` of the superpod."""
        return self


class Machine:
    """The host a tool runs on, as far as the tool sees it."""

    def __init__(
        self,
        devices: Mapping[int, Answers],
        *,
        user: str,
        conf: str,
        is_a3: bool,
        log_directory_is_file: bool = False,
    ) -> None:
        self.devices = devices  # by physical id
        self.user = user  # empty: the user id has no name
        self.conf = conf  # path of hccn.conf
        self.is_a3 = is_a3
        self.log_directory_is_file = log_directory_is_file

    @property
    def is_root(self) -> bool:
        return self.user == "root"


class DeviceAnswers(Answers):
    """The answers of a device of the fabric, worked out when first asked."""

    def __init__(self, layout: Layout, owner: Owner, now: float) -> None:
        super().__init__({})
        self._layout = layout
        self._owner = owner
        self._now = now
        self._derived: dict[str, Any] | None = None

    @property
    def values(self) -> Mapping[str, Any]:
        if self._derived is None:
            self._derived = _values_of(self._layout, self._owner, self._now)
        return self._derived

    def path_to(self, target: str) -> PathState:
        """The RoCE path to an address."""
        return path_from(self._layout, self._owner, target)

    def hccs_path_to(self, sdid: int) -> PathState | None:
        """The path to a device of the superpod; None if that is not in ours."""
        target = self._in_superpod(sdid)
        return None if target is None else hccs_path(self._layout, self._owner, target)

    def ping(self, target: str, size: int) -> str:
        body = self.text("ping.body")
        if body is not None:
            return body
        path = self.path_to(target)
        source = self._owner.device["ip6" if ":" in target else "ip"]
        return _ping_body(path, source, size)

    def hccs(self, sdid: int, size: int) -> Answers:
        if "hccs.ret" in self.values or "hccs.completed" in self.values:
            return self
        target, path = self._in_superpod(sdid), self.hccs_path_to(sdid)
        if target is None or path is None:
            return Answers({"hccs.ret": 3, **self.values})
        answers: dict[str, Any] = {
            "hccs.dst": target.device["vnic"]["ip"],
            "hccs.ns": 12345 + int(path.seconds * 1e9),
        }
        if path.max_bytes is not None and size > path.max_bytes:
            answers["hccs.ret"] = 2
        elif path.dead:
            answers["hccs.ret"] = 3
        elif path.loss:
            answers |= {f"hccs.{seq}.ret": 3 for seq in range(1000) if _is_lost(seq, path.loss)}
        return Answers({**answers, **self.values})

    def _in_superpod(self, sdid: int) -> Owner | None:
        """The device with this id, if it is in our superpod."""
        target = self._layout["owners_by_sdid"].get(sdid)
        return target if target and _one_superpod(self._layout, self._owner, target) else None


def machine_of(layout: Layout, host: str, *, conf: str, user: str, now: float) -> Machine:
    """The host of that name. KeyError if there is none."""
    its = layout["hosts"][host]
    visible = its["driver"]["state"] != "not-loaded"
    return Machine(
        {
            int(number): DeviceAnswers(layout, Owner(host, device), now)
            for number, device in its["devices"].items()
            if visible
        },
        user=user,
        conf=conf,
        is_a3=layout["product"] == "A3",
    )


def condition_of(device: Mapping[str, Any], now: float) -> str:
    """The device's condition at `now` (seconds since 1970)."""
    until = device["busy_until"]
    return "busy" if until is not None and now < until else str(device["condition"])


CONDITION_ANSWERS: dict[str, dict[str, int]] = {
    "ready": {},
    "busy": {"op.all.result": -16, "ip.ret": -16, "net_health.ret": -16},
    "not-ready": {"health.ret": 65534},
    "gone": {"health.value": 0xFFFFFFFF},
    "refused": {"op.all.ret": 46, "ip.ret": -1, "net_health.ret": -1},
    "broken": {"op.all.ret": 4, "ip.ret": -1, "net_health.ret": -1},
}


def _values_of(layout: Layout, owner: Owner, now: float) -> dict[str, Any]:
    device = owner.device
    up = device["link"] == "up"
    vnic, optical, tls, link_stat = (device[k] for k in ("vnic", "optical", "tls", "link_stat"))
    values: dict[str, Any] = {
        "mainboard_id": MAINBOARD[layout["product"]],
        "link": int(up),
        "net_health": NET_HEALTH.index(device["net_health"] or _net_health(layout, owner)),
        "netdetect": device["netdetect"],
        "netdetect6": device["netdetect6"],
        "gateway": device["gateway"],
        "gateway6": device["gateway6"],
        "ip.addr": device["ip"],
        "ip.mask": device["mask"],
        "ip6.addr": device["ip6"],
        "ip6.prefix": device["prefix6"],
        "vnic.link": int(vnic["link"] == "up"),
        "vnic.addr": vnic["ip"],
        "vnic.mask": vnic["mask"],
        "lldp": device["lldp"],
        "mtu": device["mtu"],
        "speed": device["speed"],
        "duplex": {"full": 1, "half": 0, "unknown": 255}[device["duplex"]],
        "mac": device["mac"],
        "pfc": device["pfc"],
        "process": int(device["hccp"]),
        "cfg_status": 3,
        "firmware": layout["hosts"][owner.host]["driver"]["firmware"],
        "route": _route_table(device),
        "status": _settings(device),
        "ls.up": link_stat["up_count"],
        "ls.down": link_stat["down_count"],
        "ls.now": link_stat["now"],
        "ls.n": len(link_stat["changes"]),
        "opt.present": int(optical["present"]),
        "opt.temp": optical["temperature"],
        "opt.vendor": optical["vendor"],
        "opt.pn": optical["part"],
        "opt.sn": optical["serial"],
        "opt.txmw": round(optical["tx_power"] * 10000),
        "opt.rxmw": round(optical["rx_power"] * 10000),
        "opt.txlos": optical["tx_los"],
        "opt.rxlos": optical["rx_los"],
        "opt.txlol": optical["tx_lol"],
        "opt.rxlol": optical["rx_lol"],
    }
    for n, change in enumerate(link_stat["changes"]):
        values[f"ls.{n}.up"], values[f"ls.{n}.t"] = int(change["up"]), change["time"]
    if tls["certificates"] is not None:
        values |= {"tls.enable": tls["enable"], "tls.alarm": tls["alarm_days"]}
        values["tls.certs"] = len(tls["certificates"])
        for n, certificate in enumerate(tls["certificates"]):
            values |= {f"tls.{n}.{field}": value for field, value in certificate.items()}
    if not up:
        values["op.0x0002.result"] = -67  # no neighbour is heard without a carrier
    if device["ip"] is None:
        values["op.0x009f.result"] = -22  # no address to ping from
    values |= CONDITION_ANSWERS[condition_of(device, now)]
    values |= device["answers"]
    return values


def _net_health(layout: Layout, owner: Owner) -> str:
    """What the device finds when it looks for its netdetect address."""
    device = owner.device
    if device["netdetect"] in (None, "0.0.0.0"):
        return "Init"  # nothing to look for: never started
    if device["link"] != "up":
        return "Fault"
    if device["ip"] is None:
        return "Socket fail"
    path = path_from(layout, owner, device["netdetect"])
    return "Receive timeout" if path.dead else "Success"


def _route_table(device: Mapping[str, Any]) -> str:
    def row(destination: str, gateway: str, mask: str, flags: str, iface: str) -> str:
        return f"{destination:16}{gateway:16}{mask:16}{flags:6}0      0        0 {iface}\n"

    port = f"eth{device['id']}"
    table = "Destination     Gateway         Genmask         Flags Metric Ref    Use Iface\n"
    if device["gateway"] is not None:
        table += row("default", device["gateway"], "0.0.0.0", "UG", port)
    if device["ip"] is not None:
        pairs = zip(device["ip"].split("."), device["mask"].split("."), strict=True)
        network = ".".join(str(int(part) & int(mask)) for part, mask in pairs)
        table += row(network, "*", device["mask"], "U", port)
    return table + row("127.0.0.1", "*", "255.255.255.255", "UH", "lo")


def _settings(device: Mapping[str, Any]) -> str:
    """What ethtool says of the port."""
    lines = [
        f"Settings for eth{device['id']}:",
        "Supported ports: [ FIBRE ]",
        f"Speed: {device['speed']}Mb/s",
        f"Duplex: {device['duplex'].capitalize()}",
        "Auto-negotiation: off",
        f"Link detected: {'yes' if device['link'] == 'up' else 'no'}",
    ]
    return "\n\t".join(lines) + "\n"


def _ping_body(path: PathState, source_ip: str, size: int) -> str:
    """The device's text. Only the lines with a time, the time-outs and the summary are known
    from captures; the wording of the other two lines is not known to anyone outside the vendor.
    """
    if path.reason in ("unreachable", "no-route"):
        lines = [f"From {source_ip} Destination Host Unreachable"]
        received = 0
    elif path.max_bytes is not None and size + IP_AND_ICMP_HEADERS > path.max_bytes:
        lines = ["sendto: Message too long"]
        received = 0
    else:
        milliseconds = path.seconds * 1000
        lines = [
            f"recv time out seq={seq}"
            if _is_lost(seq, path.loss)
            else f"recv seq={seq},time={milliseconds + FIRST_TIMES[seq]:.6f}ms"
            for seq in range(PING_PACKETS)
        ]
        received = sum(not _is_lost(seq, path.loss) for seq in range(PING_PACKETS))
    percent = (PING_PACKETS - received) / PING_PACKETS * 100
    summary = f"{PING_PACKETS} packets transmitted, {received} received, {percent:.2f}% packet loss"
    return "\n".join([*lines, summary])


FIRST_TIMES = (0.181, 0.055, 0.048)  # ms; the first packet waits for ARP


def _is_lost(seq: int, loss: float) -> bool:
    """Whether packet `seq` is one of the lost: spread evenly, the first one among them."""
    return loss >= 1 or seq * loss % 1 < loss


def _one_superpod(layout: Layout, source: Owner, target: Owner) -> bool:
    pods = [layout["hosts"][owner.host]["superpod"] for owner in (source, target)]
    return None not in pods and pods[0]["id"] == pods[1]["id"]
