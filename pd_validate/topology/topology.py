"""Bring-up and teardown of the whole: instances, proxy, their logs. One object, one owner.

`Topology.up()` either ends with a service that has answered a real request, or raises
BringUpFailed with findings that name the process, its last log lines and the likely
cause. A topology that failed stays failed: asking again gives the same error at once,
so that one sick engine is one failure and not one per test.
"""

from __future__ import annotations

import re
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pd_validate.checks.answers import check_served
from pd_validate.checks.pulls import check_failed_loads
from pd_validate.checks.served import waited_for
from pd_validate.checks.signatures import scan
from pd_validate.errors import HostUnreachable, LabError, PdValidateError, WaitTimeout
from pd_validate.facts.hosts import failure_id
from pd_validate.findings import Finding, Where
from pd_validate.hosts.api import (
    Commands,
    ProcessSpec,
    ProcessStatus,
    StoppedProcess,
    Supervisor,
)
from pd_validate.hosts.fleet import in_parallel
from pd_validate.spec.models import Cluster
from pd_validate.spec.plan import InstanceLaunch, LaunchPlan, Process, trace_dir
from pd_validate.topology.service import Service
from pd_validate.topology.staging import Bundle, pack, stage
from pd_validate.topology.system_logs import system_logs
from pd_validate.topology.timeline import Timeline
from pd_validate.traffic.client import PREFIX, RequestFailed
from pd_validate.traffic.trace import parse_trace
from pd_validate.waiting import wait_for

_FEW_TOKENS_SECONDS = 20.0  # a loaded engine answers far sooner
_FEW = 12  # tokens
_LOOK_SECONDS = 1.0  # between two looks at the processes while something is awaited
_TRACE_SECONDS = 3.0  # until the audit's record of a failed load must be there
_GIVEN_UP_SECONDS = 12.0  # until our proxy has told what became of a request that we gave up
_FILE_END = "\x1e"  # no trace contains it: JSON escapes control characters
_LOG_LINES = 60  # of a dead process, looked through for the cause; the last ones are shown
_SHOWN_LINES = 12
_KILLED = (
    "A process does not do that itself: look into the kernel's log for the OOM killer (dmesg -T)."
)
_WORKER_RANK = re.compile(r"Worker_(?:.*_)?TP(\d+)")  # in the title of a vLLM worker process
_SOCKET_PATH = 107  # bytes of a Unix socket's path, at most
_SOCKET_NAME = 1 + 36  # of vLLM's sockets: a slash and a UUID
_LOG_LIMIT = 64 * 1024 * 1024  # bytes of one log that are fetched: its end


class BringUpFailed(PdValidateError):
    """The service could not be brought up; `findings` say which process and why."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(self.findings)

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)


@dataclass(frozen=True)
class LinkProof:
    """One prefiller-decoder pair, asked for an answer that needs all its KV links."""

    where: Where
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True)
class Footprint:
    """Memory (resident bytes, shared pages counted in each process) and open files."""

    rss: int
    handles: int


# Run on a host, with the pid of a session's leader: everything of that session.
_FOOTPRINT = """
import os, sys
rss = handles = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        if stat[3] != sys.argv[1]:
            continue
        rss += int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
        handles += len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        continue
print(rss, handles)
"""


class Host(Protocol):
    """A host as bring-up needs it: commands, and the supervisor of this run's processes."""

    @property
    def commands(self) -> Commands: ...
    @property
    def supervisor(self) -> Supervisor: ...


class Topology:
    """The instances and the proxy of one plan, on hosts that are already connected."""

    def __init__(
        self,
        cluster: Cluster,
        plan: LaunchPlan,
        hosts: Mapping[str, Host],
        *,
        ranktable: bytes | None,
        timeline: Timeline,
        is_up: bool = False,
    ) -> None:
        """`is_up`: somebody else has brought it up, and its first answer is there."""
        self.cluster = cluster
        self.plan = plan
        self.service = Service(cluster, plan)
        self.timeline = timeline
        self.links: list[LinkProof] = []
        self._hosts = hosts
        self._ranktable = ranktable
        self._failure: BringUpFailed | None = None
        self._is_up = is_up
        self._given_up = threading.Event()
        self._past: frozenset[str] = frozenset()  # lines of traces that are not ours

    def stage(self) -> None:
        """Put code and rank table on the hosts. Raises LabError."""
        self._stage(pack())

    def up(self) -> None:
        """Start everything at once, wait for the first real answer. Idempotent.

        Raises BringUpFailed, also at every later call once it did; LabError if a host
        cannot be worked with on the way.
        """
        if self._failure is None and not self._is_up:
            self._remembering(self._start)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until what was started answers real requests. Idempotent; raises as `up`."""
        if self._failure is not None:
            raise self._failure
        if self._is_up:
            return
        for step in (
            self._wait_for_instances,
            self._wait_for_first_tokens,
            self._wait_for_links,
            self._wait_for_proxy,
        ):
            self._remembering(step)
        self._is_up = True

    def give_up(self) -> None:
        """End a wait for readiness in another thread: the run is being ended."""
        self._given_up.set()

    @property
    def is_up(self) -> bool:
        """Whether bring-up has ended well."""
        return self._is_up

    def status(self) -> dict[str, ProcessStatus]:
        """Every process of the plan that has been started, as its host sees it now."""
        found: dict[str, ProcessStatus] = {}
        for host in self._used_hosts():
            found |= self._hosts[host].supervisor.status()
        return found

    def check_alive(self) -> list[Finding]:
        """A finding for every process that has ended by itself, and for every lost host."""
        found: list[Finding] = []
        for host in self._used_hosts():
            try:
                seen = self._hosts[host].supervisor.status()
            except HostUnreachable as error:
                found += self._without_agent(host, error)
                continue
            found += [
                self._exited(process, status)
                for process in self.plan.on(host)
                if (status := seen.get(process.name)) and not status.alive
            ]
        return found

    def check_stopped(self) -> list[Finding]:
        """A finding for every process of which something stands still because of a signal."""
        return [
            stopped_finding(process.host, process.name, found)
            for process in self.plan.processes()
            if (found := self._hosts[process.host].supervisor.stopped(process.name))
        ]

    def check_sick(self, *, seconds: float = 0.0) -> list[Finding]:
        """What explains any symptom above: processes that have ended, or stand still.

        A broken connection is seen before the end of the process behind it: after a symptom
        look for some `seconds`.
        """

        def look() -> list[Finding] | None:
            return self.check_alive() or self.check_stopped() or None

        try:
            return wait_for(look, seconds=seconds, what="a sick process")
        except WaitTimeout:
            return []

    def symptom(self, error: RequestFailed) -> Finding:
        """A request that never ended, as a finding: where it was lost, as far as one can say."""
        place, got = error.server, str(error)
        if error.timeout and place == self.service.proxy.name:
            waited = self._waited_for(error.request_id)
            if waited is not None:
                place, got = waited, f"{got}; the proxy was waiting for {waited}"
        return Finding(
            id="service.timeout" if error.timeout else "service.error",
            where=self.service.where(place) if place else Where(),
            expected="an answer",
            got=got,
        )

    def _waited_for(self, request: str) -> str | None:
        """The instance that the proxy waited for when we gave a request up, if its log says so.

        Our proxy writes that once the engine's half is settled; another one never does.
        """

        def look() -> str | None:
            return waited_for(self._tail(self.plan.proxy), request)

        names = {f"{each.address}:{each.port}": each.name for each in self.plan.instances.values()}
        try:
            told = wait_for(look, seconds=_GIVEN_UP_SECONDS, what="the proxy's access line")
        except WaitTimeout:
            return None
        return names.get(told)

    def failed_loads(self, *, request: str = PREFIX) -> list[Finding]:
        """Loads of KV that a connector gave up, for requests whose id contains `request`."""
        records, _ = parse_trace(self.traces())
        if not any(record.phase == "failed" for record in records):
            return []
        logs = {name: data.decode(errors="replace") for name, data in self.logs().items()}
        hosts = {name: spec.host for name, spec in self.cluster.instances.items()}
        lines = {name: log.splitlines() for name, log in logs.items()}
        return check_failed_loads(records, hosts, lines, request=request)

    def check_work(self, *, seconds: float = _FEW_TOKENS_SECONDS) -> list[Finding]:
        """A finding for every engine that lives and does not answer by itself.

        Asked for one token, then for a stream of a few: an engine may serve one and cut
        the other. `seconds`: what an engine may take for each.
        """

        launches = self.plan.instances
        results = in_parallel(
            {name: partial(self._work_of, launch, seconds) for name, launch in launches.items()}
        )
        return [f for r in results.values() if not isinstance(r, LabError) for f in r]

    def _work_of(self, launch: InstanceLaunch, seconds: float) -> list[Finding]:
        client = self.service.instances[launch.name]
        where = Where(host=launch.host, instance=launch.name)
        try:
            answer = client.complete("Alive?", max_tokens=1, timeout=seconds)
            return check_served(answer, where) or check_served(
                client.complete("Alive?", max_tokens=_FEW, timeout=seconds, stream=True), where
            )
        except RequestFailed as error:
            tail = self._tail(launch)
            return [
                Finding(
                    id="engine.hung" if error.timeout else "service.error",
                    where=where,
                    expected=f"an answer within {seconds:g} s, without any PD",
                    got=str(error),
                    evidence=tuple(tail[-_SHOWN_LINES:]),
                )
            ]

    def kill(self, name: str) -> None:
        """SIGKILL for all of a process, as the kernel does when memory runs out. For faults."""
        self._supervisor_of(name).signal(name, signal.SIGKILL, match="")

    def pause(self, name: str, *, match: str) -> int:
        """SIGSTOP for what has `match` in its title; `resume` undoes it. For faults."""
        return self._supervisor_of(name).signal(name, signal.SIGSTOP, match=match)

    def resume(self, name: str) -> None:
        self._supervisor_of(name).signal(name, signal.SIGCONT, match="")

    def restart(self, name: str) -> None:
        """Start a process anew, whatever became of it, and wait until it is healthy.

        Raises BringUpFailed.
        """
        process = next(each for each in self.plan.processes() if each.name == name)
        supervisor = self._supervisor_of(name)
        supervisor.stop(name, timeout=self.cluster.timeouts.stop)
        supervisor.start(_spec(process, supervisor.run_dir))
        deadline = time.monotonic() + self.cluster.timeouts.ready
        self._wait_healthy(process, deadline, threading.Event())

    def footprint(self, name: str) -> Footprint:
        """What a process and all below it hold now. Raises LabError."""
        host = next(each.host for each in self.plan.processes() if each.name == name)
        commands = self._hosts[host].commands
        pid = self.status()[name].pid
        output = commands.python(_FOOTPRINT, args=[str(pid)], timeout=self.cluster.timeouts.command)
        try:
            rss, handles = output.stdout.split()
            return Footprint(rss=int(rss), handles=int(handles))
        except ValueError:
            raise LabError(
                f"{host}: cannot read what {name} holds: {output.stderr.strip()[-200:]}"
            ) from None

    def logs(self) -> dict[str, bytes]:
        """The log of every process that was started, by name. Never raises for a lost host."""

        def of(host: str) -> dict[str, bytes]:
            commands, supervisor = self._hosts[host].commands, self._hosts[host].supervisor
            found: dict[str, bytes] = {}
            for name, status in supervisor.status().items():
                with suppress(FileNotFoundError):
                    found[name] = commands.get(status.log, limit=_LOG_LIMIT)
            return found

        results = in_parallel({host: partial(of, host) for host in self._used_hosts()})
        logs = [found for found in results.values() if not isinstance(found, LabError)]
        return {name: log for found in logs for name, log in found.items()}

    def system_logs(self, *, seconds: float) -> dict[str, dict[str, bytes]]:
        """What CANN and the kernel have logged in the last `seconds`, by host and file.

        Of a host that cannot be asked there is `lost.txt`, which says why.
        """
        hosts = self._used_hosts()

        def of(host: str) -> dict[str, bytes]:
            return system_logs(
                self._hosts[host].commands,
                self.plan.on(host),
                seconds=seconds,
                timeout=self.cluster.timeouts.command,
            )

        results = in_parallel({host: partial(of, host) for host in hosts})
        return {
            host: {"lost.txt": f"{found}\n".encode()} if isinstance(found, LabError) else found
            for host, found in results.items()
        }

    def traces(self) -> str:
        """All lines of the KV audit's trace, of all hosts; since `forget_the_past`, if called."""
        text = ""
        for host in self._used_hosts():
            run_dir = self._hosts[host].supervisor.run_dir
            # A file's last line may still be in the writing: it must not run into the next file.
            pattern = f"{shlex.quote(trace_dir(run_dir))}/*.jsonl"
            command = f"for f in {pattern}; do cat \"$f\" 2>/dev/null; printf '{_FILE_END}'; done"
            output = self._hosts[host].commands.run(command, timeout=self.cluster.timeouts.command)
            for content in output.stdout.split(_FILE_END):
                text += content[: content.rfind("\n") + 1]
        if not self._past:
            return text
        return "".join(line for line in text.splitlines(True) if line not in self._past)

    def forget_the_past(self) -> None:
        """Let traces begin now: what ran before belongs to another run of the harness."""
        self._past = frozenset(self.traces().splitlines(keepends=True))

    def close(self) -> None:
        self.service.close()

    # --- the steps of up() ---

    def _stage(self, bundle: Bundle) -> None:
        def one(host: str) -> str:
            commands, supervisor = self._hosts[host].commands, self._hosts[host].supervisor
            note = "nothing of ours needed"
            if host in self.plan.hosts_with_code():
                copied = stage(
                    commands,
                    bundle,
                    workdir=str(self.cluster.workdir_of(host)),
                    run_dir=supervisor.run_dir,
                    timeout=self.cluster.timeouts.command,
                )
                note = "code copied" if copied else "code is there already"
            if self._ranktable is not None:
                for path in {launch.ranktable_path for launch in self._launches(host)}:
                    commands.put(self._ranktable, path)
                    note += ", rank table placed"
            return note

        self._on_hosts("staging code and rank table", one)

    def _start(self) -> None:
        def one(host: str) -> str:
            processes, supervisor = self.plan.on(host), self._hosts[host].supervisor
            for process in processes:
                supervisor.start(_spec(process, supervisor.run_dir))
            return ", ".join(process.name for process in processes)

        self._on_hosts("starting processes", one)

    def _wait_for_instances(self) -> None:
        deadline = time.monotonic() + self.cluster.timeouts.ready
        failed = threading.Event()  # one engine that is dead ends the wait for all others

        def one(host: str) -> str:
            try:
                for launch in self._launches(host):
                    self._wait_healthy(launch, deadline, failed)
            except (BringUpFailed, HostUnreachable):
                failed.set()
                raise
            return "engines answer"

        self._on_hosts("engines load and start", one)

    def _wait_for_first_tokens(self) -> None:
        """Each engine alone: what fails here is the engine, not the KV link."""

        def one(launch: InstanceLaunch) -> list[Finding]:
            with self.timeline.step(launch.host, f"first token, alone ({launch.name})") as step:
                findings = self._work_of(launch, self.cluster.timeouts.request)
                if findings:
                    step.fail("it does not answer by itself")
            return findings

        def all_of_them() -> list[Finding]:
            launches = self.plan.instances
            results = in_parallel({name: partial(one, each) for name, each in launches.items()})
            return [f for r in results.values() if not isinstance(r, LabError) for f in r]

        findings = self._unless_sick(all_of_them)
        if findings:
            raise BringUpFailed(findings)

    def _wait_for_links(self) -> None:
        """One disaggregated request per prefiller and decoder: makes and proves every link."""
        service = self.service

        def one(decoder: str) -> list[Finding]:
            findings: list[Finding] = []
            for prefiller in service.prefillers:
                where = service.where(decoder, prefiller)
                request = f"{PREFIX}link-{uuid.uuid4().hex[:8]}"
                began = time.monotonic()
                try:
                    answer = service.disaggregate(
                        prefiller, decoder, "warm-up", request_id=request, max_tokens=2
                    )
                    symptoms = check_served(answer, where)
                except RequestFailed as error:
                    id_ = "kvlink.timeout" if error.timeout else "service.error"
                    at = service.where(error.server) if error.server == prefiller else where
                    symptoms = [Finding(id=id_, where=at, expected="an answer", got=str(error))]
                took = time.monotonic() - began
                below = self._below_a_link(symptoms[0], request) if symptoms else []
                self.links.append(LinkProof(where, tuple(below), took))
                findings += below
            return findings

        hosts = {decoder: service.host_of(decoder) for decoder in service.decoders}
        self._all_or_fail("KV links", hosts, lambda name: self._unless_sick(partial(one, name)))

    def _below_a_link(self, symptom: Finding, request: str) -> list[Finding]:
        """What a failed warm-up is: a failed load, a broken link, or an engine's own failure.

        Between engines that answer alone it is the link, unless the audit saw that no load
        failed: then the engine itself answered so.
        """
        sick = self.check_sick(seconds=_LOOK_SECONDS)
        if sick or symptom.where.peer_instance is None:
            return sick or [symptom]
        with suppress(WaitTimeout):  # the audit writes beside the answer's way
            return wait_for(
                lambda: self.failed_loads(request=request) or None,
                seconds=_TRACE_SECONDS,
                what="the trace of a failed load",
            )
        if self.plan.audited and symptom.id == "service.error":
            return [symptom]
        return _as_link_failure([symptom])

    def _wait_for_proxy(self) -> None:
        process = self.plan.proxy
        deadline = time.monotonic() + min(60.0, self.cluster.timeouts.ready)

        def one(_: str) -> list[Finding]:
            self._wait_healthy(process, deadline, threading.Event())
            return self._unless_sick(first_completion)

        def first_completion() -> list[Finding]:
            where = self.service.where(process.name)
            try:
                return check_served(
                    self.service.proxy.complete("Who are you?", max_tokens=4), where
                )
            except RequestFailed as error:
                return [self.symptom(error)]

        self._all_or_fail("first completion through the proxy", {process.name: process.host}, one)

    # --- helpers ---

    def _remembering(self, step: Callable[[], None]) -> None:
        """A step of bring-up; what fails it fails every later call. A lost host does, too."""
        try:
            step()
        except BringUpFailed as failure:
            self._failure = failure
            raise
        except HostUnreachable as error:
            findings = self.check_alive()
            if not findings:
                raise
            self._failure = BringUpFailed(findings)
            raise self._failure from error

    def _without_agent(self, host: str, lost: HostUnreachable) -> list[Finding]:
        """Our agent has ended, and with it all that it had started; or the host is lost."""
        where = Where(host=host)
        processes = self.plan.on(host)
        try:
            self._hosts[host].commands.run("true", timeout=self.cluster.timeouts.command)
        except LabError as error:
            return [lost_host(host, error)]
        names = ", ".join(process.name for process in processes)
        agent = Finding(
            id="host.agent-lost",
            where=where,
            expected=f"our agent there, supervising {names}",
            got=str(lost),
        )
        ended = [
            Finding(
                id="engine.exited",
                where=Where(host=host, instance=process.name),
                expected="a running process",
                got="it ended with our agent, which had started it",
                because=(agent.as_cause(),),
            )
            for process in processes
        ]
        return [agent, *ended]

    def _unless_sick(self, probe: Callable[[], list[Finding]]) -> list[Finding]:
        """What `probe` finds; or, without waiting for its end, what is dead or stands still."""
        worker = ThreadPoolExecutor(1)
        running = worker.submit(probe)
        worker.shutdown(wait=False)  # a probe that hangs ends with its own deadline
        still = _Twice()
        while True:
            done, _ = wait([running], timeout=_LOOK_SECONDS)
            if done:
                found = running.result()
                return self.check_sick(seconds=_LOOK_SECONDS) or found if found else []
            if still(sick := self.check_sick()):
                return sick

    def _wait_healthy(self, process: Process, deadline: float, failed: threading.Event) -> None:
        """Alive, port open, /health 200 and (an engine) the model listed; else BringUpFailed.

        Ends at once when any process of its host is dead, or (without findings) when
        `failed` is set.
        """
        is_engine = process.name in self.service.instances
        client = self.service.instances.get(process.name, self.service.proxy)
        started = time.monotonic()
        still_stopped = _Twice()

        def ready() -> bool | None:
            if self._given_up.is_set():
                raise LabError("not waited for any longer: the run is being ended")
            if failed.is_set():
                raise BringUpFailed([])
            seen = self._hosts[process.host].supervisor.status()
            dead = [p for p in self.plan.on(process.host) if p.name in seen]
            dead = [p for p in dead if not seen[p.name].alive]
            if dead:
                raise BringUpFailed([self._exited(each, seen[each.name]) for each in dead])
            stopped = self._hosts[process.host].supervisor.stopped(process.name)
            if still_stopped(stopped):
                raise BringUpFailed([stopped_finding(process.host, process.name, stopped)])
            if not client.healthy():
                return None
            try:
                served = client.models() if is_engine else []
            except RequestFailed:  # a busy engine answers late: the deadline decides
                return None
            return True if not is_engine or self.cluster.model.served_name in served else None

        try:
            wait_for(
                ready,
                seconds=max(1.0, deadline - time.monotonic()),
                what=f"{process.name} on {process.host} healthy",
                interval=0.5,
            )
        except WaitTimeout as error:
            tail = self._tail(process)
            raise BringUpFailed(
                [
                    Finding(
                        id="engine.timeout",
                        where=Where(host=process.host, instance=process.name),
                        expected="healthy",
                        got=f"{error} ({time.monotonic() - started:.0f} s)",
                        hint=_likely_cause(tail),
                        evidence=tuple(tail[-_SHOWN_LINES:]),
                    )
                ]
            ) from error

    def _exited(self, process: Process, status: ProcessStatus) -> Finding:
        tail = self._tail(process)
        return Finding(
            id="engine.exited",
            where=Where(host=process.host, instance=process.name),
            expected="a running process",
            got=_how_it_ended(status.exit_code),
            hint=_likely_cause(tail) or (_KILLED if status.exit_code == -signal.SIGKILL else ""),
            evidence=tuple(tail[-_SHOWN_LINES:]),
        )

    def _tail(self, process: Process) -> list[str]:
        try:
            return self._hosts[process.host].supervisor.tail(process.name, lines=_LOG_LINES)
        except LabError as error:
            return [f"(log not readable: {error})"]

    def _supervisor_of(self, name: str) -> Supervisor:
        host = next(each.host for each in self.plan.processes() if each.name == name)
        return self._hosts[host].supervisor

    def _used_hosts(self) -> list[str]:
        return list(dict.fromkeys(process.host for process in self.plan.processes()))

    def _launches(self, host: str) -> list[InstanceLaunch]:
        return [launch for launch in self.plan.instances.values() if launch.host == host]

    def _on_hosts(self, what: str, work: Callable[[str], str]) -> None:
        """Do `work` on all used hosts at once. Raises BringUpFailed with all findings."""
        self._all({host: (host, what, partial(work, host)) for host in self._used_hosts()})

    def _all_or_fail(
        self, what: str, hosts: Mapping[str, str], probe: Callable[[str], list[Finding]]
    ) -> None:
        """`probe` all names at once, told under their hosts. Raises BringUpFailed."""

        def work(name: str) -> str:
            findings = probe(name)
            if findings:
                raise BringUpFailed(findings)
            return name

        self._all({n: (host, f"{what} ({n})", partial(work, n)) for n, host in hosts.items()})

    def _all(self, jobs: Mapping[str, tuple[str, str, Callable[[], str]]]) -> None:
        """Run all jobs (host, what it does, the work) in parallel, and tell who follows.

        Raises the first LabError, else BringUpFailed with the findings of all that failed.
        """

        def one(host: str, what: str, work: Callable[[], str]) -> tuple[Finding, ...]:
            try:
                with self.timeline.step(host, what) as step:
                    step.note = work()
            except BringUpFailed as failure:
                return failure.findings
            return ()

        results = in_parallel({name: partial(one, *job) for name, job in jobs.items()})
        findings: list[Finding] = []
        for result in results.values():
            if isinstance(result, LabError):
                raise result
            findings += result
        if findings:
            raise BringUpFailed(findings)


def _spec(process: Process, run_dir: str) -> ProcessSpec:
    """The process as planned, and what only a supervised one needs.

    PD_INSTANCE tells whoever looks at the host (and the audit) whose process it is. vLLM's
    sockets and its rendezvous file lie in the run directory and go with it: in /tmp it leaves them.
    """
    env = {**process.env, "PD_INSTANCE": process.name}
    if len(run_dir) + _SOCKET_NAME <= _SOCKET_PATH:
        for name in ("VLLM_RPC_BASE_PATH", "TMPDIR"):
            env.setdefault(name, run_dir)
    return ProcessSpec(name=process.name, argv=process.command, env=env, cwd=process.cwd)


def lost_host(host: str, error: LabError) -> Finding:
    """A host that answers no more."""
    where = Where(host=host)
    return Finding(id=failure_id(error), where=where, expected="an answer", got=str(error))


def stopped_finding(host: str, name: str, found: Sequence[StoppedProcess]) -> Finding:
    """Names the rank where only one worker stands still; vLLM puts it into the title."""
    ranks = {match[1] for each in found if (match := _WORKER_RANK.search(each.title))}
    alone = len(found) == 1 and len(ranks) == 1
    return Finding(
        id="engine.hung",
        where=Where(
            host=host,
            instance=name,
            rank=int(ranks.pop()) if alone else None,
        ),
        expected="running processes",
        got=f"{len(found)} stopped by a signal: "
        + ", ".join(f"pid {each.pid} {each.title[:60]}" for each in found[:4]),
        hint="Continue it with SIGCONT, and find out who stopped it (a debugger, job control).",
    )


class _Twice:
    """True when told something for the second time running: one look may catch a moment."""

    def __init__(self) -> None:
        self._before = False

    def __call__(self, found: Sequence[object]) -> bool:
        before, self._before = self._before, bool(found)
        return before and self._before


def _how_it_ended(exit_code: int | None) -> str:
    """In words; `exit_code` -N is a death by signal N, as in `subprocess`."""
    if exit_code is None or exit_code >= 0:
        return f"it ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal
        name = "no name"
    return f"signal {-exit_code} ({name}) ended it"


def _likely_cause(log: Sequence[str]) -> str:
    """What the log's signatures say, for a hint; empty if they say nothing."""
    hits = scan(log)
    if not hits:
        return ""
    return (
        f"Likely cause ({hits[0].signature.id}): {hits[0].signature.meaning}. Log: {hits[0].line}"
    )


def _as_link_failure(findings: Sequence[Finding]) -> list[Finding]:
    """During bring-up a request that fails between two healthy engines is a link that failed."""
    return [
        Finding.model_validate(finding.model_dump() | {"id": "kvlink.failed"})
        for finding in findings
    ]
