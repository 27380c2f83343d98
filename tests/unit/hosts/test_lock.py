"""One cluster, one run: who holds it, for how long, and what a dead run has left."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ssh_servers import Server, is_empty, lives, server_of

from pd_validate.errors import ClusterLocked, HostUnreachable, LabError
from pd_validate.hosts.api import ProcessSpec
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import (
    RemoteSupervisor,
    clean,
    open_all,
    owner_name,
    survey,
)
from pd_validate.waiting import wait_for
from twin.hosts import TwinHosts

SLEEP = ProcessSpec("engine", ("sleep", "600"))


def open_run(host: RemoteHost, workdir: str, run_id: str, **options: object) -> RemoteSupervisor:
    options = {"lease": 5.0, **options}
    return RemoteSupervisor.open(host, workdir=workdir, run_id=run_id, **options)  # type: ignore[arg-type]  # as the test gave them


# --- held ---------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_holds_the_host(machine: RemoteHost, workdir: str) -> None:
    with open_run(machine, workdir, "run-1"), pytest.raises(ClusterLocked) as refusal:
        open_run(machine, workdir, "run-2")
    expected = f"d1: in use: run run-1 of {owner_name()} (pid {os.getpid()}), alive, started "
    assert str(refusal.value).startswith(expected)
    with open_run(machine, workdir, "run-2") as later:
        assert later.cleaned is None


def test_a_second_run_can_wait(shell: RemoteHost, workdir: str) -> None:
    first = open_run(shell, workdir, "run-1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: open_run(shell, workdir, "run-2", wait=20))
        with pytest.raises(TimeoutError):
            waiting.result(1.5)
        first.close()
        with waiting.result(10) as second:
            assert second.run.run_id == "run-2"


def test_waiting_ends(shell: RemoteHost, workdir: str) -> None:
    started = time.monotonic()
    with open_run(shell, workdir, "run-1"), pytest.raises(ClusterLocked, match="run-1"):
        open_run(shell, workdir, "run-2", wait=1)
    assert 1 <= time.monotonic() - started < 6


def test_runs_in_other_work_directories_do_not_meet(shell: RemoteHost, tmp_path: Path) -> None:
    """So the simulated hosts of one machine can be what they are: several."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with open_run(shell, one, "run-1") as first, open_run(shell, two, "run-2"):
        first.start(SLEEP)
        assert {each.run_id for each in survey(shell, one).processes} == {"run-1"}
        assert {each.run_id for each in survey(shell, two).processes} == {"run-2"}


def test_only_one_of_many_gets_it(shell: RemoteHost, workdir: str) -> None:
    def attempt(number: int) -> RemoteSupervisor | ClusterLocked:
        try:
            return open_run(shell, workdir, f"run-{number}")
        except ClusterLocked as locked:
            return locked

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(4)))
    winners = [result for result in results if isinstance(result, RemoteSupervisor)]
    assert len(winners) == 1
    winners[0].close()
    assert is_empty(survey(shell, workdir))


def test_all_hosts_or_none(twin: TwinHosts, tmp_path: Path) -> None:
    hosts = {name: server_of(twin, name).host(name) for name in ("p1", "d1")}
    workdirs = {name: str(tmp_path / name) for name in hosts}
    with open_run(hosts["d1"], workdirs["d1"], "run-1"):
        with pytest.raises(ClusterLocked, match="d1: in use: run run-1"):
            open_all(hosts, workdirs=workdirs, run_id="run-2", lease=5)
        assert is_empty(survey(hosts["p1"], workdirs["p1"]))
    opened = open_all(hosts, workdirs=workdirs, run_id="run-2", lease=5)
    assert {name: run.run.run_id for name, run in opened.items()} == {"p1": "run-2", "d1": "run-2"}
    for run in opened.values():
        run.close()
    for host in hosts.values():
        host.close()


# --- left behind --------------------------------------------------------------------------------


@contextmanager
def dead_run(
    host: RemoteHost, workdir: str, owner: str | None = None
) -> Iterator[tuple[RemoteSupervisor, int]]:
    """A run whose agent and watch were both killed at once, and an orphan of it that lives on."""
    run = open_run(host, workdir, "dead", owner=owner)
    script = "setsid sleep 600 & echo $!; exec sleep 600"
    engine = run.start(ProcessSpec("engine", ("sh", "-c", script)))
    orphan = wait_for(lambda: run.tail("engine") or None, seconds=5, what="the orphan")[0]
    for found in survey(host, workdir).processes:
        if found.name == "watch":
            os.kill(found.pid, signal.SIGSTOP)  # an agent would replace it if it were gone
            watch = found.pid
    for found in survey(host, workdir).processes:
        if found.name == "agent":
            os.kill(found.pid, signal.SIGKILL)
    os.kill(watch, signal.SIGKILL)
    wait_for(lambda: None if lives(engine.pid) else True, seconds=5, what="the engine's end")
    run.detach()
    try:
        yield run, int(orphan)
        assert not lives(int(orphan))
    finally:
        clean(host, workdir, "dead")


def test_what_a_dead_run_left_is_named(shell: RemoteHost, workdir: str) -> None:
    with dead_run(shell, workdir) as (run, orphan):
        seen = survey(shell, workdir)
        assert seen.dead_runs == ("dead",)
        assert [(found.pid, found.name) for found in seen.processes] == [(orphan, "engine")]
        assert seen.processes[0].command == "sleep 600"
        assert [(left.run_id, left.alive) for left in seen.runs] == [("dead", False)]
        assert seen.lock is not None
        assert not seen.lock.held
        assert str(seen.lock.run).startswith(
            f"run dead of {owner_name()} (pid {os.getpid()}), dead"
        )
        clean(shell, workdir, "dead")
        assert run.run_dir not in map(str, Path(workdir).iterdir())


def test_the_same_owner_cleans_up_when_it_begins_again(shell: RemoteHost, workdir: str) -> None:
    with dead_run(shell, workdir) as (_, orphan), open_run(shell, workdir, "next") as later:
        assert later.cleaned is not None
        assert later.cleaned.run_id == "dead"
        assert not lives(orphan)
        assert [left.run_id for left in survey(shell, workdir).runs] == ["next"]
    assert is_empty(survey(shell, workdir))


def test_nobody_cleans_up_after_another_owner(shell: RemoteHost, workdir: str) -> None:
    with dead_run(shell, workdir, owner="somebody@elsewhere") as (run, orphan):
        with pytest.raises(ClusterLocked) as refusal:
            open_run(shell, workdir, "next")
        assert "run dead of somebody@elsewhere" in str(refusal.value)
        assert f"remove {workdir}/lock and {run.run_dir} there" in str(refusal.value)
        assert lives(orphan)
        clean(shell, workdir, "dead")  # somebody who names the run has decided it
    assert is_empty(survey(shell, workdir))


def test_cleaning_says_what_it_ended_and_leaves_others_alone(
    shell: RemoteHost, workdir: str
) -> None:
    with dead_run(shell, workdir) as (_, orphan):
        other = shell.run("sleep 600 > /dev/null 2>&1 & echo $!", timeout=5)
        assert clean(shell, workdir, "no-such-run") == ()
        assert lives(orphan)
        assert clean(shell, workdir, "dead") == ("sleep 600",)
        assert lives(int(other.stdout))
        os.kill(int(other.stdout), signal.SIGKILL)


def test_a_run_that_lives_is_not_cleaned(shell: RemoteHost, workdir: str) -> None:
    with open_run(shell, workdir, "run-1") as run:
        status = run.start(SLEEP)
        assert survey(shell, workdir).dead_runs == ()
        with pytest.raises(LabError, match="run run-1 is alive"):
            clean(shell, workdir, "run-1")
        assert lives(status.pid)


def test_a_host_where_nothing_ever_ran_is_empty(machine: RemoteHost, workdir: str) -> None:
    assert is_empty(survey(machine, workdir))
    assert not Path(workdir).exists()  # looking changes nothing


# --- kept ---------------------------------------------------------------------------------------


def test_a_kept_run_goes_on_and_can_be_taken_over(machine: RemoteHost, workdir: str) -> None:
    run = open_run(machine, workdir, "kept", lease=0.5)
    status = run.start(SLEEP)
    run.close(keep=True)
    with pytest.raises(ClusterLocked, match=r"kept running.*--reuse.*pd-validate down"):
        open_run(machine, workdir, "other", wait=1)  # longer than the lease
    assert lives(status.pid)

    later = RemoteSupervisor.attach(machine, workdir=workdir)
    assert later is not None
    assert (later.run.run_id, later.run.kept) == ("kept", True)
    assert later.status()["engine"] == status
    later.detach()  # and the controller that reuses it may die, too

    def attached() -> RemoteSupervisor | None:
        with suppress(LabError):  # the agent has not heard yet that the one before is gone
            return RemoteSupervisor.attach(machine, workdir=workdir, run_id="kept")
        return None

    last = wait_for(attached, seconds=5, what="the kept run taken over")
    assert last.stop("engine", timeout=5).exit_code == -signal.SIGTERM
    again = last.start(SLEEP)
    last.close()
    assert not lives(again.pid)
    assert is_empty(survey(machine, workdir))


def test_a_kept_run_is_no_leftover(shell: RemoteHost, workdir: str) -> None:
    run = open_run(shell, workdir, "kept")
    run.close(keep=True)
    seen = survey(shell, workdir)
    assert seen.dead_runs == ()
    assert seen.lock is not None
    assert seen.lock.held
    assert [(left.alive, left.kept) for left in seen.runs] == [(True, True)]
    attached = RemoteSupervisor.attach(shell, workdir=workdir)
    assert attached is not None
    attached.close()


def test_there_may_be_nothing_to_take_over(shell: RemoteHost, workdir: str) -> None:
    assert RemoteSupervisor.attach(shell, workdir=workdir) is None


def test_others_may_look_at_a_run_but_not_touch_it(shell: RemoteHost, workdir: str) -> None:
    with open_run(shell, workdir, "run-1") as run:
        status = run.start(ProcessSpec("engine", ("sh", "-c", "echo hi; exec sleep 600")))
        with pytest.raises(LabError, match=f"its controller {owner_name()} is at work"):
            RemoteSupervisor.attach(shell, workdir=workdir)
        looking = RemoteSupervisor.attach(shell, workdir=workdir, own=False)
        assert looking is not None
        assert looking.status() == {"engine": status}
        assert looking.tail("engine") == ["hi"]
        with pytest.raises(LabError, match="attach as the owner first"):
            looking.stop("engine", timeout=1)
        looking.detach()
        assert run.status()["engine"].alive


# --- ports --------------------------------------------------------------------------------------


def test_taken_ports_are_named_with_their_holder(shell: RemoteHost, workdir: str) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        seen = survey(shell, workdir, ports=[port, 1], address="127.0.0.2")
        assert len(seen.ports) == 1
        taken = seen.ports[0]
        assert (taken.host, taken.port, taken.address) == ("d1", port, "127.0.0.2")
        assert taken.pid == os.getpid()
        assert "pytest" in taken.command
        # Another address of the same machine is another host here; all addresses include it.
        assert survey(shell, workdir, ports=[port], address="127.0.0.1").ports == ()
        assert len(survey(shell, workdir, ports=[port], address="0.0.0.0").ports) == 1
    assert survey(shell, workdir, ports=[port]).ports == ()


def test_a_server_on_all_addresses_is_in_everybodys_way(shell: RemoteHost, workdir: str) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        seen = survey(shell, workdir, ports=[port], address="127.0.0.1")
        assert [taken.address for taken in seen.ports] == ["::"]


def test_a_host_that_cannot_be_looked_at_is_an_error(d1: Server, workdir: str) -> None:
    with d1.host(port=1) as host, pytest.raises(HostUnreachable):
        survey(host, workdir)
    (Path(workdir).parent / "broken").write_text("#!/bin/sh\necho 'no python today' >&2; exit 1\n")
    (Path(workdir).parent / "broken").chmod(0o755)
    broken = RemoteHost("d1", d1.address, d1.ssh, python=f"{Path(workdir).parent}/broken")
    with broken, pytest.raises(LabError, match=r"d1: cannot look at .*no python today"):
        survey(broken, workdir)
