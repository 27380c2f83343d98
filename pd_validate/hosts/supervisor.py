"""The controller's half of supervised processes: one agent per host and run.

`RemoteSupervisor.open` locks the host's work directory, starts `agent.py` there and keeps
its lease alive; the agent does the rest, also without us. `survey` and `clean` look at what
is on a host without (or after) an agent: for pre-flight and post-flight.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import shlex
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeVar

from pd_validate.errors import (
    ClusterLocked,
    CommandTimeout,
    HostUnreachable,
    LabError,
    WaitTimeout,
)
from pd_validate.hosts import agent
from pd_validate.hosts.api import ProcessSpec, ProcessStatus, StoppedProcess
from pd_validate.hosts.fleet import in_parallel
from pd_validate.hosts.remote import RemoteHost
from pd_validate.waiting import wait_for

T = TypeVar("T")

# What the agent may need for itself beside what it was asked to do: cleaning up after a dead
# run before it starts, or killing what does not end by itself.
_PATIENCE = 30.0  # seconds
_BEATS_PER_LEASE = 4
_ASKED_TO_WAIT = 1.0  # seconds between two attempts to get a lock that is held


@dataclass(frozen=True)
class RunInfo:
    """One run on one host, as its agent (or what it left) describes it.

    `started` is in seconds since the epoch by the host's clock, `age` in seconds. `alive`:
    its agent runs. `kept`: it was left running on purpose.
    """

    host: str
    run_id: str
    run_dir: str
    owner: str  # user@controller
    controller_pid: int
    started: float
    age: float
    alive: bool
    kept: bool

    def __str__(self) -> str:
        state = "kept running" if self.kept else "alive" if self.alive else "dead"
        return (
            f"run {self.run_id} of {self.owner} (pid {self.controller_pid}), {state}, "
            f"started {_ago(self.age)} ago"
        )


@dataclass(frozen=True)
class ProcessFound:
    """A process that carries the mark of a run. `name` "agent" and "watch" are ours."""

    host: str
    pid: int
    run_id: str
    name: str
    command: str
    started: float  # seconds since the epoch


@dataclass(frozen=True)
class LockFound:
    """A lock file; `held` while a run is alive behind it."""

    host: str
    path: str
    run: RunInfo
    held: bool


@dataclass(frozen=True)
class PortTaken:
    """A listening socket in the way. `pid` None: it belongs to another user."""

    host: str
    port: int
    address: str
    pid: int | None
    command: str
    run_id: str | None


@dataclass(frozen=True)
class Survey:
    """What is on a host: runs by their directories, marked processes, the lock, taken ports."""

    host: str
    runs: tuple[RunInfo, ...]
    processes: tuple[ProcessFound, ...]
    lock: LockFound | None
    ports: tuple[PortTaken, ...]

    @property
    def dead_runs(self) -> tuple[str, ...]:
        """Ids of runs that left something here though nobody supervises them any more."""
        living = {run.run_id for run in self.runs if run.alive}
        seen = [run.run_id for run in self.runs]
        seen += [process.run_id for process in self.processes]
        if self.lock is not None and not self.lock.held:
            seen.append(self.lock.run.run_id)
        return tuple(dict.fromkeys(run_id for run_id in seen if run_id not in living))


def owner_name() -> str:
    """Who we are on locks: user@controller."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def survey(
    host: RemoteHost,
    workdir: str,
    *,
    ports: Sequence[int] = (),
    address: str = "0.0.0.0",
    timeout: float | None = None,
) -> Survey:
    """Look at a host, changing nothing. `address`: where our servers would listen on `ports`."""
    args = ["survey", "--workdir", workdir, "--address", address]
    if ports:
        args += ["--ports", ",".join(map(str, ports))]
    data = _ask_agent(host, args, timeout or host.timeouts.command)
    now = float(data["now"])
    lock = data["lock"]
    return Survey(
        host=host.name,
        runs=tuple(_run_info(host.name, run, now) for run in data["runs"]),
        processes=tuple(ProcessFound(host=host.name, **found) for found in data["processes"]),
        lock=None
        if lock is None
        else LockFound(
            host.name,
            lock["path"],
            _run_info(host.name, {**lock, "alive": lock["held"]}, now),
            lock["held"],
        ),
        ports=tuple(
            PortTaken(
                host=host.name,
                port=taken["port"],
                address=taken["address"],
                pid=taken["pid"],
                command=taken.get("command", ""),
                run_id=taken.get("run_id"),
            )
            for taken in data["ports"]
        ),
    )


def lock_of(host: RemoteHost, workdir: str) -> LockFound | None:
    """The lock of a host, as `survey` finds it, but without starting Python where there is none."""
    try:
        host.get(f"{workdir}/lock")
    except FileNotFoundError:
        return None
    return survey(host, workdir).lock


def clean(host: RemoteHost, workdir: str, run_id: str) -> tuple[str, ...]:
    """End and remove what a dead run left on a host. Returns the commands that were ended.

    Raises LabError if the run is alive, or if something could not be ended.
    """
    args = ["clean", "--workdir", workdir, "--run-id", run_id]
    data = _ask_agent(host, args, host.timeouts.command + _PATIENCE)
    if data["left"]:
        raise LabError(f"{host.name}: could not end what is left of run {run_id}: {_named(data)}")
    if data["wrong"]:
        raise LabError(f"{host.name}: cleaning up after run {run_id}: {'; '.join(data['wrong'])}")
    return tuple(data["ended"])


class RemoteSupervisor:
    """Processes of one run on one host; implements `Supervisor`. For use by several threads.

    Every method raises HostUnreachable once the connection to the agent is lost: by then, or
    within the lease, the host has ended everything by itself.
    """

    def __init__(self, host: RemoteHost, workdir: str, lease: float, argv: Sequence[str]) -> None:
        self.host = host
        self.workdir = workdir
        self._lease = lease
        self._keep_files = "--keep-files" in argv  # the agent's own option
        self._link = _Link(host, argv, lease)
        self._closed = False

    # --- beginning ------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        host: RemoteHost,
        *,
        workdir: str,
        run_id: str,
        lease: float,
        owner: str | None = None,
        keep_files: bool = False,
        wait: float = 0.0,
    ) -> Self:
        """Lock the host and start a run on it. What a dead run of ours left there is cleaned.

        After `lease` seconds without us the host ends everything and removes the run directory
        (with `keep_files` it stays). Raises ClusterLocked if another run holds the host for
        `wait` seconds more; LabError if the agent cannot run there.
        """
        argv = (
            *("serve", "--workdir", workdir, "--run-id", run_id, "--lease", f"{lease:g}"),
            *("--owner", owner or owner_name(), "--controller-pid", str(os.getpid())),
            *(("--keep-files",) if keep_files else ()),
        )
        return _patiently(lambda: cls(host, workdir, lease, argv), wait)

    @classmethod
    def attach(
        cls,
        host: RemoteHost,
        *,
        workdir: str,
        run_id: str | None = None,
        own: bool = True,
        helps: bool = False,
    ) -> Self | None:
        """Connect with a run that is alive on the host; None if there is none.

        With `own` it becomes ours, which only a kept run can; without, `status` and `tail`
        work, also while its own controller is at work. With `helps` instead we may also start,
        stop and signal its processes, as one of its controller's own workers. Losing a
        connection that is not the owner's ends nothing.
        """
        argv = ("attach", "--workdir", workdir, *(("--run-id", run_id) if run_id else ()))
        try:
            attached = cls(host, workdir, 0.0, argv)
        except _Absent:
            return None
        try:
            attached._link.call("attach", host.timeouts.command, own=own and not helps, helps=helps)
        except BaseException:
            attached._link.close()
            raise
        return attached

    @property
    def run(self) -> RunInfo:
        return self._link.run

    @property
    def run_dir(self) -> str:
        """This run's directory on the host."""
        return self.run.run_dir

    @property
    def cleaned(self) -> RunInfo | None:
        """The dead run of ours whose remains were removed when this one began."""
        return self._link.cleaned

    # --- processes ------------------------------------------------------------------------------

    def start(self, spec: ProcessSpec) -> ProcessStatus:
        """Raises LabError if it cannot be executed, or if its name is running already."""
        report = self._call(
            "start",
            name=spec.name,
            argv=list(spec.argv),
            env=dict(spec.env),
            cwd=spec.cwd,
        )
        return ProcessStatus(**report)

    def status(self) -> dict[str, ProcessStatus]:
        """All processes started in this run, by name."""
        return {report["name"]: ProcessStatus(**report) for report in self._call("status")}

    def stop(self, name: str, *, timeout: float) -> ProcessStatus:
        """SIGTERM to everything that belongs to the process, SIGKILL after `timeout` seconds.

        Returns when all of it is gone; raises LabError with what could not be ended.
        """
        report = self._call("stop", extra=timeout + _PATIENCE, name=name, timeout=timeout)
        return ProcessStatus(**report)

    def signal(self, name: str, number: int, *, match: str | None = None) -> int:
        """Send a signal to the process, or to those of its own whose title contains `match`.

        Returns the number of processes reached.
        """
        return int(self._call("signal", name=name, number=int(number), match=match))

    def stopped(self, name: str) -> list[StoppedProcess]:
        """What belongs to the process and stands still because of a signal (SIGSTOP)."""
        return [StoppedProcess(**each) for each in self._call("stopped", name=name)]

    def tail(self, name: str, *, lines: int = 40) -> list[str]:
        """The last lines of the process's log."""
        return list(self._call("tail", name=name, lines=lines))

    # --- the end --------------------------------------------------------------------------------

    def at_end(self, argv: Sequence[str]) -> None:
        """A command that the host runs itself when the run ends, however it ends.

        For what is no process of ours, such as a container. Commands run after everything has
        ended, in the order they were given, each for at most 15 seconds.
        """
        self._call("at_end", argv=list(argv))

    def close(self, *, keep: bool = False) -> None:
        """End everything and remove the run directory; with `keep` leave all of it running.

        Also waits for the host's own clean-up if the agent was lost. Raises LabError naming
        what is still there, HostUnreachable if that cannot be known. Closing twice is fine.
        """
        if self._closed:
            return
        self._closed = True
        try:
            result = self._call("close", extra=_PATIENCE, keep=keep)
            if not keep:
                self._link.await_end()
        except HostUnreachable:
            self._link.close()
            self._await_own_clean_up()
            return
        finally:
            self._link.close()
        if result.get("left"):
            raise LabError(f"{self.host.name}: could not end {_named(result)}")
        if result.get("wrong"):
            raise LabError(f"{self.host.name}: at the end of the run: {'; '.join(result['wrong'])}")
        if result.get("files"):
            raise LabError(f"{self.host.name}: could not remove {result['files']}")

    def detach(self) -> None:
        """Hang up without a word: what an attached controller does when it has seen enough."""
        self._closed = True
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _await_own_clean_up(self) -> None:
        run_id = self.run.run_id
        last: list[Survey] = []

        def gone() -> bool | None:
            last[:] = [survey(self.host, self.workdir)]
            left = [found for found in last[0].processes if found.run_id == run_id]
            return True if not left else None

        try:
            wait_for(gone, seconds=self._lease + _PATIENCE, what="clean-up", interval=0.5)
        except WaitTimeout:
            names = ", ".join(
                f"{found.pid} ({found.command})"
                for found in last[0].processes
                if found.run_id == run_id
            )
            raise LabError(
                f"{self.host.name}: run {run_id} lost its agent and is still there: {names}"
            ) from None
        if not self._keep_files:
            # The host has removed it; files that we were just placing may have brought it back.
            directory = shlex.quote(self.run_dir)
            self.host.run(f"rm -rf -- {directory}", timeout=self.host.timeouts.command)

    def _call(self, operation: str, *, extra: float = 0.0, **details: Any) -> Any:
        return self._link.call(operation, self.host.timeouts.command + extra, **details)


def open_all(
    hosts: Mapping[str, RemoteHost],
    *,
    workdirs: Mapping[str, str],
    run_id: str,
    lease: float,
    owner: str | None = None,
    keep_files: bool = False,
    wait: float = 0.0,
) -> dict[str, RemoteSupervisor]:
    """A run on all hosts or on none: what is open already is closed again if one cannot be had.

    Raises the first host's error, in the order given; ClusterLocked if another run holds one of
    them for `wait` seconds more. Never waits for one host while holding another, so two runs
    cannot wait for each other.
    """

    def attempt() -> dict[str, RemoteSupervisor]:
        opened: dict[str, RemoteSupervisor] = {}
        given_up = threading.Event()

        def open_one(name: str) -> None:
            opened[name] = RemoteSupervisor.open(
                hosts[name],
                workdir=workdirs[name],
                run_id=run_id,
                lease=lease,
                owner=owner,
                keep_files=keep_files,
            )
            if given_up.is_set():
                opened[name].close()

        try:
            results = in_parallel({name: partial(open_one, name) for name in hosts})
            for failure in results.values():
                if failure is not None:
                    raise failure
        except BaseException:  # also Ctrl-C: nobody else knows of those that are open by now
            given_up.set()
            in_parallel({name: each.close for name, each in dict(opened).items()})
            raise
        return {name: opened[name] for name in hosts}

    return _patiently(attempt, wait)


def _patiently(attempt: Callable[[], T], wait: float) -> T:
    """Repeat an attempt that finds the cluster locked, for up to `wait` seconds."""
    last: list[ClusterLocked] = []

    def probe() -> T | None:
        try:
            return attempt()
        except ClusterLocked as locked:
            if wait <= 0:
                raise
            last[:] = [locked]
            return None

    try:
        # Two runs that wait for each other's hosts must not meet again and again.
        return wait_for(
            probe, seconds=wait, what="lock", interval=_ASKED_TO_WAIT * random.uniform(0.5, 1.5)
        )
    except WaitTimeout:
        raise last[0] from None


# --- how we talk with an agent ------------------------------------------------------------------


class _Absent(Exception):
    """No run to attach to."""


class _Link:
    """An agent's standard input and output over SSH: requests, answers, heartbeats."""

    def __init__(self, host: RemoteHost, argv: Sequence[str], lease: float) -> None:
        self._name = host.name
        # A connection of its own, so that no copying of files ever delays a heartbeat.
        self._host = host.separate()
        self._sending = threading.Lock()
        self._answers: dict[int, Future[Any]] = {}
        self._hello: Future[dict[str, Any]] = Future()
        self._lost: HostUnreachable | None = None
        self._why = ""
        self._closing = threading.Event()
        self._ended = threading.Event()
        self._next_id = 0
        try:
            self._channel = self._host.stream(_program(host, argv), env=_mark(argv))
            self._channel.settimeout(host.timeouts.command)
            self._channel.sendall(_agent_source())
            _thread(self._receive, f"agent-{host.name}")
            self.run, self.cleaned = self._welcome(host.timeouts.command + _PATIENCE)
            if lease:
                _thread(self._beat, f"lease-{host.name}", lease / _BEATS_PER_LEASE)
        except OSError as error:
            self.close()
            raise HostUnreachable(
                f"{self._name}: lost {host.where} while starting our agent: {error}"
            ) from None
        except BaseException:
            self.close()
            raise

    def call(self, operation: str, seconds: float, **details: Any) -> Any:
        """One request and its answer. Raises LabError with the agent's words if it refuses."""
        answer: Future[Any] = Future()
        with self._sending:
            if self._lost is not None:
                raise self._lost
            self._next_id += 1
            number = self._next_id
            self._answers[number] = answer
            self._send({"id": number, "op": operation, **details})
        try:
            return answer.result(seconds)
        except FutureTimeout:
            raise CommandTimeout(
                f"{self._name}: our agent did not answer `{operation}` within {seconds:g} s. "
                "Is the machine overloaded or hung?"
            ) from None
        finally:
            self._answers.pop(number, None)

    def close(self) -> None:
        self._closing.set()
        self._host.close()

    def await_end(self) -> None:
        """Until the agent, which has said goodbye, is gone itself; no longer than it may take."""
        self._ended.wait(_PATIENCE)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self._lose(str(error) or "it does not take requests")

    def _beat(self, interval: float) -> None:
        while not self._closing.wait(interval):
            with self._sending:
                if self._lost is not None:
                    return
                self._send({"id": 0, "op": "beat"})

    def _receive(self) -> None:
        pending = b""
        while True:
            try:
                data = self._channel.recv(65536)
            except TimeoutError:
                continue  # nothing to say is no fault; a dead connection ends it
            except OSError:
                data = b""
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                # A shell's start-up file may print something first; an agent prints JSON only.
                if self._hello.done() or line.startswith(b"{"):
                    self._dispatch(json.loads(line))
        self._ended.set()
        self._lose(self._last_words())

    def _dispatch(self, message: dict[str, Any]) -> None:
        if not self._hello.done():
            self._hello.set_result(message)
            return
        answer = self._answers.get(message["id"])
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(LabError(f"{self._name}: {message['error']}"))
        else:
            answer.set_result(message["result"])

    def _lose(self, why: str) -> None:
        self._why = why
        self._lost = HostUnreachable(
            f"{self._name}: lost our agent there ({why}); the host ends everything by itself"
        )
        for answer in [self._hello, *self._answers.values()]:
            if not answer.done():
                answer.set_exception(self._lost)

    def _last_words(self) -> str:
        said = b""
        with suppress(OSError):
            while self._channel.recv_stderr_ready():
                said += self._channel.recv_stderr(65536)
        lines = said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def _welcome(self, timeout: float) -> tuple[RunInfo, RunInfo | None]:
        try:
            hello = self._hello.result(timeout)
        except FutureTimeout:
            raise CommandTimeout(
                f"{self._name}: our agent did not start within {timeout:g} s"
            ) from None
        except HostUnreachable:
            raise LabError(
                f"{self._name}: our agent could not be started: {self._why}. "
                "It needs Python 3.8 or later; `python:` of the cluster file names it"
            ) from None
        match hello.get("error"):
            case "locked":
                raise ClusterLocked(_locked_by(self._name, hello), self._name)
            case "absent":
                raise _Absent
            case "refused":
                raise LabError(f"{self._name}: {hello['text']}")
        stale = hello.get("stale")
        now = float(hello["now"])
        return (
            _run_info(self._name, {**hello, "alive": True}, now),
            None if stale is None else _run_info(self._name, {**stale, "alive": False}, now),
        )


# Reads as many bytes as its first argument says from standard input, and becomes that program.
_BOOTSTRAP = """\
import os, sys
size, source = int(sys.argv.pop(1)), b""
while len(source) < size:
    part = os.read(0, size - len(source))
    if not part:
        sys.exit("the connection ended")
    source += part
scope = {"__name__": "__main__", "SOURCE": source.decode()}
exec(compile(source, "pd-validate-agent", "exec"), scope)"""


@cache
def _agent_source() -> bytes:
    return (Path(__file__).parent / "agent.py").read_bytes()


def _program(host: RemoteHost, argv: Sequence[str]) -> list[str]:
    size = str(len(_agent_source()))
    return [host.python_executable, "-X", "utf8", "-c", _BOOTSTRAP, size, *argv]


def _mark(argv: Sequence[str]) -> dict[str, str]:
    """The agent itself carries the mark of its run, so that a survey sees it."""
    if argv[0] != "serve":
        return {}
    options = dict(zip(argv[1::2], argv[2::2], strict=False))
    run_id, workdir = options["--run-id"], options["--workdir"]
    return {
        agent.RUN_ID: run_id,
        agent.RUN_DIR: str(PurePosixPath(workdir) / run_id),
        agent.PROCESS: "agent",
    }


def _ask_agent(host: RemoteHost, args: Sequence[str], timeout: float) -> dict[str, Any]:
    done = host.python(_agent_source().decode(), args=args, timeout=timeout)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])  # before it, a shell's greetings
    except (ValueError, IndexError):
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(
            f"{host.name}: cannot look at {shlex.join(args)}: "
            f"{said[-1] if said else f'exit code {done.exit_code}'}"
        ) from None
    if "error" in answer:
        raise LabError(f"{host.name}: {answer['error']}")
    assert isinstance(answer, dict)
    return answer


def _run_info(host: str, data: Mapping[str, Any], now: float) -> RunInfo:
    started = float(data.get("started", now))
    return RunInfo(
        host=host,
        run_id=str(data.get("run_id", "?")),
        run_dir=str(data.get("run_dir", "")),
        owner=str(data.get("owner", "?")),
        controller_pid=int(data.get("controller_pid", 0)),
        started=started,
        age=max(0.0, now - started),
        alive=bool(data.get("alive", False)),
        kept=bool(data.get("kept", False)),
    )


def _locked_by(host: str, hello: Mapping[str, Any]) -> str:
    run = _run_info(host, {**hello["lock"], "alive": hello["held"]}, float(hello["now"]))
    if not hello["held"]:
        return (
            f"{host}: {run} left its lock {hello['path']}. Only its owner's next run cleans up "
            f"by itself; after asking {run.owner}, remove {hello['path']} and {run.run_dir} there"
        )
    return f"{host}: in use: {run}. {way_out(run)}"


def way_out(run: RunInfo) -> str:
    """What who needs the host can do about a run that holds it."""
    if run.kept:
        return "Take it over with --reuse, or end it: pd-validate down"
    return "Wait for its end (--lock-wait), or take another cluster"


def _named(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{left['pid']} ({left['command'][:80]})" for left in result["left"])


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _thread(work: Callable[..., None], name: str, *args: Any) -> None:
    threading.Thread(target=work, args=args, name=name, daemon=True).start()
