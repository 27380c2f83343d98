"""The twin's `vllm`: the guide's command line with only that changed which a CPU cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pd_validate.spec.plan import launch_plan, run_dirs
from twin.cluster import DEFAULT_CLUSTER, described_cluster
from twin.engine import (
    KV_CACHE_BLOCKS,
    KV_CACHE_BYTES,
    SITE,
    SITE_ASCEND,
    adapt,
    before_0_11,
    environment,
    middleware,
)

ADDRESS = "127.0.0.2"


def test_the_plans_own_command_line() -> None:
    """Everything that is not named here arrives at vLLM as it was written."""
    cluster = described_cluster(DEFAULT_CLUSTER)
    plan = launch_plan(cluster, run_dirs=run_dirs(cluster, "run-1"))
    argv = list(plan.instances["decode-1"].argv[1:])
    assert argv[0] == "serve"
    got = adapt(argv, ADDRESS)
    gone = [word for word in argv if word not in got]
    new = [word for word in got if word not in argv]
    assert gone == ["0.0.0.0", "--gpu-memory-utilization", "0.9"]
    assert new == [ADDRESS, "--kv-cache-memory-bytes", KV_CACHE_BYTES]
    for flag in ("--kv-transfer-config", "--additional-config", "--tensor-parallel-size"):
        assert got[got.index(flag) + 1] == argv[argv.index(flag) + 1]


@pytest.mark.parametrize(
    ("given", "bound"), [("0.0.0.0", ADDRESS), ("::", ADDRESS), ("127.0.0.9", "127.0.0.9")]
)
def test_the_wildcard_is_the_hosts_own_address(given: str, bound: str) -> None:
    got = adapt(["serve", "/model", "--host", given], ADDRESS)
    assert got[got.index("--host") + 1] == bound


def test_what_is_stated_is_kept() -> None:
    argv = ["serve", "/model", "--enforce-eager", "--kv-cache-memory-bytes", "1G"]
    assert adapt(argv, ADDRESS) == argv


@pytest.mark.parametrize("argv", [["--version"], ["bench", "--host", "0.0.0.0"], []])
def test_other_commands_are_left_alone(argv: list[str]) -> None:
    assert adapt(argv, ADDRESS, ["some.Middleware"]) == argv


def test_the_arguments_given_are_not_changed() -> None:
    argv = ["serve", "/model", "--gpu-memory-utilization", "0.9"]
    adapt(argv, ADDRESS)
    assert argv == ["serve", "/model", "--gpu-memory-utilization", "0.9"]


def test_an_instance_with_an_http_fault_gets_a_middleware(tmp_path: Path) -> None:
    fault = {"instance": "decode-1", "http": {"status": 500}}
    told = {"http": [fault], "instance": [], "later": False}
    (tmp_path / "engine_faults.json").write_text(json.dumps(told))
    env = {"TWIN_STATE": str(tmp_path), "PD_INSTANCE": "decode-1"}
    names = middleware(env)
    assert names == ["twin_engine.http_faults.HttpFaults"]
    assert adapt(["serve", "/m"], ADDRESS, names)[-2:] == ["--middleware", names[0]]
    assert middleware(env | {"PD_INSTANCE": "decode-2"}) == []


@pytest.mark.parametrize("missing", ["TWIN_STATE", "PD_INSTANCE", "file"])
def test_an_engine_started_by_hand_has_no_faults(tmp_path: Path, missing: str) -> None:
    env = {"TWIN_STATE": str(tmp_path), "PD_INSTANCE": "decode-1"}
    if missing != "file":
        (tmp_path / "engine_faults.json").write_text('{"http": [], "instance": [], "later": false}')
        del env[missing]
    assert middleware(env) == []


def test_the_environment_is_the_hosts_with_one_thread_and_no_net() -> None:
    got = environment({"HCCL_IF_IP": ADDRESS, "OMP_NUM_THREADS": "10", "PYTHONPATH": "/a:/b"})
    assert got["HCCL_IF_IP"] == ADDRESS
    assert got["OMP_NUM_THREADS"] == "1"  # the guide's 10 a worker are for servers
    assert got["HF_HUB_OFFLINE"] == "1"
    assert got["PYTHONPATH"].split(os.pathsep) == [str(SITE), "/a", "/b"]


def test_an_empty_pythonpath_adds_no_current_directory() -> None:
    """An empty entry would mean wherever the engine was started."""
    for env in ({}, {"PYTHONPATH": ""}):
        assert environment(env)["PYTHONPATH"] == str(SITE)


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("0.10.1.1", True),
        ("0.10.1.1+cpu", True),
        ("0.9.2", True),
        ("0.11.0", False),
        ("1.0", False),
    ],
)
def test_the_guides_line_of_versions(version: str, old: bool) -> None:
    assert before_0_11(version) is old


def test_an_old_vllm_is_told_blocks_and_not_bytes() -> None:
    got = adapt(["serve", "/model"], ADDRESS, old=True)
    assert got[got.index("--num-gpu-blocks-override") + 1] == KV_CACHE_BLOCKS
    assert "--kv-cache-memory-bytes" not in got
    assert environment({}, old=True)["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_connectors_of_a_checkout_of_vllm_ascend_are_importable(tmp_path: Path) -> None:
    """Its modules as they are there; only what needs torch_npu is ours."""
    connectors = tmp_path / "vllm_ascend" / "distributed"
    connectors.mkdir(parents=True)
    (tmp_path / "vllm_ascend" / "__init__.py").write_text("import torch_npu")
    (connectors / "__init__.py").write_text("")
    (connectors / "theirs.py").write_text(
        "from vllm_ascend.utils import get_ascend_soc_version\nSOC = get_ascend_soc_version()\n"
    )
    env = environment({"PD_TWIN_VLLM_ASCEND": str(tmp_path)})
    assert str(SITE_ASCEND) in env["PYTHONPATH"].split(os.pathsep)
    told = subprocess.run(
        [sys.executable, "-c", "from vllm_ascend.distributed.theirs import SOC; print(SOC)"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "AscendSocVersion.A2"


def test_without_a_checkout_there_is_no_vllm_ascend() -> None:
    assert str(SITE_ASCEND) not in environment({})["PYTHONPATH"]
