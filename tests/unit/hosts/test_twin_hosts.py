"""A simulated host is this machine seen through its own SSH server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ssh_servers import Server, lives, server_of

from pd_validate.hosts.remote import RemoteHost
from pd_validate.waiting import wait_for
from twin.hosts import TwinError, TwinHosts, TwinHostSpec


def test_a_host_has_its_own_home_environment_and_tools(twin: TwinHosts, shell: RemoteHost) -> None:
    done = shell.run(
        "pwd; echo $HOME $TWIN_HOST $TWIN_HOST_ADDRESS $VLLM_HOST_IP; which hccn_tool", timeout=5
    )
    home = str(twin["d1"].directory)
    assert done.stdout.splitlines() == [
        home,
        f"{home} d1 127.0.0.2 127.0.0.2",
        f"{home}/bin/hccn_tool",
    ]


def test_the_environment_of_whoever_started_the_twin_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://controller.invalid")
    spec = TwinHostSpec("p9", "127.0.0.5", env={"HCCL_IF_IP": "10.9.9.9"})
    with TwinHosts.start([spec], root=tmp_path / "hosts", state=tmp_path / "state") as hosts:
        done = server_of(hosts, "p9").host().run("echo $HTTP_PROXY; echo $HCCL_IF_IP", timeout=5)
    assert done.stdout == "\n10.9.9.9\n"


def test_python_is_the_environments(shell: RemoteHost) -> None:
    done = shell.python("import sys; print(sys.prefix)", timeout=10)
    assert done.stdout.strip() == sys.prefix


def test_its_own_hccn_conf_is_the_one_that_cat_shows(twin: TwinHosts, shell: RemoteHost) -> None:
    missing = shell.run("cat /etc/hccn.conf", timeout=5)
    assert missing.exit_code == 1
    assert missing.stderr == "cat: /etc/hccn.conf: No such file or directory\n"
    conf = twin["d1"].directory.parents[1] / "state" / "d1" / "etc" / "hccn.conf"
    conf.write_text("address_0=10.0.0.1\n")
    try:
        shown = shell.run("cat /etc/hccn.conf; ls /etc/hccn.conf", timeout=5)
    finally:
        conf.unlink()
    assert shown.stdout == "address_0=10.0.0.1\n/etc/hccn.conf\n"


def test_its_own_devices_are_those_that_ls_shows(shell: RemoteHost) -> None:
    assert shell.run("ls /dev/davinci[0-9]*", timeout=5).stdout == "/dev/davinci0\n/dev/davinci1\n"
    absent = shell.run("ls -d /dev/davinci7", timeout=5)
    assert absent.exit_code == 2
    assert absent.stderr == "ls: cannot access '/dev/davinci7': No such file or directory\n"


def test_everything_else_is_this_machines(shell: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("real\n")
    done = shell.run(
        f"cat '{tmp_path}/a b' -; ls -1 {tmp_path}; ls /no/such", timeout=5, stdin=b"in\n"
    )
    assert done.stdout == "real\nin\na b\n"
    assert done.stderr == "ls: cannot access '/no/such': No such file or directory\n"


def test_ordinary_clients_can_use_it(twin: TwinHosts, tmp_path: Path) -> None:
    host = twin["d1"]
    options = ["-i", str(host.key), "-o", f"UserKnownHostsFile={host.known_hosts}"]
    options += ["-o", "BatchMode=yes"]
    target = f"{host.user}@{host.address}"
    ssh = subprocess.run(
        ["ssh", *options, "-p", str(host.port), target, "echo out; exit 5"],
        capture_output=True,
        timeout=20,
    )
    assert (ssh.returncode, ssh.stdout) == (5, b"out\n")
    (tmp_path / "data").write_bytes(os.urandom(1000))
    batch = f"put {tmp_path}/data copied\nget copied {tmp_path}/back\n"
    sftp = ["sftp", *options, "-P", str(host.port), "-b", "-", target]
    subprocess.run(sftp, input=batch.encode(), check=True, capture_output=True, timeout=20)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
    assert (host.directory / "copied").exists()


def test_a_client_that_leaves_ends_no_process_but_its_streams(
    server: Server, tmp_path: Path
) -> None:
    """As OpenSSH's sshd without a terminal: no signal, only end of file and broken pipes."""
    pids = tmp_path / "pids"
    with server.host() as host:
        channel = host.stream(["sh", "-c", f"cat; echo $$ > {pids}; exec sleep 600"], env={})
        channel.sendall(b"x")
        assert channel.recv(1) == b"x"
    # `cat` met end of file, and the shell went on.
    pid = wait_for(lambda: _number(pids), seconds=5, what="the shell going on")
    os.kill(pid, signal.SIGKILL)


def test_a_client_that_leaves_breaks_the_pipe(server: Server, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with server.host() as host:
        script = f"trap '' PIPE; while echo x; do sleep 0.05; done 2>/dev/null; touch {ended}"
        assert host.stream(["sh", "-c", script], env={}).recv(1) == b"x"
    wait_for(lambda: ended.exists() or None, seconds=5, what="the broken pipe")


def test_a_killed_server_takes_its_connections_along_and_comes_back(fragile: TwinHosts) -> None:
    before = fragile["d1"]
    with server_of(fragile, "d1").host() as host:
        host.connect()
        fragile.kill("d1")
        after = fragile.restart("d1")
        assert (after.address, after.port) == (before.address, before.port)
        assert after.pid != before.pid
        assert host.run("echo back", timeout=5).stdout == "back\n"


def test_no_server_outlives_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import time\nfrom pathlib import Path\nfrom twin.hosts import *\n"
        f"root = Path({str(tmp_path)!r})\n"
        "hosts = TwinHosts.start([TwinHostSpec('d1', '127.0.0.6')], root=root, state=root)\n"
        "print(hosts['d1'].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert lives(server)
        parent.kill()
        wait_for(lambda: None if lives(server) else True, seconds=5, what="the server's end")


def test_a_host_that_cannot_start_is_named_and_nothing_stays(tmp_path: Path) -> None:
    specs = [TwinHostSpec("good", "127.0.0.7"), TwinHostSpec("bad", "192.0.2.254")]
    started = time.monotonic()
    with pytest.raises(TwinError, match=r"twin host bad: its SSH server on 192\.0\.2\.254 ended"):
        TwinHosts.start(specs, root=tmp_path / "hosts", state=tmp_path / "state")
    assert time.monotonic() - started < 15
    servers = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert servers.stdout == ""


def _number(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else None
