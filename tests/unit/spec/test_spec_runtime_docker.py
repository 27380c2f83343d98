"""Both container runtimes through a docker client: the one that hosts of the twin have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pd_validate.spec.load import load_cluster
from pd_validate.spec.models import Cluster
from pd_validate.spec.runtime import remove_container, start_container, wrap
from twin.fabric import Product, healthy_cluster
from twin.tools import launch

CLUSTERS = Path(__file__).parents[3] / "clusters"
RUN_ID = "r1"
ARGUMENTS = ("two words", "it's", '{"kv_role": "kv_producer", "名": "中文"}', "$HOME", "", "-x")
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['JSON'], os.getcwd()]))"

OnHost = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """clusters/containers.yaml with directories that exist here."""
    for name in ("model", "work 目录"):
        (tmp_path / name).mkdir()
    path = tmp_path / "cluster.yaml"
    path.write_text(
        f"include: {CLUSTERS / 'containers.yaml'}\n"
        f"workdir: {tmp_path}/work 目录\n"
        f"model: {{path: {tmp_path}/model}}\n"
        "hosts: {d2: {runtime: {docker: docker}}}\n"
    )
    return load_cluster(path, environ={})


@pytest.fixture
def on_host(cluster: Cluster, tmp_path: Path) -> Callable[[str], OnHost]:
    """`on_host("d1")(argv)` executes argv on a twin host; p1 and d1 have a container already."""
    fabric = healthy_cluster({n: h.address for n, h in cluster.hosts.items()}, Product.A2)
    for name in ("p1", "d1"):
        fabric.hosts[name].containers = ("vllm-ascend",)
    state, programs = tmp_path / "state", tmp_path / "bin"
    fabric.write(state)
    launch.install(str(programs))

    def on_host(host: str) -> OnHost:
        env = {
            **os.environ,
            "TWIN_STATE": str(state),
            "TWIN_HOST": host,
            "PATH": f"{programs}:{os.environ['PATH']}",
        }

        def execute(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)

        return execute

    return on_host


def shown(done: subprocess.CompletedProcess[str]) -> list[object]:
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert isinstance(seen, list)
    return seen


def command(cluster: Cluster, host: str) -> tuple[str, ...]:
    return wrap(
        cluster.runtime_of(host),
        [sys.executable, "-c", SHOW, *ARGUMENTS],
        run_id=RUN_ID,
        env={"JSON": '{"键": "it\'s"}'},
        cwd=str(cluster.workdir_of(host)),
    )


def expected(cluster: Cluster, host: str) -> list[object]:
    return [list(ARGUMENTS), '{"键": "it\'s"}', str(cluster.workdir_of(host))]


def test_in_a_container_that_is_there(cluster: Cluster, on_host: Callable[[str], OnHost]) -> None:
    assert shown(on_host("d1")(command(cluster, "d1"))) == expected(cluster, "d1")


def test_in_a_container_of_ours(cluster: Cluster, on_host: Callable[[str], OnHost]) -> None:
    execute = on_host("d2")
    start = start_container(cluster, "d2", RUN_ID)
    remove = remove_container(cluster, "d2", RUN_ID)
    assert start is not None
    assert remove is not None
    try:
        started = execute(start)
        assert started.returncode == 0, started.stderr
        assert shown(execute(command(cluster, "d2"))) == expected(cluster, "d2")
    finally:
        removed = execute(remove)
    assert removed.returncode == 0, removed.stderr
    gone = execute(command(cluster, "d2"))
    assert "No such container: pd-validate-r1" in gone.stderr


def test_a_container_of_ours_needs_its_directory_on_the_host(
    cluster: Cluster, on_host: Callable[[str], OnHost]
) -> None:
    """docker would make a missing volume's directory itself, as root: we ask for an error."""
    cluster.workdir_of("d2").rmdir()
    start = start_container(cluster, "d2", RUN_ID)
    assert start is not None
    failed = on_host("d2")(start)
    assert failed.returncode != 0
    assert "bind source path does not exist" in failed.stderr
