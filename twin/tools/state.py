"""Reads the fabric of a twin: for the tools and for llm_datadist, which must start quickly.

Standard library only, and of that only what costs no start-up time (typing, pathlib and json
take longer to import than a tool takes to answer). The layout of ``$TWIN_STATE/fabric.json``
(its typed form, with all fields and units, is `twin.fabric.FabricState`; this is what a plain
reader needs to know):

    {"product": "A2" | "A3",
     "switches": ["10.20.0.1"],           addresses of no NPU at which the fabric answers
     "wait_scale": 1.0,                   factor on the waits that are built into the tools
     "device_defaults": {...},            fields of a device that it does not state itself
     "hosts": {NAME: {
         "address": "127.0.0.2",          of the host itself
         "uid": 0, "seconds": 0.05,       whom the tools see as their user; time of a tool call
         "driver": {...}, "superpod": {"id", "size", "server"} | null,
         "tools": [{"command", "stdout", "stderr", "exit", "seconds"}],
         "containers": ["name"],          known to docker from the start
         "devices": {"0": {"id": 0, "ip": "10.20.1.10", "link": "up" | "down", ...}}}},
     "paths": [{"from": {"host", "device" | null}, "to": {...},
                "loss": 0.0, "unreachable": false, "seconds": 0.0, "max_bytes": null}],
     "kv_faults": [{...}]}                not looked at here

``$TWIN_STATE/<host>/etc/hccn.conf`` is that host's hccn.conf.

Rules derived here: a packet goes from a device to an address if both links are up, both devices
are alive, the address belongs to a device, to a switch or is the sender's gateway, and the
subnets (or gateways) allow it; of several
owners of one address the first that is alive answers. On A3 the dies of one host do not reach
each other by RoCE.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Layout = dict[str, Any]
    Device = dict[str, Any]

FABRIC_FILE = "fabric.json"


class Owner:
    """A device and the host it is in."""

    __slots__ = ("device", "host")

    def __init__(self, host: str, device: Device) -> None:
        self.host = host
        self.device = device

    @property
    def id(self) -> int:
        """Physical id of the device."""
        return int(self.device["id"])


class PathState:
    """What a packet meets on its way.

    `reason` is one of ok, loss, link-down, no-such-address, no-route, unreachable.
    """

    __slots__ = ("loss", "max_bytes", "reason", "seconds")

    def __init__(
        self,
        reason: str = "ok",
        loss: float = 0.0,
        seconds: float = 0.0,
        max_bytes: int | None = None,
    ) -> None:
        self.reason = reason
        self.loss = loss  # 0..1; 1 on a dead path whatever the reason
        self.seconds = seconds  # added to each round trip
        self.max_bytes = max_bytes  # largest packet that passes; None: any

    @property
    def dead(self) -> bool:
        return self.loss >= 1.0


def state_directory() -> str:
    """Where the fabric is: $TWIN_STATE. KeyError if that is not set."""
    return os.environ["TWIN_STATE"]


def hccn_conf_path(directory: str, host: str) -> str:
    """The file that is /etc/hccn.conf of `host`."""
    return f"{directory}/{host}/etc/hccn.conf"


def load(directory: str | None = None) -> Layout:
    """The layout above with `device_defaults` filled in; `directory` None: $TWIN_STATE.

    Added are `owners_by_address` (all of them, in the order of hosts and ids) and
    `owners_by_sdid` (the first).
    """
    with open(f"{directory or state_directory()}/{FABRIC_FILE}", encoding="utf-8") as file:
        layout = _parse(file.read())
    defaults = layout["device_defaults"]
    by_address: dict[str, list[Owner]] = {}
    by_sdid: dict[int, Owner] = {}
    for name, host in layout["hosts"].items():
        host["devices"] = {number: defaults | d for number, d in host["devices"].items()}
        for device in host["devices"].values():
            owner = Owner(name, device)
            for address in (device["ip"], device["ip6"]):
                by_address.setdefault(address, []).append(owner)
            by_sdid.setdefault(device["sdid"], owner)
    return layout | {"owners_by_address": by_address, "owners_by_sdid": by_sdid}


def override_of(host: dict[str, Any], argv: Sequence[str]) -> dict[str, Any] | None:
    """The entry of `tools` that answers this call verbatim, if there is one."""
    if not host["tools"]:
        return None
    called = _normal(" ".join(argv))
    return next((tool for tool in host["tools"] if _normal(tool["command"]) == called), None)


def _normal(command: str) -> str:
    program, *words = command.split() or [""]
    return " ".join([program.rpartition("/")[2], *words])


def owners(layout: Layout, ip: str) -> list[Owner]:
    """All devices that have the address `ip` (IPv4 or IPv6), in the order of hosts and ids."""
    found: list[Owner] = layout["owners_by_address"].get(ip, [])
    return found


def device_of_ip(layout: Layout, ip: str) -> Owner | None:
    """The device that answers at `ip`: the first owner that is alive, else the first, else None."""
    found = owners(layout, ip)
    return next((owner for owner in found if alive(owner.device)), found[0] if found else None)


def alive(device: Device) -> bool:
    """Whether the device's port carries packets at all."""
    return device["link"] == "up" and device["condition"] not in ("not-ready", "gone")


def path_state(layout: Layout, source_ip: str, target_ip: str) -> PathState:
    """The path between two device addresses, in that direction."""
    source = device_of_ip(layout, source_ip)
    if source is None:
        return PathState("no-such-address", loss=1.0)
    return path_from(layout, source, target_ip)


def path_from(layout: Layout, source: Owner, target_ip: str) -> PathState:
    """The RoCE path from a device to an address."""
    if not alive(source.device):
        return PathState("link-down", loss=1.0)
    kind = "ip6" if ":" in target_ip else "ip"
    if source.device[kind] is None:
        return PathState("no-route", loss=1.0)
    if target_ip == source.device[kind]:
        return PathState()
    if kind == "ip" and not _routed(source.device, target_ip):
        return PathState("no-route", loss=1.0)
    target = device_of_ip(layout, target_ip)
    if target is None:
        # A switch's own address answers too; it is no device and has no rules.
        switches = (source.device["gateway"], *layout["switches"])
        return PathState() if target_ip in switches else PathState("no-such-address", loss=1.0)
    if not alive(target.device):
        return PathState("link-down", loss=1.0)
    if layout["product"] == "A3" and source.host == target.host:
        return PathState("no-such-address", loss=1.0)
    if kind == "ip" and not _routed(target.device, source.device["ip"]):
        return PathState("no-such-address", loss=1.0)  # the answer finds no way back
    mtus = (source.device["mtu"], target.device["mtu"])
    return _with_rules(layout, source, target, min(mtus) if mtus[0] != mtus[1] else None)


def hccs_path(layout: Layout, source: Owner, target: Owner) -> PathState:
    """The path over the superpod's own fabric; links and addresses of RoCE play no part."""
    if source.device["vnic"]["link"] == "down" or target.device["vnic"]["link"] == "down":
        return PathState("link-down", loss=1.0)
    if target.device["condition"] in ("not-ready", "gone"):
        return PathState("link-down", loss=1.0)
    return _with_rules(layout, source, target, None)


def _with_rules(layout: Layout, source: Owner, target: Owner, max_bytes: int | None) -> PathState:
    """The healthy path between two devices, worsened by the rules of `paths` that name it."""
    path = PathState(max_bytes=max_bytes)
    for rule in layout["paths"]:
        if not (_names(rule["from"], source) and _names(rule["to"], target)):
            continue
        path.seconds += rule["seconds"]
        path.loss = max(path.loss, rule["loss"])
        limits = [limit for limit in (path.max_bytes, rule["max_bytes"]) if limit is not None]
        path.max_bytes = min(limits, default=None)
        if rule["unreachable"]:
            path.reason, path.loss = "unreachable", 1.0
    if path.reason == "ok" and path.loss > 0:
        path.reason = "loss"
    return path


def _names(endpoint: dict[str, Any], owner: Owner) -> bool:
    return endpoint["host"] == owner.host and endpoint["device"] in (None, owner.id)


def _routed(device: Device, ip: str) -> bool:
    """Whether `device` knows where to send packets for `ip`."""
    own, mask = _number(device["ip"]), _number(device["mask"])
    if own & mask == _number(ip) & mask:
        return True
    gateway = device["gateway"]
    return gateway is not None and own & mask == _number(gateway) & mask


def _number(ip: str) -> int:
    """A dotted IPv4 address as a number; 0 for what is none."""
    known = _NUMBERS.get(ip)
    if known is None:
        parts = ip.split(".")
        valid = len(parts) == 4 and all(part.isdigit() and int(part) < 256 for part in parts)
        a, b, c, d = (int(part) for part in parts) if valid else (0, 0, 0, 0)
        known = _NUMBERS[ip] = a << 24 | b << 16 | c << 8 | d
    return known


_NUMBERS: dict[str, int] = {}  # of addresses seen; every path asks for the same few


def _parse(text: str) -> Layout:
    """json.loads without importing json, whose regular expressions take 9 of the 20 ms that a
    tool call may last. `_json` is the scanner json itself uses in CPython.
    """
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)  # type: ignore[no-any-return]  # the layout is ours
    scan = make_scanner(_Context())  # type: ignore[arg-type]  # typeshed has no name for a context
    return scan(text, 0)[0]  # type: ignore[no-any-return]  # the layout is ours


class _Context:
    """What json.JSONDecoder tells its scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}
