"""The doctor at the hosts' doors: real SSH servers, and doors that are shut in several ways."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pd_validate.catalogue import CATALOGUE
from pd_validate.doctor.need import Need, State
from pd_validate.doctor.reach import knows, reach
from pd_validate.spec.models import Cluster


def changed(cluster: Cluster, **keys: Any) -> Cluster:
    """The cluster with other `ssh:` keys, or another `python`, for d1 and all."""
    python = keys.pop("python", cluster.python)
    ssh = cluster.ssh_of("d1").model_copy(update=keys)
    host = cluster.hosts["d1"].model_copy(update={"ssh": ssh})
    return cluster.model_copy(update={"hosts": cluster.hosts | {"d1": host}, "python": python})


def of_d1(cluster: Cluster) -> list[Need]:
    found = reach(cluster)
    assert list(found) == ["p1", "d1"]
    return found["d1"]


def test_hosts_that_let_us_in(cluster: Cluster) -> None:
    for name, met in reach(cluster).items():
        assert [(need.state, need.what) for need in met] == [
            (State.OK, f"{name}: SSH"),
            (State.OK, f"{name}: Python"),
        ]
        assert knows(cluster, name)


def test_nobody_listens(cluster: Cluster) -> None:
    """TCP says it; the sound host beside it is told as such."""
    with socket.create_server(("127.0.0.8", 0)) as server:
        port = server.getsockname()[1]
    shut = changed(cluster, port=port)
    (need,) = of_d1(shut)
    assert (need.state, need.what) == (State.MISSING, "d1: TCP")
    assert f"127.0.0.8:{port}: Connection refused" in need.found
    assert "sshd running" in need.get
    assert {need.state for need in reach(shut)["p1"]} == {State.OK}
    assert knows(shut, "d1") is False  # another port is another entry


def test_a_door_that_opens_and_says_nothing(cluster: Cluster) -> None:
    """TCP is well, SSH is not: the fault is sshd's, not the network's."""
    timeouts = cluster.timeouts.model_copy(update={"connect": 1.0})
    with socket.create_server(("127.0.0.8", 0)) as silent:
        port = silent.getsockname()[1]
        quick = changed(cluster, port=port, check_host_key=False)
        tcp, ssh = of_d1(quick.model_copy(update={"timeouts": timeouts}))
    assert (tcp.what, tcp.state) == ("d1: TCP", State.OK)
    assert (ssh.what, ssh.state) == ("d1: SSH", State.MISSING)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
@pytest.mark.parametrize("form", [("-t", "ed25519"), ("-t", "ecdsa", "-m", "PEM")])
def test_a_key_that_is_refused(cluster: Cluster, tmp_path: Path, form: tuple[str, ...]) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", *form, "-N", "", "-f", str(key)], check=True)
    tcp, ssh = of_d1(changed(cluster, key=key))
    assert tcp.state is State.OK
    assert ssh.state is State.MISSING
    assert f"with key {key}" in ssh.found
    assert ssh.get == CATALOGUE["host.auth"].fix


def test_a_host_key_that_is_unknown(cluster: Cluster, tmp_path: Path) -> None:
    nobody = tmp_path / "known_hosts"
    nobody.write_text("")
    stranger = changed(cluster, known_hosts=nobody)
    *_, ssh = of_d1(stranger)
    assert ssh.state is State.MISSING
    assert "key" in ssh.found
    assert knows(stranger, "d1") is False


def test_no_python_there(cluster: Cluster) -> None:
    login, python = of_d1(changed(cluster, python="python3-absent"))
    assert login.state is State.OK
    assert (python.state, python.what) == (State.MISSING, "d1: Python")
    assert "python: /path/to/python3" in python.get


@pytest.mark.parametrize(("prints", "fits"), [("3.7.9", False), ("3.8.0", True)])
def test_an_old_python_there(cluster: Cluster, tmp_path: Path, prints: str, fits: bool) -> None:
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\necho {prints}\n")
    program.chmod(0o755)
    *_, python = of_d1(changed(cluster, python=str(program)))
    assert (python.state is State.OK, python.found) == (fits, prints)
