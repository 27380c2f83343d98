"""The state of a place (NPU, host, instance, KV link) and of a layer, for the pictures.

A place that has a root finding is the culprit; one that only has consequences is affected.
The difference is what lets an eye find one dead link among forty red things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pd_validate.catalogue import CATALOGUE, Layer
from pd_validate.findings import Cause, Finding, Severity, Verdict, Where
from pd_validate.report.families import families
from pd_validate.report.record import CheckResult, InstanceNode, Npu, Outcome, RunRecord


class State(StrEnum):
    """Worst first. AFFECTED: suffers from a fault elsewhere. QUARANTINED: a fault that is known
    and does not count. NONE: nothing looked at it."""

    FAIL = "fail"
    UNKNOWN = "unknown"
    AFFECTED = "affected"
    QUARANTINED = "quarantined"
    WARN = "warn"
    PASS = "pass"
    NONE = "none"

    @property
    def label(self) -> str:
        return {"none": "not checked", "unknown": "could not measure"}.get(self.value, self.value)


_RANK = {state: number for number, state in enumerate(State)}
_OF_VERDICT = {
    Verdict.PASS: State.PASS,
    Verdict.FAIL: State.FAIL,
    Verdict.UNKNOWN: State.UNKNOWN,
}
_OF_SEVERITY = {
    Severity.FAIL: State.FAIL,
    Severity.UNKNOWN: State.UNKNOWN,
    Severity.WARN: State.WARN,
}
# A red test that names no finding still makes its layer red.
_OF_OUTCOME = {Outcome.FAILED: State.FAIL, Outcome.BROKEN: State.UNKNOWN}


_PORT_LAYERS = (Layer.LINK, Layer.NPU_NETWORK)

Place = TypeVar("Place")


def _worsen(states: dict[Place, State], place: Place, state: State) -> None:
    states[place] = worst_state((state, states.get(place, State.NONE)))


def state_of_finding(finding: Finding) -> State:
    return State.QUARANTINED if finding.quarantined else _OF_SEVERITY[finding.severity]


def worst_state(states: Iterable[State]) -> State:
    return min(states, key=_RANK.__getitem__, default=State.NONE)


@dataclass(frozen=True)
class LayerState:
    """One step of the layer ladder; `done` counts the checks and tests that passed there."""

    layer: Layer
    state: State
    done: int
    total: int


class States:
    """Answers "how is this place?" for one record; everything is looked up once, at the start."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._instances = {instance.name: instance for instance in record.instances}
        self._anchors: dict[Cause, str] = {}
        self._roots: list[Finding] = []
        self._consequences: list[Finding] = []
        hidden: set[Cause] = set()  # consequences of what is quarantined
        for number, family in enumerate(families(record.findings), start=1):
            self._roots.append(family.root)
            self._consequences += family.consequences
            if family.root.quarantined:
                hidden |= {finding.as_cause() for finding in family.consequences}
            for finding in (family.root, *family.consequences):
                self._anchors.setdefault(finding.as_cause(), f"f{number}")
        self._npus: dict[Npu, State] = {}
        self._ports: dict[Npu, State] = {}
        self._hosts: dict[str, State] = {}
        self._named: dict[str, State] = {}  # instances, by what is said of them by name
        for finding in self._roots:
            self._add(finding.where, state_of_finding(finding), finding.layer)
        # What the roots say of an NPU, before anything that only follows from it is added.
        self._culprits = dict(self._npus)
        for finding in self._consequences:
            known = finding.as_cause() in hidden
            state = State.QUARANTINED if known else State.AFFECTED
            self._add(finding.where, state, finding.layer)
            if not known:
                self._add_far_end(finding.where)
        for check in record.checks:
            self._add(check.where, self.check(check), check.layer)
        self._npu_anchors: dict[Npu, str] = {}
        self._host_anchors: dict[str, str] = {}
        self._id_anchors: dict[str, str] = {}
        for finding in (*self._roots, *self._consequences):
            anchor = self.anchor(finding)
            self._id_anchors.setdefault(finding.id, anchor)
            if npu := self.npu_of(finding.where):
                self._npu_anchors.setdefault(npu, anchor)
            if host := self.host_of(finding.where):
                self._host_anchors.setdefault(host, anchor)

    def _add(self, where: Where, state: State, layer: Layer | None) -> None:
        npu = self.npu_of(where)
        if npu is not None:
            _worsen(self._npus, npu, state)
            if layer in _PORT_LAYERS:
                _worsen(self._ports, npu, state)
        elif where.host is not None and where.instance is None:
            _worsen(self._hosts, where.host, state)
        if where.instance is not None:
            _worsen(self._named, where.instance, state)

    def _add_far_end(self, where: Where) -> None:
        """The other end of a path that suffers, suffers too."""
        if where.peer_host is not None and where.peer_device is not None:
            far = Npu(host=where.peer_host, device=where.peer_device)
            _worsen(self._npus, far, State.AFFECTED)
        elif where.peer_host is not None:
            _worsen(self._hosts, where.peer_host, State.AFFECTED)
        if where.peer_instance is not None:
            _worsen(self._named, where.peer_instance, State.AFFECTED)

    def npu_of(self, where: Where) -> Npu | None:
        """The NPU a place is on: stated, or the one that this rank of this instance uses."""
        if where.host is not None and where.device is not None:
            return Npu(host=where.host, device=where.device)
        instance = self._instances.get(where.instance or "")
        if instance is None or where.rank is None or where.rank >= len(instance.devices):
            return None
        return Npu(host=instance.host, device=instance.devices[where.rank])

    def host_of(self, where: Where) -> str | None:
        if where.host is not None:
            return where.host
        instance = self._instances.get(where.instance or "")
        return instance.host if instance else None

    def check(self, check: CheckResult) -> State:
        """One check at one place; what could not be measured on a sick NPU suffers from it."""
        if check.quarantined:
            return State.QUARANTINED
        if check.explained:
            return State.AFFECTED
        npu = self.npu_of(check.where)
        if check.verdict is Verdict.UNKNOWN and npu is not None:
            culprit = self._culprits.get(npu)
            if culprit in (State.FAIL, State.QUARANTINED):
                return State.AFFECTED if culprit is State.FAIL else State.QUARANTINED
        return _OF_VERDICT[check.verdict]

    def npu(self, npu: Npu) -> State:
        return self._npus.get(npu, State.NONE)

    def port(self, npu: Npu) -> State:
        """The RoCE port of an NPU: only what concerns its link and its network."""
        return self._ports.get(npu, State.NONE)

    def host(self, name: str) -> State:
        """The host itself, apart from its NPUs and instances."""
        return self._hosts.get(name, State.NONE)

    def instance(self, instance: InstanceNode) -> State:
        own = self._named.get(instance.name, State.NONE)
        npus = (Npu(host=instance.host, device=device) for device in instance.devices)
        if own is not State.FAIL and any(self.npu(npu) is State.FAIL for npu in npus):
            return State.AFFECTED
        return own

    def proxy(self) -> State:
        layers = (Layer.PROXY,)
        return self._state_of_findings(
            lambda finding: finding.layer in layers,
            default=self.layer(Layer.PROXY).state,
        )

    def kv_link(self, source: InstanceNode, target: InstanceNode) -> State:
        """The way of KV from a prefill to a decode instance."""
        names = {source.name, target.name}

        def concerns(finding: Finding) -> bool:
            where = finding.where
            stated = {name for name in (where.instance, where.peer_instance) if name}
            kv_layers = (Layer.KV_LINK, Layer.KV_DATA)
            return finding.layer in kv_layers and bool(stated) and stated <= names

        pairs = [
            pair
            for pair in self._record.kv_pairs
            if (pair.source.instance, pair.target.instance) == (source.name, target.name)
        ]
        if any(pair.mismatches for pair in pairs):
            return State.FAIL
        proved = any(
            check.layer is Layer.KV_LINK
            and check.verdict is Verdict.PASS
            and (check.where.peer_instance, check.where.instance) == (source.name, target.name)
            for check in self._record.checks
        )
        compared = any(pair.blocks_compared for pair in pairs)
        default = State.PASS if proved or compared else State.NONE
        state = self._state_of_findings(concerns, default=default)
        ends = (self.instance(source), self.instance(target))
        if state is State.NONE and (State.FAIL in ends or State.AFFECTED in ends):
            return State.AFFECTED
        return state

    def layer(self, layer: Layer) -> LayerState:
        """How a whole layer stands, from its findings, checks and tests."""
        checks = [self.check(c) for c in self._record.checks if c.layer is layer]
        tests = [
            test
            for test in self._record.tests
            if test.layer is layer and test.outcome is not Outcome.SKIPPED
        ]
        outcomes = [test.outcome for test in tests]
        done = checks.count(State.PASS) + outcomes.count(Outcome.PASSED)
        total = len(checks) + len(tests)
        if layer is Layer.LEFTOVER:
            total = len(self._record.leftovers)
            done = sum(not items for items in self._record.leftovers.values())
        unexplained = {
            _OF_OUTCOME[test.outcome]
            for test in tests
            if not test.findings and test.outcome in _OF_OUTCOME
        }
        default = State.PASS if done else State.NONE
        if Outcome.BLOCKED in outcomes:
            default = State.AFFECTED
        elif not any(finding.layer is layer for finding in self._record.findings):
            default = worst_state([default, *checks])
        state = self._state_of_findings(
            lambda finding: finding.layer is layer, default=worst_state([default, *unexplained])
        )
        return LayerState(layer, state, done, total)

    def anchor(self, finding: Finding) -> str:
        """The place in the page where this finding, or the family it belongs to, is told."""
        return self._anchors[finding.as_cause()]

    def anchor_at_npu(self, npu: Npu) -> str | None:
        """The first family that has a finding at this NPU, if any."""
        return self._npu_anchors.get(npu)

    def anchor_at_host(self, host: str) -> str | None:
        """The first family that has a finding at this host or anything on it, if any."""
        return self._host_anchors.get(host)

    def anchor_of_id(self, finding_id: str) -> str | None:
        """The first family that has a finding with this id, if any."""
        return self._id_anchors.get(finding_id)

    def _state_of_findings(self, concerns: Callable[[Finding], bool], default: State) -> State:
        states = [state_of_finding(f) for f in self._roots if concerns(f)]
        if any(concerns(finding) for finding in self._consequences):
            states.append(State.AFFECTED)
        return worst_state([*states, default])


def layers_of_catalogue() -> list[Layer]:
    """All layers that any finding can be in, highest first, as a ladder is drawn."""
    return sorted({kind.layer for kind in CATALOGUE.values()}, reverse=True)
