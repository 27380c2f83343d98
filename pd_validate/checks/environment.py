"""Variables that every rank must agree on, that were renamed, or that are out of range. Pure.

What counts is what an instance will have: the plan's variables over those of a login. A
variable that only a login has wrong is a warning: our processes are not hit by it, what
is started by hand is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pd_validate.checks.view import View, grouped, listed, usual
from pd_validate.facts.hosts import HostFacts
from pd_validate.findings import Finding, Severity, Where
from pd_validate.spec.models import Role
from pd_validate.spec.plan import InstanceLaunch

IF_NAMES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME")
# Different values on prefillers and decoders break the link or the answers.
SHARED = (
    "HCCL_INTRA_ROCE_ENABLE",
    "HCCL_INTRA_PCIE_ENABLE",
    "HCCL_DETERMINISTIC",
    "LCCL_DETERMINISTIC",
    "CLOSE_MATMUL_K_SHIFT",
    "HCCL_RDMA_TC",
    "HCCL_RDMA_SL",
    "VLLM_USE_V1",
)
# Old name -> new name, and since when: vllm-ascend commit 73acdcfc3b, vLLM 0.4.
RENAMED = {
    "VLLM_LLMDD_RPC_PORT": "VLLM_ASCEND_LLMDD_RPC_PORT",
    "VLLM_LLMDD_RPC_IP": "VLLM_ASCEND_LLMDD_RPC_IP",
    "HOST_IP": "VLLM_HOST_IP",
}
# Inclusive ranges. Time limits: CANN's description of the variables, seconds.
RANGES = {
    "HCCL_IF_BASE_PORT": (1024, 65520),
    "VLLM_ASCEND_LLMDD_RPC_PORT": (1, 65535),
    "HCCL_CONNECT_TIMEOUT": (120, 7200),
    "HCCL_BUFFSIZE": (1, 1 << 20),
    "OMP_NUM_THREADS": (1, 4096),
}
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@dataclass(frozen=True)
class _Scope:
    """One instance with what it will see."""

    name: str
    launch: InstanceLaunch
    host: HostFacts

    @property
    def environment(self) -> Mapping[str, str]:
        return {**self.host.environment, **self.launch.env}


def _scopes(view: View) -> Iterator[_Scope]:
    for name, launch in view.plan.instances.items():
        host = view.facts.hosts.get(launch.host)
        if host is not None:
            yield _Scope(name, launch, host)


def check_agreement(view: View) -> Iterator[Finding]:
    for scope in _scopes(view):
        yield from _interface_names(view, scope)
        yield from _interface_address(view, scope)
        yield from _overridden(scope)
    yield from _shared(view)


def _interface_names(view: View, scope: _Scope) -> Iterator[Finding]:
    """All of them name one card that exists and is up."""
    names = {name: scope.environment[name] for name in IF_NAMES if name in scope.environment}
    wrong = {name: value for name, value in names.items() if not _usable(scope.host, value)}
    if wrong or len(set(names.values())) > 1:
        nic = view.cluster.nic_of(scope.host.host)
        yield Finding(
            id="env.mismatch",
            where=Where(host=scope.host.host, instance=scope.name),
            expected=f"{', '.join(names)} all naming one card that is up, such as {nic}",
            got="; ".join(f"{name}={value}" for name, value in names.items()),
        )


def _usable(host: HostFacts, value: str) -> bool:
    """HCCL takes prefixes and lists (`=eth0`, `eth0,eth1`); excluding ones (`^lo`) pass."""
    if value.startswith("^"):
        return True
    wanted = [part.strip().removeprefix("=") for part in value.split(",")]
    return any(card.up and card.name.startswith(tuple(wanted)) for card in host.cards.values())


def _interface_address(view: View, scope: _Scope) -> Iterator[Finding]:
    """HCCL_IF_IP is an address that this host has and that peers use."""
    value = scope.environment.get("HCCL_IF_IP")
    address = view.cluster.hosts[scope.host.host].address
    if value is not None and value != address:
        yield Finding(
            id="env.mismatch",
            where=Where(host=scope.host.host, instance=scope.name),
            expected=f"HCCL_IF_IP={address}, the host's address",
            got=f"HCCL_IF_IP={value}",
        )


def _overridden(scope: _Scope) -> Iterator[Finding]:
    """What a login sets and the plan sets otherwise: harmless to us, not to gen_ranktable.sh."""
    checked = ("HCCL_IF_IP", "VLLM_HOST_IP", *IF_NAMES, *SHARED)
    login, plan = scope.host.environment, scope.launch.env
    wrong = [n for n in checked if n in login and n in plan and login[n] != plan[n]]
    if wrong:
        yield Finding(
            id="env.mismatch",
            severity=Severity.WARN,
            where=Where(host=scope.host.host, instance=scope.name),
            expected="; ".join(f"{name}={plan[name]}" for name in wrong),
            got="; ".join(f"{name}={login[name]}" for name in wrong)
            + " in the login environment; our processes override it",
        )


def _shared(view: View) -> Iterator[Finding]:
    scopes = list(_scopes(view))
    for name in SHARED:
        values = {scope.name: scope.environment.get(name, "unset") for scope in scopes}
        common = usual(values.values())
        for scope in scopes:
            if values[scope.name] != common:
                yield Finding(
                    id="env.mismatch",
                    where=Where(host=scope.host.host, instance=scope.name),
                    expected=f"{name}={common}, as on most instances",
                    got=f"{name}={values[scope.name]}",
                    evidence=(f"{name}: {grouped(values)}",),
                )


def check_renamed(view: View) -> Iterator[Finding]:
    for scope in _scopes(view):
        for old, new in RENAMED.items():
            if old not in scope.environment:
                continue
            # With the new name set as well, nothing is lost.
            harmless = new in scope.environment
            yield Finding(
                id="env.renamed",
                severity=Severity.WARN if harmless else Severity.FAIL,
                where=Where(host=scope.host.host, instance=scope.name),
                expected=f"{new}, its name now",
                got=f"{old}={scope.environment[old]}, which nothing reads",
            )


def check_ranges(view: View) -> Iterator[Finding]:
    for scope in _scopes(view):
        where = Where(host=scope.host.host, instance=scope.name)
        for name, (low, high) in RANGES.items():
            value = scope.environment.get(name)
            if value is None or (value.isdigit() and low <= int(value) <= high):
                continue
            yield Finding(
                id="env.range",
                where=where,
                expected=f"{name} from {low} to {high}",
                got=repr(value),
            )
        visible = scope.environment.get(_VISIBLE)
        if visible is not None and not re.fullmatch(r"\d+(,\d+)*", visible):
            # The connector compares the parts as text: "2, 3" never matches device 3.
            yield Finding(
                id="env.range",
                where=where,
                expected=f"{_VISIBLE} as numbers with commas and no blanks",
                got=repr(visible),
            )


def advice(view: View) -> Iterator[str]:
    """Host settings that Huawei's pre-check (msprechecker 0.4.0) recommends: never a finding."""
    recommended = {
        "governor": ("performance", "CPU governor", "host-bound dispatch"),
        "hugepages": ("always", "transparent hugepages", "stable throughput"),
        "virtual": ("none", "virtualisation", "core count and frequency differ"),
    }
    for key, (wanted, name, why) in recommended.items():
        other = {
            host.host: host.tuning[key]
            for host in view.hosts
            if host.tuning.get(key) not in ("", wanted)
        }
        if other:
            yield f"{name}: {wanted} is recommended ({why}); {grouped(other)}"
    yield from _variables_advised(view)
    old = [h.host for h in view.hosts if _kernel(h.tuning.get("kernel", "")) < (5, 10)]
    if old:
        yield f"kernel: 5.10 or later is recommended (dispatch speed); older on {listed(old)}"


def _variables_advised(view: View) -> Iterator[str]:
    """Variables that msprechecker 0.4.0 recommends, and the instances that lack them."""
    for name, why in _ADVISED.items():
        other = {
            scope.name: scope.environment.get(name, "not set")
            for scope in _scopes(view)
            if _advised(name, scope.launch.role) not in scope.environment.get(name, "")
        }
        if other:
            wanted = " and ".join(dict.fromkeys(_advised(name, role) for role in Role))
            yield f"{name}: {wanted} is recommended ({why}); {grouped(other)}"


_ADVISED = {
    "PYTORCH_NPU_ALLOC_CONF": "memory fragmentation",
    "HCCL_BUFFSIZE": "HCCL's buffers, prefillers and decoders",
    "TASK_QUEUE_ENABLE": "one task queue",
    "LD_PRELOAD": "speed of the allocator",
}


def _advised(name: str, role: Role) -> str:
    """What the variable should have, or have in it."""
    return {
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "HCCL_BUFFSIZE": "512" if role is Role.PREFILL else "1024",
        "TASK_QUEUE_ENABLE": "1",
        "LD_PRELOAD": "jemalloc",
    }[name]


def _kernel(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (99, 0)
