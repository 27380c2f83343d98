"""`pd-validate doctor` as a user calls it: what it reads of this machine, and its exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pd_validate.cli import main
from pd_validate.doctor.machine import read_machine, version_of
from pd_validate.spec.models import Cluster

FIT, USAGE_ERROR, NOT_FIT = 0, 4, 10


def cluster_file(cluster: Cluster, directory: Path, *, port: int | None = None) -> Path:
    hosts = "".join(
        f"  {name}:\n    address: {host.address}\n"
        f"    ssh: {{port: {port or cluster.ssh_of(name).port}}}\n"
        for name, host in cluster.hosts.items()
    )
    ssh = cluster.ssh_of("p1")
    path = directory / "cluster.yaml"
    path.write_text(
        f"ssh: {{user: {ssh.user}, key: {ssh.key}, known_hosts: {ssh.known_hosts}}}\n"
        f"hosts:\n{hosts}model: {{path: /model}}\n"
        "instances:\n"
        "  prefill-1: {role: prefill, host: p1, devices: [0, 1]}\n"
        "  decode-1: {role: decode, host: d1, devices: [6, 7]}\n"
        "proxy: {host: p1}\n"
    )
    return path


def test_what_is_read_of_this_machine(tmp_path: Path) -> None:
    """Real values: this Python runs this test, and its packages are the pinned ones."""
    machine = read_machine(tmp_path / "not" / "there", {"PATH": os.environ["PATH"]})
    assert machine.python == sys.version_info[:3]
    assert machine.packages
    assert [p for p in machine.packages if not p.fits] == []
    assert machine.spaces[0].free > 0
    assert machine.agent_keys is None


def test_programs_that_are_not_there_or_broken(tmp_path: Path) -> None:
    assert version_of("node", {"PATH": str(tmp_path)}) is None
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\nexit 1\n")
    node.chmod(0o755)
    assert version_of("node", {"PATH": str(tmp_path)}) is None
    node.write_text("#!/bin/sh\necho v22.1.0\n")
    assert version_of("node", {"PATH": str(tmp_path)}) == "v22.1.0"


@pytest.mark.skipif(not shutil.which("ssh-agent"), reason="ssh-agent is not installed")
def test_an_agent_is_asked_for_its_keys(tmp_path: Path) -> None:
    agent = subprocess.run(
        ["ssh-agent", "-a", str(tmp_path / "s"), "-s"], capture_output=True, text=True, check=True
    )
    pid = int(agent.stdout.split("SSH_AGENT_PID=")[1].split(";")[0])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSH_AUTH_SOCK", str(tmp_path / "s"))
            assert read_machine(tmp_path).agent_keys == 0
            patch.setenv("SSH_AUTH_SOCK", str(tmp_path / "absent"))
            assert not read_machine(tmp_path).agent_keys
    finally:
        os.kill(pid, 15)


def test_ready(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cluster_file(cluster, tmp_path)
    assert main(["doctor", str(file), "--report", str(tmp_path)]) == FIT
    said = capsys.readouterr().out
    assert said.endswith("ready to run\n")
    assert "ok      d1: SSH" in said


def test_not_ready(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Port 1: nobody listens. Both hosts are told, each with what to do."""
    file = cluster_file(cluster, tmp_path, port=1)
    assert main(["doctor", str(file), "--report", str(tmp_path)]) == NOT_FIT
    said = capsys.readouterr().out
    assert said.count("MISSING") == said.count("get it: ") == 4
    assert said.endswith("4 missing: see above\n")


def test_without_a_cluster_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--report", str(tmp_path)]) == FIT
    assert "SSH keys" in capsys.readouterr().out


def test_an_environment_that_breaks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    assert main(["doctor", "--report", str(tmp_path)]) == NOT_FIT


def test_a_cluster_file_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path / "absent.yaml")]) == USAGE_ERROR
    assert "no such file" in capsys.readouterr().err
