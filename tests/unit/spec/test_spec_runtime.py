"""docker exec and docker run as argument lists, quoting included.

The stand-in `docker` does what the real one does with an argument list: `exec` sets
variables and directory and executes the rest as it is, without any shell.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pd_validate.errors import SpecError
from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster, DockerExecRuntime, DockerRunRuntime, HostRuntime
from pd_validate.spec.runtime import (
    check_can_stay,
    container_of,
    enter,
    remove_container,
    start_container,
    wrap,
)

ARGUMENTS = (
    "plain",
    "two words",
    "it's",
    'say "hi"',
    '{"a": [1, "中文"]}',
    "$HOME `id` \\",
    "",
    "*",
)
VALUES = {
    "PLAIN": "1",
    "SPACED": "a b",
    "QUOTED": 'it\'s "x"',
    "JSON": '{"键": "值"}',
    "EMPTY": "",
}
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"

DOCKER = """\
#!{python} -SE
import os, sys
arguments = sys.argv[1:]
assert arguments[:2] == ["exec", "--interactive"], arguments
arguments = arguments[2:]
while arguments[0].startswith("--"):
    option, value = arguments[:2]
    arguments = arguments[2:]
    if option == "--env":
        name, _, text = value.partition("=")
        os.environ[name] = text
    elif option == "--workdir":
        os.chdir(value)
    else:
        raise SystemExit("unknown option " + option)
container, *command = arguments
assert container == "vllm ascend", container
os.execvp(command[0], command)
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    path = tmp_path / "docker"
    path.write_text(DOCKER.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def containers() -> Cluster:
    return load_cluster(Path(__file__).parents[3] / "clusters" / "containers.yaml", environ={})


@pytest.mark.parametrize("kind", ["host", "docker-exec"])
def test_arguments_variables_and_directory_arrive_unchanged(
    kind: str, docker: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run 目录"
    directory.mkdir()
    runtime = (
        HostRuntime()
        if kind == "host"
        else DockerExecRuntime(
            kind="docker-exec", container="vllm ascend", docker=f"env VIA=sudo {docker}"
        )
    )
    command = wrap(
        runtime,
        [sys.executable, "-c", SHOW, *ARGUMENTS],
        run_id="r1",
        env=VALUES,
        cwd=str(directory),
    )

    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)

    argv, env, cwd = json.loads(done.stdout)
    assert tuple(argv) == ARGUMENTS
    assert {name: env[name] for name in VALUES} == VALUES
    assert cwd == str(directory)


def test_on_the_host_a_bare_command_stays_as_it_is() -> None:
    assert wrap(HostRuntime(), ["echo", "hi"], run_id="r1") == ("echo", "hi")


def test_standard_input_reaches_the_command(docker: Path) -> None:
    runtime = DockerExecRuntime(kind="docker-exec", container="vllm ascend", docker=str(docker))
    done = subprocess.run(
        wrap(runtime, ["cat"], run_id="r1"), input=b"\x00data", capture_output=True, timeout=20
    )
    assert done.stdout == b"\x00data"


def test_a_container_of_ours_is_entered_by_its_name() -> None:
    runtime = DockerRunRuntime(kind="docker-run", image="vllm-ascend")
    assert container_of(runtime, "r1") == "pd-validate-r1"
    assert wrap(runtime, ["true"], run_id="r1")[-2:] == ("pd-validate-r1", "true")


def test_nothing_can_be_left_running_in_a_container_of_ours(containers: Cluster) -> None:
    with pytest.raises(SpecError, match="hosts d2: a container of kind docker-run ends with its"):
        check_can_stay(containers)


class TestStartContainer:
    def test_has_what_ascend_needs(self, containers: Cluster) -> None:
        command = start_container(containers, "d2", "r1")
        assert command is not None
        text = " ".join(command)
        assert command[:5] == ("sudo", "-n", "docker", "run", "--detach")
        assert "--net=host" in command, "the rank table has the host's addresses"
        for device in range(8):
            assert f"--device /dev/davinci{device} " in text
        for node in ("davinci_manager", "devmm_svm", "hisi_hdc"):
            assert f"--device /dev/{node} " in text
        for path in ("/etc/hccn.conf", "/usr/local/Ascend/driver/tools/hccn_tool"):
            assert f"--mount type=bind,source={path},target={path},readonly " in text
        assert "source=/model/Qwen3-30B-A3B,target=/model/Qwen3-30B-A3B,readonly" in text
        assert "--mount type=bind,source=/tmp/pd-validate,target=/tmp/pd-validate " in text

    def test_the_files_own_arguments_come_last(self, containers: Cluster) -> None:
        command = start_container(containers, "d2", "r1")
        assert command is not None
        assert command[command.index("--volume") :] == (
            "--volume",
            "/mnt/cache:/root/.cache",
            "--shm-size=16g",
            "--entrypoint",
            "sleep",
            "quay.io/ascend/vllm-ascend:v0.10.1rc1",
            "infinity",
        )

    def test_it_can_be_found_and_removed(self, containers: Cluster) -> None:
        command = start_container(containers, "d2", "r1")
        assert command is not None
        assert command[command.index("--name") + 1] == "pd-validate-r1"
        assert command[command.index("--label") + 1] == "pd-validate.run=r1"
        assert remove_container(containers, "d2", "r1") == (
            *("sudo", "-n", "docker"),
            *("rm", "--force", "pd-validate-r1"),
        )

    def test_a_container_that_is_not_ours_is_left_alone(self, containers: Cluster) -> None:
        assert start_container(containers, "p1", "r1") is None
        assert remove_container(containers, "p1", "r1") is None


def test_what_a_person_types_to_get_inside(containers: Cluster) -> None:
    assert enter(containers, "p1", "r1") == (
        ("docker", "exec", "--interactive", "--tty", "vllm-ascend", "bash"),
    )
    start, shell = enter(containers, "d2", "r1")
    assert start == start_container(containers, "d2", "r1")
    assert shell[-2:] == ("pd-validate-r1", "bash")
    on_host = containers.model_copy(update={"runtime": HostRuntime()})
    assert enter(on_host, "p1", "r1") == ()
