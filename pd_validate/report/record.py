"""The record of one run: everything a report is drawn from, as plain typed data.

Filled by whoever runs (plugin, cli), read by the writers of this package; JSON in
between, so that a report can be drawn again from `record.json`. Every part may be
empty: a run that stops at the network has no KV, a failed bring-up has no requests.
Not here: verdicts on facts (checks/) and anything about how it looks.

Units: seconds (spans and samples: since the epoch, by the controller's clock), bytes, tokens.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pd_validate.catalogue import Layer
from pd_validate.findings import Finding, Verdict, Where
from pd_validate.spec.models import Cluster, Role

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
EpochSeconds = float


class Part(BaseModel):
    """Base of the parts of a record: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Npu(Part):
    """One NPU of the cluster: physical id `device` on `host`."""

    host: str
    device: int

    def __str__(self) -> str:
        return f"{self.host} npu{self.device}"


class HostNode(Part):
    """A host as drawn: all NPUs it has, used or not."""

    name: str
    address: str = ""
    devices: tuple[int, ...] = ()


class InstanceNode(Part):
    """One vLLM server as drawn: `devices` in TP order, so rank = index."""

    name: str
    role: Role
    host: str
    devices: tuple[int, ...] = ()
    port: int | None = None


class ProxyNode(Part):
    host: str
    port: int | None = None


class CheckResult(Part):
    """One check at one place; `layer` orders the matrix and feeds the layer ladder."""

    id: str
    where: Where = Where()
    verdict: Verdict
    seconds: Seconds = 0
    layer: Layer | None = None
    # The verdict is not a pass, and …
    quarantined: bool = False  # … nothing of it counts
    explained: bool = False  # … the fault is elsewhere


class Span(Part):
    """Something a host did during bring-up. `end` None: it had not ended when the run did."""

    host: str
    name: str
    start: EpochSeconds
    end: EpochSeconds | None = None
    verdict: Verdict = Verdict.PASS
    note: str = ""  # what became of it, in a few words


class Ping(Part):
    """One direction of the ping matrix. `ms` is the mean round trip; None if nothing came back."""

    source: Npu
    target: Npu
    sent: Count
    received: Count
    ms: float | None = None


class Rank(Part):
    """A TP rank of an instance."""

    instance: str
    rank: int

    def __str__(self) -> str:
        return f"{self.instance} rank {self.rank}"


class KvPair(Part):
    """What the KV audit saw between two ranks, summed over the run.

    `blocks_compared` and `mismatches` count (layer, K or V, block) digests held against each
    other; zero compared means that transfers were seen and their content was not checked.
    """

    source: Rank
    target: Rank
    pulls: Count
    bytes: Count
    seconds: Seconds
    blocks_compared: Count = 0
    mismatches: Count = 0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


class KvPull(Part):
    """One pull, for bandwidth over time."""

    at: EpochSeconds
    source: Rank
    target: Rank
    bytes: Count
    seconds: Seconds


class RequestTiming(Part):
    """Client-side latency of one request; `tpot` is seconds per output token after the first."""

    request: str = ""
    ttft: Seconds
    tpot: Seconds | None = None


class KvUsage(Part):
    """KV cache usage of an instance over time; samples are (epoch seconds, share 0..1)."""

    instance: str
    samples: tuple[tuple[EpochSeconds, float], ...]


class Outcome(StrEnum):
    """How a test ended. BLOCKED: not run because of a finding below it.

    QUARANTINED: failed, on nothing but findings that are known (`--quarantine`).
    """

    PASSED = "passed"
    FAILED = "failed"  # the product is wrong
    BROKEN = "broken"  # the lab or the harness is
    BLOCKED = "blocked"
    SKIPPED = "skipped"
    QUARANTINED = "quarantined"


class TestResult(Part):
    """One test: `findings` are the ids it raised or is blocked by, `reason` is one line."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    id: str
    outcome: Outcome
    seconds: Seconds = 0
    findings: tuple[str, ...] = ()
    reason: str = ""
    layer: Layer | None = None


class Attachment(Part):
    """A file beside the report; `path` is relative to the report's directory."""

    name: str
    path: str
    bytes: Count = 0


class QuarantineEntry(Part):
    """An entry of the quarantine file; `matched` counts the findings of this run it fits."""

    id: str
    where: str  # the pattern, in words
    url: str
    reason: str
    expires: dt.date
    expired: bool
    matched: Count
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.id} at {self.where} ({self.place})"


class RunRecord(BaseModel):
    """The whole run. Mutable on purpose: it is filled while the run goes on."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    cluster: str
    started: AwareDatetime
    finished: AwareDatetime | None = None
    verdict: Verdict = Verdict.UNKNOWN
    exit_code: int | None = None
    command: str = ""  # the command line that made this run
    harness: str = ""  # our version and revision
    # name -> one value for the whole run, or host -> value where hosts were asked
    environment: dict[str, str | dict[str, str]] = {}
    notes: list[str] = []  # worth knowing and no finding: what was not measured, advice

    hosts: list[HostNode] = []
    instances: list[InstanceNode] = []
    proxy: ProxyNode | None = None

    findings: list[Finding] = []
    quarantine: list[QuarantineEntry] = []
    checks: list[CheckResult] = []
    tests: list[TestResult] = []
    timeline: list[Span] = []
    pings: list[Ping] = []
    kv_pairs: list[KvPair] = []
    kv_pulls: list[KvPull] = []
    requests: list[RequestTiming] = []
    kv_usage: list[KvUsage] = []
    # host -> what was still there after teardown; an empty list means looked and clean
    leftovers: dict[str, list[str]] = {}
    attachments: list[Attachment] = []

    @property
    def seconds(self) -> float | None:
        """Duration of the run, None while it has no end."""
        if self.finished is None:
            return None
        return (self.finished - self.started).total_seconds()

    @property
    def exit_meaning(self) -> str:
        return exit_meaning(self.exit_code)

    def add_cluster(self, cluster: Cluster, devices: Mapping[str, Sequence[int]]) -> None:
        """Take hosts, instances and proxy from the cluster file.

        `devices` are the NPUs each host has (its own list or the hardware profile's).
        """
        self.hosts = [
            HostNode(name=name, address=host.address, devices=tuple(devices.get(name, ())))
            for name, host in cluster.hosts.items()
        ]
        self.instances = [
            InstanceNode(
                name=name, role=spec.role, host=spec.host, devices=spec.devices, port=spec.port
            )
            for name, spec in cluster.instances.items()
        ]
        self.proxy = ProxyNode(host=cluster.proxy.host, port=cluster.proxy.port)

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a record.json. Raises OSError, pydantic.ValidationError."""
        return cls.model_validate_json(path.read_bytes())


# pytest's own exit codes (pytest.ExitCode) and ours beyond them (design.md, section 4).
_EXIT_MEANINGS = {
    0: "all passed",
    1: "some tests failed",
    2: "interrupted",
    3: "internal error of pytest or the harness",
    4: "the cluster file or the command line cannot be used",
    5: "no test was selected",
    10: "the cluster is not fit (pre-flight)",
    11: "something was left behind (post-flight)",
    12: "the cluster is not fit, and something was left behind",
}


def exit_meaning(code: int | None) -> str:
    """What an exit code says, in words; empty if there is none."""
    return "" if code is None else _EXIT_MEANINGS.get(code, "")


def differing_hosts(values: Mapping[str, str]) -> frozenset[str]:
    """Hosts whose value is not the most frequent one; all hosts if no value leads.

    With two hosts that differ nobody can say which is wrong, so both are marked.
    """
    by_value: dict[str, list[str]] = {}
    for host, value in values.items():
        by_value.setdefault(value, []).append(host)
    if len(by_value) < 2:
        return frozenset()
    groups = sorted(by_value.values(), key=len, reverse=True)
    if len(groups[0]) == len(groups[1]):
        return frozenset(values)
    return frozenset(host for group in groups[1:] for host in group)


_BADNESS = {Verdict.PASS: 0, Verdict.UNKNOWN: 1, Verdict.FAIL: 2}


def worst(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The worst of some verdicts, None if there are none (nothing was checked)."""
    return max(verdicts, key=_BADNESS.__getitem__, default=None)
