"""The network validation as a whole: every check of hosts, NPUs and paths, one report. Pure.

    facts = read_cluster(commands, requests_of(cluster, plan))
    pings = run_pings(commands, cluster, ping_plan(cluster, facts))
    report = check_network(cluster, plan, facts, pings)

A test of one guide command on one host is `report.problems("link", host)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pd_validate.catalogue import Layer
from pd_validate.checks import devices, environment, hosts, links, npu_network, software
from pd_validate.checks.explain import explained
from pd_validate.checks.fold import on_whole_hosts
from pd_validate.checks.reachability import check_pings
from pd_validate.checks.result import CheckResult, Report
from pd_validate.checks.view import View
from pd_validate.facts.hosts import ClusterFacts, DeviceFacts, HostFacts
from pd_validate.facts.pings import Npu, PingFacts
from pd_validate.facts.reading import Reading
from pd_validate.findings import Finding, Verdict, Where, verdict_of
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import LaunchPlan

Run = Callable[[View], Iterable[Finding]]
Readings = Callable[[DeviceFacts], tuple[Reading[Any], ...]]


@dataclass(frozen=True)
class Check:
    """One column of the matrix. `readings` of a device, or None for a check of the host.

    `idle`: holds only before our own processes run.
    """

    id: str
    layer: Layer
    run: Run
    readings: Readings | None = None
    idle: bool = False


CHECKS = (
    Check("reachable", Layer.HOST, hosts.check_reachable),
    Check("clock", Layer.HOST, hosts.check_clock),
    Check("tools", Layer.HOST, devices.check_tools, lambda d: d.asked),
    Check("device", Layer.HOST, devices.check_present, lambda d: ()),
    Check("health", Layer.HOST, devices.check_health, lambda d: (d.health,)),
    Check("idle", Layer.HOST, devices.check_idle, lambda d: (), idle=True),
    Check("memory", Layer.HOST, devices.check_memory, lambda d: ()),
    Check("link", Layer.LINK, links.check_link, lambda d: (d.link,)),
    Check("link-history", Layer.LINK, links.check_link_history, lambda d: (d.link_stat,)),
    Check("optics", Layer.LINK, links.check_optics, lambda d: (d.optical,)),
    Check("lldp", Layer.LINK, links.check_neighbour, lambda d: (d.lldp,)),
    Check("speed", Layer.LINK, links.check_speed, lambda d: (d.speed, d.duplex)),
    Check("ip", Layer.NPU_NETWORK, npu_network.check_address, lambda d: (d.ip,)),
    Check("hccn-conf", Layer.NPU_NETWORK, npu_network.check_hccn_conf, lambda d: ()),
    Check("gateway", Layer.NPU_NETWORK, npu_network.check_gateway, lambda d: (d.gateway,)),
    Check("netdetect", Layer.NPU_NETWORK, npu_network.check_netdetect, lambda d: (d.netdetect,)),
    Check("net-health", Layer.NPU_NETWORK, npu_network.check_net_health, lambda d: (d.net_health,)),
    Check("mtu", Layer.NPU_NETWORK, npu_network.check_mtu, lambda d: (d.mtu,)),
    Check("tls", Layer.NPU_NETWORK, npu_network.check_tls, lambda d: (d.tls,)),
    Check("vnic", Layer.NPU_NETWORK, npu_network.check_vnic, lambda d: (d.vnic,)),
    Check("super-pod", Layer.NPU_NETWORK, npu_network.check_super_pod, lambda d: (d.spod,)),
    Check("nic", Layer.HOST, hosts.check_card),
    Check("own-address", Layer.HOST, hosts.check_own_address),
    Check("proxy-variables", Layer.HOST, hosts.check_proxy_variables),
    Check("ports", Layer.HOST, hosts.check_ports, idle=True),
    Check("environment", Layer.HOST, environment.check_agreement),
    Check("renamed-variables", Layer.HOST, environment.check_renamed),
    Check("variable-ranges", Layer.HOST, environment.check_ranges),
    Check("software", Layer.HOST, software.check_software),
    Check("model", Layer.HOST, software.check_model),
)
_A3_ONLY = ("vnic", "super-pod")
_SOFTWARE = ("software", "model")
PING = "ping"


def check_network(
    cluster: Cluster,
    plan: LaunchPlan,
    facts: ClusterFacts,
    pings: PingFacts | None = None,
    *,
    idle: bool = True,
) -> Report:
    """Judge everything that was read. Without `pings` reachability is not judged.

    `idle` False: our topology runs already, so ports and NPUs may be in use.
    """
    view = View(cluster, plan, facts)
    found: list[tuple[str, Finding]] = []
    checks = [check for check in CHECKS if _applies(view, check, idle)]
    for check in checks:
        found += [(check.id, finding) for finding in check.run(view)]
    if pings is not None:
        known = [finding for _, finding in found]
        found += [(PING, finding) for finding in check_pings(view, pings, known)]
    by_place = on_whole_hosts(
        explained(finding for _, finding in found),
        {host.host: host.devices for host in view.hosts},
    )
    findings = {id(finding): finding for finding in by_place.values()}
    by_check: dict[str, list[Finding]] = {}
    for check_id, finding in found:
        group = by_check.setdefault(check_id, [])
        told = by_place[finding.id, finding.where]
        if told not in group:
            group.append(told)
    results = [cell for check in checks for cell in _cells(view, check, by_check)]
    if pings is not None:
        results += _ping_cells(view, pings, by_check)
    notes = [*links.notes(view), *_not_measured(view), *environment.advice(view)]
    if pings is not None:
        notes.insert(0, f"ping schedule {pings.plan.said}")
    return Report(tuple(findings.values()), tuple(results), tuple(notes))


def _applies(view: View, check: Check, idle: bool) -> bool:
    if check.idle and not idle:
        return False
    if check.id in _SOFTWARE and not view.cluster.checks.software:
        return False
    return view.profile.super_pod or check.id not in _A3_ONLY


# --- cells of the matrix ------------------------------------------------------------------------


def _cells(view: View, check: Check, by_check: dict[str, list[Finding]]) -> Iterator[CheckResult]:
    own = by_check.get(check.id, [])
    blockers = by_check.get("reachable", [])
    for name in view.cluster.hosts:
        host = view.facts.hosts.get(name)
        if host is None:
            blocked = tuple(f for f in blockers if f.where.host == name)
            note = "the host could not be read"
            verdict = Verdict.FAIL if check.id == "reachable" else Verdict.UNKNOWN
            yield CheckResult(check.id, Where(host=name), verdict, check.layer, 0.0, blocked, note)
        elif check.readings is None:
            mine = tuple(f for f in own if name in (f.where.host, f.where.peer_host))
            yield CheckResult(check.id, Where(host=name), verdict_of(mine), check.layer, 0.0, mine)
        else:
            tools = by_check.get("tools", [])
            for device in host.devices.values():
                yield _device_cell(check, check.readings(device), host, device, own, tools)


def _device_cell(
    check: Check,
    readings: tuple[Reading[Any], ...],
    host: HostFacts,
    device: DeviceFacts,
    own: list[Finding],
    tools: list[Finding],
) -> CheckResult:
    where = Where(host=host.host, device=device.device)
    missing = [reading for reading in readings if not reading.ok]
    findings = [finding for finding in own if _touches(finding, where)]
    note = ""
    if missing:
        findings += [f for f in tools if _touches(f, where) and f not in findings]
        note = missing[0].detail
    verdict = verdict_of(findings)
    if missing and not findings:
        verdict = Verdict.UNKNOWN
    seconds = sum(reading.output.seconds for reading in readings)
    return CheckResult(check.id, where, verdict, check.layer, seconds, tuple(findings), note)


def _touches(finding: Finding, where: Where) -> bool:
    """Whether it is at this device, at one end of its path, at its whole host, or everywhere."""
    if finding.where == Where():
        return True
    ends = (
        (finding.where.host, finding.where.device),
        (finding.where.peer_host, finding.where.peer_device),
    )
    return any(host == where.host and device in (None, where.device) for host, device in ends)


def _ping_cells(
    view: View, pings: PingFacts, by_check: dict[str, list[Finding]]
) -> Iterator[CheckResult]:
    """One cell per device: the pings that it sent. Hosts that sent none have one, too."""
    own = by_check.get(PING, [])
    blockers = [*by_check.get("reachable", []), *own]
    left_out: dict[Npu, str] = {}
    for source, target, why in pings.plan.left_out:
        left_out.setdefault(source, f"{target} not pinged: {why}")
    sent: dict[Npu, float] = {}
    for result in pings.results:
        before = sent.get(result.task.source, 0.0)
        sent[result.task.source] = before + result.reading.output.seconds
    for name in view.cluster.hosts:
        senders = sorted(npu for npu in {*sent, *left_out} if npu.host == name)
        for npu in senders:
            where = Where(host=npu.host, device=npu.device)
            findings = tuple(finding for finding in own if _touches(finding, where))
            verdict = verdict_of(findings)
            if npu not in sent and verdict is Verdict.PASS:
                verdict = Verdict.UNKNOWN
            note = left_out.get(npu, "")
            seconds = sent.get(npu, 0.0)
            yield CheckResult(PING, where, verdict, Layer.NPU_NETWORK, seconds, findings, note)
        if not senders:
            blocked = tuple(f for f in blockers if f.where.host == name)
            note = "the host could not be read" if blocked else "the schedule has no ping from here"
            where, layer = Where(host=name), Layer.NPU_NETWORK
            yield CheckResult(PING, where, Verdict.UNKNOWN, layer, 0.0, blocked, note)


def _not_measured(view: View) -> Iterator[str]:
    """What was left out on purpose, said once per host."""
    for host in view.hosts:
        devices_without = [
            device
            for device in host.devices.values()
            if device.tls.output.skipped and "hccn.conf" in device.tls.detail
        ]
        if devices_without:
            numbers = ", ".join(str(device.device) for device in devices_without)
            yield f"{host.host}: TLS of NPU {numbers} not read: {devices_without[0].tls.detail}"
