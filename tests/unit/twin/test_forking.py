"""Engine processes are forked on a simulated host, and keep nothing that spawned ones lack."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from twin.engine import SITE, environment

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def in_a_process(code: str, **variables: str) -> str:
    """Run code with the twin's plugin importable; what it prints."""
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(SITE), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


CHECKED = """
    import os
    from twin_engine.forking import keep_start_method
    from vllm.platforms.cpu import CpuPlatform

    def stock(cls, config):
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = config

    CpuPlatform.check_and_update_config = classmethod(stock)
    keep_start_method()
    keep_start_method()
    CpuPlatform.check_and_update_config("spawn")
    print(os.environ["VLLM_WORKER_MULTIPROC_METHOD"])
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_cpu_platform_does_not_overrule_the_environment(method: str) -> None:
    pytest.importorskip("vllm.platforms.cpu", reason="needs vLLM (make env)")
    assert in_a_process(CHECKED, **{METHOD: method}) == method


def test_engines_fork_unless_the_cluster_file_says_otherwise() -> None:
    assert environment({})[METHOD] == "fork"
    assert environment({METHOD: "spawn"})[METHOD] == "spawn"


FORKED = """
    import os, signal, socket, sys
    from twin_engine.forking import leave_to_the_parent

    listening = socket.create_server(("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    os.register_at_fork(after_in_child=leave_to_the_parent)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        theirs.sendall(b"still connected")
        signal.pause()
        os._exit(0)
    {then}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_dead_servers_port_refuses_although_its_children_live() -> None:
    """Else a request to an engine whose API server was killed would wait in a queue for ever."""
    code = FORKED.replace(
        "{then}",
        """
    ours.recv(100)
    address = listening.getsockname()
    listening.close()
    try:
        socket.create_connection(address, timeout=5)
        print("connected")
    except ConnectionRefusedError:
        print("refused")
    """,
    )
    assert in_a_process(code) == "refused"


def test_a_childs_signal_does_not_reach_the_parents_loop() -> None:
    code = FORKED.replace(
        "{then}",
        """
    print(ours.recv(100).decode())
    woken.settimeout(0.2)
    try:
        print("woken by", woken.recv(1))
    except TimeoutError:
        print("left alone")
    """,
    )
    assert in_a_process(code).splitlines() == ["still connected", "left alone"]
