"""One run on one cluster: connect once, read once, bring up once, tear down once.

The plugin and the command line both drive this object; neither has logic of its own.
Everything is lazy: `-m network` never starts an engine. What failed stays failed
(`Preflight`, `BringUpFailed`), so that one sick host is one failure and a named skip for
what depends on it, not a hundred errors.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from pd_validate import __version__, recording
from pd_validate.catalogue import Layer
from pd_validate.checks.drain import check_idle
from pd_validate.checks.explain import explained
from pd_validate.checks.kv import check_trace, check_transfers
from pd_validate.checks.leftovers import check_leftovers, unknown_leftovers
from pd_validate.checks.network import check_network
from pd_validate.checks.plan import ModelShape, check_plan
from pd_validate.checks.proxying import held_load
from pd_validate.checks.pulls import check_remade_links
from pd_validate.checks.result import Report
from pd_validate.checks.served import check_access_logs
from pd_validate.checks.volume import KvShape
from pd_validate.errors import (
    ClusterLocked,
    CommandTimeout,
    HostUnreachable,
    LabError,
    PdValidateError,
    WaitTimeout,
)
from pd_validate.facts.addresses import device_addresses
from pd_validate.facts.hosts import ClusterFacts, read_cluster, requests_of
from pd_validate.facts.pings import PingFacts, ping_plan, run_pings
from pd_validate.findings import Finding, Severity, Where, root_findings
from pd_validate.hosts.api import Commands, Supervisor
from pd_validate.hosts.fleet import in_parallel
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import (
    RemoteSupervisor,
    RunInfo,
    lock_of,
    open_all,
    survey,
    way_out,
)
from pd_validate.quarantine import Quarantine, load_quarantine
from pd_validate.ranktable import DeviceAddress, describe, generate, render
from pd_validate.report.record import RequestTiming, RunRecord
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import AuditLevel, LaunchPlan, launch_plan, run_dirs
from pd_validate.spec.ports import port_plan
from pd_validate.spec.profiles import devices_of
from pd_validate.spec.runtime import remove_container, start_container
from pd_validate.topology.service import Service
from pd_validate.topology.timeline import Progress, Timeline
from pd_validate.topology.topology import Topology, lost_host
from pd_validate.traffic.client import RequestFailed
from pd_validate.traffic.compare import DEFAULT_DTYPE, LOGPROB_TOLERANCE
from pd_validate.traffic.metrics import EngineMetrics
from pd_validate.traffic.trace import (
    TraceRecord,
    Transfer,
    join,
    of_request,
    parse_trace,
    unclaimed,
)
from pd_validate.traffic.usage import UsageWatch
from pd_validate.waiting import wait_for

T = TypeVar("T")

_SICK_SECONDS = 1.0  # until a process whose connection broke has ended
_GAUGE_SECONDS = 3.0  # in which an idle engine's gauges show it
_TRACE_SECONDS = 20.0  # until the audit's record of a request must be on the host's disk


class PreflightFailed(PdValidateError):
    """The cluster is not fit: nothing was started. Exit code 10."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(self.findings)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)


@dataclass(frozen=True)
class HostHandle:
    """A host of this run: plain commands, and the supervisor of the run's processes."""

    commands: Commands
    supervisor: Supervisor


def kept_run(cluster: Cluster) -> str:
    """Id of the run that was left running (`--keep-up`) on all hosts of the plan.

    Raises LabError if there is none, or not the same one everywhere.
    """

    def look(name: str) -> str:
        with RemoteHost.of_cluster(cluster, name) as host:
            seen = survey(host, str(cluster.workdir_of(name)))
        kept = [run.run_id for run in seen.runs if run.alive and run.kept]
        return kept[0] if kept else "none"

    hosts = dict.fromkeys([spec.host for spec in cluster.instances.values()])
    runs: dict[str, str] = {}
    for name, found in in_parallel({name: partial(look, name) for name in hosts}).items():
        if isinstance(found, LabError):
            raise found
        runs[name] = found
    if len(set(runs.values())) > 1 or "none" in runs.values():
        said = ", ".join(f"{host}: {run}" for host, run in runs.items())
        raise LabError(
            f"no topology was left running on all hosts ({said}). Start one with --keep-up"
        )
    return next(iter(runs.values()))


class Session:
    """See the module's docstring. `close` must be called once; it never raises for a lost host."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        audit: AuditLevel,
        progress: Progress,
        kept: str | None = None,
        quarantine: Quarantine | None = None,
        lock_wait: float = 0.0,
    ) -> None:
        """`kept`: id of a run whose topology was left running; this session takes it over.

        `lock_wait`: seconds to wait for another run on the same hosts to end.
        """
        self.quarantine = quarantine or load_quarantine(None)
        self.cluster = cluster
        self.run_id = kept or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._adopts = kept is not None
        self.run_dirs = run_dirs(cluster, self.run_id)
        self.plan: LaunchPlan = launch_plan(cluster, run_dirs=self.run_dirs, audit=audit)
        self.findings: list[Finding] = []
        self.record = RunRecord(cluster=cluster.name, started=dt.datetime.now(dt.UTC))
        self.record.harness = f"pd-validate {__version__}"
        self.record.add_cluster(
            cluster, {host: devices_of(cluster, host) for host in cluster.hosts}
        )
        self.logs: dict[str, bytes] = {}
        self.system_logs: dict[str, dict[str, bytes]] = {}  # by host and file
        self.trace_text = ""
        self._past_logs: dict[str, int] = {}  # bytes of logs that are another run's
        self.faults_made = False  # a test has broken something on purpose
        self._progress = progress
        self.timeline = Timeline(progress)
        self._lock_wait = lock_wait
        self._undo = ExitStack()
        self._supervisors: dict[str, RemoteSupervisor] = {}
        self._topology: Topology | None = None
        self._usage: UsageWatch | None = None
        self._preflight_failed: PreflightFailed | None = None

    # --- what is -------------------------------------------------------------------------

    @cached_property
    def commands(self) -> dict[str, RemoteHost]:
        """A connection to each host, made at its first command."""
        hosts = {
            name: RemoteHost.of_cluster(self.cluster, name, run_id=self.run_id)
            for name in self.cluster.hosts
        }
        for host in hosts.values():
            self._undo.callback(host.close)
        for error in in_parallel(
            {name: partial(self._start_container, host) for name, host in hosts.items()}
        ).values():
            if error is not None:
                raise error
        return hosts

    def _start_container(self, host: RemoteHost) -> None:
        """Start the host's container, if the cluster file says that we do. Raises LabError.

        An agent on the machine itself removes it at the end, also when we are gone by then.
        """
        start = start_container(self.cluster, host.name, self.run_id)
        remove = remove_container(self.cluster, host.name, self.run_id)
        if start is None or remove is None:
            return
        with self.timeline.step(host.name, "starting the container"):
            self._start(host, shlex.join(start), remove)

    def _start(self, host: RemoteHost, start: str, remove: Sequence[str]) -> None:
        machine, workdir = host.outside(), str(self.cluster.workdir_of(host.name))
        guard = RemoteSupervisor.open(
            machine,
            workdir=f"{workdir}/outside",
            run_id=self.run_id,
            lease=self.cluster.timeouts.lease,
        )
        self._undo.callback(guard.close)
        guard.at_end(remove)
        started = machine.run(start, timeout=self.cluster.timeouts.ready)
        if started.exit_code != 0:
            raise LabError(
                f"{host.name}: the container does not start: {started.stderr.strip()[-300:]}. "
                f"The command was: {start}"
            )

    @cached_property
    def facts(self) -> ClusterFacts:
        """Everything read of every host, in one round trip each.

        Raises PreflightFailed if another run is at work on them: its processes and ports
        would be read as faults. Waits for its end first, if that was asked for.
        """
        if self._preflight_failed is not None:
            raise self._preflight_failed
        facts = self._read()
        if not self._adopts and self._others(facts):
            self._await_others(facts)
            facts = self._read()
        return facts

    def _read(self) -> ClusterFacts:
        requests = requests_of(self.cluster, self.plan)
        watch = partial(self.timeline.step, what="reading devices, network, software")
        return read_cluster(self.commands, requests, watch=watch)

    def _others(self, facts: ClusterFacts) -> dict[str, RunInfo]:
        """The living runs that hold hosts, by host; of hosts that answer."""

        def look(host: str) -> RunInfo | None:
            lock = lock_of(self.commands[host], str(self.cluster.workdir_of(host)))
            return lock.run if lock is not None and lock.held else None

        found = in_parallel({host: partial(look, host) for host in facts.hosts})
        return {host: run for host, run in found.items() if isinstance(run, RunInfo)}

    def _await_others(self, facts: ClusterFacts) -> None:
        others: dict[str, RunInfo] = {}

        def free() -> bool | None:
            others.clear()
            others.update(self._others(facts))
            for host, run in others.items():
                self._progress.start(host, f"in use: {run}")
            return None if others else True

        try:
            wait_for(free, seconds=self._lock_wait, what="the other run's end", interval=1.0)
        except WaitTimeout:
            locked = {host: f"{run}" for host, run in others.items()}
            hints = {host: way_out(run) for host, run in others.items()}
            raise self._unfit([_locked(h, locked[h], hints[h]) for h in locked]) from None

    @cached_property
    def pings(self) -> PingFacts:
        """The ping matrix between the NPUs of all hosts."""
        plan = ping_plan(self.cluster, self.facts)

        def watch(host: str) -> AbstractContextManager[object]:
            note = f"{len(plan.of(host))} of {plan.count}, schedule {plan.schedule}"
            return self.timeline.step(host, "pings", note)

        return run_pings(self.commands, self.cluster, plan, watch=watch)

    @cached_property
    def network(self) -> Report:
        """Verdict of the network validation: findings, and each check's own verdict."""
        idle = not self._adopts  # else our own processes hold ports and NPUs
        report = self.quarantine.mark_report(
            check_network(self.cluster, self.plan, self.facts, self.pings, idle=idle)
        )
        self.record.checks += recording.check_results(report)
        self.record.pings += recording.pings(self.pings)
        self.record.environment |= recording.environment(self.cluster, self.facts)
        self.record.notes += report.notes
        return report

    @cached_property
    def plan_findings(self) -> list[Finding]:
        """Contradictions in the launch plan."""
        found = check_plan(self.cluster, self.plan, ModelShape.of_config(self._model_config))
        return self.quarantine.mark_all(found)

    @cached_property
    def _model_config(self) -> dict[str, Any]:
        """config.json on the first instance's host; empty if it cannot be read there."""
        host = next(iter(self.plan.instances.values())).host
        try:
            data = json.loads(self.commands[host].get(f"{self.cluster.model.path}/config.json"))
        except (FileNotFoundError, LabError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def preflight(self) -> None:
        """Raises PreflightFailed if something that the instances need is not fit."""
        if self._preflight_failed is None:
            findings = [*self.plan_findings, *self.network.findings]
            failing = [f for f in root_findings(findings) if f.severity is Severity.FAIL]
            self.add(findings)
            if not failing:
                return
            raise self._unfit(failing)
        raise self._preflight_failed

    def _unfit(self, findings: Sequence[Finding]) -> PreflightFailed:
        """Remembers that nothing may be started, and why."""
        self.add(findings)
        self._preflight_failed = PreflightFailed(findings)
        return self._preflight_failed

    # --- what runs -----------------------------------------------------------------------

    def topology(self) -> Topology:
        """The running service; brought up at the first call.

        Raises as `staged` does, or BringUpFailed, the same one at every later call.
        """
        topology = self.staged()
        if self._adopts:
            topology.wait_ready()
        else:
            topology.up()
        if self._usage is None:
            self._usage = self._watched(topology.service)
        return topology

    def _watched(self, service: Service) -> UsageWatch | None:
        """A watch on the engines' KV usage, under way."""
        watch = UsageWatch({i: partial(service.kv_usage, i) for i in service.instances})
        watch.start()
        return watch

    def latencies(self) -> list[RequestTiming]:
        """Of answers that were streamed since the last call."""
        if self._topology is None:
            return []
        streamed = self._topology.service.streamed
        fresh = streamed[:]
        del streamed[: len(fresh)]
        return recording.requests(fresh)

    def running_service(self) -> Service | None:
        """The service if it is up; starts nothing."""
        topology = self._topology
        return topology.service if topology is not None and topology.is_up else None

    def staged(self) -> Topology:
        """Hosts locked, code and rank table on them, nothing started yet.

        Raises PreflightFailed, the same one at every later call; LabError.
        """
        if self._topology is None:
            # What was left running has passed it once; read anew only if a test asks for that.
            if not self._adopts or "network" in self.__dict__:
                self.preflight()
            self._topology = Topology(
                self.cluster,
                self.plan,
                self._supervised(),
                ranktable=None if self._adopts else self._rank_table(),
                timeline=self.timeline,
            )
            if self._adopts:
                self._topology.forget_the_past()
                self._past_logs = {n: len(log) for n, log in self._topology.logs().items()}
            else:
                self._topology.stage()
        return self._topology

    def _supervised(self) -> dict[str, HostHandle]:
        """Lock all hosts of the plan for this run. Raises PreflightFailed, LabError."""
        used = list(dict.fromkeys(process.host for process in self.plan.processes()))
        if self._adopts:
            jobs = {host: partial(self._adopt_one, host) for host in used}
            for error in in_parallel(jobs).values():
                if error is not None:
                    raise error
        else:
            try:
                with ExitStack() as steps:
                    for host in used:  # all are locked or none, so it takes all the same time
                        steps.enter_context(self.timeline.step(host, "locking"))
                    self._supervisors = open_all(
                        {host: self.commands[host] for host in used},
                        workdirs={host: str(self.cluster.workdir_of(host)) for host in used},
                        run_id=self.run_id,
                        lease=self.cluster.timeouts.lease,
                        wait=self._lock_wait,
                    )
            except ClusterLocked as error:  # it came between our reading and now
                raise self._unfit([_locked(error.host, str(error), "")]) from error
        return {host: HostHandle(self.commands[host], self._supervisors[host]) for host in used}

    def _adopt_one(self, host: str) -> None:
        self._attach(host, helps=False)

    def _attach(self, host: str, *, helps: bool) -> None:
        found = RemoteSupervisor.attach(
            self.commands[host],
            workdir=str(self.cluster.workdir_of(host)),
            run_id=self.run_id,
            helps=helps,
        )
        if found is None:
            raise LabError(f"{host}: run {self.run_id} is not running there any more")
        self._supervisors[host] = found

    def _rank_table(self) -> bytes | None:
        """The table to place, or None if the cluster file says that one is there already."""
        if not self.cluster.ranktable.generate:
            return None
        return render(generate(self.cluster, self.device_addresses()))

    # --- for tests -----------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """Allowed difference of a logprob, by the dtype of the cluster's engines."""
        dtype = self.cluster.engine.dtype or DEFAULT_DTYPE
        return LOGPROB_TOLERANCE.get(dtype, LOGPROB_TOLERANCE[DEFAULT_DTYPE])

    def hosts_of_instances(self) -> dict[str, str]:
        return {name: spec.host for name, spec in self.cluster.instances.items()}

    def device_addresses(self) -> list[DeviceAddress]:
        """What the devices of the instances answer now, as a rank table needs it."""
        return device_addresses(self.cluster, self.facts)

    def rank_tables_on_hosts(self) -> dict[str, bytes | None]:
        """The rank table's content on each host with an instance, None where there is none."""
        found: dict[str, bytes | None] = {}
        for launch in self.plan.instances.values():
            try:
                found[launch.host] = self.commands[launch.host].get(launch.ranktable_path)
            except FileNotFoundError:
                found[launch.host] = None
        return found

    def described_ranks(self, instance: str) -> list[str]:
        table = generate(self.cluster, self.device_addresses())
        return [line for line in describe(self.cluster, table) if line.startswith(f"{instance} ")]

    def environment_of_process(self, host: str, pid: int) -> dict[str, str]:
        """The environment with which a process on a host was started."""
        data = self.commands[host].get(f"/proc/{pid}/environ").decode(errors="replace")
        return dict(item.partition("=")[::2] for item in data.split("\0") if item)

    def all_traces(self) -> list[TraceRecord]:
        """Every record of the KV audit so far. Raises LabError if a line cannot be read."""
        records, unreadable = parse_trace(self.topology().traces())
        if unreadable:
            raise LabError(f"{unreadable} lines of the KV trace cannot be read")
        return records

    def trace(self, request: str, *, received: int) -> list[TraceRecord]:
        """All records, once `received` ranks have written those of `request`, and their producers.

        Digests are taken off the critical path, so either side may write first. After a
        deadline gives what there is: what is missing is a finding, not an error.
        """
        return self._trace_when(
            lambda transfers: len(transfers) >= received, of=request, what=f"KV trace of {request}"
        )

    def settled_traces(self) -> list[TraceRecord]:
        """All records, once every transfer has both its sides; as `trace`."""
        return self._trace_when(lambda _: True, of="", what="both sides of every KV transfer")

    def _trace_when(
        self, enough: Callable[[list[Transfer]], bool], *, of: str, what: str
    ) -> list[TraceRecord]:
        def complete() -> list[TraceRecord] | None:
            records = self.all_traces()
            transfers = [t for t in join(records) if of_request([t.received], of)]
            whole = all(transfer.produced is not None for transfer in transfers)
            return records if whole and enough(transfers) else None

        try:
            return wait_for(complete, seconds=_TRACE_SECONDS, what=what)
        except WaitTimeout:
            return self.all_traces()

    def golden_identity(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What answers depend on: the model's files and settings, and the versions.

        Raises LabError where the hosts did not say (`checks.software: false`).
        """
        engine = self.cluster.engine
        host = next(iter(self.plan.instances.values())).host
        facts = self.facts.hosts.get(host)
        if facts is None or facts.model is None or facts.software.value is None:
            raise LabError(f"{host}: versions or model files were not read, so no golden fits")
        files = {name: digest for name, (_, digest) in sorted(facts.model.files.items())}
        model = {
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "dtype": engine.dtype,
            "tensor_parallel": engine.tensor_parallel,
            "quantization": engine.quantization,
        }
        versions = {name: v for name, v in facts.software.value.versions.items() if v is not None}
        return model, versions

    def kv_shape(self) -> KvShape | None:
        """What a block of KV weighs; None if the model does not say, or is of another kind."""
        return KvShape.of_config(self._model_config, self.cluster.engine.dtype)

    def wait_idle(
        self, instance: str, *, seconds: float | None = None
    ) -> tuple[EngineMetrics, float]:
        """The instance's metrics once it is idle, or when the deadline is over; and the wait.

        `seconds`: the deadline, else `timeouts.drain`. vLLM 0.10 renews its gauges only with the
        output of a request, so they show an aborted one for ever: there a request of one token
        is sent. (Such versions do not tell where prompt tokens came from.)
        """
        service = self.topology().service
        started = time.monotonic()
        latest: list[EngineMetrics] = []

        def idle() -> bool | None:
            latest[:] = [service.metrics(instance)]
            return latest[0].idle or None

        limit = seconds or self.cluster.timeouts.drain
        with suppress(WaitTimeout):
            wait_for(idle, seconds=min(_GAUGE_SECONDS, limit), what=f"{instance} idle")
        if not latest[0].idle and latest[0].computed is None:
            with suppress(RequestFailed):  # it may hang: then the gauges are right
                service.instances[instance].complete("x", max_tokens=1, timeout=limit)
        with suppress(WaitTimeout):
            left = started + limit - time.monotonic()
            wait_for(idle, seconds=max(left, 0.0), what=f"{instance} idle")
        return latest[0], time.monotonic() - started

    def check_idle(self, instance: str, *, seconds: float | None = None) -> list[Finding]:
        """Whether an instance runs, waits for and holds nothing; `seconds` as in `wait_idle`."""
        metrics, waited = self.wait_idle(instance, seconds=seconds)
        records: list[TraceRecord] = []
        if not metrics.idle:
            with suppress(LabError):  # without the trace the finding has no names
                records, _ = parse_trace(self.topology().traces())
        return check_idle(
            metrics,
            self.topology().service.where(instance),
            waited=waited,
            unclaimed=unclaimed(records, instance),
        )

    def wait_proxy_idle(self) -> tuple[str, float]:
        """The proxy's metrics once it counts no load, or at the deadline; and the wait.

        Empty for a proxy that has no metrics.
        """
        proxy = self.topology().service.proxy
        started = time.monotonic()
        latest = [""]

        def idle() -> bool | None:
            latest[0] = proxy.metrics()
            return None if held_load(latest[0]) else True

        with suppress(WaitTimeout, RequestFailed):
            wait_for(idle, seconds=self.cluster.timeouts.drain, what="the proxy idle")
        return latest[0], time.monotonic() - started

    def diagnose(self, error: RequestFailed) -> list[Finding]:
        """The lowest fault behind a request that never ended: a process, an engine, or itself."""
        topology = self._topology
        if topology is None:
            return []
        return topology.check_sick(seconds=_SICK_SECONDS) or (
            topology.check_work() or self.look_below([topology.symptom(error)])
        )

    def look_below(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings, and below failing ones of KV or the service what may explain them.

        Looks for processes that are dead or stand still, loads that a connector gave up, and
        KV that arrived otherwise than it was produced. Causes are filled in.
        """
        topology = self._topology
        symptoms = [
            f
            for f in findings
            if f.severity is Severity.FAIL and f.layer >= Layer.KV_LINK and not f.because
        ]
        if topology is None or not symptoms:
            return list(findings)
        below = topology.check_sick(seconds=_SICK_SECONDS)
        with suppress(LabError):
            below += topology.failed_loads()
            below += self._wrong_transfers(parse_trace(topology.traces())[0])
        return explained([*below, *findings])

    def _said_by_logs(self) -> list[Finding]:
        """What no client saw, since a connector or a proxy made up for it."""
        hosts = self.hosts_of_instances()
        logs = {
            name: data[self._past_logs.get(name, 0) :].decode(errors="replace").splitlines()
            for name, data in self.logs.items()
            if name in hosts
        }
        return [*check_remade_links(logs, hosts), *check_access_logs(logs, hosts)]

    def _wrong_transfers(self, records: Sequence[TraceRecord]) -> list[Finding]:
        """Transfers of the whole run whose two sides differ.

        Those without a producer's record are left out: it may be in the writing.
        """
        transfers = [t for t in join(records) if t.produced is not None]
        return check_transfers(transfers, records, self.hosts_of_instances())

    # --- findings and the end ------------------------------------------------------------

    def add(self, findings: Iterable[Finding]) -> None:
        """Remember findings; the same one (id and place) counts once."""
        known = {(finding.id, finding.where) for finding in self.findings}
        for finding in findings:
            if (finding.id, finding.where) not in known:
                known.add((finding.id, finding.where))
                self.findings.append(self.quarantine.mark(finding))

    @property
    def preflight_failed(self) -> bool:
        return self._preflight_failed is not None

    def give_up(self) -> None:
        """Whoever waits for the service in another thread need not wait any longer."""
        if self._topology is not None:
            self._topology.give_up()

    def close(self, *, keep: bool = False) -> list[Finding]:
        """Fetch logs and traces, end everything, and say what is left behind.

        Returns the leftover findings (also added to `findings`).
        """
        try:
            if self._topology is not None:
                self._look_back(self._topology)
        finally:  # whatever looking back meets, nothing may stay
            leftovers = self._end_processes(keep)
            self._undo.close()
        self.add(leftovers)
        return leftovers

    def hang_up(self) -> None:
        """Instead of `close`, for who does not want to wait: the hosts end everything alone."""
        why = LabError("not looked: the run was interrupted twice")
        self.add([unknown_leftovers(host, why) for host in self._supervisors])
        for supervisor in self._supervisors.values():
            supervisor.detach()
        self._undo.close()

    def _look_back(self, topology: Topology) -> None:
        """Logs, traces, and what they say that no test has asked."""
        if self._usage is not None:
            self.record.kv_usage = recording.kv_usage(self._usage.stop())
        self.record.checks += recording.link_checks(topology.links)
        self.record.requests += self.latencies()
        if not self.faults_made:  # nobody may have asked for a process that died
            with suppress(LabError):
                self.add(topology.check_sick())
        self.logs = topology.logs()
        age = dt.datetime.now(dt.UTC) - self.record.started
        self.system_logs = topology.system_logs(seconds=age.total_seconds())
        problem = ""
        try:
            self.trace_text = topology.traces()
        except (HostUnreachable, CommandTimeout):
            pass  # the host has a finding of its own
        except LabError as error:
            problem = str(error)
        records, unreadable = parse_trace(self.trace_text)
        self.add(check_trace(unreadable, problem))
        self.add(self._wrong_transfers(records))
        if not self.faults_made:
            self.add(self._said_by_logs())
        transfers = join(records)
        self.record.kv_pairs = recording.kv_pairs(transfers)
        self.record.kv_pulls = recording.kv_pulls(transfers)
        topology.close()

    def _end_processes(self, keep: bool) -> list[Finding]:
        """End this run on all hosts at once; then look whether anything of it is left."""

        def end(host: str) -> list[Finding]:
            self._progress.start(host, "hanging up" if keep else "ending what was started")
            workdir = str(self.cluster.workdir_of(host))
            # What could not be ended is found by the survey, or by the survey's own failure.
            with suppress(LabError):
                self._supervisors[host].close(keep=keep)
            if keep:
                self._progress.done(host, "left running")
                return []
            try:
                seen = survey(
                    self.commands[host],
                    workdir,
                    ports=self._ports_on(host),
                    address=self.cluster.hosts[host].address,
                )
            except LabError as error:
                self._progress.fail(host, str(error))
                return _lost(host, error)
            found = check_leftovers(seen, self.run_id)
            self._progress.done(host, f"{len(found)} leftovers" if found else "nothing is left")
            return found

        results = in_parallel({host: partial(end, host) for host in self._supervisors})
        found = {host: [] if isinstance(f, LabError) else f for host, f in results.items()}
        if not keep:
            self.record.checks += [recording.leftover_check(host, f) for host, f in found.items()]
            self.record.leftovers = recording.leftovers(found)
        return [finding for findings in found.values() for finding in findings]

    def _ports_on(self, host: str) -> list[int]:
        uses = [use for use in port_plan(self.cluster) if use.host == host]
        return [port for use in uses for port in range(use.first, use.last + 1)]


@dataclass(frozen=True)
class Known:
    """What the owner of a run has read and judged, for sessions that share the run."""

    facts: ClusterFacts
    pings: PingFacts
    network: Report


class AttachedSession(Session):
    """The session of a process that shares somebody else's run, which goes on without it.

    Reads, locks, starts and ends nothing: facts and verdicts are the owner's. Connections to
    hosts and to the service are its own.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        audit: AuditLevel,
        run_id: str,
        quarantine: Quarantine,
        ask: Callable[[], Known],
    ) -> None:
        """`ask` gives what the owner knows; raises what kept it from knowing."""
        super().__init__(
            cluster, audit=audit, progress=_Unseen(), kept=run_id, quarantine=quarantine
        )
        self._ask = ask

    @cached_property
    def known(self) -> Known:
        return self._ask()

    @cached_property
    def facts(self) -> ClusterFacts:
        return self.known.facts

    @cached_property
    def pings(self) -> PingFacts:
        return self.known.pings

    @cached_property
    def network(self) -> Report:
        return self.known.network

    def staged(self) -> Topology:
        """The owner's, staged by it. Raises LabError if its run has ended."""
        if self._topology is None:
            self._topology = Topology(
                self.cluster,
                self.plan,
                self._supervised(),
                ranktable=None,
                timeline=self.timeline,
                is_up=True,
            )
        return self._topology

    def _watched(self, service: Service) -> UsageWatch | None:
        """The owner watches."""
        return None

    def close(self, *, keep: bool = False) -> list[Finding]:
        """Hang up. Nothing ends, so nothing is left behind."""
        if self._topology is not None:
            self._topology.close()
        for supervisor in self._supervisors.values():
            supervisor.detach()
        self._undo.close()
        return []

    def _start_container(self, host: RemoteHost) -> None:
        """The owner has."""

    def _adopt_one(self, host: str) -> None:
        self._attach(host, helps=True)


class _Unseen:
    """Nobody watches this process's progress."""

    def start(self, host: str, what: str) -> None: ...
    def done(self, host: str, note: str = "") -> None: ...
    def fail(self, host: str, why: str) -> None: ...


def _lost(host: str, error: LabError) -> list[Finding]:
    """A host that answers no more, and what cannot be known therefore."""
    found = lost_host(host, error)
    unknown = unknown_leftovers(host, error)
    return [found, unknown.model_copy(update={"because": (found.as_cause(),)})]


def _locked(host: str, by: str, hint: str) -> Finding:
    where = Where(host=host)
    return Finding(id="host.locked", where=where, expected="a free cluster", got=by, hint=hint)
