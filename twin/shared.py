"""Several scenarios on one running topology: faults of KV and of HTTP answers come and go.

    with SharedTopology.start("") as shared:
        trial = shared.try_scenario(file, load_scenario(file))

Bring-up takes most of a scenario's time. Faults that strike what is on its way need no
engine of their own: they are written while the engines run, and each scenario is a pytest
run that attaches (`--reuse --keep-up`), proves that the service is up, and ends. Counts
(`request: 4`) begin anew with each scenario. Faults that kill, pause, or change a host or a
cluster file have a topology of their own (trial.py).
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from pd_validate.errors import WaitTimeout
from pd_validate.maintenance import down
from pd_validate.spec.models import Cluster
from pd_validate.traffic.client import Client, RequestFailed
from pd_validate.waiting import wait_for
from twin.cluster import TwinCluster, cluster_file
from twin.fabric import FabricState
from twin.faults import write_engine_faults
from twin.names import check_names, layers_of
from twin.scenario import HttpFault, KvFault, ProxyFault, Scenario
from twin.trial import Trial, TrialFailed, own_network, run_pytest, trial_of

_BRING_UP = ("-k", "test_guides_curl")
_AGAIN_SECONDS = 40.0  # until the proxy uses a decoder again that failed requests on purpose


def can_share(scenario: Scenario) -> bool:
    """Whether all of its faults can come and go while engines run, and some part is to be run."""
    return bool(scenario.faults) and all(
        isinstance(fault, KvFault | HttpFault | ProxyFault) for fault in scenario.faults
    )


class SharedTopology:
    """A twin and the topology on it. Ends with `close`, or as a context manager."""

    def __init__(self, twin: TwinCluster, file: Path, undo: ExitStack) -> None:
        self._twin = twin
        self._file = file  # cluster file to reach the twin
        self._undo = undo

    @classmethod
    def start(cls, name: str, directory: Path) -> Self:
        """Bring up the cluster `name`; files of its own lie in `directory`.

        Raises SpecError, TwinError, TrialFailed.
        """
        with ExitStack() as undo:
            undo.enter_context(own_network())
            twin = undo.enter_context(TwinCluster.start(cluster_file(name), Scenario()))
            write_engine_faults(twin.state, Scenario(), later=True)
            file = directory / "cluster.yaml"
            data = twin.cluster.model_dump(mode="json", exclude_unset=True)
            file.write_text(yaml.safe_dump(data, sort_keys=False))
            undo.callback(down, twin.cluster)
            code, output = run_pytest(
                ["--cluster", str(file), "--keep-up", "--report", f"{directory}/up", *_BRING_UP]
            )
            if code != 0:
                raise TrialFailed(f"the healthy topology does not come up:\n{output[-2000:]}")
            return cls(twin, file, undo.pop_all())

    def try_scenario(self, file: Path, scenario: Scenario, directory: Path) -> Trial:
        """Break what runs as the scenario says, run its part of the suites, mend it again."""
        started = time.monotonic()
        self._break(scenario)
        try:
            arguments = ["--cluster", str(self._file), "--reuse", "--keep-up"]
            return trial_of(file, scenario, arguments, directory, started)
        finally:
            self._break(Scenario())
            self._wait_until_served()

    def _break(self, scenario: Scenario) -> None:
        state = FabricState.read(self._twin.state)
        cluster = self._twin.cluster
        check_names(scenario, state, cluster.instances, layers_of(cluster.model.path))
        state.kv_faults.clear()
        scenario.break_fabric(state)
        write_engine_faults(self._twin.state, scenario, later=True)
        state.write(self._twin.state)

    def _wait_until_served(self) -> None:
        """Until the proxy has sent a good request to each decoder: it avoids what has failed.

        If it never does, the next scenario's own bring-up says so.
        """
        cluster = self._twin.cluster
        client = Client(_proxy_url(cluster), cluster.model.served_name, timeout=30)
        served: set[str | None] = set()
        decoders = sum(spec.role == "decode" for spec in cluster.instances.values())

        def ask() -> bool | None:
            with suppress(RequestFailed):
                served.add(client.complete("And now?", max_tokens=1).headers.get("x-pd-decode"))
            # Another proxy does not say who served, and avoids nobody.
            return True if None in served or len(served) == decoders else None

        with suppress(WaitTimeout):
            wait_for(ask, seconds=_AGAIN_SECONDS, what="requests on every decoder")
        client.close()

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _proxy_url(cluster: Cluster) -> str:
    return f"http://{cluster.hosts[cluster.proxy.host].address}:{cluster.proxy.port}"
