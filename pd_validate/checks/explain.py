"""Which finding explains which: one fault, one root. Pure.

Rules are data: symptom, cause, and how their places must be related. Causes are looked
for among the findings that are there, so nothing is explained by what was not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pd_validate.checks.fold import folded
from pd_validate.findings import Cause, Finding, Severity, Where
from pd_validate.spec.rules import PROXY_NAME

Relation = Callable[[Where, Where], bool]


def same_device(symptom: Where, cause: Where) -> bool:
    """The cause is at the symptom's device, or at all devices of its host."""
    return symptom.host == cause.host and cause.device in (None, symptom.device)


def either_end(symptom: Where, cause: Where) -> bool:
    """The cause is at one end of the symptom's path."""
    ends = ((symptom.host, symptom.device), (symptom.peer_host, symptom.peer_device))
    return any(
        host is not None and host == cause.host and cause.device in (None, device)
        for host, device in ends
    )


def same_host(symptom: Where, cause: Where) -> bool:
    return symptom.host == cause.host


def on_the_way(symptom: Where, cause: Where) -> bool:
    """The cause is at an instance that the failed request went through.

    A request through the proxy, or one whose way is not known, may have met any of them.
    """
    ways = (symptom.instance, symptom.peer_instance)
    return symptom.instance in (None, PROXY_NAME) or cause.instance in ways


def at_a_host_on_the_way(symptom: Where, cause: Where) -> bool:
    """As `on_the_way`, for a cause that is a host's."""
    hosts = (symptom.host, symptom.peer_host)
    return symptom.instance in (None, PROXY_NAME) or cause.host in hosts


def behind_the_proxy(symptom: Where, cause: Where) -> bool:
    """The cause is at an instance; the request went through the proxy, or nobody knows how."""
    return symptom.instance in (None, PROXY_NAME) and cause.instance not in (None, PROXY_NAME)


def at_another_instance(symptom: Where, cause: Where) -> bool:
    return cause.instance not in (None, PROXY_NAME, symptom.instance)


def anywhere(symptom: Where, cause: Where) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """`symptom` and `causes` are ids or patterns of ids; order in a rule does not matter."""

    symptom: str
    causes: tuple[str, ...]
    relation: Relation


_BROKEN_KV = ("kv.corrupt", "kv.swapped", "kv.missing", "kv.stale")
_LOST = ("host.unreachable", "host.hang")
_UNUSABLE = ("device.missing", "device.not-ready", "device.held", "driver.broken")

RULES = (
    # A driver that does not answer takes everything below it along.
    Rule("device.*", ("driver.broken",), same_host),
    Rule("tool.*", ("driver.broken", "device.held"), same_host),
    Rule("tool.*", ("device.missing", "device.not-ready"), same_device),
    # A few queries only say "failed" for what others of the same device name.
    Rule("tool.failed", ("tool.busy", "tool.permission"), same_device),
    Rule("device.unhealthy", ("device.missing", "device.not-ready"), same_device),
    Rule("vnic.down", (*_UNUSABLE, "tool.*"), same_device),
    # Link.
    Rule("link.down", ("optics.absent", "optics.los"), same_device),
    Rule("link.flapping", ("link.down", "optics.*"), same_device),
    Rule("link.no-neighbour", ("link.down", *_UNUSABLE, "tool.*"), same_device),
    # NPU network.
    Rule("health.*", ("link.down", "address.missing", "address.duplicate"), same_device),
    Rule("health.*", ("gateway.outside-subnet", "address.subnet"), same_device),
    Rule("address.conf-*", ("address.missing", "address.duplicate"), either_end),
    Rule("address.conf-mismatch", ("address.subnet", "gateway.*"), same_device),
    Rule("gateway.outside-subnet", ("address.subnet", "address.duplicate"), same_device),
    Rule("address.duplicate", ("sdid.duplicate", "sdid.mismatch"), same_host),
    Rule("sdid.*", ("vnic.outside-superpod",), same_host),
    Rule("sdid.mismatch", ("sdid.duplicate",), same_host),
    Rule("vnic.down", ("vnic.outside-superpod",), same_host),
    # Reachability.
    Rule("ping.*", ("link.down", "vnic.down", *_UNUSABLE), either_end),
    Rule("ping.*", ("address.missing", "address.duplicate", "address.subnet"), either_end),
    Rule("ping.*", ("address.reserved",), either_end),
    Rule("ping.*", ("gateway.*", "health.*", "sdid.*", "vnic.outside-superpod"), either_end),
    Rule("ping.size", ("mtu.mismatch",), either_end),
    # Host.
    Rule("host.address-mismatch", ("host.nic-missing", "host.nic-down"), same_host),
    Rule("host.port-taken", ("host.nic-missing", "host.address-mismatch"), same_host),
    Rule("env.mismatch", ("host.nic-missing", "host.nic-down"), same_host),
    # A host that is gone, and all that runs on it.
    Rule("engine.*", _LOST, same_host),
    Rule("kvlink.*", _LOST, at_a_host_on_the_way),
    Rule("kv.missing", _LOST, at_a_host_on_the_way),
    Rule("service.*", _LOST, at_a_host_on_the_way),
    Rule("drain.*", _LOST, anywhere),
    # Engines and KV. A decoder that is dead, or got no hand-over, never tells the prefiller
    # that its blocks may go.
    Rule("drain.*", ("engine.*", "kv.recomputed", "kv.missing"), anywhere),
    # Nor does one that refused a request which was sent to it past the proxy.
    Rule("drain.leak", ("service.*",), at_another_instance),
    Rule("kvlink.*", ("engine.*",), on_the_way),
    Rule("kv.missing", ("engine.*", "kvlink.*"), on_the_way),
    Rule("kv.recomputed", ("kv.missing", "kv.stale"), on_the_way),
    # Answers. A proxy's own faults (an empty or cut answer) stay, whatever lies below.
    Rule("service.*", ("engine.*", "kvlink.*", *_BROKEN_KV), on_the_way),
    Rule("service.timeout", ("service.error",), on_the_way),
    Rule("service.*", ("service.*",), behind_the_proxy),
    Rule("parity.diverged", _BROKEN_KV, on_the_way),
    Rule("determinism.diverged", (*_BROKEN_KV, "parity.diverged"), on_the_way),
    Rule("golden.diverged", (*_BROKEN_KV, "parity.diverged", "determinism.diverged"), on_the_way),
)


def explained(findings: Iterable[Finding], rules: Iterable[Rule] = RULES) -> list[Finding]:
    """The findings with `because` filled in, one per id and place, in their order."""
    unique = folded(findings)
    all_rules = list(rules)
    result = []
    for finding in unique:
        causes = explaining(finding.id, unique, all_rules)(finding)
        because = tuple(dict.fromkeys((*finding.because, *causes)))
        result.append(finding.model_copy(update={"because": because}))
    return result


def explaining(
    identifier: str, causes: Iterable[Finding], rules: Iterable[Rule] = RULES
) -> Callable[[Finding], list[Cause]]:
    """What of `causes` explains a finding of this id.

    The rules that fit the id are picked once, so that very many findings may be asked about.
    """
    fitting = [rule for rule in rules if fnmatchcase(identifier, rule.symptom)]
    related = [
        (cause, rule.relation)
        for cause in causes
        for rule in fitting
        if any(fnmatchcase(cause.id, pattern) for pattern in rule.causes)
    ]

    def of(finding: Finding) -> list[Cause]:
        found = (
            cause.as_cause()
            for cause, relation in related
            if cause is not finding
            and _rank(cause) <= _rank(finding)  # a warning never explains a failure away
            and relation(finding.where, cause.where)
        )
        return list(dict.fromkeys(found))

    return of


def _rank(finding: Finding) -> int:
    return (Severity.FAIL, Severity.UNKNOWN, Severity.WARN).index(finding.severity)
