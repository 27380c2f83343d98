"""What would be run on which host, without a connection to any of them."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest
from as_user import USABLE, run_pytest

from pd_validate import cli
from pd_validate.dry_run import rendered_plan
from pd_validate.spec.load import load_cluster


@pytest.fixture
def file(empty: Path) -> Path:
    path = empty / "cluster.yaml"
    path.write_text(USABLE)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a connection to anywhere is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def test_pytest_prints_the_plan_and_runs_nothing(file: Path) -> None:
    """The addresses lead nowhere (RFC 5737): whoever connects does not end."""
    done = run_pytest(["--cluster", file.name, "--dry-run"], file.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for host, address in {"p1": "192.0.2.1", "d1": "192.0.2.2", "d2": "192.0.2.3"}.items():
        assert f"### {host} ({address})" in done.stdout
    assert done.stdout.count("vllm serve") == 3
    assert [path.name for path in file.parent.iterdir()] == ["cluster.yaml"]


def test_each_host_has_its_own_processes(file: Path, offline: None) -> None:
    blocks = blocks_of(rendered_plan(load_cluster(file)))
    assert list(blocks) == ["p1 (192.0.2.1)", "d1 (192.0.2.2)", "d2 (192.0.2.3)"]
    prefiller, decoder, other = blocks.values()
    assert "kv_producer" in prefiller
    assert "kv_consumer" in decoder
    assert "-m proxy" in prefiller
    assert "-m proxy" not in decoder + other
    assert "ASCEND_RT_VISIBLE_DEVICES=6,7" in decoder
    assert "HCCL_IF_IP=192.0.2.3" in other


def test_the_plan_is_shell(file: Path, offline: None) -> None:
    """It can be pasted: quotes close, and the launch is one command with the guide's words."""
    block = blocks_of(rendered_plan(load_cluster(file)))["d1 (192.0.2.2)"]
    words = shlex.split(block, comments=True)
    assert words[words.index("vllm") :][:3] == ["vllm", "serve", "/model/Qwen3-30B-A3B"]
    assert words[words.index("--tensor-parallel-size") + 1] == "2"


def test_the_command_line_prints_the_same(
    file: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(file)]) == 0
    assert capsys.readouterr().out.strip() == rendered_plan(load_cluster(file))


def test_check_says_what_is_in_a_usable_file(
    file: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: three-servers, 3 hosts, 3 instances: usable\n"


@pytest.mark.parametrize("command", ["plan", "check"])
def test_a_wrong_file_is_told_in_one_line(
    file: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(USABLE.replace("nic:", "nik:"))
    assert cli.main([command, str(file)]) == cli.USAGE_ERROR
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"{file}:2:1: unknown key `nik`")
    assert error.count("\n") == 1


def test_options_may_come_from_the_environment(file: Path) -> None:
    """As in a CI job; the same plan as from the command line."""
    env = {"PD_CLUSTER": file.name, "PD_DRY_RUN": "1", "PD_AUDIT": "off"}
    done = run_pytest([], file.parent, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == rendered_plan(load_cluster(file), audit="off")


def blocks_of(plan: str) -> dict[str, str]:
    """The plan's text by host, as `### host (address)` heads it."""
    parts = [part.partition("\n") for part in plan.removeprefix("### ").split("\n### ")]
    return {head: body for head, _, body in parts}
