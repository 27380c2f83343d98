"""The ping matrix: which NPU pings which, in which order, and what came back.

Pure up to `run_pings`. Pings go between hosts, in both directions. How many is a
schedule's choice: `full` (every pair), `rail` (NPUs of the same place on every other
host), `ring` (the same place on the next host), `sampled` (the ring, and
a few random targets of each device). NPUs that no instance uses are only in a ring.

Order: rounds, in each of which a device takes part in at most one ping, as source or as
target, and a host runs at most one, because hccn_tool does not support concurrent use
on a host. Each host gets its whole list in one round trip and works through it
serially; there is no barrier between rounds. Hosts that drift apart may put two pings on
one device at once, which the tool answers with "busy" and the reader with another try.
A barrier would cost a round trip per round and make every host wait for the slowest.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal

from pd_validate.facts.hccn import BUSY_TEXTS, Ping, parse_hccs_ping, parse_ping
from pd_validate.facts.hosts import (
    ClusterFacts,
    DeviceFacts,
    HostFailure,
    Watch,
    each_host,
    run_collector,
    tool_options,
)
from pd_validate.facts.reading import Output, Reading
from pd_validate.hosts.api import Commands
from pd_validate.spec.models import Cluster
from pd_validate.spec.profiles import profile_of

Schedule = Literal["full", "rail", "ring", "sampled"]

PINGS_PER_HOST = 128  # what `auto` lets a host run before it takes a thinner schedule
SAMPLES_PER_DEVICE = 2  # random targets of each device in `sampled`, besides its ring
PING_TIMEOUT = 20.0  # seconds; an unreachable address takes the tool several
HCCS_PING_TIMEOUT = 70.0  # the tool polls the device for up to 60 s
ICMP_OVERHEAD = {4: 28, 6: 48}  # bytes of IP and ICMP headers, by IP version
HCCS_LARGEST = 3000  # bytes, the tool's upper limit
_OUTSIDE_SUPER_POD = ip_network("192.168.0.0/16")  # of vNICs; inside one they have 192.<0..47>


@dataclass(frozen=True, order=True)
class Npu:
    host: str
    device: int

    def __str__(self) -> str:
        return f"{self.host} npu{self.device}"


@dataclass(frozen=True)
class PingTask:
    """One ping to run on `source.host`. `size` in bytes of payload; None: the tool's default."""

    source: Npu
    target: Npu
    address: str
    hccs: bool
    size: int | None = None

    @property
    def argv(self) -> list[str]:
        family = 6 if ":" in self.address else 4
        kind = "-hccs_ping" if self.hccs else "-ping"
        argv = ["hccn_tool", "-i", str(self.source.device), kind]
        argv += ["-inet6", "-g", "ipv6_address"] if family == 6 else ["-g", "address"]
        argv.append(self.address)
        return argv if self.size is None else [*argv, "pkt", str(self.size)]


@dataclass(frozen=True)
class PingPlan:
    """`rounds` in order; `large` are the pings with a full frame, after all others.

    `said` tells the schedule and why it was chosen; `left_out` are pairs that cannot be
    pinged, with the reason.
    """

    schedule: Schedule
    said: str
    rounds: tuple[tuple[PingTask, ...], ...]
    large: tuple[tuple[PingTask, ...], ...] = ()
    left_out: tuple[tuple[Npu, Npu, str], ...] = ()

    def of(self, host: str) -> list[PingTask]:
        """The pings of one host in order."""
        return [
            task
            for one_round in (*self.rounds, *self.large)
            for task in one_round
            if task.source.host == host
        ]

    @property
    def count(self) -> int:
        return sum(len(one_round) for one_round in (*self.rounds, *self.large))


@dataclass(frozen=True)
class PingResult:
    task: PingTask
    reading: Reading[Ping]


@dataclass(frozen=True)
class PingFacts:
    """What came back. `failures`: hosts whose pings could not be run."""

    plan: PingPlan
    results: tuple[PingResult, ...]
    failures: Mapping[str, HostFailure] = field(default_factory=dict)


# --- planning -----------------------------------------------------------------------------------


def ping_plan(cluster: Cluster, facts: ClusterFacts) -> PingPlan:
    """The pings of a cluster, given the addresses that its devices have now."""
    core: dict[str, list[int]] = {}
    rest: dict[str, list[int]] = {}
    for host, read in facts.hosts.items():
        used = cluster.devices_used(host)
        for device in sorted(read.devices):
            counts = cluster.checks.devices == "all" or device in used
            (core if counts else rest).setdefault(host, []).append(device)
    schedule, why = choose(cluster.checks.ping, core)
    wanted = list(pairs(schedule, core, seed=cluster.name))
    others = list(pairs("ring", rest))
    left_out: list[tuple[Npu, Npu, str]] = []
    tasks = _tasks(cluster, facts, [*wanted, *others], left_out)
    large = _tasks(cluster, facts, pairs("ring", core), [], full_frame=True)
    said = f"{schedule}: {len(wanted)} pings between {_count(core)} ({why})"
    if others:
        said += f"; ring: {len(others)} pings between {_count(rest)} that no instance uses"
    packed = rounds(tasks)  # fills left_out
    return PingPlan(schedule, said, packed, rounds(large), tuple(left_out))


def _count(group: Mapping[str, Sequence[int]]) -> str:
    return f"{sum(map(len, group.values()))} NPUs of {len(group)} hosts"


def choose(
    setting: Schedule | Literal["auto"], group: Mapping[str, Sequence[int]]
) -> tuple[Schedule, str]:
    """The schedule for `setting` (checks.ping), and why."""
    if setting != "auto":
        return setting, "as checks.ping says"
    total = sum(map(len, group.values()))
    full = max((len(own) * (total - len(own)) for own in group.values()), default=0)
    rail = max((len(own) * (len(group) - 1) for own in group.values()), default=0)
    if full <= PINGS_PER_HOST:
        return "full", f"every pair is at most {full} pings per host"
    if rail <= PINGS_PER_HOST:
        return "rail", f"every pair would be {full} pings per host; the limit is {PINGS_PER_HOST}"
    return "sampled", f"even a rail would be {rail} pings per host; the limit is {PINGS_PER_HOST}"


def pairs(
    schedule: Schedule, group: Mapping[str, Sequence[int]], *, seed: str = ""
) -> Iterator[tuple[Npu, Npu]]:
    """Ordered (source, target) pairs, always between hosts. `seed` fixes what `sampled` draws."""
    hosts = [host for host, devices in group.items() if devices]
    if len(hosts) < 2:
        return
    if schedule == "full":
        yield from _full(hosts, group)
    elif schedule == "rail":
        for step in range(1, len(hosts)):
            yield from _shifted(hosts, group, step)
    else:
        ring = dict.fromkeys((*_shifted(hosts, group, 1), *_shifted(hosts, group, -1)))
        yield from ring
        if schedule == "sampled":
            yield from _sampled(hosts, group, set(ring), seed)


def _full(hosts: Sequence[str], group: Mapping[str, Sequence[int]]) -> Iterator[tuple[Npu, Npu]]:
    # All hosts shift together and targets rotate against sources: that packs into few rounds.
    for step in range(1, len(hosts)):
        for offset in range(max(len(group[host]) for host in hosts)):
            for index, host in enumerate(hosts):
                targets = group[hosts[(index + step) % len(hosts)]]
                if offset >= len(targets):
                    continue
                for place, device in enumerate(group[host]):
                    target = targets[(place + offset) % len(targets)]
                    yield Npu(host, device), Npu(hosts[(index + step) % len(hosts)], target)


def _shifted(
    hosts: Sequence[str], group: Mapping[str, Sequence[int]], step: int
) -> Iterator[tuple[Npu, Npu]]:
    """Each device to the one of the same place on the host `step` further."""
    for index, host in enumerate(hosts):
        peer = hosts[(index + step) % len(hosts)]
        for place in range(max(len(group[host]), len(group[peer]))):
            # Hosts of different size: the smaller one's devices take several.
            source = group[host][place % len(group[host])]
            target = group[peer][place % len(group[peer])]
            yield Npu(host, source), Npu(peer, target)


def _sampled(
    hosts: Sequence[str],
    group: Mapping[str, Sequence[int]],
    taken: set[tuple[Npu, Npu]],
    seed: str,
) -> Iterator[tuple[Npu, Npu]]:
    draw = random.Random(seed)
    everyone = [Npu(host, device) for host in hosts for device in group[host]]
    for source in everyone:
        possible = [
            npu for npu in everyone if npu.host != source.host and (source, npu) not in taken
        ]
        for target in draw.sample(possible, min(len(possible), SAMPLES_PER_DEVICE)):
            yield source, target


def _tasks(
    cluster: Cluster,
    facts: ClusterFacts,
    wanted: Iterable[tuple[Npu, Npu]],
    left_out: list[tuple[Npu, Npu, str]],
    *,
    full_frame: bool = False,
) -> Iterator[PingTask]:
    for source, target in wanted:  # `left_out` takes what cannot be pinged
        near, far = facts.device(*_key(source)), facts.device(*_key(target))
        if near is None or far is None:
            left_out.append((source, target, "not read"))
            continue
        hccs = profile_of(cluster).super_pod and _same_pod(near, far)
        why = _unreachable(near, hccs) or _unreachable(far, hccs)
        address = _address(far, hccs)
        if why or address is None:
            left_out.append((source, target, why or "no address"))
            continue
        size = None
        if full_frame:
            size = HCCS_LARGEST if hccs else _largest(near, far, address)
            if size is None:
                continue
        yield PingTask(source, target, address, hccs, size)


def _key(npu: Npu) -> tuple[str, int]:
    return npu.host, npu.device


def _same_pod(near: DeviceFacts, far: DeviceFacts) -> bool:
    """Between super pods only RoCE connects. What cannot be read counts as one pod."""
    pods = {read.spod.value.pod for read in (near, far) if read.spod.value is not None}
    return len(pods) < 2


def _unreachable(device: DeviceFacts, hccs: bool) -> str:
    """Why nothing can be sent from or to a device; its own finding names the fault."""
    if hccs:
        if device.vnic.value is None:
            return f"npu{device.device}: vNIC not readable"
        if device.vnic.value.address.ip in _OUTSIDE_SUPER_POD:
            return f"npu{device.device}: in no super pod"
        if device.outside_super_pod:
            return f"npu{device.device}: outside a super pod"
        return "" if device.vnic.value.up else f"npu{device.device}: vNIC down"
    if device.link.value is False:
        return f"npu{device.device}: link down"
    if device.ip.value is None or device.ip.value.first is None:
        return f"npu{device.device}: no address"
    return ""


def _address(device: DeviceFacts, hccs: bool) -> str | None:
    if hccs:
        return str(device.vnic.value.address.ip) if device.vnic.value else None
    first = device.ip.value.first if device.ip.value else None
    return str(first.ip) if first else None


def _largest(near: DeviceFacts, far: DeviceFacts, address: str) -> int | None:
    """Payload that fills one frame of both devices, so that only the path can be too narrow."""
    if near.mtu.value is None or far.mtu.value is None:
        return None
    return min(near.mtu.value, far.mtu.value) - ICMP_OVERHEAD[6 if ":" in address else 4]


def rounds(tasks: Iterable[PingTask]) -> tuple[tuple[PingTask, ...], ...]:
    """Pack pings into rounds: per round a device is in one ping at most, a host sends one."""
    waiting: dict[str, deque[PingTask]] = {}
    for task in tasks:
        waiting.setdefault(task.source.host, deque()).append(task)
    result = []
    while waiting:
        taken: set[Npu] = set()
        one_round = []
        # Who has most left goes first, so that no host is left with a tail of its own.
        for host in sorted(waiting, key=lambda name: -len(waiting[name])):
            queue = waiting[host]
            free = (t for t in queue if t.source not in taken and t.target not in taken)
            chosen = next(free, None)
            if chosen is None:
                continue
            queue.remove(chosen)
            taken |= {chosen.source, chosen.target}
            one_round.append(chosen)
        result.append(tuple(one_round))
        waiting = {host: queue for host, queue in waiting.items() if queue}
    return tuple(result)


# --- running ------------------------------------------------------------------------------------


def run_pings(
    commands: Mapping[str, Commands],
    cluster: Cluster,
    plan: PingPlan,
    *,
    watch: Watch = nullcontext,
) -> PingFacts:
    """Run every host's pings: one round trip per host, hosts in parallel."""
    by_host = {host: plan.of(host) for host in commands}
    work = {host: tasks for host, tasks in by_host.items() if tasks}

    def one(host: str) -> list[PingResult]:
        with watch(host):
            return _run_on(commands[host], cluster, work[host])

    answers = each_host(work, one)
    results: list[PingResult] = []
    failures: dict[str, HostFailure] = {}
    for host, answer in answers.items():
        if isinstance(answer, HostFailure):
            failures[host] = answer
        else:
            results += answer
    return PingFacts(plan, tuple(results), failures)


def _run_on(commands: Commands, cluster: Cluster, tasks: Sequence[PingTask]) -> list[PingResult]:
    # A few dead targets may use up their whole time limit; a cluster of them may not.
    budget = 60.0 + sum(3.0 if task.hccs else 2.0 for task in tasks)
    request = {
        "tools": tool_options(cluster, commands.name, budget),
        "commands": [
            {
                "argv": task.argv,
                "timeout": HCCS_PING_TIMEOUT if task.hccs else PING_TIMEOUT,
                "retry_texts": list(BUSY_TEXTS),
            }
            for task in tasks
        ],
    }
    longest = HCCS_PING_TIMEOUT if any(task.hccs for task in tasks) else PING_TIMEOUT
    document = run_collector(commands, request, timeout=budget + longest + 30)
    outputs = [Output.from_json(data) for data in document["commands"]]
    return [
        PingResult(task, parse_hccs_ping(output) if task.hccs else parse_ping(output))
        for task, output in zip(tasks, outputs, strict=True)
    ]
