"""Faults of hosts, on a real simulated host: files, programs, clock, ports, variables, SSH."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from twin.fabric import healthy_cluster
from twin.faults import break_host, environment_of
from twin.hosts import TwinHosts, TwinHostSpec
from twin.scenario import Scenario

NAME = "d1"


class Stand:
    """One host that a scenario has broken; commands run as a login would run them."""

    def __init__(self, root: Path, undo: ExitStack) -> None:
        self._root = root
        self._undo = undo
        state = root / "state"
        healthy_cluster({NAME: "127.0.0.1"}).write(state)
        self.hosts = undo.enter_context(
            TwinHosts.start([TwinHostSpec(NAME)], root=root, state=state)
        )
        self.home = self.hosts[NAME].directory

    def broken(self, *faults: dict[str, object]) -> None:
        scenario = Scenario.model_validate({"faults": faults})
        break_host(scenario, NAME, self.hosts, self._undo)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.home}/bin:/usr/bin:/bin",
            "TWIN_STATE": str(self._root / "state"),
            "TWIN_HOST": NAME,
        }
        return subprocess.run(
            ["/bin/sh", "-c", command], env=env, capture_output=True, text=True, timeout=20
        )


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(tmp_path, undo)


def test_files_programs_and_the_clock(stand: Stand) -> None:
    stand.broken(
        {"host": NAME, "file": "~/bin/hccn_tool", "text": None},
        {"host": NAME, "file": "~/bin/hello", "text": "#!/bin/sh\necho hi\n"},
        {"host": NAME, "file": "~/deep/er/note", "text": "plain"},
        {"host": NAME, "clock": -3600},
    )
    assert stand.run("hccn_tool -i 0 -link -g").returncode == 127
    assert stand.run("hello").stdout == "hi\n"
    assert (stand.home / "deep/er/note").read_text() == "plain"
    assert not os.access(stand.home / "deep/er/note", os.X_OK)
    assert float(stand.run("date +%s").stdout) == pytest.approx(time.time() - 3600, abs=5)


def test_any_command_answers_verbatim_and_all_others_as_before(stand: Stand) -> None:
    stand.broken(
        {"host": NAME, "tool": "uname -r", "stdout": "4.19.90 'x' $HOME\n"},
        {
            "host": NAME,
            "tool": "/bin/cat  /etc/hccn.conf",
            "stderr": "cat: /etc/hccn.conf: Permission denied\n",
            "exit": 1,
        },
    )
    assert stand.run("uname -r").stdout == "4.19.90 'x' $HOME\n"
    assert stand.run("uname -s").stdout == "Linux\n"
    refused = stand.run("cat /etc/hccn.conf")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "cat: /etc/hccn.conf: Permission denied\n"
    # The twin's own cat is still there for all else.
    assert "address_0=" in stand.run("cat /dev/null /etc/hccn.conf").stdout


def test_a_foreign_process_holds_the_port_until_the_twin_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as undo:
        Stand(tmp_path, undo).broken({"host": NAME, "listen": port})
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
    socket.create_server(("127.0.0.1", port)).close()


def test_variables_with_the_home_directory(tmp_path: Path) -> None:
    scenario = Scenario.model_validate(
        {
            "faults": [
                {"host": "*", "env": {"HCCL_IF_IP": "10.9.9.9"}},
                {"host": NAME, "env": {"PYTHONPATH": "~/old:~/older"}},
            ]
        }
    )
    assert environment_of(scenario, NAME, tmp_path) == {
        "HCCL_IF_IP": "10.9.9.9",
        "PYTHONPATH": f"{tmp_path}/old:{tmp_path}/older",
    }
    assert environment_of(scenario, "p1", tmp_path) == {"HCCL_IF_IP": "10.9.9.9"}


def test_ssh_down_refuses_connections(stand: Stand) -> None:
    port = stand.hosts[NAME].port
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    stand.broken({"host": NAME, "ssh": "down"})
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_server_that_hangs_accepts_and_says_nothing(stand: Stand) -> None:
    port = stand.hosts[NAME].port
    stand.broken({"host": NAME, "ssh": "hang"})
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
