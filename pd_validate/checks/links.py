"""Physical link of each NPU: carrier, history, optics, neighbour, speed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pd_validate.checks.view import View, device_finding, usual
from pd_validate.facts.reading import Reason
from pd_validate.findings import Finding, Severity

RECENT = timedelta(hours=1)


def check_link(view: View) -> Iterator[Finding]:
    for host, device in view.devices:
        if device.link.value is False:
            yield device_finding(
                "link.down",
                host,
                device,
                view.roce_severity(host.host, device.device),
                device.link,
                expected="link UP",
                got="link DOWN",
            )


def check_link_history(view: View) -> Iterator[Finding]:
    """A port that went down lately and is up again. One that stays down is `link.down`."""
    for host, device in view.devices:
        history = device.link_stat.value
        downs = history.downs_within(RECENT) if history else ()
        if history is None or not downs:
            continue
        ago = int((history.now - downs[0].at).total_seconds() / 60)
        yield device_finding(
            "link.flapping",
            host,
            device,
            Severity.WARN,
            device.link_stat,
            expected="no link loss within the last hour",
            got=f"{len(downs)} in the last hour of device time, the last {ago} min ago",
        )


def check_optics(view: View) -> Iterator[Finding]:
    """No module with a link is a warning: a copper cable may report none."""
    for host, device in view.devices:
        optics = device.optical.value
        if optics is None:
            continue
        severity = view.roce_severity(host.host, device.device)
        if not optics.present:
            down = device.link.value is False
            yield device_finding(
                "optics.absent",
                host,
                device,
                severity if down else Severity.WARN,
                device.optical,
                expected="an optical module",
                got="none, and the link is down" if down else "none, though the link is up",
            )
        elif optics.rx_los:
            yield device_finding(
                "optics.los",
                host,
                device,
                severity,
                device.optical,
                expected="Rx Los Flag 0x0",
                got=f"Rx Los Flag {optics.rx_los:#x} (one bit per lane)",
            )


def check_neighbour(view: View) -> Iterator[Finding]:
    """Only ever a warning: LLDP may be switched off, and some drivers fail when none is heard."""
    for host, device in view.devices:
        neighbour = device.lldp.value
        failed = device.lldp.reason is Reason.FAILED
        if (neighbour is not None and neighbour.port is None) or failed:
            yield device_finding(
                "link.no-neighbour",
                host,
                device,
                Severity.WARN,
                device.lldp,
                expected="a Port ID from the switch",
                got="the device got no LLDP answer" if failed else "none",
            )


def check_speed(view: View) -> Iterator[Finding]:
    """Speed and duplex against the most common of the cluster, of ports that have a link.

    A port that does not tell them, where others do, is not known to be well.
    """
    told = {
        (host.host, device.device): (device.speed.value, device.duplex.value)
        for host, device in view.devices
        if device.link.value and device.speed.value is not None and device.duplex.value is not None
    }
    known = [mode for mode in told.values() if _unknown(mode) == 0]
    common = usual(known, prefer=lambda mode: (-int(mode[0]), mode[1]))
    for host, device in view.devices:
        mode = told.get((host.host, device.device))
        if mode is None or common is None or mode == common:
            continue
        severity = view.roce_severity(host.host, device.device)
        same = sum(one == other for one, other in zip(mode, common, strict=True))
        if same + _unknown(mode) == len(mode) and severity is Severity.FAIL:
            severity = Severity.UNKNOWN
        yield device_finding(
            "link.speed-mismatch",
            host,
            device,
            severity,
            device.speed,
            device.duplex,
            expected=f"{_words(common)}, as most NPUs",
            got=_words(mode),
        )


_Mode = tuple[int | str, str]  # Mb/s and duplex, each perhaps `Unknown`


def _unknown(mode: _Mode) -> int:
    """How much of it the port does not tell."""
    speed, duplex = mode
    return (not isinstance(speed, int)) + (duplex not in ("Full", "Half"))


def _words(mode: _Mode) -> str:
    speed = f"{mode[0]} Mb/s" if isinstance(mode[0], int) else "unknown speed"
    return f"{speed} {mode[1].lower()} duplex"


def notes(view: View) -> Iterator[str]:
    """Cabling that is no fault and changes what HCCL can do."""
    direct: dict[str, list[int]] = {}
    for host, device in view.devices:
        if device.lldp.value is not None and device.lldp.value.is_npu:
            direct.setdefault(host.host, []).append(device.device)
    for name, devices in direct.items():
        yield (
            f"{name}: the LLDP neighbour of NPU {', '.join(map(str, devices))} is an NPU, not a "
            "switch; HCCL does not build a full mesh over back-to-back cables"
        )
