"""The host itself: reachable, clock, network card, own address, proxy variables, ports. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

from pd_validate.checks.view import View, listed
from pd_validate.facts.hosts import HostFacts
from pd_validate.facts.reading import Reason
from pd_validate.findings import Finding, Severity, Where

SKEW = 2.0  # seconds, from which a log of one host cannot be laid beside another's
WRONG_CLOCK = 60.0  # seconds, from which certificates and leases are concerned


def check_reachable(view: View) -> Iterator[Finding]:
    for failure in view.facts.failures.values():
        yield Finding(id=failure.id, where=Where(host=failure.host), got=failure.message)


def check_clock(view: View) -> Iterator[Finding]:
    """Only as far as the round trip leaves no doubt."""
    for host in view.hosts:
        clock = host.clock.value
        if clock is None:
            if host.clock.reason is not Reason.NOT_READ:
                yield Finding(
                    id="host.clock-skew",
                    severity=Severity.UNKNOWN,
                    where=Where(host=host.host),
                    expected="the host's time",
                    got=host.clock.detail,
                    evidence=(host.clock.output.evidence,),
                )
            continue
        ahead, behind = clock.low > SKEW, clock.high < -SKEW
        if ahead or behind:
            skew = clock.low if ahead else -clock.high
            yield Finding(
                id="host.clock-skew",
                severity=Severity.FAIL if skew > WRONG_CLOCK else Severity.WARN,
                where=Where(host=host.host),
                expected=f"at most {SKEW:.0f} s from the controller's clock",
                got=f"at least {skew:.1f} s {'ahead' if ahead else 'behind'}",
                evidence=(host.clock.output.evidence,),
            )


def check_card(view: View) -> Iterator[Finding]:
    """The card of the cluster file is there, up, and has the address that peers use."""
    for host in view.hosts:
        name = view.cluster.nic_of(host.host)
        address = view.cluster.hosts[host.host].address
        card = host.cards.get(name)
        where = Where(host=host.host)
        if card is None:
            yield Finding(
                id="host.nic-missing",
                where=where,
                expected=f"a network card {name}",
                got=f"only {listed(sorted(host.cards))}",
            )
        elif not card.up:
            yield Finding(
                id="host.nic-down", where=where, expected=f"{name} up", got="down or no carrier"
            )
        if card is not None and not card.has(address):
            own = listed(each.ip for each in card.addresses) or "no address"
            other = next((c.name for c in host.cards.values() if c.has(address)), None)
            yield Finding(
                id="host.address-mismatch",
                where=where,
                expected=f"{address} on {name}",
                got=f"{own} there" + (f"; {address} is on {other}" if other else ""),
            )


def check_own_address(view: View) -> Iterator[Finding]:
    """What vLLM takes for its own address must be what the rank table and peers use."""
    for name, launch in view.plan.instances.items():
        host = view.facts.hosts.get(launch.host)
        if host is None:
            continue
        address = view.cluster.hosts[launch.host].address
        stated = launch.env.get("VLLM_HOST_IP") or host.environment.get("VLLM_HOST_IP")
        chosen = stated or host.own_address
        if chosen != address:
            source = "VLLM_HOST_IP" if stated else "the default route"
            yield Finding(
                id="host.address-mismatch",
                where=Where(host=launch.host, instance=name),
                expected=f"vLLM to take {address} for its own address",
                got=f"{chosen}, from {source}",
            )


_PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy")


def check_proxy_variables(view: View) -> Iterator[Finding]:
    """A proxy between the servers, unless no_proxy has all of them."""
    addresses = {host.address for host in view.cluster.hosts.values()}
    for host in view.hosts:
        for scope, environment in _environments(view, host):
            values = {key.lower(): value for key, value in environment.items() if value}
            proxies = [key for key in _PROXY_NAMES if key in values]
            passed = values.get("no_proxy", "")
            missing = sorted(a for a in addresses if not _exempt(a, passed))
            if proxies and missing:
                yield Finding(
                    id="host.proxy-env",
                    where=Where(host=host.host, instance=scope),
                    expected=f"no proxy, or {listed(missing)} in no_proxy",
                    got=", ".join(f"{key}={values[key]}" for key in proxies),
                )


def _environments(view: View, host: HostFacts) -> Iterator[tuple[str | None, Mapping[str, str]]]:
    """What each instance on the host will have; the login's own where nothing runs."""
    launches = {n: p for n, p in view.plan.instances.items() if p.host == host.host}
    shown = set()
    for name, launch in launches.items():
        environment = {**host.environment, **launch.env}
        values = frozenset(item for item in environment.items() if "proxy" in item[0].lower())
        if values not in shown:
            shown.add(values)
            inherited = all(item in host.environment.items() for item in values)
            yield None if inherited else name, environment
    if not launches:
        yield None, host.environment


def _exempt(address: str, no_proxy: str) -> bool:
    for entry in (part.strip() for part in no_proxy.split(",")):
        if entry in ("*", address):
            return True
        try:
            if ip_address(address) in ip_network(entry, strict=False):
                return True
        except ValueError:
            if entry.startswith(".") and address.endswith(entry):
                return True
    return False


def check_ports(view: View) -> Iterator[Finding]:
    """Ports that we will listen on, or may: the whole block of each side channel."""
    for host in view.hosts:
        for port in host.ports:
            if port.free is False:
                yield Finding(
                    id="host.port-taken",
                    where=Where(host=host.host, port=port.port),
                    expected=f"{port.address}:{port.port} free",
                    got=f"in use by {port.holder or 'a process that we may not see'}",
                )
            elif port.free is None:
                yield Finding(
                    id="host.port-taken",
                    severity=Severity.UNKNOWN,
                    where=Where(host=host.host, port=port.port),
                    expected=f"{port.address}:{port.port} free",
                    got=f"could not be tried: {port.error}",
                )
