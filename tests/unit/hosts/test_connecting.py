"""What is said when there is no SSH session to be had, and that it never takes long."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import paramiko
import pytest
from ssh_servers import Server, server_of

from pd_validate.errors import (
    CommandTimeout,
    HostAuthError,
    HostKeyChanged,
    HostSilent,
    HostUnreachable,
    LabError,
)
from pd_validate.hosts.connection import SshConnection
from pd_validate.hosts.remote import RemoteHost
from pd_validate.spec.models import Ssh, Timeouts
from twin.hosts import TwinHosts

CONNECT = 1.0  # seconds


def failure_of(host: RemoteHost) -> LabError:
    """The error of a first command, which must come soon after the connect deadline."""
    started = time.monotonic()
    with host, pytest.raises(LabError) as failure:
        host.run("true", timeout=5)
    assert time.monotonic() - started < CONNECT + 3
    return failure.value


def impatient(server: Server, **ssh: object) -> RemoteHost:
    settings = server.ssh.model_copy(update=ssh)
    return RemoteHost("d1", server.address, settings, timeouts=Timeouts(connect=CONNECT))


# --- nobody there -------------------------------------------------------------------------------


def test_nothing_listens(d1: Server) -> None:
    with socket.create_server((d1.address, 0)) as gone:
        port = gone.getsockname()[1]
    error = failure_of(impatient(d1, port=port))
    assert isinstance(error, HostUnreachable)
    assert "Connection refused" in str(error)
    assert f"ssh -p {port} -i {d1.ssh.key} {d1.ssh.user}@{d1.address} true" in str(error)


def test_a_name_that_nobody_knows() -> None:
    host = RemoteHost("d1", "no-such-host.invalid", Ssh(), timeouts=Timeouts(connect=CONNECT))
    error = failure_of(host)
    assert isinstance(error, HostUnreachable)
    assert "no-such-host.invalid" in str(error)


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ssh = Ssh(port=silent.getsockname()[1], check_host_key=False)
        host = RemoteHost("d1", "127.0.0.1", ssh, timeouts=Timeouts(connect=CONNECT))
        error = failure_of(host)
    assert isinstance(error, HostUnreachable)
    assert "banner" in str(error) or "said nothing" in str(error)


def test_a_server_that_hangs(fragile: TwinHosts) -> None:
    with frozen(fragile):
        error = failure_of(impatient(server_of(fragile, "d1")))
    assert isinstance(error, HostSilent)


def test_a_server_that_hangs_after_the_log_in(fragile: TwinHosts) -> None:
    with impatient(server_of(fragile, "d1")) as host:
        host.connect()
        with frozen(fragile), pytest.raises(HostUnreachable, match="did not start a command"):
            host.run("true", timeout=1)
        assert host.run("echo again", timeout=5).stdout == "again\n"


def test_a_server_that_hangs_while_a_command_runs(fragile: TwinHosts, tmp_path: Path) -> None:
    with impatient(server_of(fragile, "d1")) as host:
        host.connect()
        pid = fragile["d1"].pid
        with pytest.raises(CommandTimeout):
            host.run(f"kill -STOP {pid}; sleep 0.1; kill -CONT {pid}; sleep 9", timeout=1)


def test_a_server_that_came_back_is_used_again(fragile: TwinHosts) -> None:
    with impatient(server_of(fragile, "d1")) as host:
        assert host.run("echo one", timeout=5).stdout == "one\n"
        fragile.kill("d1")
        with pytest.raises(HostUnreachable, match="Connection refused"):
            host.run("echo two", timeout=5)
        fragile.restart("d1")
        assert host.run("echo three", timeout=5).stdout == "three\n"


def test_a_server_that_never_answers_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session opens, and then the request to run a command is not answered."""
    monkeypatch.setenv("LAB_PASSWORD", "any")
    released = threading.Event()

    class Mute(paramiko.ServerInterface):
        def check_auth_password(self, username: str, password: str) -> int:
            return paramiko.AUTH_SUCCESSFUL

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return paramiko.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
            released.wait(20)
            return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ssh = Ssh(port=listener.getsockname()[1], password_env="LAB_PASSWORD", check_host_key=False)
        with RemoteHost("d1", "127.0.0.1", ssh, timeouts=Timeouts(connect=5)) as host:
            connecting = threading.Thread(target=host.connect)
            connecting.start()
            server = paramiko.Transport(listener.accept()[0])
            server.add_server_key(paramiko.ECDSAKey.generate())
            server.start_server(server=Mute())
            connecting.join(10)
            try:
                with pytest.raises(HostUnreachable, match="did not start a command in time"):
                    host.run("true", timeout=1)
            finally:
                released.set()
                server.close()


# --- not let in ---------------------------------------------------------------------------------


def test_a_key_that_is_refused(fragile: TwinHosts) -> None:
    fragile.refuse_key("d1")
    server = server_of(fragile, "d1")
    error = failure_of(impatient(server))
    assert isinstance(error, HostAuthError)
    assert f"refuses user {server.ssh.user} with key {server.ssh.key}" in str(error)


def test_a_user_that_is_refused(server: Server) -> None:
    error = failure_of(impatient(server, user="nobody"))
    assert isinstance(error, HostAuthError)
    assert "nobody" in str(error)


def test_a_key_file_that_is_not_there(d1: Server, tmp_path: Path) -> None:
    error = failure_of(impatient(d1, key=tmp_path / "missing"))
    assert isinstance(error, HostAuthError)
    assert f"{tmp_path}/missing does not exist" in str(error)


def test_a_file_that_is_no_key(d1: Server, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key\n")
    error = failure_of(impatient(d1, key=tmp_path / "key"))
    assert isinstance(error, HostAuthError)
    assert f"{tmp_path}/key" in str(error)


def test_a_key_with_a_passphrase_asks_nobody(d1: Server, tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "key").write_bytes(key.export_private_key(passphrase="secret", rounds=50))
    error = failure_of(impatient(d1, key=tmp_path / "key"))
    assert isinstance(error, HostAuthError)
    assert "has a passphrase" in str(error)


def test_a_password_comes_from_the_environment_and_shows_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_PASSWORD", "hunter2")
    error = failure_of(impatient(server, key=None, password_env="LAB_PASSWORD"))
    assert isinstance(error, HostAuthError)
    assert "password in LAB_PASSWORD" in str(error)
    assert "hunter2" not in str(error)


def test_a_password_variable_that_is_not_set(d1: Server) -> None:
    error = failure_of(impatient(d1, key=None, password_env="PD_TEST_UNSET"))
    assert isinstance(error, HostAuthError)
    assert "PD_TEST_UNSET, which is not set" in str(error)


# --- not the host we know -----------------------------------------------------------------------


def test_a_host_with_another_key_than_known(fragile: TwinHosts) -> None:
    fragile.change_key("d1")
    server = server_of(fragile, "d1")
    error = failure_of(impatient(server))
    assert isinstance(error, HostKeyChanged)
    assert "shows another host key" in str(error)
    assert str(error).count("SHA256:") == 2
    remove = f"ssh-keygen -f {server.ssh.known_hosts} -R '[{server.address}]:{server.ssh.port}'"
    assert remove in str(error)


def test_an_unknown_host_is_refused_with_what_to_do(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.touch()
    error = failure_of(impatient(server, known_hosts=known))
    assert isinstance(error, HostKeyChanged)
    assert f"is not in {known}" in str(error)
    command = str(error).rpartition("then add it: ")[2]
    subprocess.run(command, shell=True, check=True, stderr=subprocess.DEVNULL)
    with impatient(server, known_hosts=known) as host:
        assert host.run("echo in", timeout=5).stdout == "in\n"


def test_a_known_hosts_file_that_is_not_there(d1: Server, tmp_path: Path) -> None:
    error = failure_of(impatient(d1, known_hosts=tmp_path / "missing"))
    assert isinstance(error, HostKeyChanged)
    assert f"{tmp_path}/missing" in str(error)


def test_an_unknown_host_is_fine_if_the_cluster_file_says_so(d1: Server) -> None:
    with impatient(d1, known_hosts=None, check_host_key=False) as host:
        assert host.run("echo in", timeout=5).stdout == "in\n"


# --- through a jump host ------------------------------------------------------------------------


def test_a_jump_host_is_gone_through(twin: TwinHosts) -> None:
    jump, target = twin["p1"], twin["d1"]
    way = f"{jump.user}@{jump.address}:{jump.port}"
    with impatient(server_of(twin, "d1"), jump=way) as host:
        seen = host.run("echo $SSH_CONNECTION", timeout=5).stdout.split()
        assert seen[2:] == [target.address, str(target.port)]
        assert host.where.endswith(f"through {way}")


def test_a_jump_host_that_is_down_is_named(twin: TwinHosts) -> None:
    error = failure_of(impatient(server_of(twin, "d1"), jump="someone@127.0.0.1:1"))
    assert isinstance(error, HostUnreachable)
    assert "no SSH session with jump host someone@127.0.0.1:1" in str(error)


def test_the_jump_hosts_own_key_is_checked(twin: TwinHosts, tmp_path: Path) -> None:
    jump = twin["p1"]
    lines = twin["d1"].known_hosts.read_text().splitlines(keepends=True)
    known = tmp_path / "known_hosts"
    known.write_text("".join(line for line in lines if f"]:{jump.port} " not in line))
    way = f"{jump.user}@{jump.address}:{jump.port}"
    error = failure_of(impatient(server_of(twin, "d1"), jump=way, known_hosts=known))
    assert isinstance(error, HostKeyChanged)
    assert f"the host key of [{jump.address}]:{jump.port} is not in" in str(error)


def test_a_target_behind_a_jump_host_that_does_not_answer(twin: TwinHosts) -> None:
    jump = twin["p1"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        way = f"{jump.user}@{jump.address}:{jump.port}"
        server = Server("127.0.0.1", server_of(twin, "d1").ssh)
        error = failure_of(impatient(server, jump=way, port=silent.getsockname()[1]))
    assert isinstance(error, HostUnreachable)


# --- a password that is right -------------------------------------------------------------------


def test_the_right_password_logs_in(
    password_server: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_PASSWORD", "hunter2")
    ssh = Ssh(
        user="lab",
        port=password_server("hunter2"),
        password_env="LAB_PASSWORD",
        check_host_key=False,
    )
    connection = SshConnection("d1", "127.0.0.1", ssh, connect_seconds=5)
    connection.connect()
    connection.close()


@pytest.fixture
def password_server() -> Iterator[Callable[[str], int]]:
    """Starts an SSH server that knows one user, `lab`, and the password given; returns its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def start(password: str) -> int:
        class OneUser(asyncssh.SSHServer):  # type: ignore[misc]  # asyncssh is skipped by mypy
            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, given: str) -> bool:
                return (username, given) == ("lab", password)

        async def listen() -> asyncssh.SSHAcceptor:
            key = asyncssh.generate_private_key("ssh-ed25519")
            return await asyncssh.listen(
                "127.0.0.1", 0, server_factory=OneUser, server_host_keys=[key]
            )

        acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
        return int(acceptor.get_port())

    yield start
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@contextmanager
def frozen(hosts: TwinHosts) -> Iterator[None]:
    pid = hosts["d1"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
