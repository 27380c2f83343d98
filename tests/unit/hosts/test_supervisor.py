"""Supervised processes: started, watched, signalled and ended with everything they started."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ssh_servers import Server, is_empty, lives

from pd_validate.errors import CommandTimeout, LabError
from pd_validate.hosts.api import ProcessSpec, ProcessStatus
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor, survey
from pd_validate.spec.models import Timeouts
from pd_validate.waiting import wait_for


def script(name: str, text: str, env: Mapping[str, str] | None = None) -> ProcessSpec:
    return ProcessSpec(name, ("/bin/sh", "-c", text), env=env or {})


def ended(run: RemoteSupervisor, name: str) -> ProcessStatus:
    """The status of a process once it has ended."""

    def look() -> ProcessStatus | None:
        status = run.status()[name]
        return None if status.alive else status

    return wait_for(look, seconds=10, what=f"the end of {name}", interval=0.02)


def logged(run: RemoteSupervisor, name: str, text: str) -> list[str]:
    """The log of a process once `text` stands in it."""

    def look() -> list[str] | None:
        lines = run.tail(name)
        return lines if any(text in line for line in lines) else None

    return wait_for(look, seconds=10, what=f"`{text}` in the log of {name}", interval=0.02)


# --- start and status ---------------------------------------------------------------------------


def test_a_process_runs_ends_and_tells_its_exit_code(run: RemoteSupervisor, engine: str) -> None:
    before = time.time()
    started = run.start(script(engine, "echo hello; sleep 0.2; exit 3"))
    assert started.alive
    status = ended(run, engine)
    assert (status.pid, status.exit_code) == (started.pid, 3)
    assert status.ended is not None
    assert before - 1 < status.started < status.ended < time.time() + 1
    assert run.tail(engine) == ["hello"]


def test_a_death_by_signal_is_minus_its_number(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "kill -SEGV $$"))
    assert ended(run, engine).exit_code == -signal.SIGSEGV


def test_arguments_and_environment_arrive_as_they_are(
    run: RemoteSupervisor, engine: str, tmp_path: Path
) -> None:
    program = (
        "import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['X'], os.getcwd()]))"
    )
    awkward = ["", "a b", "$HOME `id` 'x' \"y\"", "昇腾\n"]
    argv = (sys.executable, "-c", program, *awkward)
    run.start(ProcessSpec(engine, argv, env={"X": "a'b"}, cwd=str(tmp_path)))
    ended(run, engine)
    assert json.loads(run.tail(engine)[0]) == [awkward, "a'b", str(tmp_path)]


def test_a_process_knows_its_run_and_starts_in_its_directory(
    run: RemoteSupervisor, engine: str
) -> None:
    run.start(script(engine, "echo $PD_RUN_ID $PD_RUN_DIR $PD_PROCESS; pwd"))
    ended(run, engine)
    assert run.tail(engine) == [f"shared {run.run_dir} {engine}", run.run_dir]


def test_a_program_that_is_not_there_is_said_at_once(run: RemoteSupervisor) -> None:
    with pytest.raises(LabError, match=r"d1: cannot start engine: no-such-vllm: No such file"):
        run.start(ProcessSpec("engine", ("no-such-vllm",)))


def test_a_directory_that_is_not_there_is_said_at_once(run: RemoteSupervisor) -> None:
    with pytest.raises(LabError, match=r"cannot start engine: /no/such: No such file"):
        run.start(ProcessSpec("engine", ("true",), cwd="/no/such"))


def test_one_name_runs_once_at_a_time(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "exit 0"))
    ended(run, engine)
    run.start(script(engine, "exec sleep 60"))
    with pytest.raises(LabError, match=f"process {engine} runs already"):
        run.start(script(engine, "true"))
    run.stop(engine, timeout=5)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "agent", "a b"])
def test_a_name_that_cannot_be_one_is_refused(run: RemoteSupervisor, name: str) -> None:
    with pytest.raises(LabError, match="is no name for a process"):
        run.start(script(name, "true"))


def test_a_process_that_was_never_started_is_named(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "true"))
    with pytest.raises(LabError, match=rf"no process decode-9 in this run \(there are: .*{engine}"):
        run.tail("decode-9")


def test_records_and_logs_are_for_nobody_else_and_keep_no_secret(
    run: RemoteSupervisor, engine: str
) -> None:
    status = run.start(script(engine, "exit 4", env={"HF_TOKEN": "hunter2"}))
    ended(run, engine)
    record = json.loads((Path(run.run_dir) / "pids" / f"{engine}.json").read_text())
    assert (record["pid"], record["exit_code"]) == (status.pid, 4)
    assert status.log == f"{run.run_dir}/logs/{engine}.log"
    assert stat.S_IMODE(Path(run.run_dir).stat().st_mode) == 0o700
    files = [path for path in Path(run.run_dir).rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_the_log_has_both_streams_in_order(run: RemoteSupervisor, engine: str) -> None:
    run.start(
        script(engine, "for n in 1 2; do echo out$n; echo err$n >&2; done; printf 'caf\\351'")
    )
    ended(run, engine)
    assert run.tail(engine, lines=3) == ["out2", "err2", "caf\N{REPLACEMENT CHARACTER}"]


def test_a_huge_log_is_read_from_its_end(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo last"))
    ended(run, engine)
    assert run.tail(engine, lines=1) == ["last"]


# --- signals and stopping -----------------------------------------------------------------------

FAMILY = """
import subprocess, sys, time
worker = '''
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
'''
for n in range(2):
    subprocess.Popen([sys.executable, "-c", worker, f"Worker_TP{n}"], start_new_session=n == 1)
time.sleep(600)
"""


def start_family(run: RemoteSupervisor, name: str) -> tuple[ProcessStatus, set[int]]:
    """A process with two workers that ignore SIGTERM, one in a session of its own."""
    status = run.start(ProcessSpec(name, (sys.executable, "-c", FAMILY)))

    def both_up() -> bool | None:
        return True if run.tail(name).count("up") == 2 else None

    wait_for(both_up, seconds=10, what="both workers", interval=0.05)
    children = Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text().split()
    return status, {int(pid) for pid in children}


def test_stop_ends_workers_that_ignore_it_or_left_the_group(
    run: RemoteSupervisor, engine: str
) -> None:
    status, workers = start_family(run, engine)
    assert len(workers) == 2
    assert run.stop(engine, timeout=0.5).exit_code == -signal.SIGTERM
    assert [pid for pid in {status.pid, *workers} if lives(pid)] == []


def test_stop_gives_time_to_end_well(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "trap 'sleep 0.3; echo bye; exit 5' TERM; echo up; sleep 600 & wait"))
    logged(run, engine, "up")
    assert run.stop(engine, timeout=10).exit_code == 5
    assert "bye" in run.tail(engine)


def test_stop_reaches_a_paused_process(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "exec sleep 600"))
    assert run.signal(engine, signal.SIGSTOP) == 1
    assert run.stop(engine, timeout=10).exit_code == -signal.SIGTERM  # not SIGKILL


def test_stop_ends_the_orphans_of_a_process_that_is_gone(
    run: RemoteSupervisor, engine: str, tmp_path: Path
) -> None:
    run.start(script(engine, f"sleep 600 & echo $! > {tmp_path}/pid; exit 1"))
    assert ended(run, engine).exit_code == 1
    orphan = int((tmp_path / "pid").read_text())
    assert lives(orphan)
    assert run.stop(engine, timeout=5).exit_code == 1
    assert not lives(orphan)


def test_stopping_twice_is_fine(run: RemoteSupervisor, engine: str) -> None:
    run.start(script(engine, "exec sleep 600"))
    assert run.stop(engine, timeout=5) == run.stop(engine, timeout=5)


def test_a_signal_goes_to_the_process_or_to_those_of_that_title(
    run: RemoteSupervisor, engine: str
) -> None:
    status, workers = start_family(run, engine)
    assert run.signal(engine, signal.SIGKILL, match="Worker_TP1") == 1
    wait_for(
        lambda: True if sum(map(lives, workers)) == 1 else None, seconds=5, what="a worker's end"
    )
    assert run.signal(engine, signal.SIGKILL, match="Worker_TP7") == 0
    assert lives(status.pid)
    assert run.signal(engine, signal.SIGKILL) == 1
    assert ended(run, engine).exit_code == -signal.SIGKILL
    assert run.signal(engine, signal.SIGKILL) == 0
    run.stop(engine, timeout=0.1)
    assert not any(map(lives, workers))


def test_a_worker_that_stands_still_is_seen_and_nobody_else(
    run: RemoteSupervisor, engine: str
) -> None:
    start_family(run, engine)
    assert run.stopped(engine) == []
    assert run.signal(engine, signal.SIGSTOP, match="Worker_TP1") == 1
    (worker,) = wait_for(
        lambda: run.stopped(engine) or None, seconds=5, what="a worker that stands still"
    )
    assert "Worker_TP1" in worker.title
    assert run.signal(engine, signal.SIGCONT, match="") > 1
    wait_for(lambda: True if not run.stopped(engine) else None, seconds=5, what="its going on")


def test_threads_share_a_supervisor(run: RemoteSupervisor, engine: str) -> None:
    names = [f"{engine}-{n}" for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: run.start(script(name, "exec sleep 600")), names))
        assert set(run.status()) >= set(names)
        codes = pool.map(lambda name: run.stop(name, timeout=5).exit_code, names)
        assert set(codes) == {-signal.SIGTERM}


# --- the whole run ------------------------------------------------------------------------------


def test_others_go_on_and_answer_while_one_is_being_stopped(
    shell: RemoteHost, workdir: str
) -> None:
    with RemoteSupervisor.open(shell, workdir=workdir, run_id="run-1", lease=1) as run:
        run.start(script("stubborn", "trap '' TERM; echo up; while :; do sleep 0.1; done"))
        run.start(script("other", "exec sleep 600"))
        logged(run, "stubborn", "up")
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(lambda: run.stop("stubborn", timeout=1.5))
            while not stopping.done():  # for longer than the lease
                assert run.status()["other"].alive
            assert stopping.result().exit_code == -signal.SIGKILL


def test_closing_ends_everything_and_removes_everything(machine: RemoteHost, workdir: str) -> None:
    run = RemoteSupervisor.open(machine, workdir=workdir, run_id="run-1", lease=5)
    status, workers = start_family(run, "engine")
    run.start(script("other", "exec sleep 600"))
    run.close()
    assert [pid for pid in {status.pid, *workers} if lives(pid)] == []
    assert os.listdir(workdir) == []
    assert is_empty(survey(machine, workdir))
    run.close()  # twice is fine


def test_files_stay_if_told_so(shell: RemoteHost, workdir: str) -> None:
    with RemoteSupervisor.open(
        shell, workdir=workdir, run_id="run-1", lease=5, keep_files=True
    ) as run:
        run.start(script("engine", "echo last words"))
        ended(run, "engine")
    assert (Path(workdir) / "run-1" / "logs" / "engine.log").read_text() == "last words\n"
    assert not (Path(workdir) / "lock").exists()


# --- where it cannot work -----------------------------------------------------------------------


def test_a_host_without_python_is_said(d1: Server, workdir: str) -> None:
    quick = Timeouts(connect=5, command=5)
    host = RemoteHost("d1", d1.address, d1.ssh, timeouts=quick, python="no-python-here")
    with host, pytest.raises(LabError, match=r"d1: our agent could not be started.*no-python-here"):
        RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=5)


def test_greetings_of_a_shell_do_no_harm(d1: Server, workdir: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "Welcome to d1!"\nexec python3 "$@"\n')
    python.chmod(0o755)
    host = RemoteHost("d1", d1.address, d1.ssh, python=str(python))
    with host, RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=5) as run:
        assert run.status() == {}
        assert [each.run_id for each in survey(host, workdir).runs] == ["run-1"]


def test_a_work_directory_that_cannot_be_made_is_said(shell: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"d1: cannot use the work directory .*/file/work"):
        RemoteSupervisor.open(shell, workdir=f"{tmp_path}/file/work", run_id="run-1", lease=5)


def test_an_agent_that_does_not_answer_is_a_timeout(d1: Server, workdir: str) -> None:
    host = RemoteHost("d1", d1.address, d1.ssh, timeouts=Timeouts(connect=5, command=0.5))
    with host, RemoteSupervisor.open(host, workdir=workdir, run_id="run-1", lease=60) as run:
        agent = int(json.loads((Path(run.run_dir) / "run.json").read_text())["agent_pid"])
        os.kill(agent, signal.SIGSTOP)
        try:
            with pytest.raises(CommandTimeout, match=r"did not answer `status` within 0\.5 s"):
                run.status()
        finally:
            os.kill(agent, signal.SIGCONT)
        assert run.status() == {}
