"""Network settings of each NPU: address, hccn.conf, routing, detection, MTU, TLS. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from pd_validate.checks.devices import vnic_broken
from pd_validate.checks.view import View, device_finding, grouped, listed, usual
from pd_validate.facts.hccn import Address, NetHealth
from pd_validate.facts.hccn_conf import HccnConf
from pd_validate.facts.hosts import DeviceFacts, HostFacts
from pd_validate.facts.reading import Reason
from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.models import Role

Place = tuple[str, int]  # host and device

# Outside a super pod an A3 uses this net for its vNICs, inside one all of 192.0.0.0/8.
_A3_ALONE = ("192.168.1.0/24", "192.168.0.0/21")


# --- addresses ----------------------------------------------------------------------------------


def check_address(view: View) -> Iterator[Finding]:
    yield from _missing(view)
    yield from _duplicates(view)
    yield from _reserved(view)


def _missing(view: View) -> Iterator[Finding]:
    for host, device in view.devices:
        if device.ip.value is not None and device.ip.value.first is None:
            yield device_finding(
                "address.missing",
                host,
                device,
                view.roce_severity(host.host, device.device),
                device.ip,
                expected="an IP address",
                got="none is set",
            )


def _duplicates(view: View) -> Iterator[Finding]:
    """Of two devices with one address, the one whose hccn.conf says another is named first."""
    owners: dict[Address, list[tuple[HostFacts, DeviceFacts]]] = {}
    for host, device in view.devices:
        for address in _own_addresses(view, device):
            owners.setdefault(address, []).append((host, device))
    for address, claimants in owners.items():
        ordered = sorted(claimants, key=lambda pair: _agrees_with_conf(*pair))
        keeper_host, keeper = ordered[-1]
        for host, device in ordered[:-1]:
            used = view.counts(host.host, device.device) or view.counts(
                keeper_host.host, keeper.device
            )
            yield Finding(
                id="address.duplicate",
                severity=Severity.FAIL if used else Severity.WARN,
                where=Where(
                    host=host.host,
                    device=device.device,
                    peer_host=keeper_host.host,
                    peer_device=keeper.device,
                ),
                expected="an address of its own",
                got=f"{address.ip}, which {keeper_host.host} npu{keeper.device} has, too",
                evidence=tuple(_source(each, address) for each in (device, keeper)),
            )


def _own_addresses(view: View, device: DeviceFacts) -> Iterator[Address]:
    """Addresses that no other device may have. Outside a super pod vNIC addresses repeat."""
    yield from device.ip.value.all if device.ip.value else ()
    vnic = device.vnic.value
    if vnic is not None and len(view.pods) < 2 and not device.outside_super_pod:
        yield vnic.address


def _source(device: DeviceFacts, address: Address) -> str:
    """The command that told this address."""
    own = device.ip.value.all if device.ip.value else ()
    return (device.ip if address in own else device.vnic).output.evidence


def _agrees_with_conf(host: HostFacts, device: DeviceFacts) -> bool:
    conf, address = host.hccn_conf.value, device.ip.value
    if conf is None or address is None or address.first is None:
        return True
    return conf.get(device.device, "address") in (None, str(address.first.ip))


def _reserved(view: View) -> Iterator[Finding]:
    for host, device in view.devices:
        for address in device.ip.value.all if device.ip.value else ():
            net = _reserved_net(view, device, address)
            if net is not None:
                yield device_finding(
                    "address.reserved",
                    host,
                    device,
                    Severity.WARN,
                    device.ip,
                    expected=f"an address outside {net}",
                    got=str(address.ip),
                )


def _reserved_net(view: View, device: DeviceFacts, address: Address) -> str | None:
    nets: Iterable[str] = view.profile.reserved_nets
    if view.profile.super_pod and device.spod.value is not None and not device.spod.value.inside:
        nets = _A3_ALONE
    return next((net for net in nets if address.ip in ip_network(net)), None)


# --- /etc/hccn.conf -----------------------------------------------------------------------------


def check_hccn_conf(view: View) -> Iterator[Finding]:
    """The file against the devices: the KV transport takes the address from the file first."""
    for host in view.hosts:
        conf = host.hccn_conf
        severity = Severity.FAIL if view.in_container(host.host) else Severity.WARN
        if conf.reason is Reason.MISSING or (conf.value is not None and not conf.value.settings):
            yield Finding(
                id="address.conf-missing",
                severity=severity,
                where=Where(host=host.host, file="/etc/hccn.conf"),
                expected="a file with the NPUs' addresses",
                got="no such file" if conf.value is None else "an empty file",
                evidence=(conf.output.evidence,),
            )
        elif conf.value is not None:
            for device in host.devices.values():
                yield from _against_conf(view, host, device, conf.value)
        else:
            yield Finding(
                id="tool.permission" if conf.reason is Reason.PERMISSION else "tool.failed",
                severity=Severity.UNKNOWN,
                where=Where(host=host.host, file="/etc/hccn.conf"),
                expected="a readable file",
                got=conf.detail,
                evidence=(conf.output.evidence,),
            )


def _against_conf(
    view: View, host: HostFacts, device: DeviceFacts, conf: HccnConf
) -> Iterator[Finding]:
    if device.ip.value is None:
        return
    lines = _stated(conf, device.device)
    address = device.ip.value.first
    actual = _actual(device)
    if address is not None and not any(name in lines for name in _address_names(device.device)):
        severity = view.severity(host.host, device.device)
        yield Finding(
            id="address.conf-missing",
            severity=severity if view.in_container(host.host) else Severity.WARN,
            where=Where(host=host.host, device=device.device, file="/etc/hccn.conf"),
            expected=f"address_{device.device}={address.ip}",
            got=f"no address for NPU {device.device}",
            evidence=(device.ip.output.evidence, host.hccn_conf.output.evidence),
        )
    wrong = [key for key in lines if key in actual and not _same(lines[key], actual[key])]
    if wrong:
        # Nothing reads the file's gateway before the next boot; address and netmask are read.
        only_gateway = all("gateway" in name for name in wrong)
        severity = view.roce_severity(host.host, device.device)
        yield device_finding(
            "address.conf-mismatch",
            host,
            device,
            Severity.WARN if only_gateway else severity,
            device.ip,
            host.hccn_conf,
            expected="; ".join(f"{key}={actual[key] or 'none'} as on the device" for key in wrong),
            got="; ".join(f"{key}={lines[key]} in /etc/hccn.conf" for key in wrong),
        )


_IPV4_KEYS = {"address": "address", "netmask": "netmask", "gateway": "gateway"}
_IPV6_KEYS = {"IPv6address": "address", "IPv6netmask": "netmask", "IPv6gateway": "gateway"}


def _address_names(device: int) -> tuple[str, str]:
    return f"address_{device}", f"IPv6address_{device}"


def _stated(conf: HccnConf, device: int) -> dict[str, str]:
    """The file's lines about address, netmask and gateway, by their name in the file."""
    keys = (*_IPV4_KEYS, *_IPV6_KEYS)
    values = {f"{key}_{device}": conf.get(device, key) for key in keys}
    return {name: value for name, value in values.items() if value is not None}


def _actual(device: DeviceFacts) -> dict[str, str]:
    """What the device has, by the names that the lines of its address family would have.

    A gateway that the file states and the device lacks is a difference, too; one that
    could not be read is not.
    """
    address = device.ip.value.first if device.ip.value else None
    version = 4 if address is None else address.version
    values = {"address": "", "netmask": ""}
    if address is not None:
        prefix = str(address.network.prefixlen)
        mask = str(address.netmask) if version == 4 else prefix
        values = {"address": str(address.ip), "netmask": mask}
    if device.gateway.value is not None and version == 4:
        values["gateway"] = device.gateway.value.address or ""
    names = _IPV4_KEYS if version == 4 else _IPV6_KEYS
    return {f"{name}_{device.device}": values[key] for name, key in names.items() if key in values}


def _same(stated: str, actual: str) -> bool:
    try:
        return ip_address(stated) == ip_address(actual)
    except ValueError:
        return stated == actual


# --- routing ------------------------------------------------------------------------------------


def check_gateway(view: View) -> Iterator[Finding]:
    """The gateway must lie in the device's subnet; none is needed if all peers are in it, too."""
    for host, device in view.devices:
        gateway = device.gateway.value.address if device.gateway.value else None
        own = device.ip.value.first if device.ip.value else None
        if gateway is None or own is None or ip_address(gateway).version != own.version:
            continue
        if ip_address(gateway) not in own.network:
            yield device_finding(
                "gateway.outside-subnet",
                host,
                device,
                view.roce_severity(host.host, device.device),
                device.gateway,
                device.ip,
                expected=f"a gateway inside {own.network}",
                got=gateway,
            )
    if view.uses_roce:
        yield from _unrouted(view)


def _unrouted(view: View) -> Iterator[Finding]:
    """Pairs that must talk, in different subnets without a way between them.

    The device that explains most such pairs is named; of equal ones that which is alone
    in its subnet, then that which has no gateway.
    """
    broken = [pair for pair in _must_talk(view) if not _routed(view, *pair)]
    popularity = Counter(
        device.ip.value.first.network
        for _, device in view.devices
        if device.ip.value is not None and device.ip.value.first is not None
    )
    while broken:
        counts = Counter(place for pair in broken for place in pair)
        culprit = min(counts, key=lambda place: _guilt(view, place, counts, popularity))
        peers = [_other(pair, culprit) for pair in broken if culprit in pair]
        broken = [pair for pair in broken if culprit not in pair]
        yield _unrouted_finding(view, culprit, peers)


def _guilt(
    view: View,
    place: Place,
    counts: Mapping[Place, int],
    popularity: Mapping[IPv4Network | IPv6Network, int],
) -> tuple[int, bool, bool, int, Place]:
    """Sorts the device to name first."""
    others = popularity[_subnet(view, place)] - 1
    routed = _gateway_of(_device(view, place)) is not None
    return -counts[place], others > 0, routed, others, place


def _unrouted_finding(view: View, culprit: Place, peers: list[Place]) -> Finding:
    host, device = view.facts.hosts[culprit[0]], _device(view, culprit)
    peer = _device(view, peers[0])
    # Where the peers have a way out, the missing gateway is the fault, else the subnet is.
    none = device.gateway.value is not None and device.gateway.value.address is None
    lacks = none and bool(_gateway_of(peer))
    own, other = _subnet(view, culprit), _subnet(view, peers[0])
    names = listed(f"{name} npu{number}" for name, number in peers)
    return device_finding(
        "gateway.missing" if lacks else "address.subnet",
        host,
        device,
        view.severity(*culprit),
        device.ip,
        device.gateway,
        expected=f"a gateway to {other}" if lacks else f"an address in {other}, or gateways",
        got=f"{'no gateway' if lacks else f'an address in {own}'}; {names} cannot be reached",
    )


def _must_talk(view: View) -> list[tuple[Place, Place]]:
    """Device pairs between which KV flows; with `devices: all` the rails between hosts, too."""
    pairs: dict[tuple[Place, Place], None] = {}
    for producer in view.cluster.instances_of(Role.PREFILL).values():
        for consumer in view.cluster.instances_of(Role.DECODE).values():
            for rank, number in enumerate(consumer.devices):
                source = producer.devices[rank % len(producer.devices)]
                pairs[(producer.host, source), (consumer.host, number)] = None
    if view.cluster.checks.devices == "all":
        for host, device in view.devices:
            for peer in view.hosts:
                if peer.host > host.host and device.device in peer.devices:
                    pairs[(host.host, device.device), (peer.host, device.device)] = None
    return [pair for pair in pairs if all(_address(view, place) for place in pair)]


def _routed(view: View, one: Place, other: Place) -> bool:
    if one[0] == other[0] or _subnet(view, one) == _subnet(view, other):
        return True
    return bool(_gateway_of(_device(view, one)) and _gateway_of(_device(view, other)))


def _address(view: View, place: Place) -> Address | None:
    facts = view.facts.device(*place)
    return facts.ip.value.first if facts is not None and facts.ip.value is not None else None


def _subnet(view: View, place: Place) -> IPv4Network | IPv6Network:
    """Of a device that has an address."""
    address = _address(view, place)
    assert address is not None
    return address.network


def _device(view: View, place: Place) -> DeviceFacts:
    return view.facts.hosts[place[0]].devices[place[1]]


def _gateway_of(device: DeviceFacts) -> str | None:
    """The device's gateway, if it can be used: one outside the device's subnet cannot."""
    gateway = device.gateway.value.address if device.gateway.value else None
    own = device.ip.value.first if device.ip.value else None
    if gateway is None or own is None or ip_address(gateway) not in own.network:
        return None
    return gateway


def _other(pair: tuple[Place, Place], place: Place) -> Place:
    return pair[1] if pair[0] == place else pair[0]


# --- detection ----------------------------------------------------------------------------------


def check_netdetect(view: View) -> Iterator[Finding]:
    for host, device in view.devices:
        if device.netdetect.value is not None and device.netdetect.value.address is None:
            yield device_finding(
                "netdetect.unset",
                host,
                device,
                Severity.WARN,
                device.netdetect,
                expected="a detection address",
                got="none, so that net_health proves nothing",
            )


_UNREACHED = (
    NetHealth.RECEIVE_TIMEOUT,
    NetHealth.UNREACHABLE,
    NetHealth.TIME_EXCEEDED,
    NetHealth.FAULT,
)
_NOT_STARTED = (NetHealth.INIT, NetHealth.DETECT_IP_SET)


def check_net_health(view: View) -> Iterator[Finding]:
    """Only where a detection address is set; without one the state says nothing."""
    for host, device in view.devices:
        state, target = device.net_health.value, device.netdetect.value
        unset = target is not None and target.address is None
        if state is None or state is NetHealth.SUCCESS or unset:
            continue
        if state in _UNREACHED:
            identifier = "health.unreachable"
        elif state in _NOT_STARTED:
            identifier = "health.not-started"
        else:
            identifier = "health.fault"
        address = target.address if target else "its detection address"
        yield device_finding(
            identifier,
            host,
            device,
            view.roce_severity(host.host, device.device),
            device.net_health,
            device.netdetect,
            expected=f"{NetHealth.SUCCESS.value}, detecting {address}",
            got=state.value,
        )


# --- agreement over the cluster -----------------------------------------------------------------


def check_mtu(view: View) -> Iterator[Finding]:
    common = usual(device.mtu.value for _, device in view.devices if device.mtu.value)
    for host, device in view.devices:
        if device.mtu.value and device.mtu.value != common:
            yield device_finding(
                "mtu.mismatch",
                host,
                device,
                view.roce_severity(host.host, device.device),
                device.mtu,
                expected=f"{common} bytes, as most NPUs",
                got=f"{device.mtu.value} bytes",
            )


def check_tls(view: View) -> Iterator[Finding]:
    """One switch for all. A device without certificates has TLS off.

    A host on which all measured devices differ is one fault, not eight.
    """
    switches = {
        (host.host, device.device): bool(device.tls.value.enabled)
        for host, device in view.devices
        if device.tls.value is not None
    }
    common = usual(switches.values())  # of equally many, off: what Huawei's guides advise
    for host in view.hosts:
        own = {place[1]: on for place, on in switches.items() if place[0] == host.host}
        differing = [device for device, on in own.items() if on != common]
        whole = len(differing) == len(own) > 1
        for group in [differing] if whole else [[number] for number in differing]:
            counted = any(view.counts(host.host, number) for number in group)
            yield Finding(
                id="tls.mismatch",
                severity=Severity.FAIL if counted else Severity.WARN,
                where=Where(host=host.host, device=None if whole else group[0]),
                expected=f"TLS switch {int(bool(common))}, as most NPUs",
                got=f"{int(not common)}" + (" on all its NPUs" if whole else ""),
                evidence=(host.devices[group[0]].tls.output.evidence,),
            )
    for host, device in view.devices:
        tls = device.tls.value
        if tls is not None and tls.enabled and tls.expired:
            yield device_finding(
                "tls.expired",
                host,
                device,
                view.severity(host.host, device.device),
                device.tls,
                expected="valid certificates, since TLS is on",
                got="a certificate that has expired",
            )
    yield from _other_issuers(view)


def _other_issuers(view: View) -> Iterator[Finding]:
    """Certificates that the others may not trust: a warning, their authority may be above both."""
    issuers = {
        (host.host, device.device): device.tls.value.issuers
        for host, device in view.devices
        if device.tls.value is not None and device.tls.value.enabled and device.tls.value.issuers
    }
    common = usual(issuers.values())
    for (name, number), own in issuers.items():
        if own != common and common is not None:
            host = view.facts.hosts[name]
            yield device_finding(
                "tls.mismatch",
                host,
                host.devices[number],
                Severity.WARN,
                host.devices[number].tls,
                expected=f"certificates issued by {', '.join(common)}, as at most NPUs",
                got=f"issued by {', '.join(own)}, while TLS is on",
            )


# --- A3: vNIC and super pod ---------------------------------------------------------------------


def check_vnic(view: View) -> Iterator[Finding]:
    if not view.profile.super_pod:
        return
    for host in view.hosts:
        outside = [device for device in host.devices.values() if device.outside_super_pod]
        if outside:
            counted = any(view.counts(host.host, device.device) for device in outside)
            yield Finding(
                id="vnic.outside-superpod",
                severity=Severity.FAIL if counted else Severity.WARN,
                where=Where(host=host.host),
                expected="vNIC addresses 192.<server index 0-47>.x.x",
                got=grouped(
                    {
                        f"npu{device.device}": str(device.vnic.value.address.ip)
                        if device.vnic.value
                        else "no vNIC address"
                        for device in outside
                    }
                ),
                evidence=(outside[0].vnic.output.evidence, outside[0].spod.output.evidence),
            )
        for device in host.devices.values():
            broken = vnic_broken(device)
            if broken or (device.vnic.value is not None and not device.vnic.value.up):
                yield device_finding(
                    "vnic.down",
                    host,
                    device,
                    view.severity(host.host, device.device),
                    device.vnic,
                    expected="vnic link status UP, address and netmask",
                    got=f"not readable: {device.vnic.detail}" if broken else "DOWN",
                )


def check_super_pod(view: View) -> Iterator[Finding]:
    """SDIDs unique in their super pod, and fitting host, card, die and vNIC address."""
    if not view.profile.super_pod:
        return
    for host in view.hosts:
        yield from _misplaced(view, host)
    first: dict[tuple[int, int], tuple[HostFacts, DeviceFacts]] = {}
    clashes: dict[tuple[str, str], list[DeviceFacts]] = {}
    for host, device in view.devices:
        spod = device.spod.value
        if spod is None or not spod.inside:
            continue
        keeper_host, keeper = first.setdefault((spod.pod, spod.sdid), (host, device))
        if keeper is not device:
            clashes.setdefault((host.host, keeper_host.host), []).append(device)
    for (name, keeper_name), devices in clashes.items():
        counted = any(view.counts(name, device.device) for device in devices)
        single = devices[0].device if len(devices) == 1 else None
        yield Finding(
            id="sdid.duplicate",
            severity=Severity.FAIL if counted else Severity.WARN,
            where=Where(host=name, device=single, peer_host=keeper_name),
            expected="a super device id of its own for every NPU of the super pod",
            got=f"{len(devices)} that {keeper_name} has, too, e.g. "
            f"SDID {devices[0].spod.value.sdid if devices[0].spod.value else '?'} "
            f"of NPU {devices[0].device}",
            evidence=(devices[0].spod.output.evidence,),
        )


def _misplaced(view: View, host: HostFacts) -> Iterator[Finding]:
    """Ids that contradict each other; a host of which all do has one fault, not sixteen."""
    inside = [d for d in host.devices.values() if d.spod.value is not None and d.spod.value.inside]
    problems = {
        device.device: problem
        for device in inside
        if (problem := _sdid_problem(device)) is not None
    }
    whole = len(problems) == len(inside) > 1
    for group in [list(problems)] if whole else [[number] for number in problems]:
        counted = any(view.counts(host.host, number) for number in group)
        expected, got = problems[group[0]]
        device = host.devices[group[0]]
        yield Finding(
            id="sdid.mismatch",
            severity=Severity.FAIL if counted else Severity.WARN,
            where=Where(host=host.host, device=None if whole else group[0]),
            expected=expected,
            got=f"{got}, and so on all its {len(group)} NPUs" if whole else got,
            evidence=(device.spod.output.evidence, device.vnic.output.evidence),
        )


def _sdid_problem(device: DeviceFacts) -> tuple[str, str] | None:
    """(expected, got) if the ids of a device contradict each other."""
    spod, vnic = device.spod.value, device.vnic.value
    assert spod is not None
    wanted = spod.expected_sdid(device.device)
    if spod.sdid != wanted:
        return f"SDID {wanted} for server {spod.server}, NPU {device.device}", f"{spod.sdid}"
    if vnic is not None and vnic.address.version == 4 and not device.outside_super_pod:
        server = vnic.address.ip.packed[1]
        if server != spod.server:
            return f"a vNIC address 192.{spod.server}.x.x for server {spod.server}", str(
                vnic.address.ip
            )
    return None
