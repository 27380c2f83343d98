"""The same commands, files and supervised processes inside a container of the host."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_servers import QUICK, Server, is_empty, lives, server_of

from pd_validate.errors import LabError
from pd_validate.hosts.api import ProcessSpec
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor, survey
from pd_validate.spec.models import DockerExecRuntime
from pd_validate.waiting import wait_for
from twin.fabric import Product, healthy_cluster
from twin.hosts import TwinHosts, TwinHostSpec

IMAGE = "quay.io/ascend/vllm-ascend:v0.10.1rc1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A simulated host with the silicon's state, which its docker looks at."""
    state = tmp_path / "state"
    healthy_cluster({"d1": "127.0.0.8"}, Product.A2).write(state)
    spec = TwinHostSpec("d1", "127.0.0.8")
    with TwinHosts.start([spec], root=tmp_path / "hosts", state=state) as hosts:
        yield server_of(hosts, "d1")


@pytest.fixture
def container(server: Server) -> Iterator[RemoteHost]:
    name = f"vllm-{secrets.token_hex(4)}"
    runtime = DockerExecRuntime(kind="docker-exec", container=name)
    with RemoteHost("d1", server.address, server.ssh, runtime=runtime, timeouts=QUICK) as host:
        run = f"docker run --detach --rm --name {name} {IMAGE} sleep infinity"
        assert host.outside().run(run, timeout=20).exit_code == 0
        yield host
        host.outside().run(f"docker rm --force {name}", timeout=20)


def inside(host: RemoteHost) -> bool:
    return host.run('test -n "$TWIN_CONTAINER"', timeout=5).exit_code == 0


def test_commands_run_inside_and_outside(container: RemoteHost) -> None:
    assert inside(container)
    assert not inside(container.outside())
    done = container.run('cat; echo "$A"; exit 7', timeout=5, stdin=b"in ", env={"A": "b c"})
    assert (done.exit_code, done.stdout) == (7, "in b c\n")
    assert container.run("kill -KILL $$", timeout=5).exit_code == 137
    assert (
        container.python("import os; print('TWIN_CONTAINER' in os.environ)", timeout=10).stdout
        == "True\n"
    )


def test_files_go_in_and_out(container: RemoteHost, tmp_path: Path) -> None:
    path = str(tmp_path / "it's here")
    container.put(b"\x00data", path)
    assert container.get(path) == b"\x00data"


def test_a_container_that_does_not_run_is_said(server: Server) -> None:
    runtime = DockerExecRuntime(kind="docker-exec", container="nowhere")
    with RemoteHost("d1", server.address, server.ssh, runtime=runtime, timeouts=QUICK) as host:
        assert "No such container: nowhere" in host.run("true", timeout=5).stderr
        with pytest.raises(LabError, match="No such container: nowhere"):
            host.put(b"", "/tmp/file")


def test_processes_run_inside_and_end(container: RemoteHost, workdir: str) -> None:
    run = RemoteSupervisor.open(container, workdir=workdir, run_id="run-1", lease=5)
    script = 'test -n "$TWIN_CONTAINER" && echo inside; setsid sleep 600 & exec sleep 600'
    status = run.start(ProcessSpec("engine", ("sh", "-c", script)))
    wait_for(lambda: run.tail("engine") or None, seconds=5, what="its output")
    assert run.tail("engine") == ["inside"]
    run.close()
    assert not lives(status.pid)
    assert is_empty(survey(container, workdir))


# --- what is no process of ours -----------------------------------------------------------------


def test_a_command_for_the_end_is_run_at_the_end(shell: RemoteHost, workdir: str) -> None:
    trace = Path(workdir).parent / "trace"
    with RemoteSupervisor.open(shell, workdir=workdir, run_id="run-1", lease=5) as run:
        for word in ("first", "second"):
            run.at_end(["sh", "-c", f"echo {word} >> {trace}"])
        assert not trace.exists()
    assert trace.read_text() == "first\nsecond\n"


def test_a_command_for_the_end_that_fails_is_told(shell: RemoteHost, workdir: str) -> None:
    run = RemoteSupervisor.open(shell, workdir=workdir, run_id="run-1", lease=5)
    run.at_end(["sh", "-c", "echo no such container >&2; exit 1"])
    run.at_end(["no-such-docker"])
    with pytest.raises(LabError, match=r"no such container; no-such-docker: .*No such file"):
        run.close()
    assert is_empty(survey(shell, workdir))


@pytest.mark.parametrize("victim", ["controller", "agent"])
def test_a_container_does_not_outlive_its_run(server: Server, workdir: str, victim: str) -> None:
    """Whoever is killed: the host removes the container by itself."""
    program = f"""
import sys, time
from pd_validate.hosts.remote import RemoteHost
from pd_validate.hosts.supervisor import RemoteSupervisor
from pd_validate.spec.models import Ssh
host = RemoteHost("d1", sys.argv[1], Ssh.model_validate_json(sys.argv[2]))
run = RemoteSupervisor.open(host, workdir={workdir!r}, run_id="run-1", lease=2)
run.at_end(["docker", "rm", "--force", "engine"])
host.run("docker run --detach --rm --name engine {IMAGE} sleep infinity", timeout=20)
inspect = "docker inspect --format '{{{{.State.Pid}}}}' engine"
print(host.run(inspect, timeout=20).stdout.strip(), flush=True)
time.sleep(600)
"""
    arguments = [server.address, server.ssh.model_dump_json()]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        pid = int(controller.stdout.readline())
        assert lives(pid)
        if victim == "agent":
            with server.host() as host:
                found = survey(host, workdir).processes
            os.kill(next(each.pid for each in found if each.name == "agent"), signal.SIGKILL)
        else:
            controller.kill()
        wait_for(lambda: None if lives(pid) else True, seconds=15, what="the container's end")
        controller.kill()
    wait_for(lambda: None if os.listdir(workdir) else True, seconds=10, what="the end of the run")
