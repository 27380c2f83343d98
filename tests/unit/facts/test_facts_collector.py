"""The script that runs on a host, against small programs that stand for the vendor's tools."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pd_validate.errors import CommandTimeout, HostUnreachable, LabError
from pd_validate.facts import collector
from pd_validate.facts.hosts import HostFailure, each_host, run_collector
from pd_validate.hosts import agent
from pd_validate.hosts.api import Completed

OPTIONS = {"timeout": 5, "budget": 60, "retries": 2, "patience": 60}
OPTIONS |= {"stop_texts": ["not exist"], "prefix": []}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in front of PATH; a back-off of no length to speak of."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(collector, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(collector, "SETTLE_PAUSE", 0.01)
    return tmp_path


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(*commands: dict[str, Any], **options: Any) -> list[Any]:
    request = {"tools": {**OPTIONS, **options}, "commands": list(commands)}
    answers = collector.collect(request)["commands"]
    assert isinstance(answers, list)
    return answers


def test_both_streams_exit_code_and_time_are_kept(programs: Path) -> None:
    program(programs, "hccn_tool", "echo out; echo err >&2; exit 13")
    (answer,) = run({"argv": ["hccn_tool", "-i", "0", "-ip", "-g"]})
    assert (answer["stdout"], answer["stderr"], answer["exit"]) == ("out\n", "err\n", 13)
    assert answer["command"] == "hccn_tool -i 0 -ip -g"
    assert 0 < answer["seconds"] < 5


def test_a_missing_tool_is_an_answer(programs: Path) -> None:
    (answer,) = run({"argv": ["no-such-tool-here"]})
    assert answer["exit"] == 127
    assert "command not found" in answer["stderr"]


def test_a_busy_device_is_asked_again(programs: Path) -> None:
    program(
        programs,
        "hccn_tool",
        f"if [ -e {programs}/asked ]; then echo fine; else touch {programs}/asked; echo busy; fi",
    )
    (answer,) = run({"argv": ["hccn_tool"], "retry_texts": ["busy"], "device": 0})
    assert (answer["stdout"], answer["attempts"]) == ("fine\n", 2)


def test_a_device_that_stays_busy_costs_its_retries_once(programs: Path) -> None:
    program(programs, "hccn_tool", "echo busy")
    command = {"argv": ["hccn_tool"], "retry_texts": ["busy"], "device": 0}
    first, second, other = run(command, command, {**command, "device": 1})
    assert (first["attempts"], second["attempts"], other["attempts"]) == (3, 1, 3)


def test_a_device_that_refuses_is_not_taken_for_a_busy_one(programs: Path) -> None:
    """Some queries only say "failed", busy or refused; -link, asked before, tells which."""
    program(programs, "hccn_tool", "case $1 in link) echo denied;; *) echo failed;; esac")
    link = {"argv": ["hccn_tool", "link"], "refusal_texts": ["denied"], "device": 0}
    query = {"argv": ["hccn_tool", "ip"], "maybe_busy_texts": ["failed"], "device": 0}
    _, refused, maybe = run(link, query, {**query, "device": 1})
    assert (refused["attempts"], maybe["attempts"]) == (1, 3)


def test_busy_devices_of_one_host_share_its_patience(programs: Path) -> None:
    program(programs, "hccn_tool", "echo busy")
    command = {"argv": ["hccn_tool"], "retry_texts": ["busy"]}
    answers = run(*({**command, "device": number} for number in range(4)), patience=0.065)
    assert [answer["attempts"] for answer in answers] == [3, 3, 1, 1]


def test_a_device_that_hangs_is_not_asked_again_and_its_processes_are_gone(programs: Path) -> None:
    program(programs, "hccn_tool", f"sleep 60 & echo $! > {programs}/child; wait")
    command = {"argv": ["hccn_tool", "-i", "6"], "timeout": 0.3, "device": 6}
    hung, skipped, other = run(command, command, {"argv": ["echo", "x"], "device": 7})
    assert hung["timed_out"]
    assert hung["exit"] is None
    assert "did not answer `hccn_tool -i 6`" in skipped["skipped"]
    assert other["stdout"] == "x\n"
    child = int((programs / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/stat").read_text().split()[2]
        if state == "Z":
            break
    else:
        assert not Path(f"/proc/{child}").exists()


def test_a_device_that_is_gone_is_not_asked_again(programs: Path) -> None:
    program(programs, "hccn_tool", "echo 'The device does not exist'")
    command = {"argv": ["hccn_tool"], "device": 6}
    _, skipped = run(command, command)
    assert "did not answer" in skipped["skipped"]


def test_the_budget_of_a_host_is_kept(programs: Path) -> None:
    (answer,) = run({"argv": ["echo", "x"]}, budget=0)
    assert answer["skipped"].startswith(collector.OUT_OF_TIME)


def test_a_prefix_is_for_the_vendors_tools_only(programs: Path) -> None:
    program(programs, "hccn_tool", "echo tool")
    tool, other = run({"argv": ["hccn_tool"]}, {"argv": ["echo", "x"]}, prefix=["env"])
    assert (tool["command"], other["command"]) == ("env hccn_tool", "echo x")


def test_a_tool_in_its_vendors_directory_gets_the_prefix_too(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on every real host; and with its whole path, since root's PATH is another one."""
    vendors = programs / "driver"
    vendors.mkdir()
    program(vendors, "hccn_tool", "echo tool")
    program(programs, "sudo", 'test "$1" = -n && shift; case $1 in /*) echo "as root"; "$@";; esac')
    monkeypatch.setattr(collector, "HCCN_TOOL", str(vendors / "hccn_tool"))
    program(programs, "npu-smi", "echo smi")
    answers = run({"argv": ["hccn_tool"]}, {"argv": ["npu-smi"]}, prefix=["sudo", "-n"])
    assert [a["stdout"] for a in answers] == ["as root\ntool\n", "as root\nsmi\n"]


def test_nothing_is_used_that_python_3_8_does_not_have() -> None:
    """Of what came later and is easily taken: a host's Python may be that old."""
    for sent in (collector, agent):
        source = Path(sent.__file__).read_text()
        ast.parse(source, feature_version=(3, 8))
        assert not re.search(
            r"\.remove(prefix|suffix)\(|\bzip\(.*strict=|functools\.cache\b", source
        )


# --- read-only ----------------------------------------------------------------------------------

TLS = {"argv": ["hccn_tool", "-i", "3", "-tls", "-g"], "needs_key": "tls_enable_3"}


@pytest.mark.parametrize(
    ("conf", "user", "runs"),
    [
        ("address_3=1.2.3.4\ntls_enable_3=0\n", "0", True),
        ("address_3=1.2.3.4\n", "0", False),
        ("tls_enable_33=0\n", "0", False),
        ("# tls_enable_3=0\n", "0", False),
        ("", "0", False),
        ("address_3=1.2.3.4\n", "1000", True),
    ],
)
def test_tls_is_asked_only_where_that_writes_nothing(
    programs: Path, conf: str, user: str, runs: bool
) -> None:
    program(programs, "hccn_tool", f"touch {programs}/asked")
    program(programs, "id", f"echo {user}")
    (programs / "conf").write_text(conf)
    read = {"argv": ["cat", str(programs / "conf")], "keep": "settings"}
    _, tls = run(read, TLS)
    assert (programs / "asked").exists() == runs
    assert ("would add tls_enable_3" in tls.get("skipped", "")) != runs


def test_no_command_of_a_request_can_set_anything() -> None:
    """The vendor's tools change state with -s, -c, -d, -a, -cfg and -roce_test."""
    from lab_requests import all_commands

    words = {word for argv in all_commands() for word in argv}
    assert not words & {"-s", "-d", "-a", "-cfg", "-roce_test", "set", "up", "down", "recovery"}
    hccn = [argv for argv in all_commands() if argv[0] == "hccn_tool"]
    assert all("-g" in argv and "-c" not in argv for argv in hccn)


# --- settling -----------------------------------------------------------------------------------


def test_detection_that_is_starting_is_asked_again_later(programs: Path) -> None:
    program(
        programs,
        "hccn_tool",
        f"if [ -e {programs}/asked ]; then echo 'status: Success'; "
        f"else touch {programs}/asked; echo 'status: Init'; fi",
    )
    answer, _ = run(
        {"argv": ["hccn_tool"], "settle_texts": ["status: Init"], "settle_unless": 1},
        {"argv": ["echo", "netdetect addr: 10.0.0.1"]},
    )
    assert answer["stdout"] == "status: Success\n"


def test_detection_without_an_address_is_not_waited_for(programs: Path) -> None:
    program(programs, "hccn_tool", f"echo once >> {programs}/asked; echo 'status: Init'")
    run(
        {"argv": ["hccn_tool"], "settle_texts": ["status: Init"], "settle_unless": 1},
        {"argv": ["echo", "netdetect addr: 0.0.0.0"]},
    )
    assert (programs / "asked").read_text().count("once") == 1


def test_cards_are_numbered_as_the_host_does() -> None:
    spec = {"argv": ["echo", "{card}", "{chip}"], "device": 6, "card_and_chip": [3, 0]}
    mapping = "NPU ID Chip ID Chip Logic ID Chip Phy-ID Chip Name\n6 0 6 6 Ascend910\n"
    keep = {"argv": ["printf", mapping], "keep": "chips"}
    before, _, after = run(spec, keep, spec)
    assert (before["stdout"], after["stdout"]) == ("3 0\n", "6 0\n")


# --- host ---------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_in_use_names_its_process(listener: int) -> None:
    state = collector.port("127.0.0.1", listener)
    assert state["free"] is False
    assert f"pid {os.getpid()}:" in state["holder"]


def test_port_of_another_loopback_host_is_no_clash(listener: int) -> None:
    assert collector.port("127.0.0.2", listener)["free"] is True
    assert collector.port("0.0.0.0", listener)["free"] is False


def test_the_holder_is_who_listens_at_this_address() -> None:
    """Another listener on the same port, at another address, is not in the way."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        number = ours.getsockname()[1]
        program = (
            "import socket, sys; s = socket.create_server(('127.0.0.2', int(sys.argv[1]))); "
            "print(1, flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", program, str(number)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert collector.port("127.0.0.1", number)["holder"].startswith(f"pid {os.getpid()}:")
            assert collector.port("127.0.0.2", number)["holder"].startswith(f"pid {other.pid}:")
            assert collector.port("127.0.0.3", number)["free"] is True
            other.communicate()


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.2", "::", "fe80::1", "::ffff:10.1.2.3"])
def test_addresses_as_the_kernel_writes_them(address: str) -> None:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    written = "".join(f"{word:08X}" for word in words)
    assert collector.written_address(written) == address.removeprefix("::ffff:")


def test_port_of_a_passing_connection_is_free(listener: int) -> None:
    with socket.create_connection(("127.0.0.1", listener)) as connection:
        address, number = connection.getsockname()
        assert collector.port(address, number)["free"] is True


def test_port_on_an_address_that_is_not_ours_cannot_be_tried() -> None:
    state = collector.port("192.0.2.77", 13700)
    assert state["free"] is None
    assert state["error"]


def test_no_secret_leaves_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:pass@proxy:3128")
    monkeypatch.setenv("VLLM_API_KEY", "x")
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    found = collector.environment(["http_proxy", "VLLM_"])
    assert found["http_proxy"] == "http://***@proxy:3128"
    assert found["VLLM_HOST_IP"] == "10.0.0.1"
    assert "VLLM_API_KEY" not in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vllm serve m --api-key sk-123 --port 1", "vllm serve m --api-key *** --port 1"),
        ("x --token=abc", "x --token=***"),
        ("curl http://u:p@h/x", "curl http://***@h/x"),
        ("python -m proxy --port 8080", "python -m proxy --port 8080"),
    ],
)
def test_command_lines_of_others_lose_their_secrets(text: str, shown: str) -> None:
    assert collector.without_secrets(text) == shown


def test_network_cards_without_iproute() -> None:
    loopback = collector.card("lo")
    assert {"UP", "LOOPBACK"} <= set(loopback["flags"])
    assert "NO-CARRIER" not in loopback["flags"]
    assert loopback["addr_info"][0]["local"] == "127.0.0.1"
    assert loopback["addr_info"][0]["prefixlen"] == 8
    assert collector.card("no-such-card")["addr_info"] == []


def test_model_files_by_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/lock").write_text("")
    first = collector.model(str(tmp_path))
    assert list(first["files"]) == ["config.json"]
    (tmp_path / "config.json").write_text("[]")
    assert collector.model(str(tmp_path)) != first
    assert collector.model(str(tmp_path / "none"))["error"] == "no such directory"


def test_large_weights_are_sampled_over_their_whole_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "WHOLE", 1000)
    monkeypatch.setattr(collector, "PIECE", 100)
    path = tmp_path / "weights"
    digests = set()
    # Zeroed parts, as of a copy that was cut and resumed, and another end.
    for start, end in ((0, 0), (0, 2000), (40_000, 50_000), (99_999, 100_000)):
        data = bytearray(b"x" * 100_000)
        data[start:end] = bytes(end - start)
        path.write_bytes(data)
        digests.add(tuple(collector.digest(str(path))))
    assert len(digests) == 4


# --- the whole round trip -----------------------------------------------------------------------


class Here:
    """`Commands.python` on this machine."""

    name = "here"

    def __init__(self, noise: str = "") -> None:
        self.noise = noise

    def python(self, source: str, *, args: tuple[str, ...] = (), timeout: float) -> Completed:
        done = subprocess.run(
            [sys.executable, "-", *args], input=source, capture_output=True, text=True, check=False
        )
        return Completed("python3 -", done.returncode, self.noise + done.stdout, done.stderr, 0.1)


def test_the_request_travels_inside_the_script() -> None:
    """Longer than any argument may be, and with every kind of quote."""
    nasty = "'\"\\ $HOME `x` \n é" * 20_000
    request = {"tools": OPTIONS, "commands": [{"argv": ["printf", "%s", "'\"\\"]}], "x": nasty}
    document = run_collector(Here(), request, timeout=30)  # type: ignore[arg-type]
    assert document["commands"][0]["stdout"] == "'\"\\"


def test_what_a_login_script_prints_does_not_matter() -> None:
    request = {"tools": OPTIONS}
    document = run_collector(Here("Welcome {x}!\n"), request, timeout=30)  # type: ignore[arg-type]
    assert document["collected"]


def test_a_script_that_does_not_run_is_one_clear_error() -> None:
    class Old(Here):
        def python(self, source: str, *, args: tuple[str, ...] = (), timeout: float) -> Completed:
            return Completed("python3 -", 1, "", "SyntaxError: invalid syntax\n", 0.1)

    with pytest.raises(LabError, match=r"here: .*SyntaxError.*Python 3.8"):
        run_collector(Old(), {"tools": OPTIONS}, timeout=30)  # type: ignore[arg-type]


def test_one_host_that_fails_leaves_the_others_results() -> None:
    def work(host: str) -> str:
        if host == "bad":
            raise HostUnreachable("bad: no route")
        if host == "slow":
            raise CommandTimeout("slow: no answer in 10 s")
        return json.dumps(host)

    results = each_host(["good", "bad", "slow"], work)
    assert results["good"] == '"good"'
    assert results["bad"] == HostFailure("bad", "host.unreachable", "bad: no route")
    assert results["slow"] == HostFailure("slow", "host.hang", "slow: no answer in 10 s")


def test_the_script_needs_nothing_newer_than_python_3_8() -> None:
    import ast

    source = Path(collector.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {str(name).partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)
