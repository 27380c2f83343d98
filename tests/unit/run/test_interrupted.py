"""A run that is ended from outside: nothing of it stays, and it says what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from as_user import DEADLINE, environment
from foreign import Foreign

from pd_validate.findings import Verdict
from pd_validate.waiting import wait_for
from twin.cluster import NETWORK_VARIABLE
from twin.scenario import Scenario, SlowToolsFault

INTERRUPTED = 2  # pytest's exit code
GONE = 20.0  # seconds; an idle machine needs less than three
READ = 90.0  # seconds that the reading of a host may still take, on a crowded machine
SLOW = Scenario(faults=(SlowToolsFault(host="*", tool_seconds=0.5),))
SLOWER_THAN_USUAL = Scenario(faults=(SlowToolsFault(host="*", tool_seconds=0.1),))
NETWORK = ("-m", "network", "-p", "no:allure_pytest")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_hosts_are_read(foreign: Foreign, number: signal.Signals) -> None:
    arguments = ["--cluster", "cluster.yaml", "--report", f"report-{number.name}", *NETWORK]
    with foreign.changed(SLOW), started(arguments, foreign.directory) as run:
        wait_for(
            lambda: foreign.processes() or None, seconds=DEADLINE, what="a command on the hosts"
        )
        run.send_signal(number)
        out, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == INTERRUPTED, out
    assert "INTERNALERROR" not in out
    assert "KeyboardInterrupt" in out
    if number is signal.SIGTERM:
        assert "signal SIGTERM" in out
    wait_until_idle(foreign)
    findings = foreign.directory / f"report-{number.name}" / "findings.json"
    assert json.loads(findings.read_text())["verdict"] == Verdict.UNKNOWN


def test_killed_while_hosts_are_read(foreign: Foreign) -> None:
    """Nobody is left to clean up: the reading goes on to its end, and nothing after it."""
    arguments = ["--cluster", "cluster.yaml", *NETWORK]
    with foreign.changed(SLOWER_THAN_USUAL), started(arguments, foreign.directory) as run:
        wait_for(
            lambda: foreign.processes() or None, seconds=DEADLINE, what="a command on the hosts"
        )
        run.kill()
        run.communicate(timeout=DEADLINE)
        wait_until_idle(foreign, seconds=READ)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_twin_ends_with_its_run(empty: Path, tmp_path: Path, number: signal.Signals) -> None:
    (empty / "slow.yaml").write_text('faults: [{host: "*", tool_seconds: 0.5}]\n')
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    high, low = divmod(os.getpid(), 250)
    env = {"TMPDIR": str(temporary), NETWORK_VARIABLE: f"127.{2 + high % 250}.{low}"}

    def hosts() -> list[int]:
        return [pid for pid, command in commands().items() if str(temporary) in command]

    with started(["--scenario", "slow.yaml", *NETWORK], empty, env) as run:
        wait_for(lambda: hosts() or None, seconds=DEADLINE, what="the twin's first host")
        run.send_signal(number)
        out, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == (INTERRUPTED if number is signal.SIGTERM else -number), out
    wait_for(lambda: not hosts() or None, seconds=GONE, what="the end of the twin's hosts")
    if number is signal.SIGTERM:
        assert list(temporary.iterdir()) == []


def test_a_stopped_ssh_server_ends_with_its_run(empty: Path, tmp_path: Path) -> None:
    """It cannot see that its run is gone: the kernel ends it."""
    (empty / "slow.yaml").write_text('faults: [{host: "*", tool_seconds: 0.5}]\n')
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    high, low = divmod(os.getpid(), 250)
    env = {"TMPDIR": str(temporary), NETWORK_VARIABLE: f"127.{2 + high % 250}.{low}"}

    def servers() -> list[int]:
        found = [pid for pid, command in commands().items() if str(temporary) in command]
        return [pid for pid in found if "twin.sshd" in commands().get(pid, "")]

    with started(["--scenario", "slow.yaml", *NETWORK], empty, env) as run:
        known = "*/keys/known_hosts"  # written when all servers listen
        wait_for(lambda: any(temporary.glob(known)) or None, seconds=DEADLINE, what="the hosts")
        os.kill(max(servers()), signal.SIGSTOP)  # one of those that the first one forked
        run.kill()
        run.communicate(timeout=DEADLINE)
    wait_for(lambda: not servers() or None, seconds=GONE, what="the end of the twin's hosts")


@contextmanager
def started(
    arguments: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """pytest in the background, both outputs in one."""
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=directory,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            yield run
        finally:
            run.kill()


def wait_until_idle(foreign: Foreign, *, seconds: float = GONE) -> None:
    wait_for(
        lambda: not foreign.processes() or None,
        seconds=seconds,
        what="the end of everything on the hosts",
        tail=lambda: "\n".join(foreign.processes().values()),
    )


def commands() -> dict[int, str]:
    """The command line of every process of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended meanwhile
    return found
