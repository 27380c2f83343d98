"""The kill matrix: whoever dies in whatever phase of a run, nothing of it stays on the hosts.

    python -m twin.kills                       # every kill in every phase, small engines
    python -m twin.kills --engine vllm         # the same with real engines: half an hour
    python -m twin.kills SIGKILL/bring-up …    # some of them
    python -m twin.kills --engine vllm --write docs/kill-matrix.md

Each trial is a `pytest --cluster FILE` in a process of its own, on hosts that stay (a twin of
this process), so that what a dead run leaves there can be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pd_validate.errors import WaitTimeout
from pd_validate.hosts.agent import environment, mark, processes, title
from pd_validate.interrupts import Interrupts
from pd_validate.waiting import wait_for
from twin.cluster import PROJECT, TwinCluster
from twin.trial import own_network

# What pytest prints when a phase begins on the first host; tests say so by a file.
PHASES = {
    "pre-flight": "reading devices",
    "staging": "staging code",
    "bring-up": "engines load and start",
    "tests": "",
    "teardown": "ending what was started",
}
IN_TESTS = "in-tests"
VICTIM = "decode-1"  # the instance that loses a worker, and its host the SSH server
VICTIMS_HOST = "d1"

LEASE = 30.0  # seconds within which everything must be gone
BEGIN_SECONDS = 240.0  # until a phase begins; real engines on a busy machine take long
END_SECONDS = 180.0  # until pytest has ended

# A user's own test: something is always under way while it runs.
SUITE = f"""
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(2))
def test_service(service, number):
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert service.proxy.complete("Who are you?", max_tokens=4).ok
        Path("{IN_TESTS}").touch()
"""

# `vllm serve` of a second: a process with a worker, and no model.
SMALL_ENGINE = f"""#!{sys.executable} -S
import os, runpy, subprocess, sys, threading, time
options = dict(zip(sys.argv, sys.argv[1:]))
title = "VLLM::Worker_TP0"
worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)", title])
threading.Thread(target=lambda: (worker.wait(), os._exit(1)), daemon=True).start()
print("INFO loading", flush=True)
time.sleep(3)
small = {str(PROJECT / "tests/unit/topology/small_engine.py")!r}
sys.argv = [small, "http://" + os.environ["VLLM_HOST_IP"] + ":" + options["--port"], "serves"]
runpy.run_path(small, run_name="__main__")
"""


@dataclass(frozen=True)
class Hosts:
    """Hosts that stay, and the directory in which pytest is run against them."""

    twin: TwinCluster
    directory: Path

    def running(self) -> dict[int, dict[str, str]]:
        """What runs on the hosts, by pid, with its environment; SSH servers are not part of it."""
        state = str(self.twin.state)
        workdirs = [str(self.twin.cluster.workdir_of(name)) for name in self.twin.cluster.hosts]
        found = {}
        for pid in processes().keys() - {os.getpid()}:
            env = environment(pid)
            if env.get("TWIN_STATE") != state:
                # vLLM's workers have blanked theirs: known by the log that they write to.
                env = next(filter(None, (mark(pid, workdir) for workdir in workdirs)), {})
            if env:
                found[pid] = env
        return found

    def files(self) -> list[str]:
        """What lies in the hosts' work directories, but the code kept for the next run."""
        workdirs = [self.twin.cluster.workdir_of(name) for name in self.twin.cluster.hosts]
        found = [path for workdir in workdirs if workdir.is_dir() for path in workdir.iterdir()]
        return [str(path) for path in found if path.name != "code"]

    def processes_of(self, name: str, word: str = "") -> list[int]:
        """Pids of a supervised process, or of those of its own with `word` in the command."""
        return [
            pid
            for pid, env in self.running().items()
            if env.get("PD_PROCESS") == name and word in title(pid)
        ]


@contextmanager
def hosts(*, engine: str) -> Iterator[Hosts]:
    """Hosts for some trials; `engine`: `small`, or `vllm`."""
    with (
        own_network(),
        tempfile.TemporaryDirectory(prefix="pd-kills-") as directory,
        TwinCluster.start() as twin,
    ):
        if engine == "small":
            for host in twin.hosts.hosts.values():
                (host.directory / "bin" / "vllm").write_text(SMALL_ENGINE)
        place = Path(directory)
        data = twin.cluster.model_dump(mode="json", exclude_unset=True)
        (place / "cluster.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        (place / "test_service.py").write_text(SUITE)
        yield Hosts(twin, place)


# --- who is killed ----------------------------------------------------------------------------


def _pytest(number: signal.Signals, times: int = 1) -> Callable[[int, Hosts], None]:
    def kill(pid: int, hosts: Hosts) -> None:
        for again in range(times):
            if again:
                time.sleep(0.7)  # a person presses twice within a second
            os.kill(pid, number)

    return kill


def _xdist_worker(pid: int, hosts: Hosts) -> None:
    children = [found.pid for found in processes().values() if found.parent == pid]
    workers = [child for child in children if "stdin.readline" in title(child)]
    os.kill(workers[0], signal.SIGKILL)


def _ssh_server(pid: int, hosts: Hosts) -> None:
    hosts.twin.hosts.kill(VICTIMS_HOST)


def _process(name: str, word: str = "") -> Callable[[int, Hosts], None]:
    """Of several the first. In teardown all may have ended already: then nobody is killed."""

    def kill(pid: int, hosts: Hosts) -> None:
        victims = wait_for(
            lambda: hosts.processes_of(name, word) or (None if pid in processes() else ()),
            seconds=BEGIN_SECONDS,
            what=f"{name} {word}",
        )
        for victim in victims[:1]:
            os.kill(victim, signal.SIGKILL)

    return kill


@dataclass(frozen=True)
class Kill:
    """Who dies and how. `phases` where there is such a process; `options` for pytest."""

    name: str
    kill: Callable[[int, Hosts], None]
    phases: tuple[str, ...] = tuple(PHASES)
    options: tuple[str, ...] = ()


_WHERE_TESTS_RUN = ("pre-flight", "staging", "bring-up", "tests")  # workers end before teardown
_WHERE_ENGINES_RUN = ("bring-up", "tests", "teardown")
_WHERE_AGENTS_RUN = ("staging", *_WHERE_ENGINES_RUN)
KILLS = {
    kill.name: kill
    for kill in (
        Kill("SIGINT", _pytest(signal.SIGINT)),
        Kill("SIGINT-twice", _pytest(signal.SIGINT, times=2)),
        Kill("SIGTERM", _pytest(signal.SIGTERM)),
        Kill("SIGKILL", _pytest(signal.SIGKILL)),
        Kill("xdist-worker", _xdist_worker, _WHERE_TESTS_RUN, ("-n", "2")),
        Kill("ssh-server", _ssh_server),
        Kill("engine-worker", _process(VICTIM, "Worker_TP"), _WHERE_ENGINES_RUN),
        Kill("proxy", _process("proxy"), _WHERE_ENGINES_RUN),
        Kill("agent", _process("agent"), _WHERE_AGENTS_RUN),
    )
}


# --- one trial --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What became of a run in which somebody was killed.

    `ended` and `gone` are seconds from the kill to pytest's end, and until nothing of the run
    was on any host; `left` is what still was after the lease. `verdict` is None without a
    findings.json.
    """

    kill: str
    phase: str
    exit_code: int
    ended: float
    gone: float
    left: Sequence[str]
    verdict: str | None
    findings: Sequence[str]
    logs: int  # logs of processes beside the report
    output: str

    @property
    def clean(self) -> bool:
        return not self.left

    @property
    def told(self) -> bool:
        """The exit code, or the report, says that something happened."""
        return self.exit_code != 0

    def __str__(self) -> str:
        return (
            f"{self.kill} in {self.phase}: exit {self.exit_code}, left {self.left}\n{self.output}"
        )


def try_kill(hosts: Hosts, kill: Kill, phase: str) -> Trial:
    """Run pytest on the hosts, kill in `phase`, and see what is left. Restores the hosts."""
    report = hosts.directory / "report"
    for old in (hosts.directory / IN_TESTS, report / "findings.json"):
        old.unlink(missing_ok=True)
    log = hosts.directory / "output.txt"
    command = [sys.executable, "-m", "pytest", "--cluster", "cluster.yaml", "test_service.py"]
    command += ["--report", str(report), "-p", "no:cacheprovider", "-p", "no:allure_pytest"]
    with log.open("wb") as output:
        run = subprocess.Popen(
            [*command, *kill.options],
            cwd=hosts.directory,
            env={**_own_environment(), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_phase(run, phase, hosts, log)
        kill.kill(run.pid, hosts)  # which may wait until its victim is there
        at = time.monotonic()
        run.wait(END_SECONDS)
        ended = time.monotonic() - at
        gone, left = _await_gone(hosts, run, at)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        if kill.name == "ssh-server":
            hosts.twin.hosts.restart(VICTIMS_HOST)
    document = _findings(report)
    return Trial(
        kill=kill.name,
        phase=phase,
        exit_code=run.returncode,
        ended=ended,
        gone=gone,
        left=left,
        verdict=document["verdict"] if document else None,
        findings=[f"{f['id']}" for f in document["findings"]] if document else [],
        logs=len(list((report / "logs").glob("*.log"))) if document else 0,
        output=log.read_text(errors="replace")[-4000:],
    )


def _await_phase(run: subprocess.Popen[bytes], phase: str, hosts: Hosts, log: Path) -> None:
    def begun() -> bool | None:
        text = log.read_text(errors="replace")
        if run.poll() is not None:
            raise RuntimeError(f"pytest ended before {phase}:\n{text[-3000:]}")
        if phase == "tests":
            return (hosts.directory / IN_TESTS).exists() or None
        return PHASES[phase] in text or None

    wait_for(begun, seconds=BEGIN_SECONDS, what=phase, interval=0.02)


def _await_gone(
    hosts: Hosts, run: subprocess.Popen[bytes], at: float
) -> tuple[float, Sequence[str]]:
    """Seconds until nothing is left, and what is left after the lease."""

    def left() -> list[str]:
        there = [f"pid {pid}: {title(pid)[:90]}" for pid in hosts.running()]
        pytests = [found.pid for found in processes().values() if found.session == run.pid]
        there += [f"pid {pid} of pytest" for pid in pytests]
        return there + hosts.files()

    there: list[str] = []

    def gone() -> bool | None:
        there[:] = left()
        return None if there else True

    with suppress(WaitTimeout):
        seconds = max(1.0, at + LEASE - time.monotonic())
        wait_for(gone, seconds=seconds, what="the end of everything", interval=0.1)
    return time.monotonic() - at, there


def _findings(report: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((report / "findings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(document, dict)
    return document


def _own_environment() -> dict[str, str]:
    """Ours without what pytest-xdist and others have set for a run around us."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST_", "PD_"))}


# --- the table ----------------------------------------------------------------------------------


def cells(names: Sequence[str] = ()) -> list[tuple[Kill, str]]:
    """All cells of the matrix, or those named KILL/PHASE."""
    every = [(kill, phase) for kill in KILLS.values() for phase in kill.phases]
    return [cell for cell in every if not names or f"{cell[0].name}/{cell[1]}" in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m twin.kills", description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="KILL/PHASE")
    parser.add_argument("--engine", choices=("small", "vllm"), default="small")
    parser.add_argument("--write", type=Path, help="also write the page of the docs")
    options = parser.parse_args(argv)
    wanted = cells(options.cells)
    if not wanted:
        parser.error("no such cell; kills: " + ", ".join(KILLS) + "; phases: " + ", ".join(PHASES))
    Interrupts().listen()  # a CI system's cancel ends the run under way, too
    rows = [_HEAD, _RULE]
    print("\n".join(rows), flush=True)
    bad = []
    with hosts(engine=options.engine) as place:
        for kill, phase in wanted:
            trial = try_kill(place, kill, phase)
            rows.append(row(trial))
            print(rows[-1], flush=True)
            if not trial.clean:
                bad.append(str(trial))
    for story in bad:
        print(f"\n{story}")
    if options.write is not None:
        options.write.write_text(page(rows, options.engine, shlex.join(sys.argv[1:])))
    return 1 if bad else 0


_HEAD = "| killed | phase | pytest's exit code | its end | all gone | report says | logs |"
_RULE = "|---|---|---|---|---|---|---|"


def row(trial: Trial) -> str:
    report = "no report" if trial.verdict is None else trial.verdict
    if trial.findings:
        report += ": " + ", ".join(dict.fromkeys(trial.findings))
    gone = f"{trial.gone:.1f} s" if trial.clean else f"LEFT: {'; '.join(trial.left)}"
    cells = [trial.kill, trial.phase, str(trial.exit_code), f"{trial.ended:.1f} s", gone, report]
    return "| " + " | ".join([*cells, str(trial.logs)]) + " |"


def page(rows: Sequence[str], engine: str, arguments: str) -> str:
    """docs/kill-matrix.md."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return "\n".join(
        [
            "# Kill matrix",
            "",
            "Whoever dies in whatever phase of a run: nothing of it stays on any host once the",
            "lease (30 s) is over, and exit code and report say what happened. All of these are",
            "SIGKILL but the first three. Made by",
            "",
            f"    {f'python -m twin.kills {arguments}'.rstrip()}",
            "",
            f"on {os.cpu_count()} cores, {memory:.0f} GiB, with engines that are "
            + ("real vLLM." if engine == "vllm" else "small stand-ins."),
            "Seconds are counted from the kill. *All gone*: no process, run directory or lock of",
            "the run on any host, and no process of pytest. A negative exit code is the signal",
            "that ended pytest. *Logs*: of processes, beside the report. An interrupted run has no",
            "verdict (`unknown`); an interrupt while the run is being torn down lets it go on, one",
            "more hangs up and leaves the rest to the hosts, without having looked",
            "(`leftover.process`, unknown). An engine or proxy that dies while it is being ended",
            "is no fault.",
            "",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
