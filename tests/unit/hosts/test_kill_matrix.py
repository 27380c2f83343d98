"""Whoever dies, however: nothing of a run stays on the host once the lease is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ssh_servers import Server, is_empty, lives, server_of

from pd_validate.errors import HostUnreachable
from pd_validate.hosts.api import ProcessSpec
from pd_validate.hosts.supervisor import RemoteSupervisor, survey
from pd_validate.waiting import wait_for
from twin.hosts import TwinHosts

LEASE = 2.0  # seconds
PROMISE = LEASE + 8.0  # seconds: the lease, 5 s for SIGTERM, and the rest of a busy machine

# A controller in a process of its own, so that it can be killed. Its engine has a worker that
# left the process group and an orphan that nobody waits for, whose environment is blank as that
# of vLLM's workers, who write their titles over it.
CONTROLLER = """
import json, sys, time
from pathlib import Path
from pd_validate.hosts.api import ProcessSpec
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor
from pd_validate.spec.models import Ssh

address, workdir, lease, ssh = sys.argv[1:]
host = RemoteHost("d1", address, Ssh.model_validate_json(ssh))
run = RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=float(lease))
script = "setsid sleep 600 & (env -i sleep 600 & echo $!); echo $!; echo $$; exec sleep 600"
run.start(ProcessSpec("engine", ("sh", "-c", script)))
while len(lines := run.tail("engine")) < 3:
    time.sleep(0.02)
print(" ".join(lines), flush=True)
time.sleep(600)
"""


@dataclass
class Running:
    """A controller at work."""

    controller: subprocess.Popen[bytes]
    server: Server
    workdir: str
    pids: list[int]  # of the engine and everything it started

    def own(self, name: str) -> int:
        """The pid of the run's agent or watch."""
        with self.server.host() as host:
            found = survey(host, self.workdir).processes
        return next(process.pid for process in found if process.name == name)

    @property
    def gone(self) -> bool:
        return not any(map(lives, self.pids)) and os.listdir(self.workdir) == []

    def wait_until_gone(self) -> None:
        """Until nothing is left: no process, run directory or lock."""
        wait_for(
            lambda: True if self.gone else None,
            seconds=PROMISE,
            what="everything's end",
            interval=0.05,
            tail=lambda: f"{os.listdir(self.workdir)} {[pid for pid in self.pids if lives(pid)]}",
        )


def start_controller(server: Server, workdir: str, lease: float) -> Iterator[Running]:
    arguments = [server.address, workdir, str(lease), server.ssh.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments], stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        try:
            pids = [int(pid) for pid in controller.stdout.readline().split()]
            assert len(pids) == 3
            yield Running(controller, server, workdir, pids)
        finally:
            controller.kill()


@pytest.fixture
def lease() -> float:
    return LEASE


@pytest.fixture
def running(d1: Server, workdir: str, lease: float) -> Iterator[Running]:
    yield from start_controller(d1, workdir, lease)


@pytest.fixture
def on_either(server: Server, workdir: str, lease: float) -> Iterator[Running]:
    """On a simulated host, and on OpenSSH."""
    yield from start_controller(server, workdir, lease)


@pytest.fixture
def on_fragile(fragile: TwinHosts, workdir: str, lease: float) -> Iterator[Running]:
    yield from start_controller(server_of(fragile, "d1"), workdir, lease)


@pytest.mark.parametrize("lease", [60.0])  # the end of the connection is noticed without it
def test_the_controller_is_killed(on_either: Running) -> None:
    on_either.controller.kill()
    on_either.wait_until_gone()
    with on_either.server.host() as host:
        assert is_empty(survey(host, on_either.workdir))


def test_the_controller_freezes_or_its_network_is_cut(on_either: Running) -> None:
    """No packet says goodbye: only the lease ends it."""
    on_either.controller.send_signal(signal.SIGSTOP)
    on_either.wait_until_gone()


def test_a_controller_at_work_keeps_its_lease(running: Running) -> None:
    deadline = time.monotonic() + 2 * LEASE
    with pytest.raises(subprocess.TimeoutExpired):
        running.controller.wait(deadline - time.monotonic())
    assert all(map(lives, running.pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_agent_is_ended(running: Running, number: signal.Signals) -> None:
    os.kill(running.own("agent"), number)
    running.wait_until_gone()


def test_the_agent_takes_no_notice_of_a_hang_up(running: Running) -> None:
    agent = running.own("agent")
    os.kill(agent, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.controller.wait(0.5)
    assert lives(agent)
    assert all(map(lives, running.pids))


@pytest.mark.parametrize("lease", [60.0])
def test_the_ssh_server_is_killed(on_fragile: Running, fragile: TwinHosts) -> None:
    fragile.kill("d1")
    on_fragile.wait_until_gone()


def test_the_ssh_server_freezes(on_fragile: Running, fragile: TwinHosts) -> None:
    os.kill(fragile["d1"].pid, signal.SIGSTOP)
    try:
        on_fragile.wait_until_gone()
    finally:
        os.kill(fragile["d1"].pid, signal.SIGCONT)


def test_the_watch_is_replaced(running: Running) -> None:
    watch = running.own("watch")
    os.kill(watch, signal.SIGKILL)
    again = wait_for(
        lambda: running.own("watch") if not lives(watch) else None, seconds=5, what="a new watch"
    )
    os.kill(running.own("agent"), signal.SIGKILL)
    running.wait_until_gone()
    wait_for(lambda: None if lives(again) else True, seconds=5, what="the watch's end")


def test_what_ignores_sigterm_is_killed_in_time(d1: Server, workdir: str) -> None:
    with d1.host() as host:
        run = RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=LEASE)
        script = "trap '' TERM INT HUP; echo up; while :; do sleep 0.1; done"
        status = run.start(ProcessSpec("engine", ("sh", "-c", script)))
        wait_for(lambda: run.tail("engine") or None, seconds=5, what="the engine")
        started = time.monotonic()
        run.detach()  # as if we were gone
        wait_for(lambda: None if lives(status.pid) else True, seconds=PROMISE, what="its end")
        assert time.monotonic() - started < PROMISE
        wait_for(lambda: None if os.listdir(workdir) else True, seconds=5, what="the lock's end")


def test_a_supervisor_that_lost_its_agent_says_so_and_still_closes(
    d1: Server, workdir: str
) -> None:
    with d1.host() as host:
        run = RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=LEASE)
        engine = run.start(ProcessSpec("engine", ("sleep", "600")))
        agent = next(each for each in survey(host, workdir).processes if each.name == "agent")
        os.kill(agent.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(HostUnreachable, match="d1: lost our agent there"):
                run.status()
        wait_for(
            lambda: True if not os.path.exists(run.run_dir) else None,
            seconds=PROMISE,
            what="the watch's clean-up",
        )
        host.put(b"{}", f"{run.run_dir}/ranktable.json")  # we were just placing it
        run.close()
        assert not lives(engine.pid)
        assert is_empty(survey(host, workdir))
        assert os.listdir(workdir) == []


def test_closing_when_the_host_is_gone_is_an_error(fragile: TwinHosts, workdir: str) -> None:
    """Whether the host is clean cannot be known then, so nobody may claim it."""
    with server_of(fragile, "d1").host() as host:
        run = RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=LEASE)
        engine = run.start(ProcessSpec("engine", ("sleep", "600")))
        fragile.kill("d1")
        with pytest.raises(HostUnreachable):
            run.close()
        wait_for(lambda: None if lives(engine.pid) else True, seconds=PROMISE, what="its end")
