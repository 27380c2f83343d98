"""The docker of a twin host: arguments, streams, and what ends with what."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from twin_under_test import Twin

from twin.tools import docker

AWKWARD = ["a  b", "it's", 'say "hi"', '{"键": "值 1"}', "$HOME", "*", "", "back\\slash", "-x"]


@pytest.fixture
def docker_on_d1(a2: Twin) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run docker on host d1, which has a container `serving`; nothing survives the test."""
    a2.fabric.hosts["d1"].containers = ("serving",)
    a2.store()

    def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return a2.shell("d1", "docker", *words, stdin=stdin)

    yield run
    for name in run("ps", "--all", "--format", "{{.Names}}").stdout.split():
        run("rm", "--force", name)


Docker = Callable[..., subprocess.CompletedProcess[str]]


def alive(pid: int) -> bool:
    return docker.start_time(pid) != ""


def until(condition: Callable[[], bool]) -> bool:
    return docker.poll(condition, 5.0)


def test_arguments_arrive_as_they_were_given(docker_on_d1: Docker) -> None:
    show = 'for word; do printf "%s\\n" "<$word>"; done'
    ended = docker_on_d1("exec", "serving", "sh", "-c", show, "sh", *AWKWARD)
    assert ended.stdout.splitlines() == [f"<{word}>" for word in AWKWARD]


def test_environment_and_directory(docker_on_d1: Docker, a2: Twin) -> None:
    where = str(a2.directory)
    ended = docker_on_d1(
        *("exec", "--env", "A=x y", "-e", "B=值'\"", "--workdir", where, "serving"),
        *("sh", "-c", 'echo "$A $B"; pwd'),
    )
    assert ended.stdout == f"x y 值'\"\n{where}\n"


def test_stdin_needs_interactive(docker_on_d1: Docker) -> None:
    assert docker_on_d1("exec", "-i", "serving", "cat", stdin="hello\n").stdout == "hello\n"
    assert docker_on_d1("exec", "serving", "cat", stdin="hello\n").stdout == ""


def test_streams_and_exit_codes(docker_on_d1: Docker) -> None:
    ended = docker_on_d1("exec", "serving", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("out\n", "err\n", 7)
    assert docker_on_d1("exec", "serving", "sh", "-c", "kill -9 $$").returncode == 137
    assert docker_on_d1("exec", "serving", "no-such-program").returncode == 127
    assert docker_on_d1("exec", "--workdir", "/no/such", "serving", "true").returncode == 127
    missing = docker_on_d1("exec", "nobody", "true")
    assert "No such container: nobody" in missing.stderr
    assert missing.returncode == 1


def test_tools_in_a_container_are_the_host_s(docker_on_d1: Docker) -> None:
    ended = docker_on_d1("exec", "serving", "hccn_tool", "-i", "0", "-ip", "-g")
    assert ended.stdout == "ipaddr:10.20.2.10\nnetmask:255.255.0.0\n"


def test_a_user_without_a_name_gets_nothing_from_hccn_tool(docker_on_d1: Docker) -> None:
    ended = docker_on_d1("exec", "--user", "4242", "serving", "hccn_tool", "-i", "0", "-link", "-g")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 234)


def test_ending_the_exec_client_leaves_what_it_started(a2: Twin, docker_on_d1: Docker) -> None:
    docker_on_d1("run", "--detach", "--name", "work", "image", "sleep", "60")
    client = subprocess.Popen(
        ["docker", "exec", "work", "sh", "-c", "echo $$; exec sleep 60"],
        env=a2.environment("d1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    with client:
        pid = int(client.stdout.readline())
        client.terminate()
        assert client.wait(10) == -signal.SIGTERM
        assert alive(pid)
        docker_on_d1("rm", "--force", "work")
        assert until(lambda: not alive(pid))


def test_a_container_of_ours_from_start_to_end(docker_on_d1: Docker) -> None:
    started = docker_on_d1(
        *("run", "--detach", "--rm", "--init", "--name", "ours", "--label", "run=42"),
        *("--net=host", "--shm-size=1g", "--device", "/dev/davinci0"),
        *("--device", "/dev/davinci_manager", "--mount"),
        "type=bind,source=/usr/local/Ascend/driver,target=/usr/local/Ascend/driver,readonly",
        *("--volume", "/etc/hccn.conf:/etc/hccn.conf:ro"),
        *("--entrypoint", "sleep", "ascend:910b", "infinity"),
    )
    assert started.returncode == 0, started.stderr
    assert len(started.stdout.strip()) == 64
    running = docker_on_d1("ps", "--filter", "label=run=42", "--format", "{{.Names}} {{.Image}}")
    assert running.stdout == "ours ascend:910b\n"
    seen = docker_on_d1("inspect", "--format", "{{.State.Running}} {{json .Config.Cmd}}", "ours")
    assert seen.stdout == 'true ["sleep", "infinity"]\n'
    again = docker_on_d1("run", "--detach", "--name", "ours", "ascend:910b")
    assert again.returncode == 125
    assert "already in use" in again.stderr
    assert "is running" in docker_on_d1("rm", "ours").stderr
    assert docker_on_d1("rm", "--force", "ours").stdout == "ours\n"
    assert docker_on_d1("inspect", "ours").returncode == 1
    assert docker_on_d1("ps", "--all", "--filter", "name=ours", "--quiet").stdout == ""


def test_removing_ends_detached_grandchildren_too(docker_on_d1: Docker) -> None:
    docker_on_d1("run", "--detach", "--name", "deep", "image", "sleep", "60")
    ended = docker_on_d1("exec", "deep", "sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!")
    pid = int(ended.stdout)
    assert alive(pid)
    docker_on_d1("rm", "--force", "deep")
    assert until(lambda: not alive(pid))


def test_stop_asks_first(docker_on_d1: Docker) -> None:
    docker_on_d1(
        *("run", "--detach", "--name", "polite", "image", "sh", "-c"),
        "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
    )
    assert until(lambda: docker_on_d1("logs", "polite").stdout == "ready\n")
    assert docker_on_d1("stop", "polite").stdout == "polite\n"
    assert docker_on_d1("logs", "polite").stdout == "ready\nbye\n"
    assert docker_on_d1("ps", "--quiet", "--filter", "name=polite").stdout == ""


def test_run_in_the_foreground_hands_signals_on(a2: Twin, docker_on_d1: Docker) -> None:
    client = subprocess.Popen(
        ["docker", "run", "--rm", "--name", "fore", "image", "sh", "-c", "echo up; exec sleep 60"],
        env=a2.environment("d1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    with client:
        assert client.stdout.readline() == "up\n"
        assert until(lambda: docker_on_d1("ps", "-q", "-f", "name=fore").stdout != "")
        client.terminate()
        assert client.wait(10) == 128 + signal.SIGTERM
    assert docker_on_d1("ps", "--all", "--quiet", "--filter", "name=fore").stdout == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--device", "/dev/davinci9", "image"], "/dev/davinci9"),
        (["run", "--mount", "type=bind,source=/no/such,target=/x", "image"], "/no/such"),
        (["run", "--bogus", "image"], "unknown flag: --bogus"),
        (["run", "--name"], "flag needs an argument"),
        (["run", "image", "no-such-program"], "no-such-program"),
    ],
)
def test_what_cannot_be_run(docker_on_d1: Docker, words: list[str], text: str) -> None:
    ended = docker_on_d1(*words)
    assert text in ended.stderr
    assert ended.returncode in (125, 127)
    assert docker_on_d1("ps", "--all", "--quiet", "--filter", "name=twin_").stdout == ""
