"""The twin's fabric state, as far as it decides whether KV gets through.

Read from $TWIN_STATE/fabric.json by the same reader that `hccn_tool` of the twin uses, so that
a link shown DOWN carries no KV. Without that file everything is healthy.

What each state does:

======================================= ==========================================================
address missing, or not the rank        `link` raises LLM_LINK_FAILED (HCCL: EI0014)
table's device_ip
hccn.conf without the device's address  `link` raises LLM_LINK_FAILED (HCCL: "'device ip' is not
                                        set correctly"); between servers only
hccn.conf with another address          the link never comes up: FAILED after the timeout
TLS switches differ                     the same (HCCL: EI0006)
link down, path dead, no route          the same; on a link that is up: pulls end in LLM_TIMEOUT
max_bytes below a pull's size           pulls end in LLM_TIMEOUT, links come up (small packets)
seconds on a path                       each pull takes so much longer
loss on a path (below 1)                each pull takes 10 ms longer for each packet of 4096 bytes
                                        that is lost on average
======================================= ==========================================================

Inside a server traffic goes over HCCS, which none of this touches, unless
HCCL_INTRA_ROCE_ENABLE=1. On an A3 all traffic takes the superpod's own fabric.
"""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_datadist.native.place import Place

if TYPE_CHECKING:
    from twin.tools import state as reader
else:  # loaded by its place: `twin` itself need not be importable on a simulated host
    _file = Path(__file__).resolve().parents[3] / "tools" / "state.py"
    _spec = importlib.util.spec_from_file_location("llm_datadist_fabric_reader", _file)
    reader = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(reader)

PACKET = 4096  # bytes of KV in one packet
RETRANSMISSION = 0.010  # seconds


@dataclass(frozen=True)
class Passage:
    """What a transfer meets. `reason` is empty if it gets through."""

    reason: str = ""
    seconds: float = 0.0  # what it takes on top of the copying


HEALTHY = Passage()


class Fabric:
    """Reads the state anew whenever the file has changed."""

    def __init__(self, state: str | None) -> None:
        self._state = state
        self._layout: dict[str, Any] | None = None
        self._signature: tuple[int, int, int] | None = None

    def layout(self) -> dict[str, Any] | None:
        """The state of all hosts; None without a fabric."""
        if self._state is None:
            return None
        try:
            status = os.stat(f"{self._state}/{reader.FABRIC_FILE}")
        except FileNotFoundError:
            return None
        signature = (status.st_mtime_ns, status.st_ino, status.st_size)
        if signature != self._signature:
            self._layout, self._signature = reader.load(self._state), signature
        return self._layout

    def kv_faults(self) -> list[dict[str, Any]]:
        layout = self.layout()
        return layout["kv_faults"] if layout else []

    def knows(self, place: Place) -> bool:
        """Whether the device is one of the fabric's: of others nothing can be said."""
        return _owner(self.layout(), place) is not None

    def own_fault(self, place: Place, device_ip: str, *, over_roce: bool) -> str:
        """Why this device cannot take part in a link at all, given what the rank table says of
        it; empty if it can.
        """
        owner = _owner(self.layout(), place)
        if owner is None:
            return ""
        actual = owner.device["ip"]
        if device_ip != actual:
            return (
                f"EI0014: the IP address({device_ip}) in the ranktable is inconsistent with the "
                f"IP address({actual}) of the network adapter of {place}"
            )
        if over_roce and self._conf_address(place) is None:
            return (
                f"[RanktablCheck] 'device ip' is not set correctly: /etc/hccn.conf of {place} "
                f"has no address_{place.device}, expected {actual}"
            )
        return ""

    def obstacle(self, one: Place, other: Place, *, over_roce: bool) -> str:
        """Why a link between two devices does not come up now; empty if it does."""
        layout = self.layout()
        ends = [_owner(layout, place) for place in (one, other)]
        if None in ends:
            return ""
        if over_roce:
            for place, owner in zip((one, other), ends, strict=True):
                conf = self._conf_address(place)
                if owner is not None and conf != owner.device["ip"]:
                    return (
                        f"/etc/hccn.conf of {place} says address_{place.device}={conf}, the "
                        f"device has {owner.device['ip']}: status 503900"
                    )
        switches = [owner.device["tls"]["enable"] for owner in ends if owner is not None]
        if switches[0] != switches[1]:
            return (
                "EI0006: wait socket establish timeout: TLS configurations are inconsistent, "
                f"{one} has {switches[0]}, {other} has {switches[1]}"
            )
        return self.path(one, other, 0, over_roce=over_roce).reason

    def path(self, one: Place, other: Place, size: int, *, over_roce: bool) -> Passage:
        """What `size` bytes meet between two devices. A reason in either direction counts:
        reading needs the request and the answer.
        """
        layout = self.layout()
        source, target = _owner(layout, one), _owner(layout, other)
        if layout is None or source is None or target is None:
            return HEALTHY
        seconds = 0.0
        for a, b in ((source, target), (target, source)):
            if layout["product"] == "A3":
                state = reader.hccs_path(layout, a, b)
            elif over_roce:
                state = reader.path_from(layout, a, b.device["ip"] or "")
            else:
                continue
            if state.dead:
                return Passage(
                    f"{state.reason} from {a.host} device {a.id} to {b.host} device {b.id}"
                )
            if state.max_bytes is not None and size > state.max_bytes:
                return Passage(
                    f"packets above {state.max_bytes} bytes do not pass "
                    f"from {a.host} device {a.id} to {b.host} device {b.id}"
                )
            lost = math.ceil(state.loss * size / PACKET)
            seconds += state.seconds + lost * RETRANSMISSION
        return Passage(seconds=seconds)

    def _conf_address(self, place: Place) -> str | None:
        """The device's address in the host's /etc/hccn.conf; None: no such line, or no file."""
        try:
            file = Path(reader.hccn_conf_path(self._state or "", place.host))
            text = file.read_text(encoding="utf-8")
        except OSError:
            return None
        values = dict(
            line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#"
        )
        return values.get(f"address_{place.device}")


def _owner(layout: dict[str, Any] | None, place: Place) -> reader.Owner | None:
    """The device in the fabric; None if it is not one of the fabric's."""
    host = layout["hosts"].get(place.host) if layout else None
    device = host["devices"].get(str(place.device)) if host else None
    return reader.Owner(place.host, device) if device else None
