"""The NPUs themselves, and whether their tools could be asked at all. Pure.

What kept a reading from having a value is a finding here and nowhere else: once per
device (or host) and reason, with all the queries that it cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pd_validate.checks.view import View, device_finding, listed, usual
from pd_validate.facts.collector import OUT_OF_TIME
from pd_validate.facts.hosts import DeviceFacts, HostFacts
from pd_validate.facts.npu_smi import Chip, HealthWord, Process, Row
from pd_validate.facts.reading import Reading, Reason
from pd_validate.findings import Finding, Severity, Where

IDLE_HBM = 5 * 1024  # MiB; an idle NPU shows 2.8 to 4.2 GiB of 64
HCCL_BUFFER = 200  # MiB, HCCL_BUFFSIZE if it is not set
_SHOWN = 3  # commands that a finding quotes

# The whole host is concerned: one finding for it, not one per device.
_HOST_REASONS = {
    Reason.MISSING: ("tool.missing", Severity.FAIL),
    Reason.PERMISSION: ("tool.permission", Severity.UNKNOWN),
    Reason.HELD: ("device.held", Severity.FAIL),
    Reason.DRIVER: ("driver.broken", Severity.FAIL),
}
_DEVICE_REASONS = {
    Reason.BUSY: "tool.busy",
    Reason.REFUSED: "tool.failed",
    Reason.FAILED: "tool.failed",
    Reason.UNPARSABLE: "tool.failed",
    Reason.NO_DEVICE: "device.missing",
    Reason.NOT_READY: "device.not-ready",
    Reason.TIMEOUT: "device.not-ready",
}
_SHARED = ("tool.busy", "tool.failed", "device.not-ready")  # of a host, if all its devices have it
_ONLY_UNMEASURED = ("tool.busy", "tool.failed", "tool.permission")  # neither well nor at fault


def check_tools(view: View) -> Iterator[Finding]:
    """Every reading without a value, grouped by what was in the way."""
    for host in view.hosts:
        whole = set()
        for reason, (identifier, severity) in _HOST_REASONS.items():
            readings = _if_whole_host(host, reason)
            if readings:
                whole.add(reason)
                yield _tool_finding(identifier, severity, Where(host=host.host), readings)
        unread = [r for r in (host.mapping, host.table) if r.reason and r.reason not in whole]
        if unread:
            where = Where(host=host.host)
            yield _tool_finding("tool.failed", Severity.UNKNOWN, where, unread)
        yield from _device_tools(view, host, whole)
        yield from _out_of_time(host)


def _out_of_time(host: HostFacts) -> Iterator[Finding]:
    """Queries that were not made because the ones before took too long."""
    left = [reading for reading in _of_host(host) if reading.detail.startswith(OUT_OF_TIME)]
    if left:
        yield Finding(
            id="host.hang",
            severity=Severity.UNKNOWN,
            where=Where(host=host.host),
            expected="answers in good time",
            got=f"{len(left)} queries not made: {left[0].detail}",
            evidence=tuple(reading.output.evidence for reading in left[:_SHOWN]),
        )


def _of_host(host: HostFacts) -> Iterator[Reading[Any]]:
    yield host.mapping
    yield host.table
    for device in host.devices.values():
        yield from device.readings


def _if_whole_host(host: HostFacts, reason: Reason) -> list[Reading[Any]]:
    """The readings with this reason, if npu-smi itself or every single device has one."""
    smi = [reading for reading in (host.mapping, host.table) if reading.reason is reason]
    by_device = [
        [r for r in device.readings if r.reason is reason] for device in host.devices.values()
    ]
    if not smi and not all(by_device):
        return []
    return [*smi, *(reading for readings in by_device for reading in readings)]


def _device_tools(view: View, host: HostFacts, whole: set[Reason]) -> Iterator[Finding]:
    """`whole`: reasons that were already said of the host. What all devices share is one fault."""
    unread = {device.device: _unread(device, whole) for device in host.devices.values()}
    shared = [
        identifier
        for identifier in _SHARED
        if len(unread) > 1 and all(identifier in by_id for by_id in unread.values())
    ]
    for identifier in shared:
        readings = [reading for by_id in unread.values() for reading in by_id.pop(identifier)]
        severity = _severity(identifier, view, host, *unread)
        yield _tool_finding(identifier, severity, Where(host=host.host), readings)
    for number, by_id in unread.items():
        for identifier, readings in by_id.items():
            severity = _severity(identifier, view, host, number)
            where = Where(host=host.host, device=number)
            yield _tool_finding(identifier, severity, where, readings)


def _unread(device: DeviceFacts, whole: set[Reason]) -> dict[str, list[Reading[Any]]]:
    """The device's readings without a value, by the finding that says why."""
    by_id: dict[str, list[Reading[Any]]] = {}
    for reading in device.readings:
        if reading.reason is None or reading.reason in whole or _judged_elsewhere(device, reading):
            continue
        identifier = _DEVICE_REASONS.get(reading.reason)
        if reading.reason in _HOST_REASONS:
            identifier = _HOST_REASONS[reading.reason][0]
        elif reading.reason is Reason.UNSUPPORTED and reading is device.link:
            identifier = "tool.failed"  # every product and version must answer this one
        if identifier is not None:
            by_id.setdefault(identifier, []).append(reading)
    return by_id


def _severity(identifier: str, view: View, host: HostFacts, *devices: int) -> Severity:
    if not any(view.counts(host.host, device) for device in devices):
        return Severity.WARN
    return Severity.UNKNOWN if identifier in _ONLY_UNMEASURED else Severity.FAIL


def _judged_elsewhere(device: DeviceFacts, reading: Reading[Any]) -> bool:
    """A failing -lldp means no neighbour, a failing -vnic that it is down: see those checks."""
    if reading is device.lldp:
        return reading.reason is Reason.FAILED
    if reading is device.vnic:
        return vnic_broken(device)
    return reading is device.health and reading.reason in (Reason.FAILED, Reason.UNPARSABLE)


def vnic_broken(device: DeviceFacts) -> bool:
    """-vnic fails for its own reason: a busy or refusing device fails -link as well."""
    return device.link.ok and device.vnic.reason in (Reason.FAILED, Reason.UNPARSABLE)


def _tool_finding(
    identifier: str, severity: Severity, where: Where, readings: list[Reading[Any]]
) -> Finding:
    """Two tools that are missing are two answers; a tool that is busy says it to every query."""
    queries = listed((reading.output.command for reading in readings), limit=_SHOWN)
    answers = dict.fromkeys(reading.detail for reading in readings)
    return Finding(
        id=identifier,
        severity=severity,
        where=where,
        expected="an answer",
        got=f"{'; '.join(list(answers)[:_SHOWN])} ({queries})",
        evidence=tuple(reading.output.evidence for reading in readings[:_SHOWN]),
    )


def check_present(view: View) -> Iterator[Finding]:
    """Device files and npu-smi's mapping must have every device of the cluster file."""
    for host in view.hosts:
        for device in host.devices.values():
            lacking: list[tuple[str, Reading[Any]]] = []
            if host.present.value is not None and device.device not in host.present.value:
                lacking.append((f"/dev/davinci{device.device} does not exist", host.present))
            if host.mapping.value is not None and _chip(host, device) is None:
                lacking.append(("npu-smi info -m does not list it", host.mapping))
            if lacking:
                yield device_finding(
                    "device.missing",
                    host,
                    device,
                    view.severity(host.host, device.device),
                    *(reading for _, reading in lacking),
                    expected=f"NPU {device.device}",
                    got=" and ".join(text for text, _ in lacking),
                )


def check_health(view: View) -> Iterator[Finding]:
    """`-t health` of each chip; `npu-smi info` alone shows OK for a chip whose query failed."""
    for host in view.hosts:
        for device in host.devices.values():
            health = device.health.value
            if health is not None and health.status is not HealthWord.OK:
                got = " ".join((health.status.value, *health.codes, *health.texts[:1]))
                yield _unhealthy(view, host, device, device.health, health.status, got)
            elif health is not None and (word := _row_health(host, device)) is not HealthWord.OK:
                got = f"{word.value} in npu-smi info, though -t health says OK"
                yield _unhealthy(view, host, device, host.table, word, got)
            elif device.health.reason in (Reason.FAILED, Reason.UNPARSABLE):
                yield _unreadable(view, host, device, device.health, device.health.detail)
            elif health is not None and (problem := _row_problem(host, device)):
                yield _unreadable(view, host, device, host.table, problem)


def _unhealthy(
    view: View,
    host: HostFacts,
    device: DeviceFacts,
    reading: Reading[Any],
    word: HealthWord,
    got: str,
) -> Finding:
    warning = word is HealthWord.WARNING
    return device_finding(
        "device.unhealthy",
        host,
        device,
        Severity.WARN if warning else view.severity(host.host, device.device),
        reading,
        expected="health OK",
        got=got,
    )


def _row_health(host: HostFacts, device: DeviceFacts) -> HealthWord:
    """What the table says; OK where it has no whole row, which is another finding."""
    chip = _chip(host, device)
    row = host.table.value.row(chip) if chip is not None and host.table.value else None
    if row is None or not row.readable:
        return HealthWord.OK
    known = {word.value: word for word in HealthWord}
    return known.get(row.health, HealthWord.UNKNOWN)


def _unreadable(
    view: View, host: HostFacts, device: DeviceFacts, reading: Reading[Any], problem: str
) -> Finding:
    counted = view.counts(host.host, device.device)
    severity = Severity.UNKNOWN if counted else Severity.WARN
    return device_finding(
        "device.unhealthy",
        host,
        device,
        severity,
        reading,
        expected="a health that can be read",
        got=problem,
    )


def _row_problem(host: HostFacts, device: DeviceFacts) -> str:
    chip = _chip(host, device)
    if chip is None or host.table.value is None:
        return ""
    row = host.table.value.row(chip)
    if row is None or row.card is None:
        return "npu-smi info has no complete row for it: it reports a health that is not known"
    if not row.readable:
        return "npu-smi info shows a row without name, bus or memory: its queries failed"
    return ""


def check_idle(view: View) -> Iterator[Finding]:
    """Nobody else on our NPUs: an engine that lacks its memory does not start."""
    for host in view.hosts:
        for device in host.devices.values():
            row, processes = _use(host, device)
            if row is None or not view.counts(host.host, device.device):
                continue
            if row.hbm_used <= IDLE_HBM and not processes:
                continue
            needed = _needed(view, host.host, device.device)
            short = row.hbm_total - row.hbm_used < needed * row.hbm_total
            got = f"{row.hbm_used} of {row.hbm_total} MiB in use"
            if processes:
                who = (f"pid {p.pid} {p.name or '(not visible here)'}" for p in processes)
                got += f" by {listed(who)}"
            else:
                got += " by nobody that is visible here"
            if short:
                got += f"; the engine wants {needed:.0%} of it"
            yield device_finding(
                "device.in-use",
                host,
                device,
                Severity.FAIL if short else Severity.WARN,
                host.table,
                expected=f"an idle NPU, at most {IDLE_HBM} MiB in use",
                got=got,
            )


def check_memory(view: View) -> Iterator[Finding]:
    """Equal memory for all that work together, and enough left for HCCL beside the engine's.

    Only warnings: how much HCCL takes in the end depends on CANN and the model.
    """
    totals = dict(_memory_in_use(view))
    common = usual(totals.values())
    for (name, number), total in totals.items():
        host = view.facts.hosts[name]
        if total != common:
            yield device_finding(
                "device.memory-mismatch",
                host,
                host.devices[number],
                Severity.WARN,
                host.table,
                expected=f"{common} MiB of memory, as most NPUs in use",
                got=f"{total} MiB",
            )
    for name, launch in view.plan.instances.items():
        sizes = [totals[launch.host, n] for n in launch.devices if (launch.host, n) in totals]
        stated = launch.env.get("HCCL_BUFFSIZE", str(HCCL_BUFFER))
        if not sizes or not stated.isdecimal():
            continue
        links = sum(1 for other in view.plan.instances.values() if other.role is not launch.role)
        share = launch.engine.gpu_memory_utilization
        left, wanted = min(sizes) * (1 - share), int(stated) * links
        if left < wanted:
            yield Finding(
                id="plan.memory",
                severity=Severity.WARN,
                where=Where(host=launch.host, instance=name),
                expected=f"{wanted} MiB beside the engine, for HCCL's buffers "
                f"({stated} MiB for each of {links} links)",
                got=f"{left:.0f} of {min(sizes)} MiB, with gpu_memory_utilization {share:g}",
            )


def _memory_in_use(view: View) -> Iterator[tuple[tuple[str, int], int]]:
    """Host and number of each device in use, and its memory in MiB."""
    for host, device in view.devices:
        row, _ = _use(host, device)
        used = device.device in view.cluster.devices_used(host.host)
        if used and row is not None and row.readable:
            yield (host.host, device.device), row.hbm_total


def _needed(view: View, host: str, device: int) -> float:
    """Share of the memory that the instance on this device will claim; 0 if none does."""
    for name, spec in view.cluster.instances_on(host).items():
        if device in spec.devices:
            return view.cluster.engine_of(name).gpu_memory_utilization
    return 0.0


def _use(host: HostFacts, device: DeviceFacts) -> tuple[Row | None, list[Process]]:
    chip, table = _chip(host, device), host.table.value
    if chip is None or table is None:
        return None, []
    processes = [p for p in table.processes if (p.card, p.chip) == (chip.card, chip.chip)]
    return table.row(chip), processes


def _chip(host: HostFacts, device: DeviceFacts) -> Chip | None:
    chips = host.mapping.value or ()
    return next((chip for chip in chips if chip.physical == device.device), None)
