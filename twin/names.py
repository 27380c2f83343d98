"""Whether everything that a scenario names is there in its cluster, and can be struck.

A fault at a device that does not exist, or at a rank that never comes to that phase, would
break nothing, and the scenario would prove nothing. Each is an error with file and line,
before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pd_validate.spec.models import InstanceSpec
from pd_validate.spec.rules import PROXY_NAME
from pd_validate.spec.source import KeyPath
from twin.fabric import FabricState, Product
from twin.scenario import (
    EVERY,
    DeviceFault,
    Fault,
    HttpFault,
    InstanceFault,
    KvEffect,
    KvFault,
    PathFault,
    Scenario,
    SuperpodFault,
)

_DECODES = ("pulling", "decoding")  # phases that only decoders come to


def layers_of(model: Path) -> int:
    """How many layers the model in this directory has."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"])


def check_names(
    scenario: Scenario, state: FabricState, instances: Mapping[str, InstanceSpec], layers: int
) -> None:
    """`layers`: of the model. Raises SpecError for the first name that is not there."""
    names = _Names(scenario, state, instances, layers)
    for number, fault in enumerate(scenario.faults):
        names.check_fault(("faults", number), fault)
    names.check_expected()


class _Names:
    def __init__(
        self,
        scenario: Scenario,
        state: FabricState,
        instances: Mapping[str, InstanceSpec],
        layers: int,
    ) -> None:
        self._scenario = scenario
        self._state = state
        self._instances = instances
        self._layers = layers

    def check_fault(self, path: KeyPath, fault: Fault) -> None:
        host = getattr(fault, "host", None)
        if host is not None:
            self._host((*path, "host"), host)
        if isinstance(fault, DeviceFault):
            self._device((*path, "device"), fault.host, fault.device)
            self._only_a3(path, sorted({"vnic", "sdid"} & fault.model_fields_set))
        elif isinstance(fault, SuperpodFault):
            self._only_a3(path, ["superpod"])
        elif isinstance(fault, PathFault):
            for word, end in (("from", fault.source), ("to", fault.target)):
                self._host((*path, word, "host"), end.host)
                self._device((*path, word, "device"), end.host, end.device)
        elif isinstance(fault, KvFault):
            self._kv((*path, "kv"), fault.kv)
        elif isinstance(fault, HttpFault):
            self._known((*path, "instance"), "instance", fault.instance, list(self._instances))
        elif isinstance(fault, InstanceFault):
            self._instance(path, fault)

    def check_expected(self) -> None:
        """A finding at a place that the cluster has not could never be found."""
        proxy_too = [*self._instances, PROXY_NAME]
        for number, wanted in enumerate(self._scenario.expect.findings):
            path: KeyPath = self._scenario.path_of_expected(number)
            where = wanted.where
            for host in (where.host, where.peer_host):
                if host is not None:
                    self._known(path, "host", host, list(self._state.hosts))
            for instance in (where.instance, where.peer_instance):
                if instance is not None:
                    self._known(path, "instance", instance, proxy_too)

    def _instance(self, path: KeyPath, fault: InstanceFault) -> None:
        place = (*path, "instance")
        self._known(place, "instance", fault.instance, [*self._instances, PROXY_NAME])
        if fault.instance == PROXY_NAME:
            return
        self._rank((*path, "rank"), fault.instance, fault.rank)
        if fault.at in _DECODES and self._instances[fault.instance].role == "prefill":
            raise self._scenario.mistake(
                (*path, "at"), f"{fault.instance} never comes to `{fault.at}`: it is a prefiller"
            )

    def _kv(self, path: KeyPath, kv: KvEffect) -> None:
        for word, name, role in (("from", kv.source, "prefill"), ("to", kv.to, "decode")):
            if name is None:
                continue
            place, at = name.partition("/")[0], (*path, word)
            known = [*self._instances, *self._state.hosts]
            self._known(at, "instance or host", place, known)
            instances = [s for n, s in self._instances.items() if place in (n, s.host)]
            if all(spec.role != role for spec in instances):
                way = "comes from prefillers" if word == "from" else "is pulled by decoders"
                raise self._scenario.mistake(at, f"KV {way}, and {place} is or has none")
        if kv.to is not None and kv.to in self._instances:
            self._rank((*path, "rank"), kv.to, kv.rank)
        if kv.layer is not None:
            layers = range(self._layers)
            self._known((*path, "layer"), "layer", kv.layer, layers)

    def _rank(self, path: KeyPath, instance: str, rank: int | None) -> None:
        if rank is not None:
            ranks = range(len(self._instances[instance].devices))
            self._known(path, f"rank of {instance}", rank, ranks)

    def _host(self, path: KeyPath, name: str) -> None:
        self._known(path, "host", name, [*self._state.hosts, EVERY])

    def _device(self, path: KeyPath, host: str, device: int | str | None) -> None:
        if device is None or device == EVERY:
            return
        for name in self._state.hosts if host == EVERY else [host]:
            devices = list(self._state.hosts[name].devices)
            self._known(path, f"device of host {host}", int(device), devices)

    def _only_a3(self, path: KeyPath, words: Sequence[str]) -> None:
        if words and self._state.product is not Product.A3:
            raise self._scenario.mistake(
                (*path, words[0]),
                f"only an A3 has `{words[0]}`: say `cluster: twin-a3.yaml`",
            )

    def _known(self, path: KeyPath, what: str, name: str | int, names: Sequence[str | int]) -> None:
        if name not in names:
            known = ", ".join(str(each) for each in names if each != EVERY)
            raise self._scenario.mistake(
                path, f"the scenario names the {what} {name}; there are {known}"
            )
